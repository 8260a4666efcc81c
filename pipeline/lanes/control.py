"""What people may ask of a run while it goes on: to pause and to go on, with how many workers, at which quota."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import anyio

from pipeline.clock import utc

if TYPE_CHECKING:
    from pipeline.clock import Clock

Follow = Callable[[], None]
"""Looks at a control that has changed, and does what follows; it may be called when nothing has."""


class Control:
    """How a run is to go on, for all stages of an invocation. Used from one event loop.

    `workers` is how many requests may be in flight, `leave` the share of each quota that is left to others; `in_flight`
    says how many are.
    """

    def __init__(self, *, workers: int, leave: float, clock: Clock) -> None:
        self.workers = workers
        self.leave = leave
        self._clock = clock
        self._paused_at: float | None = None
        self._paused_wall = 0.0
        self._paused_s = 0.0
        self._followers: list[Follow] = []
        self._changed = anyio.Event()
        self.in_flight: Callable[[], int] = lambda: 0

    @property
    def is_paused(self) -> bool:
        """Whether nothing new may be sent for now."""
        return self._paused_at is not None

    @property
    def paused_since(self) -> str | None:
        """Since when, ISO 8601 in UTC; None while it is not paused."""
        return None if self._paused_at is None else utc(self._paused_wall)

    @property
    def paused_s(self) -> float:
        """Seconds that it was paused so far, in all."""
        return self._paused_s + (0.0 if self._paused_at is None else self._clock.now() - self._paused_at)

    def pause(self) -> bool:
        """Let nothing new be sent; False where that is so already."""
        if self.is_paused:
            return False
        self._paused_at, self._paused_wall = self._clock.now(), self._clock.wall()
        self._tell()
        return True

    def resume(self) -> bool:
        """Go on; False where it was not paused."""
        if self._paused_at is None:
            return False
        self._paused_s, self._paused_at = self.paused_s, None
        self._tell()
        return True

    def change(self, *, workers: int | None = None, leave: float | None = None) -> None:
        """Take other values, None where one stays."""
        self.workers = self.workers if workers is None else workers
        self.leave = self.leave if leave is None else leave
        self._tell()

    @contextmanager
    def followed(self, follow: Follow, *, at_once: bool = True) -> Iterator[None]:
        """Have `follow` called now, where it is to be, and after each change until the block ends."""
        self._followers.append(follow)
        try:
            if at_once:
                follow()
            yield
        finally:
            self._followers.remove(follow)

    @contextmanager
    def counting(self, in_flight: Callable[[], int]) -> Iterator[None]:
        """Say how many requests are in flight, until the block ends."""
        self.in_flight = in_flight
        try:
            yield
        finally:
            self.in_flight = lambda: 0

    def wake(self) -> None:
        """Let those who wait for a change look again."""
        self._changed.set()
        self._changed = anyio.Event()

    async def changes(self) -> None:
        """Wait for the next change."""
        await self._changed.wait()

    def _tell(self) -> None:
        for follow in tuple(self._followers):
            follow()
        self.wake()
