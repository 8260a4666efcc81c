"""Hands out the work of a run, in the order of the rows, a bounded way ahead of those who do it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from pipeline.plan.ranges import PlanRules
from pipeline.plan.reader import Reader, Step
from pipeline.plan.same import MOST_WAITING, Waiting
from pipeline.plan.work import Copies, Settled, Task, Work
from pipeline.store.journal import Span

if TYPE_CHECKING:
    from anyio.streams.memory import MemoryObjectSendStream

    from pipeline.operations.base import Operation
    from pipeline.plan.carrier import Carrier
    from pipeline.plan.same import Same
    from pipeline.sources.base import Source
    from pipeline.store.folder import Layout
    from pipeline.store.ids import IdTable
    from pipeline.store.journal import Journal


@dataclass(slots=True, kw_only=True)
class _Progress:
    """How far one open range is."""

    span: Span
    handed_out: int = 0
    finished: int = 0


class Plan:
    """Hands out work to any number of workers, in the order of the rows, a bounded way ahead of them.

    Reading, rendering and packing happen in a worker thread, one batch ahead at most. Where a run is continued,
    open ranges are read again (that rebuilds their spool), and rows that the journal holds are left out. `begun` is set
    once there is something to hand out.
    """

    def __init__(
        self,
        *,
        source: Source,
        operation: Operation,
        journal: Journal,
        layout: Layout,
        ids: IdTable | None,
        rules: PlanRules,
        carrier: Carrier | None = None,
        same: Same | None = None,
        completed: MemoryObjectSendStream[Span],
    ) -> None:
        """Wire the plan up; `completed`, which holds any number, is sent each range whose rows are all committed."""
        self.rows_total: int | None = None
        self.rows_read = 0
        self.waits_for: int | None = None
        self.is_reading = False
        self.begun = anyio.Event()
        self._journal = journal
        self._rules = rules
        self._completed = completed
        self._progress: dict[int, _Progress] = {}
        self._unsealed: set[int] = set()
        self._sealing_works = False
        self._ready: deque[Work] = deque()
        self._lock = anyio.Lock()
        self._changed = anyio.Event()
        self._ended = False
        self._reads_on = False
        self._waiting = None if same is None else Waiting()
        self._reader = Reader(
            source=source,
            operation=operation,
            journal=journal,
            layout=layout,
            ids=ids,
            rules=rules,
            carrier=carrier,
            same=same,
        )

    @property
    def rows_expected(self) -> int | None:
        """How many rows the run seems to have while `rows_total` is None (see Reader)."""
        return self._reader.rows_expected

    def next_ready(self) -> Work | None:
        """The next work where some is ready, else None: then `next` waits for more. Saves a lock and a turn."""
        return self._ready.popleft() if self._ready else None

    async def next(self) -> Work | None:
        """The next work, None when there is no more. Raises InputChangedError, StorageError."""
        async with self._lock:
            while not self._ready and not self._ended:
                await self._room()
                self.is_reading = True
                try:
                    # Who is cancelled takes nothing from the others: what was read is handed out all the same.
                    with anyio.CancelScope(shield=True):
                        step = await anyio.to_thread.run_sync(self._reader.advance)
                except BaseException:
                    # A batch is lost to this invocation: whoever comes next must not read on behind it.
                    self._ended = True
                    raise
                finally:
                    self.is_reading = False
                self._take(step)
            return self._ready.popleft() if self._ready else None

    def finished(self, work: Work) -> None:
        """Note that the work's rows are committed."""
        self.rows_finished(work.span, work.size)
        if self._waiting is not None and (freed := self._waiting.end(_ordinals(work))):
            self._ready.extend(freed)
            self._wake()

    def rows_finished(self, span: int, count: int) -> None:
        """Note that so many rows of the range that begins at `span` are committed."""
        self._progress[span].finished += count
        self._seal_if_complete(span)

    def put_back(self, work: Work) -> None:
        """Take work back that was handed out, to be handed out again, first."""
        self._ready.appendleft(work)

    @property
    def has_ready(self) -> bool:
        """Whether work waits to be handed out."""
        return bool(self._ready)

    def open_spans(self) -> list[Span]:
        """Ranges that are not complete, by ordinal, as far as they were read."""
        return [self._progress[first].span for first in sorted(self._progress)]

    def read_on(self, reads_on: bool) -> None:  # noqa: FBT001 - what it is set to
        """Wait for the window no longer, or again: while rows are held back, what frees it may be among them."""
        self._reads_on = reads_on
        self._wake()

    def sealed(self, first: int) -> None:
        """Say that a range became a part, so that reading may go on."""
        self._reader.forget_spool(first)
        self._unsealed.discard(first)
        self._sealing_works = True
        self._wake()

    async def close(self) -> None:
        """End reading, and with it the stream of completed ranges; spools stay. Raises StorageError."""
        self._ended = True
        try:
            await anyio.to_thread.run_sync(self._reader.close)
        finally:
            self._completed.close()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    def _seal_if_complete(self, first: int) -> None:
        progress = self._progress[first]
        if progress.span.finish is not None and progress.finished == progress.handed_out:
            del self._progress[first]
            self._unsealed.add(first)
            self._wake()
            self._completed.send_nowait(progress.span)

    def _take(self, step: Step) -> None:
        self.rows_read = max(self.rows_read, step.read_to)
        if step.span is not None:
            progress = self._progress.get(step.span.first)
            if progress is None:
                progress = self._progress[step.span.first] = _Progress(span=step.span)
            progress.span = step.span
            progress.handed_out += sum(work.size for work in step.work) + step.left + len(step.copies)
            self._ready.extend(step.work)
            if self._waiting is not None:
                self._waiting.begin(step.begun)
                self._ready.extend(self._waiting.take(step.span.first, step.copies))
            self._seal_if_complete(step.span.first)
        if self._ready:
            self.begun.set()
        if step.ended:
            self._ended = True
            self.rows_total = step.rows_total

    @property
    def _is_full(self) -> bool:
        if self._waiting is not None and self._waiting.rows > MOST_WAITING:
            return True
        return self._journal.pending_bytes + self._reader.spool_bytes > self._rules.window_bytes

    async def _room(self) -> None:
        """Wait while unfinished ranges hold more than the window, as long as something else can free it.

        What frees it is a range whose rows are all on their way, or one that waits for the sealer. Before the first
        part the sealer may itself wait for a fact that only further rows bring, so it is not waited for.
        """
        while self._is_full and not self._reads_on:
            oldest = min(self._progress, default=None)
            if oldest is not None and self._progress[oldest].span.finish is None:
                break
            if oldest is None and not (self._sealing_works and self._unsealed):
                break
            self.waits_for = min(self._unsealed, default=oldest) if oldest is None else oldest
            await self._changed.wait()
        self.waits_for = None


def _ordinals(work: Work) -> list[int]:
    """The rows of a work that others may wait for."""
    match work:
        case Task(items=items):
            return [item.ordinal for item in items]
        case Settled(rows=rows):
            return [row.ordinal for row in rows]
        case Copies():
            return []
