"""What is done about a run that does nothing any more: it is said where everything stands, and the run ends with 70."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING

from pipeline.engines.watchdog import LAST_WORDS_S, LoopMonitor, Watchdog, task_states, thread_states
from pipeline.errors import PipelineError, StalledError
from pipeline.log import Event, EventLog, Level
from pipeline.store.files import replace_text
from pipeline.store.summary import write_summary

if TYPE_CHECKING:
    from pipeline.clock import Clock
    from pipeline.engines.tally import Tally
    from pipeline.lanes.pulse import Pulse
    from pipeline.lanes.stop import Stop
    from pipeline.store.folder import Layout

STDERR = 2
STDERR_S = 2.0
"""Seconds that the last words may take: what blocks the run may be the terminal itself."""


class StallGuard:
    """Watches one run. `leave` ends the process (os._exit) where the run cannot end itself; None: it is not ours."""

    def __init__(
        self,
        *,
        layout: Layout,
        log: EventLog,
        stop: Stop,
        tally: Tally,
        pulse: Pulse,
        waits_until: Callable[[], float | None],
        works: Callable[[], bool],
        limit_s: float,
        grace_s: float,
        clock: Clock,
        leave: Callable[[int], object] | None,
    ) -> None:
        """`limit_s` is how long nothing may be got done, `grace_s` what a stopped run is given to end.

        For `waits_until` and `works` see Watchdog.
        """
        self._layout = layout
        self._log = log
        self._stop = stop
        self._tally = tally
        self._limit_s = limit_s
        self._grace_s = grace_s
        self._clock = clock
        self._leave = leave
        self._watchdog = Watchdog(
            pulse=pulse, limit_s=limit_s, waits_until=waits_until, works=works, clock=clock, stalled=self._stalled
        )

    async def run(self) -> None:
        """Watch until cancelled; a stall stops the run, and the process where that is of no use."""
        monitor = LoopMonitor(turns=lambda: self._watchdog.turns, limit_s=self._limit_s, blocked=self._blocked)
        with monitor if self._leave is not None else nullcontext():
            await self._watchdog.run()
            await self._clock.sleep(self._grace_s + LAST_WORDS_S)
            if self._leave is not None:
                self._write_last_summary()
                self._leave(StalledError.exit_code)

    def _stalled(self) -> None:
        """Say where everything stands, and stop; nothing in flight can have an answer coming any more."""
        states = [*task_states(asyncio.all_tasks()), *thread_states()]
        self._write_states(states)
        self._stop.request(self._error("nothing happened"))
        try:
            self._log.emit(Event.STALLED, Level.ERROR, seconds=self._limit_s, states=str(self._layout.stall))
        except PipelineError as error:
            self._stop.request(error)
        self._stop.abandon()

    def _blocked(self) -> None:
        """Leave from the monitor's thread: the loop does not turn, so nothing that needs it can be done.

        The log is left alone, for whoever blocks the loop may hold it.
        """
        self._write_states(thread_states())
        error = self._error("the event loop was blocked")
        self._stop.request_from_afar(error)
        self._write_last_summary()
        says = threading.Thread(target=_say, args=(f"pipeline: {error}\n",), daemon=True)
        says.start()
        says.join(STDERR_S)
        if self._leave is not None:
            self._leave(StalledError.exit_code)

    def _error(self, what: str) -> StalledError:
        return StalledError(
            f"{what} for {self._limit_s:.0f} s although nothing was waited for: a defect of ours. What was committed "
            f"is safe: run the same command again to continue, and please report it with {self._layout.stall} and "
            f"{self._layout.log.name}, which hold no prompt and no key"
        )

    def _write_states(self, states: list[str]) -> None:
        with suppress(OSError):
            replace_text(self._layout.stall, "\n\n".join(states) + "\n", durable=False)

    def _write_last_summary(self) -> None:
        with suppress(Exception):
            write_summary(self._layout.summary, self._tally.ending(self._stop.cause))


def _say(text: str) -> None:
    with suppress(OSError):
        os.write(STDERR, text.encode())
