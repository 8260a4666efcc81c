"""Rows a minute through a quota of tokens, with the job's bound on answers and with `run.right_size`.

`python benchmarks/right_size.py --seconds 120`: answers of about 45 tokens (the simulator's own are no longer than
60), a bound of 4,096, 100,000 tokens a minute
charged on arrival as Azure does, prompt and bound together.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import duckdb

from pipeline.simulator.serve import start

CAP = 4096
TOKENS_PER_MINUTE = 100_000
ROWS = 6_000
MEAN, DEVIATION = 45, 8
COUNTED = """
SELECT count(*), count(*) FILTER (status = 'ok' AND finish_reason = 'stop'), count(*) FILTER (request.attempts > 1),
       avg(usage.output_tokens)
FROM read_parquet(?)
"""


def write_rows(path: Path) -> None:
    """Rows whose first sentence, which is what the simulator answers, has about 45 tokens of four characters."""
    dice = random.Random(5)
    with path.open("w") as file:
        for number in range(ROWS):
            length = min(58, max(10, round(dice.gauss(MEAN, DEVIATION)))) * 4
            words = f"Row {number} says that the tide turns twice a day for all " * (length // 40 + 1)
            file.write(json.dumps({"text": words[: length - 20].strip() + "."}) + "\n")


def measure(folder: Path, seconds: float, *, right_size: str | None) -> None:
    """Run for so long, and print what came of it."""
    quota = {"tokens_per_minute": TOKENS_PER_MINUTE}
    with start({"deployments": {"d": {"model": "gpt-4o-mini", **quota}}}) as simulator:
        name = right_size or "as the job says"
        place = {"endpoint": simulator.url, "api": "azure", "deployment": "d", "model": "gpt-4o-mini", "key": "${K}"}
        run: dict[str, Any] = {"deadline": f"{seconds}s", "workers": 64} | (
            {"right_size": right_size} if right_size else {}
        )
        job = {
            "operation": "chat",
            "input": {"path": "rows.jsonl"},
            "request": {"messages": [{"role": "user", "content": "{{ text }}"}], "max_tokens": CAP},
            "deployments": [place | quota],
            "output": {"path": f"out-{right_size}", "columns": "none", "raw": "none"},
            "run": run,
        }
        file = folder / f"{right_size}.json"
        file.write_text(json.dumps(job))
        subprocess.run(
            [sys.executable, "-m", "pipeline", "run", str(file), "--progress", "none"],
            env={**os.environ, "K": "k"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
    found = duckdb.execute(COUNTED, [str(folder / f"out-{right_size}" / "*.parquet")]).fetchall()[0]
    rows, whole, again, tokens = found
    print(f"| {name} | {rows} | {rows / seconds * 60:.0f} | {whole} | {again} | {tokens:.0f} |", flush=True)


def main() -> None:
    """Measure both, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        write_rows(Path(name) / "rows.jsonl")
        print("| bound | rows | rows a minute | whole | asked again | output tokens a row |")
        print("|---|---|---|---|---|---|")
        for right_size in (None, "p99"):
            measure(Path(name), options.seconds, right_size=right_size)


if __name__ == "__main__":
    main()
