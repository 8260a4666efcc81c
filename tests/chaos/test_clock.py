"""F16: the wall clock jumps, or stands still, under the whole command; the run ends as if it had not.

What is decided by time is held to the same decisions by tests with a clock of their own; here libfaketime stands
between the command and the system's clock, and waits that the service asks for are among what it lives through.
"""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path

import pytest
from chaos.counts import count
from chaos.harness import OPAQUE, Scene, assert_whole, calls_by_row, harm, wait_for_a_request
from chaos.needs import need_library
from chaos.report import record
from forked import start_simulator

ROWS = 240
REQUESTS_PER_MINUTE = 3_000
"""Low enough that every request waits for its turn."""
JUMPS = ("+86400", "-86400", "+3600", "-3600")
FROZEN = "2031-02-03 04:05:06"
NO_LONGER_THAN_S = 600.0
"""The run takes some ten seconds on a quiet machine; a jump that was waited out would take an hour."""

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3_000)]


@pytest.mark.parametrize("jump", [*JUMPS, FROZEN])
def test_a_wall_clock_that_jumps_changes_nothing_about_a_run(tmp_path: Path, jump: str) -> None:
    library = need_library("F16", "libfaketimeMT.so.1")
    wanted = count(quick=1, full=4)
    lost = doubled = 0
    slowest_s = 0.0
    for number in range(wanted):
        folder = tmp_path / str(number)
        folder.mkdir()
        ledger = folder / "ledger.jsonl"
        now = folder / "now"
        now.write_text(FROZEN if jump == FROZEN else "+0")
        config = {
            **OPAQUE,
            "latency": {"median_ms": 60, "sigma": 0.3},
            "faults": {"rates": {"429": 0.03}, "attempts": 1, "headers": {"retry-after": "1"}},
            "seed": number,
        }
        with start_simulator(config, ledger=ledger) as simulator:
            scene = Scene(
                folder=folder,
                operation="chat",
                rows=ROWS,
                simulator=simulator,
                ledger=ledger,
                deployment={"requests_per_minute": REQUESTS_PER_MINUTE},
                environ={
                    "LD_PRELOAD": str(library),
                    "FAKETIME_TIMESTAMP_FILE": str(now),
                    "FAKETIME_NO_CACHE": "1",
                    "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                },
            )
            began = time.monotonic()
            process = scene.start()
            try:
                assert wait_for_a_request(scene, process) is not None, scene.said()
                if jump != FROZEN:
                    time.sleep(0.3)
                    now.write_text(jump)
                assert process.wait(NO_LONGER_THAN_S) == 0, scene.said()
            finally:
                process.kill()
                process.wait()
            slowest_s = max(slowest_s, time.monotonic() - began)
            found = harm(scene)
            lost, doubled = lost + found.lost, doubled + found.doubled
            assert_whole(scene)
            assert set(calls_by_row(scene).values()) <= {1, 2}
            # Its clock was the false one.
            assert _spanned_s(scene) == 0 if jump == FROZEN else _spanned_s(scene) > 3_000
    record(
        fault="F16",
        what="a clock that stands still" if jump == FROZEN else f"a jump of {int(jump) / 3600:+g} h",
        tried=wanted,
        lost=lost,
        doubled=doubled,
        notes=f"on the command, by libfaketime; the slowest run took {slowest_s:.1f} s",
    )


def _spanned_s(scene: Scene) -> float:
    """The seconds between the earliest and the latest time of the run's own log, by its own clock."""
    times = [datetime.fromisoformat(json.loads(line)["at"]) for line in scene.layout.log.read_text().splitlines()]
    return (max(times) - min(times)).total_seconds()
