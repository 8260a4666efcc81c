"""SIGINT, SIGTERM and SIGHUP: the first ends a run cleanly, the second at once."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskStatus

from pipeline.errors import StorageError
from pipeline.lanes.stop import Interrupted, Stop
from pipeline.log import Event, EventLog, Level

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""SIGHUP is a terminal that was closed, or a connection to it that was lost."""


@asynccontextmanager
async def obeyed_signals(stop: Stop, log: EventLog) -> AsyncIterator[None]:
    """Obey signals for as long as the block goes on. Only in the main thread.

    What whoever started the process had it ignore stays ignored: nohup does that, and a shell for what ends in `&`.
    """
    failure: Exception | None = None
    async with anyio.create_task_group() as group:
        await group.start(_obey, stop, log)
        try:
            yield
        except Exception as error:  # noqa: BLE001 - it is raised again, outside of the group that would wrap it
            failure = error
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _obey(stop: Stop, log: EventLog, *, task_status: TaskStatus[None]) -> None:
    """Ask the run to stop at the first signal; leave at once at the second, which is as safe as kill -9."""
    obeyed = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    with anyio.open_signal_receiver(*obeyed) as signals:
        task_status.started()
        first = True
        async for number in signals:
            if not first:
                os._exit(128 + number)
            first = False
            stop.request(Interrupted(number))
            try:
                log.emit(Event.STOPPING, Level.WARNING, signal=number.name)
            except StorageError as error:
                stop.request(error)
