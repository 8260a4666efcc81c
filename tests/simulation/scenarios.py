"""What the controller is measured by: quotas, what the job file says of them, and what goes wrong; in virtual time.

`python tests/simulation/scenarios.py` prints the table of docs/decisions/0004-rate-controller.md.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from simulation.azure import Azure, Quota, Ran, Stated, Workers, open_deployment

from pipeline.clock import Clock
from pipeline.service.pool import Pool
from pipeline.testing import ManualClock

T = TypeVar("T")
IDEAL_S = 600.0
SETTLED_S = 60.0
"""The first minute is left out where use is measured."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Modelled deployments by name, and what the job file says of them. Rows of these costs, for `ideal_s` seconds.

    `away` are deployments whose quotas are not there to be used.
    """

    name: str
    make: Callable[[Clock], dict[str, tuple[Azure, Stated]]]
    costs: tuple[int, ...] = (200, 900, 400)
    ideal_s: float = IDEAL_S
    workers: int = 64
    away: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One row of the table. `used` is the share of the quotas used after the first minute, while rows were left."""

    name: str
    used: float
    calls_per_row: float
    refused: float
    failed: int
    time: float
    ran: Ran
    azures: dict[str, Azure] = field(repr=False)

    def __str__(self) -> str:
        """A row of the table in Markdown."""
        return (
            f"| {self.name} | {self.used:.1%} | {self.calls_per_row:.3f} | {self.refused:.2%} | {self.failed} | "
            f"{self.time:.3f} |"
        )


HEAD = "| scenario | quota used | calls/row | refused | failed rows | time/ideal |\n|---|---|---|---|---|---|"


async def measure(scenario: Scenario, clock: Clock) -> Measured:
    """Run a scenario by a clock that somebody turns, or that turns by itself."""
    places = scenario.make(clock)
    azures = {name: azure for name, (azure, _) in places.items()}
    deployments = tuple(
        open_deployment(name, azure, stated, clock=clock, workers=scenario.workers)
        for name, (azure, stated) in places.items()
    )
    costs = _costs(scenario, tuple(azure for name, azure in azures.items() if name not in scenario.away))
    workers = Workers(pool=Pool(deployments, clock=clock, max_outage_s=1800.0), clock=clock, count=scenario.workers)
    ran = await workers.run(costs)
    for deployment in deployments:
        await deployment.aclose()
    return _measured(scenario, azures, ran)


def _costs(scenario: Scenario, azures: Sequence[Azure]) -> list[int]:
    """Rows that keep every quota busy for the ideal time."""
    rows = 0.0
    for azure in azures:
        mean = sum(azure.charge(cost) for cost in scenario.costs) / len(scenario.costs)
        requests, tokens = azure.available(0.0, scenario.ideal_s)
        rows += min(requests, tokens / mean)
    dice = random.Random(4)
    return [dice.choice(scenario.costs) for _ in range(int(rows))]


def _measured(scenario: Scenario, azures: dict[str, Azure], ran: Ran) -> Measured:
    calls = sum(azure.calls for azure in azures.values())
    injected = sum(azure.injected for azure in azures.values())
    refused = sum(azure.refused for azure in azures.values())
    end = max(at for azure in azures.values() for at, _ in azure.counted[-1:])
    used = allowed = 0.0
    mean = sum(scenario.costs) / len(scenario.costs)
    for name, azure in azures.items():
        if name in scenario.away:
            continue
        taken = [charged for at, charged in azure.counted if SETTLED_S <= at <= end]
        requests, tokens = azure.available(SETTLED_S, end)
        share = max(len(taken) / requests, sum(taken) / tokens)
        worth = min(requests, tokens / max(1.0, azure.charge(round(mean))))
        used += share * worth
        allowed += worth
    return Measured(
        name=scenario.name,
        used=used / allowed,
        calls_per_row=(calls - injected) / max(1, ran.rows),
        refused=refused / calls,
        failed=ran.failed,
        time=ran.seconds / scenario.ideal_s,
        ran=ran,
        azures=azures,
    )


def measure_virtually(scenario: Scenario) -> Measured:
    """Run a scenario in virtual time."""

    clock = ManualClock()
    return virtually(clock, lambda: measure(scenario, clock))


def virtually(clock: ManualClock, work: Callable[[], Coroutine[None, None, T]]) -> T:
    """Do some work by a clock that jumps whenever everybody waits."""

    async def run() -> T:
        working = asyncio.create_task(work())
        await _turn(clock, until=working)
        return working.result()

    return asyncio.run(run())


