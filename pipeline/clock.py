"""The only room that asks the time or waits for it. Everything else is handed a Clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

import anyio


class Timer(Protocol):
    """A callback that waits for its time."""

    def cancel(self) -> None:
        """Forget the callback; does nothing once it ran."""


class Clock(Protocol):
    """Time as the run sees it. Waits and rates use `now`; only stamps that people read use `wall`."""

    def now(self) -> float:
        """Monotonic seconds from an arbitrary zero."""

    def wall(self) -> float:
        """Seconds since the epoch; may jump."""

    async def sleep(self, seconds: float) -> None:
        """Wait; returns at once for zero or less."""

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call back in the event loop once `now() >= when`."""


def utc(wall: float) -> str:
    """Write seconds since the epoch as ISO 8601 in UTC, to the second."""
    return datetime.fromtimestamp(wall, UTC).isoformat(timespec="seconds")


class SystemClock:
    """The machine's clock. `call_at` and `sleep` need a running event loop."""

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def wall(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Wait by the event loop's own monotonic clock."""
        await anyio.sleep(max(0.0, seconds))

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call back in the event loop. The loop's zero may differ from ours, so the distance is handed over."""
        return asyncio.get_running_loop().call_later(max(0.0, when - self.now()), callback)
