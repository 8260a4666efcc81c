"""How much of a quota a run uses, and how often it is refused, by the simulator's own ledger.

`python benchmarks/quota.py [--seconds 310]` runs two jobs side by side, each against a simulator of its own: one bound
by requests (600 a minute, judged in slices of 1 s), one by tokens (100,000 a minute, judged over the last 60 s).
The first 10 s are left out. Prints a table.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pipeline.simulator.ledger import Answered, Arrived, read_ledger
from pipeline.simulator.serve import start

LEFT_OUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One quota, and a job that meets it before any other limit."""

    name: str
    requests_per_minute: int
    tokens_per_minute: int
    words: tuple[int, int]
    max_tokens: int


CASES = (
    Case(name="requests", requests_per_minute=600, tokens_per_minute=10_000_000, words=(5, 60), max_tokens=20),
    Case(name="tokens", requests_per_minute=60_000, tokens_per_minute=100_000, words=(5, 400), max_tokens=100),
)


def measure(case: Case, seconds: float) -> str:
    """Run the case; returns its row of the table."""
    dice = random.Random(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ledger = folder / "ledger.jsonl"
        with (folder / "rows.jsonl").open("w") as file:
            for number in range(20_000):
                words = " ".join(["tide"] * dice.randint(*case.words))
                file.write(json.dumps({"text": f"{number} {words}"}) + "\n")
        limits = {"requests_per_minute": case.requests_per_minute, "tokens_per_minute": case.tokens_per_minute}
        with start({"deployments": {"d": limits}, "latency": {"median_ms": 300, "sigma": 0.3}}, ledger=ledger) as sim:
            job = {
                "operation": "chat",
                "input": {"path": "rows.jsonl"},
                "request": {"messages": [{"role": "user", "content": "{{ text }}"}], "max_tokens": case.max_tokens},
                "deployments": [
                    {"endpoint": sim.url, "api": "azure", "deployment": "d", "model": "gpt-4o-mini", "key": "${K}"}
                    | limits
                ],
                "output": {"path": "out"},
                "run": {"deadline": f"{seconds}s", "grace": "2s"},
            }
            path = folder / "job.json"
            path.write_text(json.dumps(job))
            subprocess.run(
                [sys.executable, "-m", "pipeline", "run", str(path), "--progress", "none", "--json"],
                env={**os.environ, "K": "k"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
            )
        return _row(case, ledger, seconds)


def _row(case: Case, ledger: Path, seconds: float) -> str:
    arrived: dict[tuple[int, int], float] = {}
    calls: list[tuple[float, Answered]] = []
    for line in read_ledger(ledger):
        match line:
            case Arrived():
                arrived[line.session, line.seq] = line.t
            case Answered():
                calls.append((arrived[line.session, line.seq], line))
    begin = min(arrived.values()) + LEFT_OUT_S
    end = begin + seconds - LEFT_OUT_S - 1
    counted = [call for at, call in calls if begin <= at < end]
    minutes = (end - begin) / 60
    refused = sum(call.status == 429 for call in counted)
    passed = [call for call in counted if call.status == 200]
    used = {
        "requests": len(passed) / (case.requests_per_minute * minutes),
        "tokens": sum(call.tokens for call in passed) / (case.tokens_per_minute * minutes),
    }
    return (
        f"| {case.name} | {end - begin:.0f} | {len(counted)} | {used[case.name]:.2%} | "
        f"{refused} ({refused / len(counted):.2%}) |"
    )


def main() -> None:
    """Run the cases side by side and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=310.0, help="how long each run goes on")
    seconds = parser.parse_args().seconds
    print("| bound by | seconds | calls | quota used | answered 429 |\n|---|---|---|---|---|")
    with ThreadPoolExecutor(len(CASES)) as pool:
        for row in pool.map(lambda case: measure(case, seconds), CASES):
            print(row, flush=True)


if __name__ == "__main__":
    main()