async def _turn(clock: ManualClock, *, until: asyncio.Task[T]) -> None:
    """Jump to the next moment that somebody waits for whenever nobody can run.

    As `ManualClock.autojump`, but it asks the loop rather than each task, so a jump costs the same with any number.
    """
    runnable = asyncio.get_running_loop()._ready  # type: ignore[attr-defined]
    while not until.done():
        await asyncio.sleep(0)
        if not runnable and not until.done():
            when = clock._next()
            assert when is not None, "everybody waits for nothing"
            clock.advance(when - clock.now())


def _one(quota: Quota, stated: Stated, **more: object) -> Callable[[Clock], dict[str, tuple[Azure, Stated]]]:
    return lambda clock: {"d": (Azure(clock=clock, quota=quota, **more), stated)}  # type: ignore[arg-type]


REQUESTS = Quota(requests_per_minute=300, tokens_per_minute=10_000_000)
TOKENS = Quota(requests_per_minute=6_000, tokens_per_minute=150_000)

LIKE_PROVISIONED = Quota(requests_per_minute=6_000, tokens_per_minute=60_000)
FEW = Quota(requests_per_minute=6_000, tokens_per_minute=15_000)


def _exactly(quota: Quota, times: float = 1.0, **more: object) -> Stated:
    return Stated(
        requests_per_minute=quota.requests_per_minute * times,
        tokens_per_minute=quota.tokens_per_minute * times,
        **more,  # type: ignore[arg-type]
    )


def _halved(quota: Quota) -> Quota:
    return Quota(requests_per_minute=quota.requests_per_minute / 2, tokens_per_minute=quota.tokens_per_minute / 2)


def _busy(share: float) -> Callable[[float], httpx.Response | None]:
    dice = random.Random(5)
    said = "The system is currently experiencing high demand and cannot process your request."

    def fault(_: float) -> httpx.Response | None:
        return httpx.Response(429, json={"error": {"code": "429", "message": said}}) if dice.random() < share else None

    return fault


def _refusing(share: float, named: str) -> Callable[[float], httpx.Response | None]:
    """Refusals that claim a limit, for no reason, and say nothing of when."""
    dice = random.Random(7)
    said = f"Requests have exceeded {named} rate limit of your current tier."

    def fault(_: float) -> httpx.Response | None:
        return httpx.Response(429, json={"error": {"code": "429", "message": said}}) if dice.random() < share else None

    return fault


def _failing(share: float) -> Callable[[float], httpx.Response | None]:
    dice = random.Random(6)
    return lambda _: httpx.Response(500) if dice.random() < share else None


def _four(clock: Clock) -> dict[str, tuple[Azure, Stated]]:
    quotas = {
        "small": Quota(requests_per_minute=60, tokens_per_minute=10_000_000),
        "middle": Quota(requests_per_minute=300, tokens_per_minute=10_000_000),
        "large": Quota(requests_per_minute=600, tokens_per_minute=10_000_000),
        "tokens": Quota(requests_per_minute=6_000, tokens_per_minute=100_000),
    }
    return {
        name: (Azure(clock=clock, quota=quota, seed=number, latency_s=0.8), _exactly(quota))
        for number, (name, quota) in enumerate(quotas.items())
    }


def _one_is_away(clock: Clock) -> dict[str, tuple[Azure, Stated]]:
    quota = Quota(requests_per_minute=120, tokens_per_minute=10_000_000)

    none = Quota(requests_per_minute=0.001, tokens_per_minute=10_000_000)

    def fault(since: float) -> httpx.Response | None:
        return httpx.Response(500) if 100 <= since < 250 else None

    return {
        "comes": (
            Azure(clock=clock, quota=quota, fault=fault, changes=[(100.0, none), (250.0, quota)]),
            _exactly(quota),
        ),
        "stays": (Azure(clock=clock, quota=quota), _exactly(quota)),
    }


def _one_is_paused(clock: Clock) -> dict[str, tuple[Azure, Stated]]:
    quota = Quota(requests_per_minute=120, tokens_per_minute=10_000_000)
    said = httpx.Response(429, headers={"retry-after": "86400"}, json={"error": {"message": "Come back tomorrow."}})
    return {
        "paused": (Azure(clock=clock, quota=quota, fault=lambda _: said), _exactly(quota)),
        "stays": (Azure(clock=clock, quota=quota), _exactly(quota)),
    }


def _spillover(
    tokens_per_minute: int, standard: Quota, *, names_limits: bool = True
) -> Callable[[Clock], dict[str, tuple[Azure, Stated]]]:
    """Provisioned throughput of which the job file says nothing, and a standard deployment for what it cannot take."""
    provisioned = Quota(tokens_per_minute=tokens_per_minute, utilization=True)
    return lambda clock: {
        "provisioned": (Azure(clock=clock, quota=provisioned, names_limits=names_limits), Stated(priority=0)),
        "standard": (Azure(clock=clock, quota=standard, seed=2), _exactly(standard, priority=1)),
    }


