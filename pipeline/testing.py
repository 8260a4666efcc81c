"""The fakes that ship: a clock that is turned by hand, and a service that answers from memory."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx

from pipeline.clock import Clock, SystemClock, Timer


@dataclass(order=True, slots=True)
class _Entry:
    """A callback in the clock's queue; equal times keep the order of asking."""

    when: float
    number: int
    callback: Callable[[], None] = field(compare=False)
    cancelled: bool = field(default=False, compare=False)

    def cancel(self) -> None:
        """Forget the callback."""
        self.cancelled = True


class ManualClock:
    """Virtual time, which passes only by `advance`, `jump_wall` or under `autojump`.

    With real threads or sockets under way autojump lies: it cannot see that somebody is still at work.
    """

    def __init__(self, *, start: float = 0.0, wall: float = 1_700_000_000.0) -> None:
        self._now = start
        self._wall_ahead = wall - start
        self._queue: list[_Entry] = []
        self._count = 0
        self._asked = asyncio.Event()

    def now(self) -> float:
        """Return virtual monotonic seconds."""
        return self._now

    def wall(self) -> float:
        """Return virtual seconds since the epoch."""
        return self._now + self._wall_ahead

    def jump_wall(self, seconds: float) -> None:
        """Set the wall clock forward or back; monotonic time does not notice."""
        self._wall_ahead += seconds

    async def sleep(self, seconds: float) -> None:
        """Wait for virtual time to pass; gives way once for zero or less."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        over = asyncio.get_running_loop().create_future()
        timer = self.call_at(self._now + seconds, lambda: None if over.done() else over.set_result(None))
        try:
            await over
        finally:
            timer.cancel()

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call back when virtual time reaches `when`; at the next advance of any size where it is past."""
        self._count += 1
        entry = _Entry(max(when, self._now), self._count, callback)
        heapq.heappush(self._queue, entry)
        self._asked.set()
        return entry

    def advance(self, seconds: float) -> None:
        """Let time pass and call back what comes due, in order. Tasks woken by it run when the caller next waits."""
        end = self._now + seconds
        while (when := self._next()) is not None and when <= end:
            self._now = when
            heapq.heappop(self._queue).callback()
        self._now = end

    @asynccontextmanager
    async def autojump(self) -> AsyncIterator[None]:
        """Whenever every other task waits, jump to the next moment that somebody waits for."""
        jumper = asyncio.create_task(self._jump())
        try:
            yield
        finally:
            jumper.cancel()
            await asyncio.wait([jumper])

    async def _jump(self) -> None:
        this = asyncio.current_task()
        while True:
            # Two rounds, because a callback of the loop may wake a task that looked blocked in the first.
            await _all_blocked(this)
            await _all_blocked(this)
            when = self._next()
            if when is None:
                self._asked.clear()
                await self._asked.wait()
            else:
                self.advance(when - self._now)

    def _next(self) -> float | None:
        while self._queue and self._queue[0].cancelled:
            heapq.heappop(self._queue)
        return self._queue[0].when if self._queue else None


async def _all_blocked(this: asyncio.Task[None] | None) -> None:
    """Return after a pass of the loop in which no other task could run."""
    while True:
        await asyncio.sleep(0)
        for task in asyncio.all_tasks():
            waits_for = getattr(task, "_fut_waiter", None)
            if task is not this and (waits_for is None or waits_for.done()):
                break
        else:
            return


class MemoryTransport(httpx.AsyncBaseTransport):
    """Answers every request by calling `handler`, after `latency_s` of the clock's time.

    An exception that the handler returns is raised as if the network had. `requests` keeps what was asked, in order.
    """

    def __init__(
        self,
        handler: Callable[[httpx.Request], httpx.Response | Exception],
        *,
        latency_s: float | Callable[[], float] = 0.0,
        clock: Clock | None = None,
    ) -> None:
        self._handler = handler
        self._latency_s = latency_s
        self._clock = clock or SystemClock()
        self.requests: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer; the request's body has been read and is in `request.content`."""
        await request.aread()
        self.requests.append(request)
        latency_s = self._latency_s() if callable(self._latency_s) else self._latency_s
        if latency_s > 0:
            await self._clock.sleep(latency_s)
        answer = self._handler(request)
        if isinstance(answer, Exception):
            raise answer
        return answer
