"""What goes on beside a run's work, whatever that is: its summary each second and at its end, and its deadline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import PipelineError, StoppedEarlyError, StorageError
from pipeline.log import Event, EventLog, Level
from pipeline.store.summary import Summary, write_summary

if TYPE_CHECKING:
    from pipeline.clock import Clock
    from pipeline.lanes.stop import Stop

SUMMARY_EVERY_S = 1.0


def tell_summary(
    path: Path,
    now: Callable[[], Summary],
    *,
    check: Callable[[], None] = lambda: None,
    watcher: Callable[[Summary], None] | None,
    stop: Stop,
) -> None:
    """Replace summary.json, and show it to whoever watches; a disk that refuses it, or `check`, stops the run."""
    summary = now()
    try:
        check()
        write_summary(path, summary)
    except PipelineError as error:
        stop.request(error)
    if watcher is not None:
        watcher(summary)


async def keep_summary(tell: Callable[[], None], clock: Clock) -> None:
    """Tell how a run stands each second, without end."""
    while True:
        tell()
        await clock.sleep(SUMMARY_EVERY_S)


def tell_end(summary: Summary, *, path: Path, log: EventLog, watcher: Callable[[Summary], None] | None) -> Summary:
    """Leave the last summary where everybody looks for it, and return it; a disk that refuses it is how a run ends."""
    try:
        write_summary(path, summary)
        log.emit(
            Event.RUN_ENDED,
            Level.INFO if summary.exit_code == 0 else Level.WARNING,
            state=summary.state,
            reason=summary.reason,
            exit_code=summary.exit_code,
            rows=asdict(summary.rows),
        )
    except StorageError as error:
        if summary.exit_code in {0, 1}:
            summary = replace(summary, state="stopped", reason=str(error), exit_code=error.exit_code)
    if watcher is not None:
        watcher(summary)
    return summary


async def end_at_deadline(deadline_s: float | None, *, stop: Stop, clock: Clock) -> None:
    """Ask the run to stop after so many seconds; None: never."""
    if deadline_s is None:
        return
    await clock.sleep(deadline_s)
    stop.request(StoppedEarlyError(f"run.deadline of {deadline_s:g} s passed; run the same command again to continue"))
