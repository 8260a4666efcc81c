"""How near `pipeline plan` comes to what a rehearsal of the same job then takes: requests, tokens, dollars, time.

`python benchmarks/plan_accuracy.py [--seconds 60] [JOB …]` plans and runs jobs of `jobs/` over rows that fill their
quotas for so many seconds, in real time, one after the other. Prints a table and ends with 1 where a bar is missed:
requests and dollars exact, tokens of prompts within 1 %, time within 10 %. Dollars are those of the tokens that came
back, at the price table that the plan names, beside what the run says that it cost.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NEAR_TOKENS = 0.01
NEAR_TIME = 0.1
EXACT_DOLLARS = 1e-9
MINUTE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A job of `jobs/`, its input, the column that names its rows, and how many of them are asked for.

    `counts_tokens`: its quota is one of tokens, else of requests alone.
    """

    job: str
    rows: str
    id: str
    count: int
    counts_tokens: bool = True


SAMPLES = (
    Sample(job="embed_passages", rows="passages.jsonl", id="passage_id", count=2_400),
    Sample(job="summarise_passages", rows="passages.jsonl", id="passage_id", count=300),
    Sample(job="describe_pictures", rows="pictures.jsonl", id="picture_id", count=200),
    Sample(job="transcribe_recordings", rows="recordings.jsonl", id="id", count=100, counts_tokens=False),
    Sample(job="answer_questions_responses", rows="questions.jsonl", id="question_id", count=300),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was planned, and what was taken; None where it is not known to either."""

    job: str
    requests: tuple[float, float]
    tokens: tuple[float | None, float]
    dollars: tuple[float | None, float | None]
    seconds: tuple[float, float]

    def misses(self) -> Iterator[str]:
        """The bars that it misses."""
        if self.requests[0] != self.requests[1]:
            yield "requests"
        if self.tokens[0] is not None and abs(self.tokens[0] - self.tokens[1]) > NEAR_TOKENS * self.tokens[1]:
            yield "tokens"
        planned, taken = self.dollars
        if (planned is None) != (taken is None) or abs((planned or 0) - (taken or 0)) > EXACT_DOLLARS:
            yield "dollars"
        if abs(self.seconds[0] - self.seconds[1]) > NEAR_TIME * self.seconds[1]:
            yield "time"


def measured(sample: Sample, *, seconds: float, folder: Path) -> Outcome:
    """Plan the job with quotas that its rows fill for so many seconds, run it, and look at both."""
    base = [str(ROOT / "jobs" / f"{sample.job}.yaml"), "--simulate"]
    base += ["--set", f"input.path={_rows(sample, folder)}", "--set", f"output.path={folder / 'out'}"]
    needs = _call("plan", *base)
    minutes = seconds / MINUTE_S
    requests, tokens = needs["requests"]["value"] / minutes, needs["tokens"]["quota"]["value"] / minutes
    if sample.counts_tokens:
        base += ["--set", f"deployments.0.tokens_per_minute={round(tokens)}"]
        requests *= 2  # the tokens bind
    base += ["--set", f"deployments.0.requests_per_minute={round(requests)}", "--set", "run.on_truncated=keep"]
    plan = _call("plan", *base)
    summary = _call("run", *base, "--progress", "none", "--fail-on", "never")
    (rate,) = plan["prices"]
    taken = summary["tokens"]
    dollars = None
    if rate["input"] is not None and plan["tokens"]["input"] is not None:
        dollars = (taken["input"] * rate["input"] + taken["output"] * (rate["output"] or 0)) / 1_000_000
    return Outcome(
        job=sample.job,
        requests=(plan["requests"]["value"], summary["requests"]),
        tokens=(None if plan["tokens"]["input"] is None else plan["tokens"]["input"]["value"], taken["input"]),
        dollars=(dollars, summary["cost_usd"]),
        seconds=(plan["minutes"]["longest"] * MINUTE_S, summary["seconds"]),
    )


def _rows(sample: Sample, folder: Path) -> Path:
    """Write as many rows as are asked for: those of the sample over and over, with ids of their own."""
    rows = [json.loads(line) for line in (ROOT / "sample_data" / sample.rows).read_text("utf-8").splitlines()]
    path = folder / "rows.jsonl"
    with path.open("w") as file:
        for number, row in enumerate(islice(cycle(rows), sample.count)):
            file.write(json.dumps({**row, sample.id: f"{row[sample.id]}-{number}"}) + "\n")
    return path


def _call(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "pipeline", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, env={**os.environ, "NO_COLOR": "1"})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _line(outcome: Outcome) -> list[str]:
    def off(pair: Sequence[float | None]) -> str:
        planned, taken = pair
        return "not known" if planned is None or not taken else f"{planned / taken - 1:+.1%}"

    planned, taken = outcome.dollars
    return [
        outcome.job,
        f"{outcome.requests[0]:,.0f} / {outcome.requests[1]:,.0f}",
        f"{outcome.tokens[0] or 0:,.0f} / {outcome.tokens[1]:,.0f} ({off(outcome.tokens)})",
        "not known" if planned is None or taken is None else f"{planned:.6f} / {taken:.6f}",
        f"{outcome.seconds[0]:.1f} / {outcome.seconds[1]:.1f} ({off(outcome.seconds)})",
        ", ".join(outcome.misses()) or "ok",
    ]


def main() -> int:
    """Measure the jobs that are asked for; 1 where one misses a bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=", ".join(sample.job for sample in SAMPLES))
    parser.add_argument("--seconds", type=float, default=60.0, help="what the quotas make each job take")
    given = parser.parse_args()
    print("| job | requests: plan / run | input tokens | dollars | seconds | misses |\n|---|---|---|---|---|---|")
    missed = False
    for sample in SAMPLES:
        if not given.jobs or sample.job in given.jobs:
            with tempfile.TemporaryDirectory() as folder:
                outcome = measured(sample, seconds=given.seconds, folder=Path(folder))
            print(f"| {' | '.join(_line(outcome))} |", flush=True)
            missed = missed or any(outcome.misses())
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
