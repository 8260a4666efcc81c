"""Finds a run that does nothing any more: by a task while the event loop turns, by a thread when it does not.

The task counts what the run gets done, for a loop may turn for ever over workers of which each waits for another. It
cannot see a loop that is blocked, for it would have to run there; only a thread can. Neither counts time in which the
whole process was stopped (SIGSTOP, a machine asleep): each look counts for two of its own intervals at most.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from pipeline.clock import Clock
    from pipeline.lanes.pulse import Pulse

SLACK_S = 60.0
"""Seconds beyond an attempt's deadline that everything about it may take."""
LOOKS = 16
LONGEST_S = 15.0
"""A look is had so many times within the limit, and at least so often."""
PATIENCE = 20
"""Rows may be a long way into a compressed input, and recordings hours long: a thread may read or cut for so many times
as long as the limit. It cannot say how far it is, and for ever is a hang."""
LAST_WORDS_S = 30.0
"""Seconds beyond the grace that a run which was found to stall has to end by itself."""


def limit_s(timeout_s: float) -> float:
    """Seconds without anything done that are a stall, where one attempt may take `timeout_s`."""
    return 2 * (timeout_s + SLACK_S)


class _Quiet:
    """Adds up the time in which a counter stands still."""

    def __init__(self, *, limit_s: float, now: float) -> None:
        self.every_s = min(LONGEST_S, limit_s / LOOKS)
        self._limit_s = limit_s
        self._looked = now
        self._count: int | None = None
        self._quiet_s = 0.0

    def look(self, now: float, count: int, *, waits: bool = False, patience: int = 1) -> bool:
        """Whether the counter has stood still for too long; `waits`: it may, `patience`: so many times as long."""
        passed_s = min(now - self._looked, 2 * self.every_s)
        self._looked = now
        if waits or count != self._count:
            self._count, self._quiet_s = count, 0.0
        else:
            self._quiet_s += passed_s / patience
        return self._quiet_s >= self._limit_s


class Watchdog:
    """Calls `stalled` once the pulse has stood still for too long. `turns` counts its own looks."""

    def __init__(
        self,
        *,
        pulse: Pulse,
        limit_s: float,
        waits_until: Callable[[], float | None],
        works: Callable[[], bool],
        clock: Clock,
        stalled: Callable[[], None],
    ) -> None:
        """`waits_until` says to when something is knowingly waited for (monotonic seconds), None where nothing is.

        `works`: whether a thread is at a long piece of work; `PATIENCE` says what that is worth.
        """
        self.turns = 0
        self._pulse = pulse
        self._limit_s = limit_s
        self._waits_until = waits_until
        self._works = works
        self._clock = clock
        self._stalled = stalled

    async def run(self) -> None:
        """Watch, until the run has stalled."""
        quiet = _Quiet(limit_s=self._limit_s, now=self._clock.now())
        while True:
            await self._clock.sleep(quiet.every_s)
            self.turns += 1
            now = self._clock.now()
            until = self._waits_until()
            waits = until is not None and until > now
            if quiet.look(now, self._pulse.beats, waits=waits, patience=PATIENCE if self._works() else 1):
                self._stalled()
                return


class LoopMonitor:
    """Calls `blocked`, in a thread of its own, once the event loop has not turned for too long."""

    def __init__(self, *, turns: Callable[[], int], limit_s: float, blocked: Callable[[], None]) -> None:
        """`turns` counts what the loop has done. Use it in a with block."""
        self._turns = turns
        self._limit_s = limit_s
        self._blocked = blocked
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="loop monitor", daemon=True)

    def __enter__(self) -> Self:
        """Begin to watch."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Watch no longer."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        quiet = _Quiet(limit_s=self._limit_s, now=time.monotonic())
        while not self._over.wait(quiet.every_s):
            if quiet.look(time.monotonic(), self._turns()):
                self._blocked()
                return


def task_states(tasks: Iterable[asyncio.Task[Any]]) -> list[str]:
    """Say where each task stands: its name, and file, line and function of every call, outermost first. No values."""
    return [
        f"task {task.get_name()}:\n{_places(_calls(task.get_coro()))}"
        for task in sorted(tasks, key=lambda task: task.get_name())
    ]


def thread_states() -> list[str]:
    """Say where each thread stands, likewise."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return [
        f"thread {names.get(identity, identity)}:\n{_places(_frames(frame))}"
        for identity, frame in sys._current_frames().items()  # noqa: SLF001 - the only way to see other threads
    ]


def _calls(awaited: Any) -> list[tuple[CodeType, int]]:
    """Follow a coroutine to what it waits for; a task's own stack ends at its first call."""
    found: list[tuple[CodeType, int]] = []
    while awaited is not None and len(found) < 100:  # noqa: PLR2004 - a chain without end would be no dump
        frame = next(
            (frame for name in ("cr_frame", "gi_frame", "ag_frame") if (frame := getattr(awaited, name, None))), None
        )
        if frame is not None:
            found.append((frame.f_code, frame.f_lineno))
        awaited = next(
            (
                inner
                for name in ("cr_await", "gi_yieldfrom", "ag_await")
                if (inner := getattr(awaited, name, None)) is not None
            ),
            None,
        )
    return found


def _frames(frame: FrameType) -> list[tuple[CodeType, int]]:
    return [(one.f_code, line) for one, line in traceback.walk_stack(frame)][::-1]


def _places(calls: list[tuple[CodeType, int]]) -> str:
    return "\n".join(f"  {code.co_filename}:{line} in {code.co_qualname}" for code, line in calls)
