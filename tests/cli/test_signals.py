from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from forked import Child

import pipeline.__main__
from pipeline import load_job
from pipeline.rehearsal import simulated
from pipeline.simulator.serve import SimulatorProcess
from tests.cli.bench import Bench, Serve

SLOW = {"latency": {"median_ms": 700, "sigma": 0}}
STUCK = {"latency": {"median_ms": 600_000, "sigma": 0}, "poison": [{"contains": "poison", "status": 400}]}


PATIENCE_S = 60
"""Seconds for what ends by itself, on a machine that does much else."""
GRACE_S = 25
"""Seconds that calls in flight have where the job says nothing."""


@pytest.fixture
def slow(bench: Bench, served: Serve) -> Bench:
    """A hundred rows, four at a time, of 0.7 seconds each: enough for the slowest of signals."""
    bench.environ["TEST_ENDPOINT"] = served(SLOW).url
    bench.rows([f"question {number}?" for number in range(100)])
    return bench


@pytest.fixture
def stuck(bench: Bench, served: Serve) -> Bench:
    """Rows that are never answered."""
    bench.environ["TEST_ENDPOINT"] = served(STUCK).url
    return bench


def _events(process: Child) -> Iterator[str]:
    assert process.stderr is not None
    for line in process.stderr:
        yield json.loads(line)["event"]


def _wait_for(process: Child, event: str) -> None:
    assert event in _events(process)


def _wait_until_it_sends(bench: Bench, process: Child) -> None:
    while process.poll() is None:
        try:
            if bench.summary()["in_flight"]:
                return
        except FileNotFoundError:
            pass
        time.sleep(0.02)
    pytest.fail("the run ended before it sent anything")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_cleanly_and_the_same_command_continues(
    slow: Bench, simulator: SimulatorProcess, number: signal.Signals, code: int
) -> None:
    process = slow.popen("run", "job.yaml", "--log-level", "debug")
    _wait_for(process, "attempt")

    process.send_signal(number)
    stdout, _ = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == code
    assert stdout.startswith("interrupted: ")
    assert "run the same command again" in stdout
    summary = slow.summary()
    assert summary["state"] == "interrupted"
    assert 1 <= summary["rows"]["ok"] == summary["attempts"] < 100, "each call in flight is waited for and kept"
    assert summary["rows"]["failed"] == 0
    slow.environ["TEST_ENDPOINT"] = simulator.url
    assert slow.call("run", "job.yaml").exit_code == 0
    assert slow.summary()["rows"]["ok"] == slow.summary()["attempts"] == 100


def test_calls_in_flight_are_given_no_longer_than_the_grace(stuck: Bench) -> None:
    process = stuck.popen("run", "job.yaml", "--set", "run.grace=0.2s")
    _wait_until_it_sends(stuck, process)
    began = time.monotonic()

    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 130
    assert time.monotonic() - began < GRACE_S
    assert stuck.summary()["rows"]["failed"] == 0


def test_a_second_interrupt_leaves_at_once(stuck: Bench) -> None:
    process = stuck.popen("run", "job.yaml", "--set", "run.grace=10m")
    _wait_until_it_sends(stuck, process)
    process.send_signal(signal.SIGINT)
    _wait_for(process, "stopping")
    began = time.monotonic()

    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 130
    assert time.monotonic() - began < GRACE_S


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_while_the_last_words_are_written_leaves_with_the_code_of_a_signal(
    slow: Bench, number: signal.Signals
) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(4096))
    os.set_blocking(writing, True)
    try:
        process = slow.popen("run", "job.yaml", "--log-level", "debug", stdout=writing)
        _wait_for(process, "attempt")
        process.send_signal(number)
        _wait_for(process, "run_ended")
        while not (slow.output / "_pipeline" / "report.html").exists():
            time.sleep(0.01)  # the pipe is full, and nobody reads: its last words wait

        process.send_signal(number)

        process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 128 + number
    finally:
        os.close(writing)
        os.close(reading)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_however_often_a_signal_comes_the_code_is_that_of_one_signal(slow: Bench, number: signal.Signals) -> None:
    process = slow.popen("run", "job.yaml", "--log-level", "debug")
    _wait_for(process, "attempt")
    process.send_signal(number)
    _wait_for(process, "run_ended")

    while process.poll() is None:
        process.send_signal(number)

    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + number


def test_rows_that_wait_in_the_journal_are_read_like_those_in_parts(stuck: Bench) -> None:
    stuck.rows(["stuck", "poison", "stuck"])
    process = stuck.popen("run", "job.yaml", "--set", "run.grace=0s")
    _wait_for(process, "row_failed")

    process.send_signal(signal.SIGINT)
    stdout, _ = process.communicate(timeout=PATIENCE_S)

    assert "1 finished and not yet in a part" in stdout
    assert "none readable yet" in stdout
    (failed,) = json.loads(stuck.call("errors", "out", "--json").stdout)["rows"]
    assert (failed["ordinal"], failed["id"], failed["type"]) == (1, "r-1", "BadRequestError")
    found = json.loads(stuck.call("show", "out", "r-1", "--json").stdout)
    assert (found["where"], found["values"]["question"], found["values"]["status"]) == ("journal", "poison", "failed")
    assert [attempt["status"] for attempt in found["attempts"]] == [400]
    waiting = json.loads(stuck.call("show", "out", "r-0", "--json").stdout)
    assert (waiting["where"], waiting["values"].get("status")) == ("pending", None)
    check = stuck.call("verify", "out", "--input")
    assert check.exit_code == 0, check.output
    assert "0 rows ok, 1 failed, 1 of them not yet in a part" in check.stdout


