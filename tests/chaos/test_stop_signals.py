"""F6: SIGTERM and SIGINT at random times, once and twice, while every worker waits for a reply of two seconds."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from chaos.counts import SEED, count
from chaos.forked import Forked
from chaos.harness import OPAQUE, WORKERS, Scene, assert_whole, harm, resent_after, wait_for_a_request
from chaos.report import record
from forked import start_simulator

REPLY_MS = 2_000
GRACE_S = 25.0
"""run.grace as it is when a job file does not say it."""
ENDING_S = 2.0
LATE_S = 5.0
"""What ending takes beside the calls, where it is all that is waited for and the machine may be busy."""
SHORT_GRACE_S = 1.0
ROWS_A_SIGNAL = 2 * WORKERS

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1_200)]


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_a_run_in_its_grace_and_nothing_is_asked_again(
    tmp_path: Path, *, number: signal.Signals, twice: bool
) -> None:
    dice = random.Random(f"{SEED} {number.name} {twice}")
    signals = count(quick=5, full=50)
    ledger = tmp_path / "ledger.jsonl"
    with start_simulator({**OPAQUE, "latency": {"median_ms": REPLY_MS, "sigma": 0}}, ledger=ledger) as slow:
        scene = Scene(
            folder=tmp_path,
            operation="chat",
            rows=signals * ROWS_A_SIGNAL,
            simulator=slow,
            ledger=ledger,
            forked=Forked(),
        )
        ended_s = [_signal_a_run(scene, dice, number, twice=twice) for _ in range(signals)]
    with start_simulator(OPAQUE, ledger=ledger) as quick:
        scene.ask(quick)
        assert scene.finish() == 0, scene.said()
    resent = resent_after(scene)
    found = harm(scene)
    record(
        fault="F6",
        what=f"{number.name}{' twice' if twice else ''}",
        tried=signals,
        lost=found.lost,
        doubled=found.doubled,
        resent_max=max(resent),
        recover_s_max=max(ended_s),
        notes=f"time from the last signal to exit {128 + number}; replies take {REPLY_MS / 1000:g} s; seed {SEED}",
    )
    assert_whole(scene)
    assert max(resent) <= (WORKERS if twice else 0)


def test_calls_that_outlast_the_grace_are_left_and_asked_again(tmp_path: Path) -> None:
    dice = random.Random(f"{SEED} grace")
    signals = count(quick=3, full=20)
    ledger = tmp_path / "ledger.jsonl"
    ended_s = []
    with start_simulator({**OPAQUE, "latency": {"median_ms": 600_000, "sigma": 0}}, ledger=ledger) as stuck:
        scene = Scene(
            folder=tmp_path,
            operation="chat",
            rows=ROWS_A_SIGNAL,
            simulator=stuck,
            ledger=ledger,
            forked=Forked(),
            run={"timeout": "600s", "grace": f"{SHORT_GRACE_S:g}s"},
        )
        for _ in range(signals):
            number = dice.choice([signal.SIGTERM, signal.SIGINT])
            ended_s.append(_signal_a_run(scene, dice, number, twice=False, within_s=SHORT_GRACE_S + LATE_S))
    with start_simulator(OPAQUE, ledger=ledger) as quick:
        scene.ask(quick)
        assert scene.finish() == 0, scene.said()
    resent = resent_after(scene)
    found = harm(scene)
    record(
        fault="F6",
        what="once, calls that outlast the grace",
        tried=signals,
        lost=found.lost,
        doubled=found.doubled,
        resent_max=max(resent),
        recover_s_max=max(ended_s),
        notes=f"time from the signal to the exit; run.grace is {SHORT_GRACE_S:g} s; seed {SEED}",
    )
    assert_whole(scene)
    assert min(ended_s) >= SHORT_GRACE_S
    assert max(resent) <= WORKERS


def _signal_a_run(
    scene: Scene, dice: random.Random, number: signal.Signals, *, twice: bool, within_s: float = GRACE_S + ENDING_S
) -> float:
    """Start a run, send it the signal at a random time; returns the seconds until it ended, with the right code."""
    process = scene.start()
    try:
        assert wait_for_a_request(scene, process) is not None, f"give it more rows\n{scene.said()}"
        time.sleep(dice.uniform(0.0, 1.5 * REPLY_MS / 1000))
        os.kill(process.pid, number)
        if twice:
            time.sleep(dice.uniform(0.0, 1.0))
            if process.poll() is None:
                os.kill(process.pid, number)
        began = time.monotonic()
        code = process.wait(60)
    finally:
        process.kill()
        process.wait()
    seconds = time.monotonic() - began
    assert code == 128 + number, f"exit {code}: {scene.said()}"
    assert seconds <= (LATE_S if twice else within_s)
    return seconds
