"""F15: too few file descriptors. A run begins with as many as it needs, and not at all with one less."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from chaos.harness import OPAQUE, Scene, arrivals, assert_whole, harm
from chaos.needs import need_tool
from chaos.report import record
from forked import start_simulator

from pipeline.engines.descriptors import OWN

WORKERS = 40
NEEDED = OWN + 2 * WORKERS
"""One deployment: a connection a worker, and a file a worker."""
ROWS = 5 * WORKERS

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]


@pytest.mark.parametrize("operation", ["chat", "transcription", "speech"])
def test_a_run_needs_what_it_says_and_refuses_to_begin_with_one_less(tmp_path: Path, operation: str) -> None:
    need_tool("F15", "prlimit")
    ledger = tmp_path / "ledger.jsonl"
    with start_simulator({**OPAQUE, "latency": {"median_ms": 300, "sigma": 0}}, ledger=ledger) as simulator:
        scene = Scene(
            folder=tmp_path,
            operation=operation,
            rows=ROWS,
            simulator=simulator,
            ledger=ledger,
            part_rows=WORKERS,
            run={"workers": WORKERS},
        )
        scene.wrap = ("prlimit", f"--nofile={NEEDED - 1}:{NEEDED - 1}")
        assert scene.finish() == 2
        assert f"ulimit -n {NEEDED}" in scene.said()
        assert arrivals(ledger) == []
        assert not scene.out.exists()
        # The soft limit alone is no reason to refuse: the run raises it.
        scene.wrap = ("prlimit", f"--nofile=48:{NEEDED}")
        assert _most_open(scene) <= NEEDED
        found = harm(scene)
        record(fault="F15", what=operation, tried=2, lost=found.lost, doubled=found.doubled, resent_max=0)
        assert_whole(scene)
        assert len(arrivals(ledger)) == ROWS


def _most_open(scene: Scene) -> int:
    """Run to the end; returns the most descriptors that were seen open."""
    process = scene.start()
    most = 0
    try:
        while process.poll() is None:
            most = max(most, _open(process.pid))
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert process.wait() == 0, scene.said()
    assert most > WORKERS
    print(f"\n{scene.operation}: {most} of {NEEDED} descriptors")
    return most


def _open(pid: int) -> int:
    try:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except FileNotFoundError:
        return 0