def test_a_run_that_was_killed_is_called_interrupted(stuck: Bench) -> None:
    process = stuck.popen("run", "job.yaml")
    _wait_until_it_sends(stuck, process)
    running = stuck.call("status", "job.yaml", "--json")

    process.kill()
    process.communicate(timeout=PATIENCE_S)

    assert json.loads(running.stdout)["state"] == "running"
    after = stuck.call("status", "job.yaml")
    assert after.exit_code == 0
    assert after.stdout.startswith("interrupted: ")
    assert "ended without a word" in after.stdout
    summary = stuck.summary()
    assert summary["state"] == "running"
    finished = summary["rows"]["ok"] + summary["rows"]["failed"]
    assert f"{finished} row" in after.stdout
    assert "finished when it last wrote this" in after.stdout
    assert "the same command continues" in after.stdout


def test_a_second_run_of_a_folder_is_turned_away(stuck: Bench) -> None:
    process = stuck.popen("run", "job.yaml")
    _wait_for(process, "run_started")

    second = stuck.call("run", "job.yaml")
    check = stuck.call("verify", "job.yaml")
    process.kill()
    process.communicate(timeout=PATIENCE_S)

    assert second.exit_code == check.exit_code == 75
    assert f"process {process.pid}" in second.stderr


def test_a_rehearsal_takes_its_simulator_with_it_when_it_is_killed(bench: Bench) -> None:
    process = bench.popen("run", "job.yaml", "--simulate", "--set", "deployments.0.requests_per_minute=1")
    _wait_for(process, "run_started")
    ledger = bench.folder / "out.simulated.ledger.jsonl"
    assert ledger.exists()

    process.kill()
    process.communicate(timeout=PATIENCE_S)

    assert not _anybody_mentions(str(ledger))


def _anybody_mentions(text: str) -> bool:
    """Whether a process of this machine keeps the text on its command line, however long it is given."""
    deadline = time.monotonic() + PATIENCE_S
    while found := text in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return found


def test_a_simulator_ends_with_its_block(bench: Bench) -> None:
    job = load_job(bench.job, environ=bench.environ)

    with simulated(job, speed=1) as rehearsed:
        assert rehearsed.deployments[0].endpoint.startswith("http://127.0.0.1:")
        assert rehearsed.output.path.name == "out.simulated"

    assert not _anybody_mentions(str(bench.folder))


def test_a_signal_before_the_run_begins_has_the_same_exit_code(stuck: Bench) -> None:
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        fifo = stuck.folder / f"{code}.yaml"
        os.mkfifo(fifo)
        process = stuck.popen("run", fifo.name)
        with fifo.open("w"):  # it has opened the file, and reads
            process.send_signal(number)
            _, stderr = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == code
        assert "Traceback" not in stderr


IMPORTED = """
import os, signal
os.kill(os.getpid(), signal.SIGINT)
raise SystemExit(7)
"""


@pytest.mark.parametrize(("trap", "ended"), [("", (130, "interrupted\n")), ("trap '' INT; ", (7, ""))])
def test_ctrl_c_while_the_command_is_imported_is_quiet_and_may_be_ignored(
    tmp_path: Path, trap: str, ended: tuple[int, str]
) -> None:
    (tmp_path / "click.py").write_text(IMPORTED)
    done = subprocess.run(
        ["/bin/sh", "-c", f'{trap}exec "$0" -m pipeline --version', sys.executable],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert (done.returncode, done.stderr, done.stdout) == (*ended, "")


def test_the_console_script_and_the_module_are_the_same() -> None:
    scripts = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"pipeline": f"{pipeline.__main__.__name__}:{pipeline.__main__.main.__name__}"}


def test_a_second_interrupt_at_a_terminal_says_how_to_go_on(stuck: Bench) -> None:
    screen, terminal = pty.openpty()
    process = stuck.popen("run", "job.yaml", "--set", "run.grace=10m", stdout=subprocess.DEVNULL, stderr=terminal)
    os.close(terminal)
    _wait_until_it_sends(stuck, process)
    sent = b""
    with contextlib.suppress(OSError):  # a terminal ends with EIO
        process.send_signal(signal.SIGINT)
        while piece := os.read(screen, 65_536):
            sent += piece
            if b"stopping" in sent and b"left at once" not in sent:
                process.send_signal(signal.SIGINT)
    os.close(screen)

    assert process.wait(timeout=PATIENCE_S) == 130
    assert sent.endswith(b"\nleft at once: what was committed is safe, and the same command continues\r\n")
