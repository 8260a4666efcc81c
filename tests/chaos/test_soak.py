"""F23: a long run. Memory and descriptors do not grow with the rows.

PIPELINE_SOAK_ROWS sets their number: a million in a full run. The slope is of the second half of the run, by least
squares; a bar holds it from 200,000 rows on, since a shorter run is still warming up.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from chaos.kinds import text_of
from chaos.report import record
from chaos.resources import start_run, watch

from pipeline.simulator.serve import start

ROWS = int(os.environ.get("PIPELINE_SOAK_ROWS", "3000"))
REPLY_MS = 2.0
WARM_UP = 0.5
"""The share of the samples that is left out."""
JUDGED_FROM_ROWS = 200_000
SLOPE_MB = 1.0
"""MB that memory may grow by in 100,000 rows."""
MOST_MB = 250.0
"""MB at most, and a little for each worker's request and reply."""
WORKERS = 32
OWN_DESCRIPTORS = 64
"""Descriptors beside the connections: the journal, the input, parts, libraries."""
SPARE_DESCRIPTORS = 8
"""Files of a part that are open or not."""

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(0)]


def slope(samples: list[tuple[float, float]]) -> float:
    """How steeply the second numbers rise with the first, by least squares."""
    mean_x = sum(x for x, _ in samples) / len(samples)
    mean_y = sum(y for _, y in samples) / len(samples)
    spread = sum((x - mean_x) ** 2 for x, _ in samples)
    return sum((x - mean_x) * (y - mean_y) for x, y in samples) / spread if spread else 0.0


def done_rows(summary: Path) -> int:
    """How many rows have ended, by the summary of a second ago."""
    try:
        rows = json.loads(summary.read_text())["rows"]
    except (OSError, ValueError):
        return 0
    return int(rows["ok"]) + int(rows["failed"])


def test_memory_and_descriptors_do_not_grow_with_the_rows(tmp_path: Path) -> None:
    with (tmp_path / "rows.jsonl").open("w") as file:
        for ordinal in range(ROWS):
            file.write(json.dumps({"id": f"r{ordinal}", "text": text_of(ordinal), "price": ordinal / 4}) + "\n")
    job = {
        "operation": "chat",
        "input": {"path": "rows.jsonl", "id": "id"},
        "request": {"messages": [{"role": "user", "content": "{{ text }}"}], "max_tokens": 60},
        "deployments": [{"api": "azure", "deployment": "d", "model": "gpt-4o-mini"}],
        "output": {"path": "out"},
        "run": {"workers": WORKERS},
    }
    samples: list[tuple[int, int, int]] = []
    with start({"latency": {"median_ms": REPLY_MS}}) as simulator:
        job["deployments"][0]["endpoint"] = simulator.url
        (tmp_path / "job.json").write_text(json.dumps(job))
        process = start_run(tmp_path / "job.json", log=tmp_path / "stderr.txt")
        summary = tmp_path / "out" / "_pipeline" / "summary.json"
        watch(process, lambda rss, held: samples.append((done_rows(summary), rss, held)), every_s=0.5)
    assert process.returncode == 0, (tmp_path / "stderr.txt").read_text()
    parts = sorted((tmp_path / "out").glob("part-*.parquet"))
    assert sum(pq.read_metadata(part).num_rows for part in parts) == ROWS
    for part in (parts[0], parts[-1]):
        table = pq.read_table(part, columns=["ordinal", "text", "output_text", "status"]).to_pylist()
        assert all(row["status"] == "ok" and row["text"] == text_of(row["ordinal"]) for row in table)
        assert all(f"Row {row['ordinal']} speaks" in row["output_text"] for row in table)
    warm = [sample for sample in samples if sample[0] >= WARM_UP * ROWS] or samples[-1:]
    per_100k = slope([(rows / 1e5, rss / 1e6) for rows, rss, _ in warm])
    peak = max(rss for _, rss, _ in samples) / 1e6
    held = [max(descriptors for *_, descriptors in some) for some in (samples, samples[: len(samples) // 2], warm)]
    notes = f"{per_100k:+.2f} MB in 100,000 rows, peak {peak:.0f} MB, at most {held[1]} descriptors, later {held[2]}"
    print(f"\n{ROWS} rows: {notes}")
    record(fault="F23", what="one run", tried=ROWS, notes=notes)
    assert peak < MOST_MB
    assert held[0] <= WORKERS + OWN_DESCRIPTORS
    if ROWS >= JUDGED_FROM_ROWS:
        assert held[2] - held[1] <= SPARE_DESCRIPTORS
        assert per_100k < SLOPE_MB
