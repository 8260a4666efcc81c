"""Several processes send for one run: what it leaves is what one process would leave."""

from __future__ import annotations

from pathlib import Path

import pytest
from chaos.harness import OPAQUE, Scene, assert_whole, calls_by_row
from forked import start_simulator

from pipeline.store.summary import read_summary


@pytest.mark.parametrize("operation", ["embeddings"])
def test_two_processes_ask_every_row_once_and_leave_the_parts_in_order(tmp_path: Path, operation: str) -> None:
    ledger = tmp_path / "ledger.jsonl"
    with start_simulator(OPAQUE, ledger=ledger) as simulator:
        scene = Scene(
            folder=tmp_path, operation=operation, rows=950, simulator=simulator, ledger=ledger, run={"processes": 2}
        )
        assert scene.finish() == 0, scene.said()
    assert_whole(scene)
    assert set(calls_by_row(scene).values()) == {1}
    assert len(list(scene.out.glob("part-*.parquet"))) == 10
    summary = read_summary(scene.layout.summary)
    assert summary is not None
    assert (summary.state, summary.rows.ok, summary.in_flight) == ("complete", 950, 0)
    (deployment,) = summary.deployments
    assert deployment.requests == summary.requests == summary.attempts
