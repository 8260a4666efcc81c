"""F1: SIGKILL of sending processes, of the run's own, and of both, where several processes send for one run."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from chaos.counts import SEED, count
from chaos.harness import (
    OPAQUE,
    WORKERS,
    Popen,
    Scene,
    assert_whole,
    calls_by_row,
    harm,
    read_parts,
    wait_for_a_request,
)
from chaos.report import record
from forked import start_simulator

from pipeline.simulator.ledger import Answered, read_ledger

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]

ROWS_A_KILL = 60
LATENCY_MS = 60
ORPHANS_S = 20.0
"""How long a sender may outlive its run on a busy machine; it takes milliseconds on an idle one."""


def senders_of(process: Popen) -> list[int]:
    """The processes that send for a run. Whatever thread started them, the kernel lists them under it."""
    found = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):
                children = [int(pid) for pid in (task / "children").read_text().split()]
                found += [pid for pid in children if b"engines.sender" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return found


def await_true(condition: Callable[[], bool], within_s: float) -> None:
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in {"Z", "X"}
    except FileNotFoundError:
        return False


def _kill_at_random(process: Popen, dice: random.Random, killed: dict[str, int]) -> None:
    """Kill one to three times: senders until it is the run's own turn, which ends it, alone or with a sender."""
    for last in (False, dice.random() < 0.5, True):
        time.sleep(dice.uniform(0.0, 0.8))
        victim = dice.choice(["run", "both"]) if last else "sender"
        senders = senders_of(process)
        if victim != "run" and senders:
            os.kill(dice.choice(senders), signal.SIGKILL)
        if last:
            process.kill()
        killed[victim] += 1
        if last:
            return


@pytest.mark.parametrize("operation", ["chat", "embeddings"])
def test_sigkill_of_senders_and_of_their_run_loses_nothing_and_resends_at_most_a_request_a_worker(
    tmp_path: Path, operation: str
) -> None:
    wanted = count(quick=8, full=60)
    rows = wanted * ROWS_A_KILL * (10 if operation == "embeddings" else 1)
    dice = random.Random(SEED)
    ledger = tmp_path / "ledger.jsonl"
    killed = dict.fromkeys(("sender", "run", "both"), 0)
    with start_simulator({**OPAQUE, "latency": {"median_ms": LATENCY_MS, "sigma": 0.4}}, ledger=ledger) as simulator:
        scene = Scene(
            folder=tmp_path, operation=operation, rows=rows, simulator=simulator, ledger=ledger, run={"processes": 2}
        )
        while sum(killed.values()) < wanted:
            process = scene.start()
            try:
                assert wait_for_a_request(scene, process) is not None, scene.said()
                _kill_at_random(process, dice, killed)
            finally:
                senders = senders_of(process)
                process.kill()
                process.wait()
            await_true(lambda left=tuple(senders): not any(is_alive(pid) for pid in left), ORPHANS_S)
        assert scene.finish() == 0, scene.said()
    calls = calls_by_row(scene)
    found = harm(scene)
    resent = calls.total() - rows
    record(
        fault="F1",
        what=f"{operation}, two senders",
        tried=sum(killed.values()),
        lost=found.lost,
        doubled=found.doubled,
        resent_max=0,
        notes=f"rows asked again in all {resent}; killed {killed}; seed {SEED}",
    )
    print(f"\n{operation}: {killed}, rows asked again {resent} of {rows}")
    assert_whole(scene)
    most = WORKERS * (1 if operation == "chat" else scene.pack)
    assert resent <= sum(killed.values()) * most


