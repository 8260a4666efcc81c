"""Failed rows of operations that write files, or read them, are sent again like all others."""

from __future__ import annotations

from pathlib import Path

import pytest
from chaos.harness import OPAQUE, Scene, assert_whole, read_parts

from pipeline import operations
from pipeline.engines.again import Retry
from pipeline.job.load import load_job
from pipeline.run import RunOptions, run_job
from pipeline.simulator.serve import start
from pipeline.store.summary import Summary
from pipeline.store.verify import verify_folder

ROWS = 24


async def run(scene: Scene, options: RunOptions) -> Summary:
    job = load_job(scene.job, environ={"SIMULATOR_KEY": "k"}, operations=operations.names())
    return await run_job(job, options=options)


@pytest.mark.anyio
@pytest.mark.parametrize("operation", ["speech", "image", "transcription", "embeddings", "responses", "completions"])
async def test_rows_of_every_operation_that_failed_are_answered_by_a_retry(tmp_path: Path, operation: str) -> None:
    ledger = tmp_path / "ledger.jsonl"
    refusing = {**OPAQUE, "faults": {"rates": {"422": 0.4}, "attempts": 1}, "seed": 3}
    with start(refusing, ledger=ledger) as simulator:
        scene = Scene(
            folder=tmp_path,
            operation=operation,
            rows=ROWS,
            simulator=simulator,
            ledger=ledger,
            part_rows=8,
            pack=2,
        )
        first = await run(scene, RunOptions())
    assert first.rows.failed > 0
    assert verify_folder(scene.layout).findings == ()
    failed = [row["ordinal"] for row in read_parts(scene.out).to_pylist() if row["status"] == "failed"]
    kept = [n for n in range(ROWS) if n not in failed]
    before = read_parts(scene.out).take(kept).to_pylist()
    with start(OPAQUE, ledger=ledger) as simulator:
        scene.ask(simulator)
        summary = await run(scene, RunOptions(retry=Retry()))
    assert (summary.exit_code, summary.rows.ok) == (0, ROWS)
    assert assert_whole(scene).take(kept).to_pylist() == before
