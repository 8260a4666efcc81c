"""F9: 408, 409 and 5xx at random. Rows do not fail by them, and few calls are made beyond those that they cost."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from chaos.kinds import messages_of, text_of
from chaos.report import record
from chaos.resources import start_run
from forked import start_simulator

from pipeline.simulator.ledger import Answered, Arrived, messages_key, read_ledger

ROWS = int(os.environ.get("PIPELINE_TRANSIENT_ROWS", "2000"))
SEED = int(os.environ.get("PIPELINE_SEED", "20"))
STATUSES = (408, 409, 500, 502, 503, 504, 529)
ATTEMPTS = 8
"""How many faults a row may meet; it fails with the last."""

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(7200)]


@pytest.mark.parametrize(("share", "most_failed", "most_calls"), [(0.1, 0.0, 1.15), (0.3, 0.0002, 1.5)])
def test_statuses_that_pass_cost_their_calls_and_no_rows(
    tmp_path: Path, share: float, most_failed: float, most_calls: float
) -> None:
    with (tmp_path / "rows.jsonl").open("w") as file:
        for ordinal in range(ROWS):
            file.write(json.dumps({"id": f"r{ordinal}", "text": text_of(ordinal)}) + "\n")
    ledger = tmp_path / "ledger.jsonl"
    faults = {"rates": {str(status): share / len(STATUSES) for status in STATUSES}}
    with start_simulator({"faults": faults, "seed": SEED, "latency": {"median_ms": 20}}, ledger=ledger) as simulator:
        deployment = {"endpoint": simulator.url, "api": "azure", "deployment": "d", "model": "gpt-4o-mini"}
        messages = [*messages_of(0)[:1], {"role": "user", "content": "{{ text }}"}]
        job = {
            "operation": "chat",
            "input": {"path": "rows.jsonl", "id": "id"},
            "request": {"messages": messages, "max_tokens": 60},
            "deployments": [deployment],
            "output": {"path": "out", "raw": "none"},
            "run": {"workers": 64, "max_attempts": ATTEMPTS},
        }
        (tmp_path / "job.json").write_text(json.dumps(job))
        code = start_run(tmp_path / "job.json", log=tmp_path / "stderr.txt").wait()
    lines = list(read_ledger(tmp_path / "ledger.jsonl"))
    keys = {line.seq: line.keys[0] for line in lines if isinstance(line, Arrived)}
    met = Counter(keys[line.seq] for line in lines if isinstance(line, Answered) and line.fault == "status")
    table = pq.read_table(tmp_path / "out", columns=["ordinal", "status", "text", "output_text"]).to_pylist()
    failed = [row["ordinal"] for row in table if row["status"] == "failed"]
    # A share of so few rows is none of them; chance may still draw one.
    allowed = max(most_failed * ROWS, 1 if most_failed else 0)
    assert code == (1 if failed else 0), (tmp_path / "stderr.txt").read_text()
    assert [row["ordinal"] for row in table] == list(range(ROWS))
    assert [row["text"] for row in table] == [text_of(ordinal) for ordinal in range(ROWS)]
    assert all(f"Row {row['ordinal']} speaks" in row["output_text"] for row in table if row["status"] == "ok")
    for ordinal in failed:
        assert met[messages_key(messages_of(ordinal))] >= ATTEMPTS, f"row {ordinal} failed before its last attempt"
    record(
        fault="F9",
        what=f"{share:.0%} of replies",
        tried=met.total(),
        notes=f"{ROWS} rows, {len(failed)} failed, {len(keys) / ROWS:.3f} calls a row",
    )
    print(f"\n{share:.0%}: {ROWS} rows, {len(failed)} failed, {len(keys) / ROWS:.3f} calls a row, seed {SEED}")
    assert len(failed) <= allowed
    assert len(keys) / ROWS <= most_calls
