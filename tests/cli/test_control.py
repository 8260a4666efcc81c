"""`pipeline pause`, `resume`, `drain` and `set`, on a run in a process of its own."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forked import Child

from pipeline.store.meeting import SOCKET
from tests.cli.bench import Bench, Serve

SLOW = {"latency": {"median_ms": 400, "sigma": 0}}
ROWS = 200
PATIENCE_S = 60


@pytest.fixture
def slow(bench: Bench, served: Serve) -> Bench:
    """More rows than are answered while a test looks."""
    bench.environ["TEST_ENDPOINT"] = served(SLOW).url
    bench.rows([f"question {number}?" for number in range(ROWS)])
    return bench


def until(holds: Callable[[], Any]) -> None:
    ends = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < ends, "it does not come"
        time.sleep(0.02)


def begun(bench: Bench, *options: str) -> Child:
    """A run that has had its first answers."""
    process = bench.popen("run", "job.yaml", *options)

    def has_answers() -> bool:
        assert process.poll() is None, "the run ended before it sent anything"
        try:
            return bool(bench.summary()["rows"]["ok"])
        except FileNotFoundError:
            return False

    until(has_answers)
    return process


def said(bench: Bench, *arguments: str) -> str:
    done = bench.call(*arguments)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def test_a_run_is_paused_changed_gone_on_with_and_drained_from_elsewhere(slow: Bench) -> None:
    process = begun(slow)

    paused = said(slow, "pause", "job.yaml").splitlines()
    assert paused[0].startswith("paused: nothing new is sent; ")
    assert paused[1] == "to go on: pipeline resume job.yaml"
    summary = slow.summary()
    since = summary["paused_since"]
    assert (summary["state"], since is None) == ("running", False)
    until(lambda: not slow.summary()["in_flight"])
    rows = slow.summary()["rows"]["ok"]
    assert said(slow, "pause", "out").splitlines()[0] == (
        f"paused already, since {since}: nothing new is sent; nothing is in flight"
    )

    status = said(slow, "status", "job.yaml").splitlines()
    assert status[0].startswith(f"paused: {rows} rows ok, 0 failed")
    assert " · paused for " in status[1]
    assert any(line.startswith("  paused    since ") and "pipeline resume" in line for line in status)
    assert json.loads(said(slow, "status", "out", "--json"))["paused_since"] == since

    assert said(slow, "set", "out", "workers=2", "leave=12.5%") == "workers 2, leave 12.5%, until this run ends\n"
    assert said(slow, "set", "out", "run.workers=2") == "workers 2, leave 12.5%: nothing changed\n"
    assert "  workers   2, 12.5% of each quota left to others" in said(slow, "status", "out").splitlines()
    refused = slow.call("set", "out", "workers=0")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr == "Error: run.workers: must be greater than or equal to 1\n"
    formless = slow.call("set", "out", "workers")
    assert (formless.exit_code, "name=value, such as workers=64 or leave=20%" in formless.stderr) == (2, True)

    assert slow.summary()["rows"]["ok"] == rows
    assert said(slow, "resume", "out") == "the run goes on\n"
    assert said(slow, "resume", "out") == "the run was not paused: it goes on\n"
    until(lambda: slow.summary()["rows"]["ok"] > rows)

    answer = json.loads(said(slow, "drain", "out", "--json"))
    assert (answer["ok"], answer["changed"], answer["state"]) == (True, True, "draining")
    stdout, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 4
    assert stdout.splitlines()[1] == "  drained by `pipeline drain`; run the same command again to continue"
    ended = slow.summary()
    assert (ended["state"], ended["paused_since"], ended["workers"]) == ("stopped", None, 2)
    assert ended["rows"]["ok"] == ended["attempts"] < ROWS
    assert ended["paused_seconds"] > 0
    events = [json.loads(line) for line in (slow.output / "_pipeline" / "log.jsonl").read_text().splitlines()]
    asked = [event for event in events if event["event"] in {"run_paused", "run_changed", "run_unpaused", "draining"}]
    assert [event["event"] for event in asked] == ["run_paused", "run_changed", "run_unpaused", "draining"]
    assert {type(event["uid"]) for event in asked} == {type(event["pid"]) for event in asked} == {int}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_paused_run_at_once(slow: Bench, number: signal.Signals, code: int) -> None:
    process = begun(slow, "--set", "run.grace=10m")
    said(slow, "pause", "out")
    until(lambda: not slow.summary()["in_flight"])

    process.send_signal(number)
    process.communicate(timeout=PATIENCE_S)

    assert process.returncode == code
    assert (slow.summary()["state"], slow.summary()["paused_since"]) == ("interrupted", None)


def test_a_pause_does_not_outlast_a_kill_and_the_next_run_goes_on(slow: Bench, served: Serve) -> None:
    process = begun(slow)
    said(slow, "pause", "out")
    process.kill()
    process.communicate(timeout=PATIENCE_S)
    place = slow.output / "_pipeline" / SOCKET
    assert place.exists(), "nobody was left to remove it"

    for command in ("pause", "resume", "drain"):
        dead = slow.call(command, "out")
        assert (dead.exit_code, dead.stdout) == (2, "")
        assert dead.stderr == f"Error: no run goes on in out, so there is nothing to {command}\n"
    status = json.loads(said(slow, "status", "out", "--json"))
    assert (status["state"], status["paused_since"]) == ("interrupted", None)

    slow.environ["TEST_ENDPOINT"] = served({}).url
    assert slow.call("run", "job.yaml").exit_code == 0
    assert slow.summary()["rows"]["ok"] == ROWS
    assert not place.exists()
    assert slow.call("verify", "out").exit_code == 0


def test_a_run_that_never_was_cannot_be_asked(bench: Bench, tmp_path: Path) -> None:
    missing = bench.call("pause", "job.yaml")

    assert missing.exit_code == 2
    assert "has not been run yet" in missing.stderr
