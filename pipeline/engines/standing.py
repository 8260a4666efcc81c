"""What goes on beside a run's work, whatever that is: its summary each second, and its deadline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import PipelineError, StoppedEarlyError
from pipeline.store.summary import Summary, write_summary

if TYPE_CHECKING:
    from pipeline.clock import Clock
    from pipeline.lanes.stop import Stop

SUMMARY_EVERY_S = 1.0


async def keep_summary(
    path: Path,
    now: Callable[[], Summary],
    *,
    check: Callable[[], None] = lambda: None,
    watcher: Callable[[Summary], None] | None,
    stop: Stop,
    clock: Clock,
) -> None:
    """Replace summary.json each second, without end; a disk that refuses it, or what `check` raises, stops the run."""
    while True:
        summary = now()
        try:
            check()
            write_summary(path, summary)
        except PipelineError as error:
            stop.request(error)
        if watcher is not None:
            watcher(summary)
        await clock.sleep(SUMMARY_EVERY_S)


async def end_at_deadline(deadline_s: float | None, *, stop: Stop, clock: Clock) -> None:
    """Ask the run to stop after so many seconds; None: never."""
    if deadline_s is None:
        return
    await clock.sleep(deadline_s)
    stop.request(StoppedEarlyError(f"run.deadline of {deadline_s:g} s passed; run the same command again to continue"))
