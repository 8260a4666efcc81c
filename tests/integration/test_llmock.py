"""What a simulator that others wrote, with buckets and a verdict of its own, says of this client."""

from __future__ import annotations

import json
import os
from pathlib import Path

import anyio
import pyarrow.parquet as pq
import pytest
from llmock.chaos import ChaosSettings
from llmock.pytest_plugin import LLMock
from llmock.testing import LLMockServer

from pipeline import operations
from pipeline.job.load import load_job
from pipeline.run import run_job

ROWS = int(os.environ.get("PIPELINE_LLMOCK_ROWS", "120"))
QUOTA = 1_200
"""Requests a minute."""


@pytest.mark.timeout(900)
def test_llmock_finds_nothing_wrong_with_the_client_and_no_row_fails(tmp_path: Path) -> None:
    with (tmp_path / "rows.jsonl").open("w") as file:
        for number in range(ROWS):
            file.write(json.dumps({"text": f"What is the number {number} good for?"}) + "\n")
    chaos = ChaosSettings(error_rates={429: 0.05, 500: 0.02, 502: 0.01, 503: 0.02})
    with LLMockServer(chaos=chaos) as server:
        llmock = LLMock(server).limits(rpm=QUOTA)
        job = {
            "operation": "chat",
            "input": {"path": "rows.jsonl"},
            "request": {"messages": [{"role": "user", "content": "{{ text }}"}], "max_tokens": 40},
            "deployments": [
                {
                    "endpoint": llmock.base_url("openai"),
                    "deployment": "gpt-4o-mini",
                    "key": "${LLMOCK_KEY}",
                    "requests_per_minute": QUOTA,
                }
            ],
            "output": {"path": "out"},
        }
        (tmp_path / "job.json").write_text(json.dumps(job))
        loaded = load_job(tmp_path / "job.json", environ={"LLMOCK_KEY": "k"}, operations=operations.names())
        summary = anyio.run(lambda: run_job(loaded))
        verdict = llmock.verdict()
        print(f"\n{verdict.render()}{summary.attempts} attempts, {summary.throttled} throttled, {summary.seconds} s")
        llmock.assert_resilient(strict=True)
    assert (summary.state, summary.rows.ok, summary.rows.failed) == ("complete", ROWS, 0)
    assert verdict.faults > 0
    assert pq.read_table(tmp_path / "out", columns=["ordinal"])["ordinal"].to_pylist() == list(range(ROWS))
