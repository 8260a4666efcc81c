"""A run that does nothing any more is found; one that waits, or was stopped from outside, is not."""

from __future__ import annotations

import asyncio
import threading
import time

import anyio
import pytest

from pipeline.engines.watchdog import LoopMonitor, Watchdog, limit_s, task_states, thread_states
from pipeline.lanes.pulse import Pulse
from pipeline.testing import ManualClock

LIMIT_S = limit_s(300)


class Watched:
    """A watchdog over virtual time."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.pulse = Pulse()
        self.until: float | None = None
        self.works = False
        self.stalled_at: float | None = None
        self.dog = Watchdog(
            pulse=self.pulse,
            limit_s=LIMIT_S,
            waits_until=lambda: self.until,
            works=lambda: self.works,
            clock=self.clock,
            stalled=self._stalled,
        )

    def _stalled(self) -> None:
        self.stalled_at = self.clock.now()

    async def for_s(self, seconds: float, *, every_s: float = 1.0, beats: bool = False) -> None:
        """Let time pass."""
        left = seconds
        while left > 0:
            self.clock.advance(min(every_s, left))
            left -= every_s
            if beats:
                self.pulse.beat()
            await asyncio.sleep(0)
            await asyncio.sleep(0)


def test_the_limit_is_twice_an_attempt_and_a_minute() -> None:
    assert limit_s(300) == 720
    assert limit_s(1) == 122


@pytest.mark.anyio
@pytest.mark.parametrize("busy_s", [0.0, 1000.0])
async def test_a_run_that_gets_nothing_done_is_found_soon_after_the_limit(busy_s: float) -> None:
    watched = Watched()
    async with anyio.create_task_group() as group:
        group.start_soon(watched.dog.run)
        await asyncio.sleep(0)
        await watched.for_s(busy_s, beats=True)
        await watched.for_s(LIMIT_S - 1)
        assert watched.stalled_at is None
        await watched.for_s(40)
    assert watched.stalled_at is not None
    assert busy_s + LIMIT_S <= watched.stalled_at <= busy_s + LIMIT_S + 40


@pytest.mark.anyio
async def test_a_run_that_gets_something_done_now_and_then_is_left_alone() -> None:
    watched = Watched()
    async with anyio.create_task_group() as group:
        group.start_soon(watched.dog.run)
        await asyncio.sleep(0)
        for _ in range(20):
            await watched.for_s(LIMIT_S * 0.9, every_s=10)
            watched.pulse.beat()
        assert watched.stalled_at is None
        group.cancel_scope.cancel()


@pytest.mark.anyio
async def test_what_is_knowingly_waited_for_is_no_stall_and_the_limit_begins_after_it() -> None:
    watched = Watched()
    watched.until = 20 * LIMIT_S
    async with anyio.create_task_group() as group:
        group.start_soon(watched.dog.run)
        await asyncio.sleep(0)
        await watched.for_s(20.9 * LIMIT_S, every_s=10)
        assert watched.stalled_at is None
        await watched.for_s(0.2 * LIMIT_S)
    assert watched.stalled_at is not None


@pytest.mark.anyio
async def test_a_thread_that_reads_has_twenty_times_as_long_and_not_for_ever() -> None:
    watched = Watched()
    watched.works = True
    async with anyio.create_task_group() as group:
        group.start_soon(watched.dog.run)
        await asyncio.sleep(0)
        await watched.for_s(19 * LIMIT_S, every_s=10)
        assert watched.stalled_at is None
        await watched.for_s(2 * LIMIT_S, every_s=10)
    assert watched.stalled_at is not None


@pytest.mark.anyio
async def test_a_process_that_was_stopped_for_hours_has_not_stalled() -> None:
    watched = Watched()
    async with anyio.create_task_group() as group:
        group.start_soon(watched.dog.run)
        await asyncio.sleep(0)
        for _ in range(10):
            await watched.for_s(7 * 3600, every_s=7 * 3600)
        assert watched.stalled_at is None
        group.cancel_scope.cancel()


def test_a_loop_that_is_blocked_is_seen_from_a_thread() -> None:
    seen = threading.Event()
    with LoopMonitor(turns=lambda: 7, limit_s=0.2, blocked=seen.set):
        assert seen.wait(20)


def test_a_loop_that_turns_is_left_alone() -> None:
    seen = threading.Event()
    turns = 0

    def turned() -> int:
        nonlocal turns
        turns += 1
        return turns

    with LoopMonitor(turns=turned, limit_s=0.05, blocked=seen.set):
        time.sleep(0.5)
    assert not seen.is_set()


@pytest.mark.anyio
async def test_states_name_tasks_and_threads_and_every_call_and_no_value() -> None:
    async def inner(secret: str) -> None:
        await anyio.sleep_forever()

    async def outer(secret: str) -> None:
        await inner(secret)

    task = asyncio.create_task(outer("canary-of-a-prompt"), name="worker 3")
    await asyncio.sleep(0)
    (said,) = task_states([task])
    task.cancel()
    assert said.startswith("task worker 3:\n")
    assert said.index(".outer") < said.index(".inner") < said.index("sleep_forever")
    assert "test_watchdog.py:" in said
    said = "\n".join(thread_states())
    assert "thread MainThread:" in said
    assert "thread_states" in said
    assert "canary" not in said
