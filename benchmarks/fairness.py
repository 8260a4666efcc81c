"""How fairly and how cheaply leave is given where a thousand requests wait for one quota.

    python benchmarks/fairness.py [--waiting 1000] [--per-minute 60000] [--seconds 20]

So many tasks ask for leave, and ask again as soon as they have it. Printed are grants out of the order in which they
were asked for, the longest hundredth of the waits against the ideal (as many as wait, divided by the rate), and CPU a
grant, the tasks' own turns included. Nothing is sent.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import time

import httpx
import uvloop

from pipeline.clock import SystemClock
from pipeline.pace.admission import Admission
from pipeline.service.address import address, target
from pipeline.service.auth import Credentials
from pipeline.service.deployment import Deployment
from pipeline.service.wire import Wire


async def measure(waiting: int, per_minute: float, seconds: float) -> str:
    """Have tasks wait; what was seen, in a line."""
    clock = SystemClock()
    place = address(endpoint="http://127.0.0.1:1", deployment="d", api="azure", api_version=None)
    deployment = Deployment(
        name="d",
        target=target(place, model="m"),
        address=place,
        wire=Wire(httpx.MockTransport(lambda _: httpx.Response(200)), clock=clock),
        credentials=Credentials({"api-key": "k" * 32}),
        admission=Admission(requests_per_minute=per_minute, tokens_per_minute=None),
        headers={},
        timeout_s=60.0,
        priority=0,
        max_inputs=None,
        clock=clock,
        random=lambda: 0.5,
    )
    numbers = itertools.count()
    granted: list[tuple[int, float]] = []
    ends_at = clock.now() + seconds

    async def ask() -> None:
        while (asked_at := clock.now()) < ends_at:
            number = next(numbers)
            await deployment.leave(1)
            granted.append((number, clock.now() - asked_at))

    used = time.process_time()
    async with asyncio.TaskGroup() as crowd:
        for _ in range(waiting):
            crowd.create_task(ask())
    cpu_us = (time.process_time() - used) / len(granted) * 1e6
    await deployment.aclose()
    inversions = sum(one[0] > other[0] for one, other in itertools.pairwise(granted))
    # The first thousand meet an empty line, and the last ones nobody behind them.
    waits = sorted(wait for _, wait in granted[2 * waiting : -waiting])
    ideal_s = waiting / (per_minute / 60)
    p99_s = waits[len(waits) * 99 // 100]
    return (
        f"{len(granted):,} grants, {inversions} out of order; 99 in 100 waited at most {p99_s:.3f} s, "
        f"{p99_s / ideal_s:.3f} of the ideal {ideal_s:.3f} s; {cpu_us:.1f} µs of CPU a grant"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--waiting", type=int, default=1000)
    parser.add_argument("--per-minute", type=float, default=60_000)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    print(uvloop.run(measure(options.waiting, options.per_minute, options.seconds)))


if __name__ == "__main__":
    main()
