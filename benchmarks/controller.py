"""How much of a modelled quota the controller uses in real time, with the machine's own clock, timers and load.

`python benchmarks/controller.py [--seconds 120] [WORD…]` runs the scenarios of tests/simulation whose names hold the
words, side by side, and prints their table. The first minute is left out of the use, as there.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from simulation.scenarios import HEAD, SCENARIOS, Scenario, measure

from pipeline.clock import SystemClock

CHOSEN = ("steady, requests bound", "steady, tokens bound", "stated 3 times too high", "absent", "four deployments")


async def run(scenarios: list[Scenario]) -> None:
    """Run them side by side; a row is printed as its scenario ends."""
    clock = SystemClock()
    for done in asyncio.as_completed([measure(scenario, clock) for scenario in scenarios]):
        print(await done, flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="what the names of the scenarios hold; default: five of them")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long the rows should take at the full quota")
    asked = parser.parse_args()
    chosen = [
        replace(scenario, ideal_s=asked.seconds)
        for scenario in SCENARIOS
        if (all(word in scenario.name for word in asked.words) if asked.words else scenario.name in CHOSEN)
    ]
    print(HEAD)
    asyncio.run(run(chosen))


if __name__ == "__main__":
    main()
