"""F24: many rows through the Batch API, whose limits of lines, bytes and enqueued tokens the simulator enforces."""

from __future__ import annotations

import os
import time
from pathlib import Path

import anyio
import pytest
from batch_scene import BatchScene
from chaos.counts import count
from chaos.report import record

from pipeline.simulator.ledger import read_notes

ROWS = int(os.environ.get("PIPELINE_BATCH_ROWS", count(quick=4_000, full=250_000)))
TOKENS_A_ROW = 9
"""So many enqueued tokens a row are allowed: half of what they need, so that batches wait for one another."""
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3_600)]


def test_every_row_of_many_is_answered_once_and_no_limit_is_passed(tmp_path: Path) -> None:
    tokens = ROWS * TOKENS_A_ROW
    place = BatchScene(
        folder=tmp_path,
        rows=ROWS,
        api="openai",
        deployment={"enqueued_tokens": tokens},
        simulator={
            "deployment": {"enqueued_tokens": tokens},
            "offline": {"in_progress_s": 0.2, "ends": ["completed", "expired", "completed"], "most_lines": 50_000},
        },
    )
    began = time.monotonic()
    with place.served():
        output = {"path": "out", "part_rows": 10_000}
        summary = anyio.run(lambda: place.run(output=output, run={"lane": "batch", "poll": "200ms"}))
    seconds = time.monotonic() - began
    assert (summary.state, summary.exit_code, summary.rows.ok) == ("complete", 0, ROWS), summary.reason
    place.assert_each_row_once()
    ended = [note.what for note in read_notes(place.ledger) if note.what.startswith("batch.")]
    assert "batch.failed" not in ended, "a file held more than a file may"
    waits = [event for event in place.events if event["event"] == "batch_waits"]
    assert not waits, "more tokens were enqueued than are allowed"
    record(
        fault="F24",
        what="batches within lines, bytes and enqueued tokens; a third expire",
        tried=ROWS,
        notes=f"{len(place.submitted())} batches, {seconds:.0f} s",
    )
