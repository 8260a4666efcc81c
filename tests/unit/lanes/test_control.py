"""How a run is to go on: paused or not, with how many workers, at which quota."""

from __future__ import annotations

import pytest

from pipeline.lanes.control import Control
from pipeline.testing import ManualClock


def control(clock: ManualClock) -> Control:
    return Control(workers=4, leave=0.1, clock=clock)


@pytest.mark.anyio
async def test_what_was_paused_is_added_up_and_asking_twice_changes_nothing() -> None:
    clock = ManualClock()
    one = control(clock)
    assert (one.is_paused, one.paused_since, one.paused_s) == (False, None, 0.0)
    assert not one.resume()
    assert one.pause()
    clock.advance(10)
    assert not one.pause()
    assert (one.is_paused, one.paused_since, one.paused_s) == (True, "2023-11-14T22:13:20+00:00", 10.0)
    assert one.resume()
    clock.advance(100)
    assert one.pause()
    clock.advance(5)
    assert one.paused_s == 15.0
    assert one.resume()
    assert not one.resume()
    assert (one.is_paused, one.paused_since, one.paused_s) == (False, None, 15.0)


@pytest.mark.anyio
async def test_a_clock_that_is_set_changes_nothing_about_how_long_it_was() -> None:
    clock = ManualClock()
    one = control(clock)
    one.pause()
    clock.jump_wall(-86_400)
    clock.advance(3)
    assert one.paused_s == 3.0


@pytest.mark.anyio
async def test_whoever_follows_is_called_at_once_after_each_change_and_no_longer() -> None:
    one = control(ManualClock())
    seen: list[tuple[bool, int, float]] = []
    with one.followed(lambda: seen.append((one.is_paused, one.workers, one.leave))):
        one.pause()
        one.pause()
        one.change(workers=8)
        one.change(leave=0.5)
        one.resume()
    one.change(workers=1)
    assert seen == [(False, 4, 0.1), (True, 4, 0.1), (True, 8, 0.1), (True, 8, 0.5), (False, 8, 0.5)]


@pytest.mark.anyio
async def test_requests_are_counted_while_somebody_does() -> None:
    one = control(ManualClock())
    assert one.in_flight() == 0
    with one.counting(lambda: 3):
        assert one.in_flight() == 3
    assert one.in_flight() == 0