SCENARIOS = (
    Scenario(name="steady, requests bound", make=_one(REQUESTS, _exactly(REQUESTS))),
    Scenario(name="steady, tokens bound", make=_one(TOKENS, _exactly(TOKENS))),
    Scenario(name="stated 3 times too high", make=_one(REQUESTS, _exactly(REQUESTS, 3))),
    Scenario(name="… by tokens", make=_one(TOKENS, _exactly(TOKENS, 3))),
    Scenario(name="… and no headers", make=_one(REQUESTS, _exactly(REQUESTS, 3), names_limits=False)),
    Scenario(name="… by tokens, and no headers", make=_one(TOKENS, _exactly(TOKENS, 3), names_limits=False)),
    Scenario(name="stated 3 times too low", make=_one(REQUESTS, _exactly(REQUESTS, 1 / 3))),
    Scenario(name="absent", make=_one(REQUESTS, Stated())),
    Scenario(name="absent, tokens bound", make=_one(TOKENS, Stated())),
    Scenario(name="absent, and no headers", make=_one(REQUESTS, Stated(), names_limits=False)),
    Scenario(name="absent, tokens bound, and no headers", make=_one(TOKENS, Stated(), names_limits=False)),
    Scenario(
        name="halved at 200 s, restored at 400 s",
        make=_one(REQUESTS, _exactly(REQUESTS), changes=[(200.0, _halved(REQUESTS)), (400.0, REQUESTS)]),
    ),
    Scenario(
        name="halved at 200 s, restored at 400 s, by tokens",
        make=_one(TOKENS, _exactly(TOKENS), changes=[(200.0, _halved(TOKENS)), (400.0, TOKENS)]),
    ),
    Scenario(
        name="halved at 200 s, restored at 400 s, and no headers",
        make=_one(
            REQUESTS, _exactly(REQUESTS), changes=[(200.0, _halved(REQUESTS)), (400.0, REQUESTS)], names_limits=False
        ),
    ),
    Scenario(name="2 % lack of capacity", make=_one(REQUESTS, _exactly(REQUESTS), fault=_busy(0.02))),
    Scenario(name="counted at a tenth of the estimate", make=_one(FEW, _exactly(FEW), charge=lambda n: n // 10)),
    Scenario(name="counted at 4 times the estimate", make=_one(TOKENS, _exactly(TOKENS), charge=lambda n: 4 * n)),
    Scenario(name="counted without the prompt", make=_one(TOKENS, _exactly(TOKENS), charge=lambda n: n - 150)),
    Scenario(name="four deployments", make=_four),
    Scenario(name="one of two away for 150 s", make=_one_is_away),
    Scenario(name="one of two asks for a day", make=_one_is_paused, away=frozenset({"paused"})),
    Scenario(
        name="10 % server errors",
        make=_one(REQUESTS, _exactly(REQUESTS), fault=_failing(0.1)),
    ),
    Scenario(
        name="30 % server errors",
        make=_one(REQUESTS, _exactly(REQUESTS), fault=_failing(0.3)),
    ),
    Scenario(name="a fifth is left to others", make=_one(REQUESTS, _exactly(REQUESTS, leave=0.2))),
    Scenario(name="others use half", make=_one(TOKENS, _exactly(TOKENS), others=75_000)),
    Scenario(name="provisioned, then standard", make=_spillover(100_000, TOKENS)),
    Scenario(
        name="… of small rows, for 130 s",
        make=_spillover(60_000, LIKE_PROVISIONED),
        costs=(105, 230, 355),
        ideal_s=130.0,
    ),
    Scenario(
        name="… whose answers name no utilization",
        make=_spillover(60_000, LIKE_PROVISIONED, names_limits=False),
        costs=(105, 230, 355),
    ),
    Scenario(
        name="1 % refused at random as if by requests, and no headers",
        make=_one(REQUESTS, _exactly(REQUESTS), fault=_refusing(0.01, "call"), names_limits=False),
    ),
    Scenario(
        name="1 % refused at random as if by tokens, and no headers",
        make=_one(TOKENS, _exactly(TOKENS), fault=_refusing(0.01, "token"), names_limits=False),
    ),
)


def main() -> None:
    """Print the table; arguments pick scenarios by a part of their name."""
    print(HEAD)
    for scenario in SCENARIOS:
        if all(word in scenario.name for word in sys.argv[1:]):
            began = time.monotonic()
            print(measure_virtually(scenario), f"{time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main()
