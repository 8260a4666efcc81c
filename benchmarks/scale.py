"""A large run against a simulator in its own process: rows, order, rate, and the peak memory of the runner's tree.

`python benchmarks/scale.py chat 100000` or `python benchmarks/scale.py embeddings 1000000`. DuckDB, which had no part
in writing them, reads the parts back with one query. Needs about 4 kB of disk a row in the temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb
import psutil

from pipeline.simulator.serve import start

SAMPLED_EVERY_S = 0.05
REQUESTS: dict[str, dict[str, Any]] = {
    "chat": {
        "messages": [
            {"role": "system", "content": "Say it in one sentence."},
            {"role": "user", "content": "{{ text }}"},
        ],
        "max_tokens": 60,
    },
    "embeddings": {"input": "{{ text }}", "dimensions": 256},
}
MODELS = {"chat": "gpt-4o-mini", "embeddings": "text-embedding-3-small"}
CHECKED = """
SELECT count(*), count(DISTINCT ordinal), min(ordinal), max(ordinal),
       count(*) FILTER (status = 'ok'),
       count(*) FILTER (id <> 'r' || ordinal OR price <> ordinal / 4 OR text NOT LIKE 'Row ' || ordinal || ' %'),
       count(*) FILTER (ordinal < before)
FROM (SELECT *, lag(ordinal, 1, -1) OVER (ORDER BY filename, file_row_number) AS before
      FROM read_parquet('{folder}/*.parquet', filename = true, file_row_number = true))
"""


def write_input(path: Path, rows: int) -> None:
    """Rows that differ, with a carried number."""
    with path.open("w") as file:
        for number in range(rows):
            text = f"Row {number} speaks of the tide at quay {number * 7919 % 100_003}. It turns twice a day for all."
            file.write(json.dumps({"id": f"r{number}", "text": text, "price": number / 4}) + "\n")


def watch(process: subprocess.Popen[bytes]) -> tuple[int, float]:
    """Wait for the runner; returns the peak resident bytes of its tree, and its CPU seconds."""
    root = psutil.Process(process.pid)
    peak, cpu = 0, 0.0
    while process.poll() is None:
        try:
            tree = [root, *root.children(recursive=True)]
            peak = max(peak, sum(one.memory_info().rss for one in tree))
            cpu = sum(sum(one.cpu_times()[:2]) for one in tree)
        except psutil.Error:
            continue
        time.sleep(SAMPLED_EVERY_S)
    return peak, cpu


def main() -> None:
    """Run it and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("operation", choices=list(REQUESTS))
    parser.add_argument("rows", type=int)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, start({"vectors": "hash"}) as simulator:
        folder = Path(name)
        write_input(folder / "rows.jsonl", options.rows)
        deployment = {"endpoint": simulator.url, "api": "azure", "deployment": "d", "key": "${K}"}
        job = {
            "operation": options.operation,
            "input": {"path": "rows.jsonl", "id": "id"},
            "request": REQUESTS[options.operation],
            "deployments": [deployment | {"model": MODELS[options.operation]}],
            "output": {"path": "out"},
        }
        (folder / "job.json").write_text(json.dumps(job))
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", "run", str(folder / "job.json"), "--progress", "none", "--json"],
            env={**os.environ, "K": "k"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        peak, cpu = watch(process)
        wall = time.monotonic() - began
        print(
            f"{options.operation}, {options.rows} rows: exit {process.returncode}, {wall:.1f} s, "
            f"{options.rows / wall:.0f} rows/s, {cpu / options.rows * 1e6:.0f} µs of CPU a row, "
            f"peak memory of the tree {peak / 1e6:.1f} MB"
        )
        count, distinct, first, last, ok, wrong, disordered = duckdb.sql(
            CHECKED.format(folder=folder / "out")
        ).fetchall()[0]
        print(
            f"DuckDB: {count} rows, {distinct} ordinals from {first} to {last}, {ok} ok, "
            f"{wrong} with other cells than the input's, {disordered} out of order"
        )


if __name__ == "__main__":
    main()
