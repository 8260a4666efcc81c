"""A job that is handed to another process is the same job there, with its secrets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ormsgpack
import pytest

from pipeline import operations
from pipeline.job.load import load_job
from pipeline.job.portable import job_of, job_values

PRICE = {"input": 1.5, "output": 6}
DEPLOYMENTS = [
    {"endpoint": "https://x.openai.azure.com", "api": "azure", "deployment": "a", "key": "${KEY}", "model": "gpt-4o"},
    {
        "endpoint": "http://127.0.0.1:1/v1",
        "api": "openai",
        "deployment": "b",
        "token": "${TOKEN}",
        "auth": "token",
        "model": "gpt-4o",
        "headers": {"x-key": "${KEY}"},
        "price": PRICE,
        "requests_per_minute": 6000,
        "priority": 2,
    },
]
RUNS: list[dict[str, Any]] = [
    {},
    {"workers": 7, "timeout": "90s", "deadline": "1h30m", "fail_on": "5%", "canary": 3, "leave": "20%", "grace": 0},
    {"right_size": "p99", "max_attempts": 3, "on_truncated": "retry", "window": "1GiB", "processes": 3},
    *({"right_size": f"p{quantile}"} for quantile in ("50", "57", "98.7", "99.9")),
]


@pytest.mark.parametrize("run", RUNS)
def test_a_job_comes_through_msgpack_as_it_was(tmp_path: Path, run: dict[str, Any]) -> None:
    (tmp_path / "rows.jsonl").write_text('{"id": 1, "text": "a"}\n')
    file = tmp_path / "job.json"
    job = {
        "operation": "chat",
        "input": {"path": "rows.jsonl", "id": "id", "columns": {"text": "string"}},
        "request": {"messages": [{"role": "user", "content": "{{ text }}"}], "max_tokens": 20},
        "deployments": DEPLOYMENTS,
        "output": {"path": "out", "columns": ["id"], "compression": "none"},
        "run": run,
    }
    file.write_text(json.dumps(job))
    loaded = load_job(file, environ={"KEY": "k1", "TOKEN": "t1"}, operations=operations.names())
    there = job_of(ormsgpack.unpackb(ormsgpack.packb(job_values(loaded))))
    assert there == loaded
    assert there.file == loaded.file
    keys = [(one.key and one.key.reveal(), one.token and one.token.reveal()) for one in there.deployments]
    assert keys == [("k1", None), (None, "t1")]
    assert there.deployments[1].headers["x-key"].reveal() == "k1"
