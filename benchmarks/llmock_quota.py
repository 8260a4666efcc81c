"""How much of the quota of a simulator that others wrote a run uses, and its verdict on the client.

`python benchmarks/llmock_quota.py --seconds 180`: llmock's own bucket of 600 requests a minute, no injected faults.
Sendings are counted second by second from the run's own attempts; the first 10 s are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

import anyio
import duckdb
from llmock.pytest_plugin import LLMock
from llmock.testing import LLMockServer

from pipeline import operations
from pipeline.job.load import load_job
from pipeline.run import run_job

PER_MINUTE = 600
LEFT_OUT_S = 10


def main() -> None:
    """Run it and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=180)
    options = parser.parse_args()
    rows = round(options.seconds * PER_MINUTE / 60)
    with tempfile.TemporaryDirectory() as name, LLMockServer() as server:
        folder = Path(name)
        with (folder / "rows.jsonl").open("w") as file:
            for number in range(rows):
                file.write(json.dumps({"text": f"What is the number {number} good for?"}) + "\n")
        llmock = LLMock(server).limits(rpm=PER_MINUTE)
        place = {"endpoint": llmock.base_url("openai"), "deployment": "gpt-4o-mini", "key": "${LLMOCK_KEY}"}
        job = {
            "operation": "chat",
            "input": {"path": "rows.jsonl"},
            "request": {"messages": [{"role": "user", "content": "{{ text }}"}], "max_tokens": 40},
            "deployments": [place | {"requests_per_minute": PER_MINUTE}],
            "output": {"path": "out"},
        }
        (folder / "job.json").write_text(json.dumps(job))
        loaded = load_job(folder / "job.json", environ={"LLMOCK_KEY": "k"}, operations=operations.names())
        summary = anyio.run(run_job, loaded)
        verdict = llmock.verdict()
        found = duckdb.execute(
            "SELECT epoch(started_at), status FROM read_parquet(?)", [f"{folder}/out/_pipeline/attempts/*.parquet"]
        ).fetchall()
    began = min(at for at, _ in found)
    counted = [(at - began, status) for at, status in found if at - began >= LEFT_OUT_S]
    span = max(at for at, _ in counted) - LEFT_OUT_S
    used = sum(status == 200 for _, status in counted) / (span * PER_MINUTE / 60)
    busiest = max(Counter(int(at) for at, _ in found).values())
    print(
        f"{used:.2%} of the quota over {span:.0f} s, {summary.throttled} of {summary.attempts} calls throttled, "
        f"at most {busiest} in a second (its share: {PER_MINUTE / 60:g}), {summary.rows.failed} rows failed"
    )
    print(verdict.render())
    sys.exit(0 if used >= 0.95 and busiest <= 1.5 * PER_MINUTE / 60 and not summary.rows.failed else 1)


if __name__ == "__main__":
    main()
