"""SIGINT, SIGTERM and SIGHUP: the first ends a run cleanly, the second at once."""

from __future__ import annotations

import asyncio
import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from pipeline.errors import StorageError
from pipeline.lanes.stop import Interrupted, Stop
from pipeline.log import Event, EventLog, Level

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""SIGHUP is a terminal that was closed, or a connection to it that was lost."""
_STDERR = 2


@contextmanager
def obeyed_signals(stop: Stop, log: EventLog) -> Iterator[None]:
    """Obey signals for as long as the block goes on, in the event loop. Only in the main thread.

    The first asks the run to stop; the second leaves at once, which is as safe as kill -9, after the block, too: the
    report and the last words are still to be written then. What whoever started the process had it ignore stays
    ignored: nohup does that, and a shell for what ends in `&`.
    """
    # Not the loop's own handlers: where they end, the default takes over, which knows no exit code, for a moment at
    # least, and a second signal comes when it likes.
    loop = asyncio.get_running_loop()
    heard = False

    def hear(number: int, _: FrameType | None) -> None:
        nonlocal heard
        if heard:
            _leave(number)
        heard = True
        loop.call_soon_threadsafe(_obey, stop, log, signal.Signals(number))

    before = {number: signal.getsignal(number) for number in ENDING}
    obeyed = [number for number in ENDING if before[number] is not signal.SIG_IGN]
    for number in obeyed:
        signal.signal(number, hear)
    try:
        yield
    finally:
        if not heard:
            for number in obeyed:
                signal.signal(number, before[number])


def _leave(number: int) -> NoReturn:
    """Leave at once; a terminal is told so, where that cannot block."""
    with suppress(OSError, ValueError):
        if os.isatty(_STDERR) and select.select((), (_STDERR,), (), 0)[1]:
            os.write(_STDERR, b"\nleft at once: what was committed is safe, and the same command continues\n")
    os._exit(128 + number)


def _obey(stop: Stop, log: EventLog, number: signal.Signals) -> None:
    stop.request(Interrupted(number))
    try:
        log.emit(Event.STOPPING, Level.WARNING, signal=number.name)
    except StorageError as error:
        stop.request(error)
