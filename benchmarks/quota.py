"""How much of a quota a run uses, and how often it is refused, in real time, by the simulator's own ledger.

`python benchmarks/quota.py [--seconds 310] [SCENARIO …]` plays scenarios side by side, each a run against a simulator
of its own, with rows that the quota lets through in so many seconds. Prints a table and ends with 1 where a bar is
missed. What is used is what was admitted in whole slices of a second while rows were left, over what they allowed; the
first minute is left out where the job file's limits are absent or wrong.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.simulator.ledger import Answered, Arrived, read_ledger
from pipeline.simulator.serve import start

MINUTE_S = 60.0
SETTLED_S = 60.0
AMPLE = 10_000_000
LEAST_MEASURED_S = 10.0
SAMPLE = 2_000
HALVED, RESTORED = 1 / 3, 2 / 3  # of the time
WAY_S = 0.25  # by how much the ways of two calls may differ: calls a minute apart arrive that much closer together
INJECTED = frozenset({"capacity"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One deployment: what the simulator allows in a minute, and what the job file says of it (`stated` times that).

    `stated` None leaves the limits out. A provisioned one is limited in tokens by its utilization.
    """

    requests_per_minute: int = AMPLE
    tokens_per_minute: int = AMPLE
    stated: float | None = 1.0
    provisioned: bool = False
    priority: int = 0

    def rows(self, tokens: float) -> float:
        """How many rows of so many tokens it lets through in a minute."""
        return min(self.requests_per_minute, self.tokens_per_minute / tokens)

    def played(self) -> dict[str, Any]:
        """The simulator's configuration of it."""
        if self.provisioned:
            return {"provisioned": {"tokens_per_minute": self.tokens_per_minute}}
        return {"requests_per_minute": self.requests_per_minute, "tokens_per_minute": self.tokens_per_minute}

    def said(self) -> dict[str, Any]:
        """What the job file says of its limits."""
        if self.stated is None:
            return {}
        limits = {"requests_per_minute": self.requests_per_minute, "tokens_per_minute": self.tokens_per_minute}
        return {name: round(limit * self.stated) for name, limit in limits.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Deployments, rows that meet their quotas before any other limit, and the bars.

    Rows have from `words[0]` to `words[1]` words. `changes` are shares of the quotas from a share of the time on.
    `settled_s` is left out of the use.
    """

    places: dict[str, Place]
    words: tuple[int, int] = (5, 60)
    max_tokens: int = 20
    rates: dict[str, float] = field(default_factory=dict)
    changes: tuple[tuple[float, float], ...] = ()
    settled_s: float = 0.0
    least_used: float | None = 0.98
    most_calls: float = 1.01
    keeps_to_stated: bool = False

    def share(self, at_s: float, seconds: float) -> float:
        """What of the quotas is there at a time."""
        return next((share for begin, share in reversed(self.changes) if at_s >= begin * seconds), 1.0)


REQUESTS = Place(requests_per_minute=600)
TOKENS = Place(tokens_per_minute=100_000)
SCENARIOS = {
    "requests": Scenario(places={"d": REQUESTS}),
    "tokens": Scenario(places={"d": TOKENS}, words=(5, 400), max_tokens=100),
    "too-high": Scenario(
        places={"d": Place(requests_per_minute=600, stated=3.0)}, settled_s=SETTLED_S, least_used=None, most_calls=1.05
    ),
    "too-low": Scenario(
        places={"d": Place(requests_per_minute=600, stated=1 / 3)}, least_used=None, keeps_to_stated=True
    ),
    "absent": Scenario(places={"d": Place(requests_per_minute=600, stated=None)}, settled_s=SETTLED_S),
    "halved": Scenario(places={"d": REQUESTS}, changes=((HALVED, 0.5), (RESTORED, 1.0)), least_used=0.97),
    "capacity": Scenario(places={"d": REQUESTS}, rates={"capacity": 0.02}),
    "four": Scenario(
        places={
            "small": Place(requests_per_minute=60),
            "middle": Place(requests_per_minute=300),
            "large": Place(requests_per_minute=600),
            "tokens": TOKENS,
        },
        max_tokens=100,
        least_used=0.97,
    ),
    "ptu": Scenario(
        places={
            "ptu": Place(tokens_per_minute=60_000, stated=None, provisioned=True),
            "standard": Place(tokens_per_minute=60_000, priority=1),
        },
        words=(5, 200),
        max_tokens=100,
        settled_s=SETTLED_S,  # nothing is said of what provisioned throughput takes
        least_used=0.97,
        most_calls=1.05,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call by the ledger: when it came, whose quota it was charged to, and who refused it."""

    at: float
    deployment: str
    key: str
    tokens: int
    status: int | None
    fault: str | None
    refused_by: str | None

    @property
    def counted(self) -> bool:
        """Whether a quota had room for it."""
        return self.refused_by is None or self.refused_by in INJECTED


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One row of the table."""

    name: str
    seconds: float
    used: float
    calls: float
    refused: float
    failed: int
    time: float
    missed: list[str]

    def __str__(self) -> str:
        """A row of the table in Markdown."""
        return (
            f"| {self.name} | {self.seconds:.0f} | {self.used:.2%} | {self.calls:.4f} | {self.refused:.2%} | "
            f"{self.failed} | {self.time:.3f} | {'; '.join(self.missed) or 'kept'} |"
        )


HEAD = (
    "| scenario | seconds | quota used | calls per row | 429 | failed rows | time / ideal | bars |\n"
    "|---|---|---|---|---|---|---|---|"
)


def texts(scenario: Scenario) -> Iterator[str]:
    """The rows' texts, without end; no two are the same."""
    dice = random.Random(1)
    number = 0
    while True:
        yield f"{number} {' '.join(['tide'] * dice.randint(*scenario.words))}"
        number += 1


def charge(scenario: Scenario, text: str) -> int:
    """What admission counts for a row."""
    return math.ceil(len(text) / 4) + scenario.max_tokens


def mean_charge(scenario: Scenario) -> float:
    """What admission counts for a row on average."""
    return sum(charge(scenario, text) for text in islice(texts(scenario), SAMPLE)) / SAMPLE


def measure(name: str, seconds: float) -> Measured:
    """Play the scenario and judge it."""
    scenario = SCENARIOS[name]
    steps = 1_000
    minutes = sum(scenario.share(seconds * step / steps, seconds) for step in range(steps)) / steps * seconds / MINUTE_S
    tokens = mean_charge(scenario)
    pace = sum(place.rows(tokens) * min(1.0, place.stated or 1.0) for place in scenario.places.values())
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        with (folder / "rows.jsonl").open("w") as file:
            for text in islice(texts(scenario), int(pace * minutes)):
                file.write(json.dumps({"text": text}) + "\n")
        with start(_played(scenario, seconds), ledger=folder / "ledger.jsonl") as simulator:
            (folder / "job.json").write_text(json.dumps(_job(scenario, simulator.url, seconds)))
            done = subprocess.run(
                [sys.executable, "-m", "pipeline", "run", str(folder / "job.json"), "--progress", "none", "--json"],
                env={**os.environ, "K": "k"},
                capture_output=True,
                check=False,
            )
        if not done.stdout.strip():
            raise SystemExit(f"{name}: the run said nothing but {done.stderr.decode()[-500:]!r}")
        return judge(
            name, seconds, tokens=tokens, calls=read_calls(folder / "ledger.jsonl"), told=json.loads(done.stdout)
        )


def _played(scenario: Scenario, seconds: float) -> dict[str, Any]:
    """The simulator's configuration. Answers take all that is set aside for them, so that utilization is as charged."""
    schedule = [
        {
            "at_s": begin * seconds,
            "deployment": name,
            "requests_per_minute": round(place.requests_per_minute * share),
            "tokens_per_minute": round(place.tokens_per_minute * share),
        }
        for begin, share in scenario.changes
        for name, place in scenario.places.items()
    ]
    return {
        "deployments": {name: {"model": "gpt-4o-mini", **place.played()} for name, place in scenario.places.items()},
        "latency": {"median_ms": 300, "sigma": 0.3},
        "answers": {"median_tokens": scenario.max_tokens},
        "faults": {"rates": scenario.rates},
        "schedule": schedule,
    }


def _job(scenario: Scenario, url: str, seconds: float) -> dict[str, Any]:
    base = {"endpoint": url, "api": "azure", "model": "gpt-4o-mini", "key": "${K}"}
    return {
        "operation": "chat",
        "input": {"path": "rows.jsonl"},
        "request": {
            "messages": [{"role": "user", "content": "{{ text }}"}],
            "max_tokens": scenario.max_tokens,
        },
        "deployments": [
            {**base, "deployment": name, "priority": place.priority, **place.said()}
            for name, place in scenario.places.items()
        ],
        "output": {"path": "out"},
        "run": {"deadline": f"{2 * seconds + MINUTE_S}s", "grace": "2s"},
    }


def read_calls(ledger: Path) -> list[Call]:
    """Every call that was answered, in the order of arrival."""
    arrived: dict[tuple[int, int], Arrived] = {}
    calls = []
    for line in read_ledger(ledger):
        if isinstance(line, Arrived):
            arrived[line.session, line.seq] = line
            continue
        came = arrived[line.session, line.seq]
        calls.append(_call(came, line))
    return sorted(calls, key=lambda call: call.at)


def _call(came: Arrived, left: Answered) -> Call:
    return Call(
        at=came.t,
        deployment=came.deployment,
        key=came.keys[0],
        tokens=left.tokens,
        status=left.status,
        fault=left.fault,
        refused_by=left.refused_by,
    )


def judge(name: str, seconds: float, *, tokens: float, calls: Sequence[Call], told: dict[str, Any]) -> Measured:
    """Hold what the ledger has, and what the run says of itself, against the bars."""
    scenario = SCENARIOS[name]
    began = calls[0].at
    own = [call for call in calls if call.fault is None]
    rows = len({call.key for call in calls if call.status == 200})
    used, measured_s = use(scenario, calls, seconds, tokens)
    calls_per_row = len(own) / max(1, rows)
    failed = told["rows"]["failed"]
    missed = []
    if told["state"] != "complete":
        missed.append(f"the run is {told['state']}")
    if failed:
        missed.append("failed rows")
    if calls_per_row > scenario.most_calls:
        missed.append(f"calls per row above {scenario.most_calls}")
    if scenario.least_used is not None and used < scenario.least_used:
        missed.append(f"used below {scenario.least_used:.0%}")
    if scenario.keeps_to_stated:
        missed += keeping(scenario, calls, told)
    return Measured(
        name=name,
        seconds=measured_s,
        used=used,
        calls=calls_per_row,
        refused=sum(call.status == 429 for call in own) / len(calls),
        failed=failed,
        time=(calls[-1].at - began) / seconds,
        missed=missed,
    )


def use(scenario: Scenario, calls: Sequence[Call], seconds: float, tokens: float) -> tuple[float, float]:
    """What of the quotas was used in whole slices of a second, and how many seconds they are.

    Until the last row was sent for the first time; several deployments count by the rows that they let through.
    """
    began = math.floor(calls[0].at)
    seen: set[str] = set()
    newest = began
    for call in calls:
        if call.key not in seen:
            seen.add(call.key)
            newest = math.floor(call.at)
    slices = range(math.ceil(scenario.settled_s) + 1, newest - began)
    share = sum(scenario.share(began + number - calls[0].at, seconds) for number in slices)
    if not slices:
        return 0.0, 0
    used = worth = 0.0
    for name, place in scenario.places.items():
        taken = [
            call for call in calls if call.deployment == name and call.counted and math.floor(call.at) - began in slices
        ]
        of_requests = len(taken) / (place.requests_per_minute / MINUTE_S * share)
        of_tokens = sum(call.tokens for call in taken) / (place.tokens_per_minute / MINUTE_S * share)
        used += max(of_requests, of_tokens) * place.rows(tokens)
        worth += place.rows(tokens)
    return used / worth, len(slices)


def keeping(scenario: Scenario, calls: Sequence[Call], told: dict[str, Any]) -> list[str]:
    """Say where a stated limit was passed within any minute, or what the service offers was not told."""
    missed = []
    for name, place in scenario.places.items():
        stated = place.said()["requests_per_minute"]
        minute: deque[float] = deque()
        most = 0
        for call in calls:
            if call.deployment == name:
                minute.append(call.at)
                while minute[0] <= call.at - MINUTE_S + WAY_S:
                    minute.popleft()
                most = max(most, len(minute))
        if most > stated:
            missed.append(f"{most} calls in a minute, stated were {stated}")
        offered = next(use["offered_requests_per_minute"] for use in told["deployments"] if use["name"] == name)
        if offered != place.requests_per_minute:
            missed.append(f"{offered} are said to be offered, {place.requests_per_minute} are")
    return missed


def main() -> None:
    """Play the scenarios side by side and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"default: all of {', '.join(SCENARIOS)}")
    parser.add_argument("--seconds", type=float, default=310.0, help="how long the rows take at the full quota")
    parser.add_argument("--at-once", type=int, default=3, help="how many are played side by side")
    asked = parser.parse_args()
    chosen = asked.scenarios or list(SCENARIOS)
    for name in chosen:
        if name not in SCENARIOS:
            parser.error(f"there is no scenario {name!r}; there are {', '.join(SCENARIOS)}")
        if asked.seconds < SCENARIOS[name].settled_s + LEAST_MEASURED_S:
            parser.error(f"{name} needs {SCENARIOS[name].settled_s + LEAST_MEASURED_S:.0f} seconds or more")
    print(HEAD, flush=True)
    kept = True
    with ThreadPoolExecutor(asked.at_once) as pool:
        for measured in pool.map(lambda name: measure(name, asked.seconds), chosen):
            print(measured, flush=True)
            kept = kept and not measured.missed
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
