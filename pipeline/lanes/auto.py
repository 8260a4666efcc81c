"""Both lanes: rows go in batches while there is time, and what is unfinished near the deadline is sent one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio

from pipeline.lanes.stop import Stop, Stopped

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.clock import Clock
    from pipeline.lanes.batch import BatchLane
    from pipeline.lanes.online import OnlineLane
    from pipeline.plan.plan import Plan

LOOK_S = 30.0
"""Seconds; the longest time between two judgements of how much time is left."""


class AutoLane:
    """The batch lane until `pull_back_at`, then the online lane beside what is left of it, for many workers."""

    def __init__(
        self,
        *,
        batch: BatchLane,
        online: OnlineLane,
        plan: Plan,
        pull_back_at: Callable[[], float],
        stop: Stop,
        clock: Clock,
    ) -> None:
        """`pull_back_at` says, as of now, when rows must leave their batches (monotonic seconds)."""
        self._batch = batch
        self._online = online
        self._plan = plan
        self._pull_back_at = pull_back_at
        self._stop = stop
        self._clock = clock
        self._led = False
        self._switched = anyio.Event()

    @property
    def in_flight(self) -> int:
        """How many requests are under way, in batches or not."""
        return self._batch.in_flight + self._online.in_flight

    @property
    def works_long(self) -> bool:
        """Whether a thread or a transfer works for long without anything else getting done."""
        return self._batch.works_long or self._online.works_long

    @property
    def waits_until(self) -> float | None:
        """To when either lane knowingly waits; None where neither does."""
        waits = (self._batch.waits_until, self._online.waits_until)
        return max((until for until in waits if until is not None), default=None)

    @property
    def unwritten(self) -> int:
        """Rows that were answered, and could not be written."""
        return self._batch.unwritten + self._online.unwritten

    def schema(self) -> pa.Schema:
        """The result columns. Raises LookupError while a fact of the run is unknown."""
        return self._batch.schema()

    async def work(self) -> None:
        """Take part until there is no more work or the run stops; the first to come leads."""
        try:
            if self._led:
                with self._stop.waiting():
                    await self._switched.wait()
                await self._send()
                return
            self._led = True
            async with anyio.create_task_group() as group:
                group.start_soon(self._batch.work)
                try:
                    await self._until_late()
                    self._switched.set()
                    await self._send()
                except Stopped:
                    self._switched.set()
        except Stopped:
            return

    async def _until_late(self) -> None:
        """Wait until batches have done it all, or there is no more time for them; then have their rows given back."""
        while not self._batch.ended and self._stop.cause is None:
            left_s = self._pull_back_at() - self._clock.now()
            if left_s <= 0:
                self._batch.pull_back()
                with self._stop.waiting():
                    await self._batch.drained.wait()
                return
            with self._stop.waiting(), anyio.move_on_after(min(left_s, LOOK_S)):
                await self._batch.change()

    async def _send(self) -> None:
        """Send what the plan has, and what batches give back, until they have ended."""
        while True:
            await self._online.work()
            done = self._batch.ended and not self._plan.has_ready
            if self._stop.cause is not None or self._online.is_crowded or done:
                return
            with self._stop.waiting():
                await self._batch.change()
