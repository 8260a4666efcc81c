"""Rows a minute through a quota of tokens, with the job's bound on answers and with `run.right_size`.

`python benchmarks/right_size.py [--seconds 180]`: answers of about 150 tokens, each of its own length, under a bound of
4,096, and 100,000 tokens a minute, charged on arrival as Azure does: prompt and bound together. The first minute, whose
quota is gone before the first answers tell their lengths, is told apart. Ends with 1 where the gain after it is below
tenfold, a row failed, or an answer is not the whole one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from pipeline.simulator.ledger import Answered, Arrived, read_ledger
from pipeline.simulator.serve import start

BOUND = 4096
TOKENS_PER_MINUTE = 100_000
ROWS = 12_000
ANSWERS = {"median_tokens": 150, "sigma": 0.2}
LEAST_GAIN = 10.0
MINUTE_S = 60.0
LEAST_S = 90.0
ANSWERED = """
SELECT count(*) FILTER (status = 'failed'), count(*) FILTER (finish_reason <> 'stop'), avg(usage.output_tokens)
FROM read_parquet(?)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What came of a run: rows by the ledger, `again` of them asked a second time for their whole answer."""

    name: str
    in_first_minute: int
    rows_per_minute: float
    again: int
    rows: int
    failed: int
    cut: int
    output_tokens: float

    def __str__(self) -> str:
        """A row of the table in Markdown."""
        share = self.again / self.rows
        return (
            f"| {self.name} | {self.rows} | {self.in_first_minute} | {self.rows_per_minute:.0f} | "
            f"{self.again} ({share:.1%}) | {self.failed} | {self.cut} | {self.output_tokens:.0f} |"
        )


HEAD = (
    "| right_size | rows | in the first minute | a minute after it | asked again | failed | cut | tokens of a row |\n"
    "|---|---|---|---|---|---|---|---|"
)


def write_rows(path: Path) -> None:
    """Short rows: what is reserved for answers is what fills the quota."""
    with path.open("w") as file:
        for number in range(ROWS):
            file.write(json.dumps({"text": f"Row {number} says that the tide turns twice a day."}) + "\n")


def measure(folder: Path, seconds: float, *, right_size: str | None) -> Measured:
    """Run for so long, and say what came of it."""
    quota = {"tokens_per_minute": TOKENS_PER_MINUTE}
    name = right_size or "none"
    ledger = folder / f"{name}.ledger.jsonl"
    config = {
        "deployments": {"d": {"model": "gpt-4o-mini", **quota}},
        "answers": ANSWERS,
        "latency": {"median_ms": 500, "sigma": 0.3},
    }
    with start(config, ledger=ledger) as simulator:
        place = {"endpoint": simulator.url, "api": "azure", "deployment": "d", "model": "gpt-4o-mini", "key": "${K}"}
        run: dict[str, Any] = {"deadline": f"{seconds}s", "workers": 64} | (
            {"right_size": right_size} if right_size else {}
        )
        job = {
            "operation": "chat",
            "input": {"path": "rows.jsonl"},
            "request": {"messages": [{"role": "user", "content": "{{ text }}"}], "max_tokens": BOUND},
            "deployments": [place | quota],
            "output": {"path": f"out-{name}", "columns": "none", "raw": "none"},
            "run": run,
        }
        file = folder / f"{name}.json"
        file.write_text(json.dumps(job))
        subprocess.run(
            [sys.executable, "-m", "pipeline", "run", str(file), "--progress", "none"],
            env={**os.environ, "K": "k"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
    parts = [str(folder / f"out-{name}" / "*.parquet")]
    with duckdb.connect() as reader:  # the common connection is for one thread at a time
        failed, cut, output_tokens = reader.execute(ANSWERED, parts).fetchall()[0]
    began, times = answered(ledger)
    rows = [min(row) - began for row in times.values()]
    later = sum(at >= MINUTE_S for at in rows)
    return Measured(
        name=name,
        in_first_minute=len(rows) - later,
        rows_per_minute=later / (seconds - MINUTE_S) * 60,
        again=sum(len(row) > 1 for row in times.values()),
        rows=len(rows),
        failed=failed,
        cut=cut,
        output_tokens=output_tokens or 0.0,
    )


def answered(ledger: Path) -> tuple[float, dict[str, list[float]]]:
    """Say when the first call came, and when each row was answered, by the names of their messages."""
    arrived: dict[tuple[int, int], Arrived] = {}
    times: dict[str, list[float]] = defaultdict(list)
    for line in read_ledger(ledger):
        match line:
            case Arrived():
                arrived[line.session, line.seq] = line
            case Answered(status=200):
                times[arrived[line.session, line.seq].keys[0]].append(line.t)
    return min(line.t for line in arrived.values()), times


def main() -> None:
    """Measure both side by side, each against a simulator of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=180.0, help="how long each run goes on")
    asked = parser.parse_args()
    if asked.seconds < LEAST_S:
        parser.error(f"it takes {LEAST_S:.0f} seconds or more")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "rows.jsonl")
        print(HEAD)
        measured = []
        with ThreadPoolExecutor() as pool:
            for found in pool.map(lambda size: measure(folder, asked.seconds, right_size=size), (None, "p99")):
                measured.append(found)
                print(found, flush=True)
    plain, sized = measured
    gain = sized.rows_per_minute / plain.rows_per_minute
    print(f"\nWith right_size: p99 {gain:.1f} times as many rows a minute, after the first.")
    sys.exit(0 if gain >= LEAST_GAIN and not sized.failed and not sized.cut else 1)


if __name__ == "__main__":
    main()
