"""Streamed chat against a service that cuts streams at any byte: what is stored is whole, or asked again.

PIPELINE_STREAMS sets the number of rows.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from forked import start_simulator

from pipeline import operations
from pipeline.job.load import load_job
from pipeline.run import run_job
from pipeline.simulator.ledger import Answered, read_ledger

ROWS = int(os.environ.get("PIPELINE_STREAMS", "600"))
RATES = {"cut_stream": 0.006, "half_body": 0.004, "error_event": 0.005}


def job_file(folder: Path, name: str, url: str, request: dict[str, Any]) -> Path:
    job = {
        "operation": "chat",
        "input": {"path": "rows.jsonl"},
        "request": {"messages": [{"role": "user", "content": "{{ text }}"}], "max_tokens": 200, **request},
        "deployments": [{"endpoint": url, "api": "azure", "deployment": "d", "model": "gpt-4o", "key": "${K}"}],
        "output": {"path": name, "columns": "none", "raw": "none"},
        "run": {"workers": 16},
    }
    file = folder / f"{name}.json"
    file.write_text(json.dumps(job))
    return file


async def answers(file: Path) -> list[dict[str, Any]]:
    summary = await run_job(load_job(file, environ={"K": "k"}, operations=operations.names()))
    assert (summary.state, summary.rows.ok) == ("complete", ROWS)
    columns = ["ordinal", "output_text", "finish_reason", "content_filter", "usage", "time_to_first_token_ms"]
    rows: list[dict[str, Any]] = []
    for path in sorted((file.parent / file.stem).glob("*.parquet")):
        rows += pq.read_table(path, columns=columns).to_pylist()
    return rows


@pytest.mark.anyio
@pytest.mark.timeout(600)
async def test_no_cut_stream_is_stored_as_an_answer(tmp_path: Path) -> None:
    with (tmp_path / "rows.jsonl").open("w") as file:
        for number in range(ROWS):
            words = " ".join(f"mooring {number * 7919 % 100_003 + step}" for step in range(10))
            file.write(json.dumps({"text": f"Row {number} is about {words}, é 水."}) + "\n")
    with start_simulator({}) as clean:
        whole = await answers(job_file(tmp_path, "whole", clean.url, {}))
    ledger = tmp_path / "ledger.jsonl"
    with start_simulator({"faults": {"rates": RATES}, "seed": 20}, ledger=ledger) as cutting:
        streamed = await answers(job_file(tmp_path, "streamed", cutting.url, {"stream": True}))
    faults = Counter(line.fault for line in read_ledger(ledger) if isinstance(line, Answered))
    assert faults["cut_stream"] + faults["half_body"] > ROWS * 0.003
    assert faults["error_event"] > 0
    print(f"\n{ROWS} streams, {dict(faults)}")
    for one, other in zip(streamed, whole, strict=True):
        assert one.pop("time_to_first_token_ms") > 0
        assert other.pop("time_to_first_token_ms") is None
        assert one == other
