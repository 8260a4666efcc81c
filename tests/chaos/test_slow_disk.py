"""F21: every flush of the disk takes half a second. Commits share flushes, and no timeout is blamed on the service."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from chaos.harness import OPAQUE, PACK, WORKERS, Scene, assert_whole, calls_by_row, harm
from chaos.needs import need_tool
from chaos.report import record
from forked import start_simulator

FLUSH_S = 0.5
WARM_UP = 10
"""Flushes of the log that begin and end a run, whatever its rows."""

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]


@pytest.mark.parametrize(
    ("operation", "rows", "rows_a_flush"),
    [
        # While one group is flushed the other workers' answers make the next: two groups share the workers.
        ("chat", 12 * WORKERS, WORKERS / 2),
        ("embeddings", 12 * WORKERS * PACK, WORKERS * PACK / 2),
    ],
)
def test_commits_share_the_flushes_of_a_slow_disk(
    tmp_path: Path, operation: str, rows: int, rows_a_flush: float
) -> None:
    need_tool("F21", "strace")
    ledger = tmp_path / "ledger.jsonl"
    trace = tmp_path / "trace.txt"
    delay = f"inject=fsync,fdatasync:delay_enter={int(FLUSH_S * 1e6)}"
    with start_simulator({**OPAQUE, "latency": {"median_ms": 20, "sigma": 0}}, ledger=ledger) as simulator:
        scene = Scene(
            folder=tmp_path,
            operation=operation,
            rows=rows,
            simulator=simulator,
            ledger=ledger,
            part_rows=rows,
            run={"timeout": "3s"},
            wrap=("strace", "-f", "-y", "-qq", "-e", "trace=fsync,fdatasync", "-e", delay, "-o", str(trace)),
        )
        began = time.monotonic()
        assert scene.finish() == 0, scene.said()
        seconds = time.monotonic() - began
    flushes = sum("00.sqlite-wal>" in line for line in trace.read_text().splitlines())
    requests = [row for path in scene.layout.attempts.glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    found = harm(scene)
    record(
        fault="F21",
        what=operation,
        tried=1,
        lost=found.lost,
        doubled=found.doubled,
        resent_max=0,
        notes=f"{rows / flushes:.1f} rows a flush of {FLUSH_S:g} s, {WORKERS} workers; took {seconds:.0f} s",
    )
    assert_whole(scene)
    assert {request["status"] for request in requests} == {200}
    assert set(calls_by_row(scene).values()) == {1}
    assert rows / max(flushes - WARM_UP, 1) >= 0.8 * rows_a_flush
