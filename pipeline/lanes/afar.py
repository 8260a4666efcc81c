"""A sender's side of what lives in the run's own process: its plan and its journal."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import StorageError
from pipeline.lanes.channel import Channel, Kind
from pipeline.store.journal import JournalReader, pack, pack_attempts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.model import Attempt, Outcome
    from pipeline.plan.work import Task, Work

LEAST_AHEAD = 16
"""Tasks that a sender has beyond those in hand, at least, so that it does not wait for the run to answer."""


class FarPlan:
    """Hands out what the run hands over, to as many workers at once as it may; asks for more in time."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._ready: deque[Task] = deque()
        self._asked = 0
        self._most = 0
        self._ended = False
        self._busy: set[asyncio.Task[Any] | None] = set()
        self._idle: deque[asyncio.Future[None]] = deque()

    def limit(self, most: int) -> None:
        """Let so many workers have a task at once."""
        self._most = most
        self._want()
        self._wake(most)

    def give(self, tasks: Iterable[Task]) -> None:
        """Take what the run hands over."""
        for task in tasks:
            self._ready.append(task)
            self._asked -= 1
        self._wake(len(self._ready))

    def end(self) -> None:
        """Note that no more comes."""
        self._ended = True
        self._wake(len(self._idle))

    def next_ready(self) -> Work | None:
        """The next task for this worker, whose last one is done; None where none is there, or enough are at work."""
        worker = asyncio.current_task()
        self._busy.discard(worker)
        if not self._ready or len(self._busy) >= self._most:
            return None
        self._busy.add(worker)
        work = self._ready.popleft()
        self._want()
        return work

    async def next(self) -> Work | None:
        """The next task, None when there is no more."""
        while True:
            if (work := self.next_ready()) is not None:
                return work
            if self._ended and not self._ready:
                self._wake(1)
                return None
            turn = asyncio.get_running_loop().create_future()
            self._idle.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                with suppress(ValueError):
                    self._idle.remove(turn)
                raise

    def finished(self, work: Work) -> None:
        """Say nothing: the run counts the rows that are kept."""

    def read_on(self, reads_on: bool) -> None:  # noqa: FBT001 - what it is set to
        """See `Plan`."""
        self._channel.say(Kind.READ_ON, reads_on)

    def _want(self) -> None:
        """Ask for more where less than half of what should lie ready does."""
        wanted = max(LEAST_AHEAD, self._most // 4)
        missing = wanted - len(self._ready) - self._asked
        if missing * 2 >= wanted and not self._ended:
            self._asked += missing
            self._channel.say(Kind.WANT, missing)

    def _wake(self, count: int) -> None:
        while count > 0 and self._idle:
            turn = self._idle.popleft()
            if not turn.done():
                turn.set_result(None)
                count -= 1


class FarJournal:
    """Has the run's own process keep what comes of this one's requests."""

    def __init__(self, channel: Channel, path: Path) -> None:
        self._channel = channel
        self._path = path
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._last = 0

    async def commit(self, outcome: Outcome) -> None:
        """See `Journal`; files of rows are not handed over. Raises StorageError."""
        await self._keep(Kind.ROWS, tuple(pack(outcome)))

    async def keep_attempts(self, attempts: tuple[Attempt, ...]) -> None:
        """See `Journal`. Raises StorageError."""
        await self._keep(Kind.ATTEMPTS, pack_attempts(attempts))

    async def note(self, key: str, value: object) -> None:
        """See `Journal`. Raises StorageError."""
        await self._keep(Kind.NOTE, (key, value))

    def reader(self) -> JournalReader:
        """See `Journal`."""
        return JournalReader(self._path)

    def kept(self, number: int, failure: str | None) -> None:
        """Hear what became of something that was to be kept."""
        waiting = self._waiting.pop(number, None)
        if waiting is None or waiting.done():
            return
        if failure is None:
            waiting.set_result(None)
        else:
            waiting.set_exception(StorageError(failure))

    async def _keep(self, kind: Kind, value: Any) -> None:
        self._last += 1
        waiting = asyncio.get_running_loop().create_future()
        self._waiting[self._last] = waiting
        self._channel.say(kind, (self._last, value))
        await waiting