def test_a_folder_begun_by_one_process_goes_on_with_two_and_the_other_way_round(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    rows = 900
    with start_simulator({**OPAQUE, "latency": {"median_ms": LATENCY_MS, "sigma": 0.4}}, ledger=ledger) as simulator:
        scene = Scene(folder=tmp_path, operation="chat", rows=rows, simulator=simulator, ledger=ledger)
        for processes in (1, 2, 1, 3):
            scene.run = {"processes": processes}
            scene.ask(simulator)
            process = scene.start()
            assert wait_for_a_request(scene, process) is not None, scene.said()
            time.sleep(0.7)
            process.kill()
            process.wait()
        scene.run = {"processes": 2}
        scene.ask(simulator)
        assert scene.finish() == 0, scene.said()
    assert_whole(scene)
    assert calls_by_row(scene).total() - rows <= 4 * WORKERS


def test_no_sender_outlives_a_run_that_was_killed(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    with start_simulator({**OPAQUE, "latency": {"median_ms": 500, "sigma": 0}}, ledger=ledger) as simulator:
        scene = Scene(
            folder=tmp_path, operation="chat", rows=2_000, simulator=simulator, ledger=ledger, run={"processes": 2}
        )
        process = scene.start()
        try:
            await_true(lambda: len(senders_of(process)) == 2, 60)
            senders = senders_of(process)
        finally:
            process.kill()
            process.wait()
        await_true(lambda: not any(is_alive(pid) for pid in senders), ORPHANS_S)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_has_every_sender_end_its_calls_and_nothing_is_asked_again(
    tmp_path: Path, number: signal.Signals
) -> None:
    ledger = tmp_path / "ledger.jsonl"
    rows = 400
    with start_simulator({**OPAQUE, "latency": {"median_ms": 700, "sigma": 0}}, ledger=ledger) as slow:
        scene = Scene(folder=tmp_path, operation="chat", rows=rows, simulator=slow, ledger=ledger, run={"processes": 2})
        process = scene.start()
        await_true(lambda: len(senders_of(process)) == 2 and scene.in_flight() > WORKERS // 2, 60)
        for sender in senders_of(process):
            os.kill(sender, number)  # as a terminal or a service manager may: it is the run's to say what follows
        os.kill(process.pid, number)
        assert process.wait(60) == 128 + number
        assert scene.in_flight() == 0
    with start_simulator(OPAQUE, ledger=ledger) as quick:
        scene.ask(quick)
        assert scene.finish() == 0, scene.said()
    assert_whole(scene)
    assert calls_by_row(scene).total() == rows


@pytest.mark.parametrize(
    "quota",
    [
        {"requests_per_minute": 3_000},
        {"requests_per_minute": 3_660, "tokens_per_minute": 300_000},
        {"requests_per_minute": 900},
    ],
    ids=["requests", "tokens", "too-small-for-two"],
)
@pytest.mark.parametrize("stated", [True, False], ids=["stated", "learnt"])
def test_two_senders_keep_a_quota_together(tmp_path: Path, quota: dict[str, int], *, stated: bool) -> None:
    ledger = tmp_path / "ledger.jsonl"
    rows = quota["requests_per_minute"] // 60 * 12
    config = {
        **OPAQUE,
        "latency": {"median_ms": 80, "sigma": 0.3},
        "deployments": {"d": {**quota, "model": "gpt-4o-mini"}},
    }
    with start_simulator(config, ledger=ledger) as simulator:
        scene = Scene(
            folder=tmp_path,
            operation="chat",
            rows=rows,
            simulator=simulator,
            ledger=ledger,
            run={"processes": 2},
            deployment=quota if stated else {},
        )
        process = scene.start()
        seen = 0
        while process.poll() is None:
            seen = max(seen, len(senders_of(process)))
            time.sleep(0.02)
        assert process.wait() == 0, scene.said()
    assert seen == (1 if quota["requests_per_minute"] < 1_200 else 2)
    refused = [line for line in read_ledger(ledger) if isinstance(line, Answered) and line.status == 429]
    assert refused == []
    assert_whole(scene)
    assert calls_by_row(scene).total() == rows


def test_senders_that_die_before_any_answer_end_the_run_with_a_word_about_it(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    with start_simulator({**OPAQUE, "latency": {"median_ms": 5_000, "sigma": 0}}, ledger=ledger) as slow:
        scene = Scene(folder=tmp_path, operation="chat", rows=40, simulator=slow, ledger=ledger, run={"processes": 2})
        process = scene.start()
        until = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < until:
            for sender in senders_of(process):
                with suppress(ProcessLookupError):
                    os.kill(sender, signal.SIGKILL)
            time.sleep(0.05)
        assert process.wait(10) == 70
        assert "ended one after another" in scene.said()
        assert "SIGKILL" in scene.said()
    with start_simulator(OPAQUE, ledger=ledger) as quick:
        scene.ask(quick)
        assert scene.finish() == 0, scene.said()
    assert_whole(scene)


def test_a_request_too_large_for_a_share_waits_until_one_sender_has_the_whole_quota(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    quota = {"tokens_per_minute": 60_000}
    config = {
        **OPAQUE,
        "latency": {"median_ms": 30, "sigma": 0},
        "deployments": {"d": {**quota, "model": "gpt-4o-mini"}},
    }
    with start_simulator(config, ledger=ledger) as simulator:
        scene = Scene(
            folder=tmp_path,
            operation="chat",
            rows=60,
            simulator=simulator,
            ledger=ledger,
            run={"processes": 2, "timeout": "60s"},
            deployment=quota,
        )
        lines = scene.folder.joinpath("rows.jsonl").read_text().splitlines()
        large = json.loads(lines[30]) | {"text": "The tide turns twice a day. " * 3_000}
        lines[30] = json.dumps(large)
        scene.folder.joinpath("rows.jsonl").write_text("\n".join(lines) + "\n")
        assert scene.finish() == 0, scene.said()
    refused = [line for line in read_ledger(ledger) if isinstance(line, Answered) and line.status == 429]
    assert refused == []
    assert read_parts(scene.out)["ordinal"].to_pylist() == list(range(60))
