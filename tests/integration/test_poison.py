"""One row in a hundred is poisoned, in each way there is: exactly those rows fail, and their pack-mates do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from forked import start_simulator

from pipeline import operations
from pipeline.job.load import load_job
from pipeline.run import run_job
from pipeline.simulator.ledger import Arrived, read_ledger
from pipeline.store.summary import Summary

ROWS = 2_000
POISON = {
    "vectors": "hash",
    "poison": [
        {"contains": "nightshade", "name_index": True},
        {"contains": "hemlock", "code": "invalid_request_error"},
    ],
}
LONG = "many words " * 50_000

# What each poisoned row holds, and how it ends: (type, code, whether a call was made).
CASES: dict[str, tuple[Any, tuple[str, str, bool], tuple[str, str, bool]]] = {
    "empty": ("", ("RowError", "empty", False), ("RowError", "empty", False)),
    "over-long": (LONG, ("RowError", "too_long", False), ("BadRequestError", "context_length_exceeded", True)),
    "wrong type": (["a", "list"], ("RowError", "column_type", False), ("RowError", "column_type", False)),
    "filtered": (
        "a cup of nightshade tea",
        ("BadRequestError", "content_filter", True),
        ("BadRequestError", "content_filter", True),
    ),
    "refused, unnamed": (
        "a cup of hemlock tea",
        ("BadRequestError", "invalid_request_error", True),
        ("BadRequestError", "invalid_request_error", True),
    ),
}


def run(folder: Path, operation: str) -> tuple[Summary, pa.Table, int]:
    kinds = list(CASES)
    with (folder / "rows.jsonl").open("w") as file:
        for ordinal in range(ROWS):
            text = CASES[kinds[ordinal // 100 % len(kinds)]][0] if ordinal % 100 == 50 else f"row {ordinal} of tides"
            file.write(json.dumps({"text": text}) + "\n")
    request: dict[str, Any] = {"messages": [{"role": "user", "content": "{{ text }}"}], "max_tokens": 20}
    if operation == "embeddings":
        request = {"input": "{{ text }}", "dimensions": 8}
    with start_simulator(POISON, ledger=folder / "ledger.jsonl") as simulator:
        model = "gpt-4o-mini" if operation == "chat" else "text-embedding-3-small"
        deployment = {"endpoint": simulator.url, "api": "azure", "deployment": "d", "model": model, "key": "${K}"}
        job = {
            "operation": operation,
            "input": {"path": "rows.jsonl", "columns": {"text": "string"}},
            "request": request,
            "deployments": [deployment | {"max_inputs": 64}],
            "output": {"path": "out"},
        }
        (folder / "job.json").write_text(json.dumps(job))
        loaded = load_job(folder / "job.json", environ={"K": "k"}, operations=operations.names())
        summary = anyio.run(lambda: run_job(loaded))
    calls = sum(isinstance(line, Arrived) for line in read_ledger(folder / "ledger.jsonl"))
    return summary, pq.read_table(folder / "out"), calls


@pytest.mark.timeout(600)
@pytest.mark.parametrize("operation", ["chat", "embeddings"])
def test_exactly_the_poisoned_rows_fail(tmp_path: Path, operation: str) -> None:
    summary, table, calls = run(tmp_path, operation)
    poisoned = list(range(50, ROWS, 100))
    rows = table.select(["ordinal", "status", "error", "request"]).to_pylist()
    assert [row["ordinal"] for row in rows if row["status"] == "failed"] == poisoned
    assert (summary.exit_code, summary.rows.ok, summary.rows.failed) == (1, ROWS - len(poisoned), len(poisoned))
    kinds = list(CASES)
    for ordinal in poisoned:
        expected = CASES[kinds[ordinal // 100 % len(kinds)]][1 if operation == "embeddings" else 2]
        error, request = rows[ordinal]["error"], rows[ordinal]["request"]
        called = request["apim_request_id"] is not None and request["client_request_id"] is not None
        assert (error["type"], error["code"], called) == expected, f"row {ordinal}"
        assert request["attempts"] == (1 if called else 0) or operation == "embeddings"
    if operation == "embeddings":
        # 8 rows are found by calls: the named ones by one refusal each, the others by halving packs of 64.
        assert 0 < summary.calls_on_refusals <= 4 + 4 * 7
        assert calls == summary.attempts
        print(f"\n{summary.calls_on_refusals} of {summary.attempts} calls were spent on finding the poisoned rows")
