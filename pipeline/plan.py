"""The plan: rows of the input minus the rows that are done, cut into ranges and packed into tasks."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import anyio

from pipeline.errors import InputChangedError
from pipeline.model import BadRow, ErrorInfo, ErrorType, Item, Row, RowResult
from pipeline.sources.base import Position
from pipeline.sources.digest import RangeDigest
from pipeline.store.journal import Span
from pipeline.store.spool import SpoolWriter, spool_path

if TYPE_CHECKING:
    import pyarrow as pa
    from anyio.streams.memory import MemoryObjectSendStream

    from pipeline.job.spec import Job
    from pipeline.operations.base import Operation, PackLimits
    from pipeline.sources.base import Batch, Cursor, Source
    from pipeline.store.folder import Layout
    from pipeline.store.ids import IdTable
    from pipeline.store.journal import Journal, JournalReader

MIN_ROWS_AT_ONCE = 32
MAX_ROWS_AT_ONCE = 1024
TOKENS_AT_ONCE = 2**20
"""Rows read and rendered at once: as many as the last ones' size lets into about 4 MB, and the bounds of that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One request's rows, all of the range that begins at `span`."""

    span: int
    items: tuple[Item, ...]

    @property
    def size(self) -> int:
        """How many rows."""
        return len(self.items)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """Rows whose end is known without asking anybody."""

    span: int
    rows: tuple[RowResult, ...]

    @property
    def size(self) -> int:
        """How many rows."""
        return len(self.rows)


Work = Task | Settled


@dataclass(slots=True, kw_only=True)
class _Progress:
    """How far one open range is."""

    span: Span
    handed_out: int = 0
    finished: int = 0


@dataclass(slots=True)
class Packer:
    """Fills requests up to the operation's limits, in the order of the rows."""

    limits: PackLimits
    _items: list[Item] = field(default_factory=list)
    _tokens: int = 0
    _reply_bytes: int = 0

    def add(self, item: Item) -> tuple[Item, ...] | None:
        """Add an item; returns the pack that it did not fit into any more, if that is so."""
        limits = self.limits
        full = None
        if self._items and (
            len(self._items) >= limits.items
            or (limits.tokens is not None and self._tokens + item.tokens > limits.tokens)
            or (limits.reply_bytes is not None and self._reply_bytes + item.reply_bytes > limits.reply_bytes)
        ):
            full = self.flush()
        self._items.append(item)
        self._tokens += item.tokens
        self._reply_bytes += item.reply_bytes
        return full

    def flush(self) -> tuple[Item, ...]:
        """Whatever is left, possibly nothing."""
        items = tuple(self._items)
        self._items, self._tokens, self._reply_bytes = [], 0, 0
        return items


def encode_position(position: Position) -> str:
    """A position as the journal keeps it."""
    return json.dumps(asdict(position))


def decode_position(text: str) -> Position:
    """A position as the source wants it."""
    return Position(**json.loads(text))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRules:
    """What the job says of ranges and rows. `limit`: rows from this ordinal on are left for another invocation."""

    carried: tuple[str, ...]
    id_column: str | None
    part_rows: int
    part_bytes: int
    limit: int | None
    window_bytes: int


def plan_rules(job: Job, source: Source, *, limit: int | None) -> PlanRules:
    """What a job over a source comes to. `limit`: only rows with ordinals below it."""
    match job.output.columns:
        case "none":
            carried: tuple[str, ...] = ()
        case "all":
            carried = tuple(source.schema.names)
        case names:
            carried = tuple(names)
    return PlanRules(
        carried=carried,
        id_column=job.input.id,
        part_rows=job.output.part_rows,
        part_bytes=job.output.part_bytes,
        limit=limit,
        window_bytes=job.run.window_bytes,
    )


class Plan:
    """Hands out work to any number of workers, in the order of the rows, a bounded way ahead of them.

    Reading, rendering and packing happen in a worker thread, one batch ahead at most. Where a run is continued,
    open ranges are read again (that rebuilds their spool), and rows that the journal holds are left out.
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
        completed: MemoryObjectSendStream[Span],
    ) -> None:
        """Wire the plan up; `completed`, which holds any number, is sent each range whose rows are all committed."""
        self.rows_total: int | None = None
        self.rows_read = 0
        self.waits_for: int | None = None
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
        self._reader = _Reader(source=source, operation=operation, journal=journal, layout=layout, ids=ids, rules=rules)

    async def next(self) -> Work | None:
        """The next work, None when there is no more. Raises InputChangedError, StorageError."""
        async with self._lock:
            while not self._ready and not self._ended:
                await self._room()
                try:
                    step = await anyio.to_thread.run_sync(self._reader.advance)
                except BaseException:
                    # A batch is lost to this invocation: whoever comes next must not read on behind it.
                    self._ended = True
                    raise
                self._take(step)
            return self._ready.popleft() if self._ready else None

    def finished(self, work: Work) -> None:
        """Note that the work's rows are committed."""
        self._progress[work.span].finished += work.size
        self._seal_if_complete(work.span)

    def open_spans(self) -> list[Span]:
        """Ranges that are not complete, by ordinal, as far as they were read."""
        return [self._progress[first].span for first in sorted(self._progress)]

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

    def _take(self, step: _Step) -> None:
        self.rows_read = max(self.rows_read, step.read_to)
        if step.span is not None:
            progress = self._progress.get(step.span.first)
            if progress is None:
                progress = self._progress[step.span.first] = _Progress(span=step.span)
            progress.span = step.span
            progress.handed_out += sum(work.size for work in step.work)
            self._ready.extend(step.work)
            self._seal_if_complete(step.span.first)
        if step.ended:
            self._ended = True
            self.rows_total = step.rows_total

    async def _room(self) -> None:
        """Wait while unfinished ranges hold more than the window, as long as something else can free it.

        What frees it is a range whose rows are all on their way, or one that waits for the sealer. Before the first
        part the sealer may itself wait for a fact that only further rows bring, so it is not waited for.
        """
        while self._journal.pending_bytes + self._reader.spool_bytes > self._rules.window_bytes:
            oldest = min(self._progress, default=None)
            if oldest is not None and self._progress[oldest].span.finish is None:
                break
            if oldest is None and not (self._sealing_works and self._unsealed):
                break
            self.waits_for = min(self._unsealed, default=oldest) if oldest is None else oldest
            await self._changed.wait()
        self.waits_for = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """What one batch came to."""

    span: Span | None = None
    work: tuple[Work, ...] = ()
    read_to: int = 0
    ended: bool = False
    rows_total: int | None = None


class _Reader:
    """The blocking half of the plan: source, spool, ids, rendering and packing."""

    def __init__(
        self,
        *,
        source: Source,
        operation: Operation,
        journal: Journal,
        layout: Layout,
        ids: IdTable | None,
        rules: PlanRules,
    ) -> None:
        self._source = source
        self._operation = operation
        self._journal = journal
        self._layout = layout
        self._ids = ids
        self._rules = rules
        self._packer = Packer(operation.limits)
        self._cursor: Cursor | None = None
        self._spool: SpoolWriter | None = None
        self._spool_sizes: dict[int, int] = {}
        self._span: Span | None = None
        self._digest = RangeDigest()
        self._done = bytearray()
        self._reply_bytes = 0
        self._known_digest: tuple[int, str] | None = None
        self._rows_at_once = MIN_ROWS_AT_ONCE
        with journal.reader() as reader:
            self._open_spans = deque(reader.spans())
            self._next = _continue_at(reader)
        self._position = self._next

    @property
    def spool_bytes(self) -> int:
        """Bytes of carried columns that wait for their part."""
        return sum(list(self._spool_sizes.values()))

    def forget_spool(self, first: int) -> None:
        """The range is sealed; its spool is gone."""
        self._spool_sizes.pop(first, None)

    def advance(self) -> _Step:
        """Read one batch and make work of it."""
        if self._span is None and not self._begin():
            return _Step(ended=True, rows_total=self._position.ordinal if self._rules.limit is None else None)
        span = self._span
        assert span is not None  # noqa: S101 - _begin has set it
        at = self._position.ordinal
        room = self._end_of(span) - at
        if room > 0 and self._known_digest is not None:
            room = min(room, self._known_digest[0] - at)
        if room <= 0:
            return self._rest_here(span)
        assert self._cursor is not None  # noqa: S101 - _begin has set it
        batch = self._cursor.read(min(room, self._rows_at_once), self._digest)
        if not batch.rows:
            return self._input_ended(span)
        return self._taken(span, batch)

    def close(self) -> None:
        """Give back what is open. Raises StorageError."""
        if self._cursor is not None:
            self._cursor.close()
        if self._ids is not None:
            self._ids.sync()
        self._end_spool()

    def _end_of(self, span: Span) -> int:
        """The ordinal after the last that this invocation reads of the range."""
        limit = self._rules.limit
        return span.last + 1 if limit is None else min(span.last + 1, limit)

    def _begin(self) -> bool:
        """Take up the next range: one that is open in the journal, else a new one. False at the limit."""
        limit = self._rules.limit
        if self._open_spans:
            # It counts as complete only once this invocation has read it to its end, and so has all of its work.
            span = replace(self._open_spans.popleft(), finish=None)
            start = decode_position(span.start)
            with self._journal.reader() as reader:
                self._done = reader.done(span.first, span.last)
            self._known_digest = (span.first + span.read, span.digest) if span.read and span.digest else None
        else:
            start = self._next
            rows = self._rules.part_rows
            # Ranges end at multiples of part_rows, so that a short head is followed by the rest of its range.
            last = (start.ordinal // rows + 1) * rows - 1
            span = Span(first=start.ordinal, last=last, start=encode_position(start))
            self._done = bytearray()
            self._known_digest = None
        if limit is not None and span.first >= limit:
            return False
        if self._cursor is None or self._position != start:
            if self._cursor is not None:
                self._cursor.close()
            self._cursor = self._source.open(
                start, values=columns_read(self._operation, self._rules), carried=self._rules.carried
            )
        self._position = start
        self._reply_bytes = 0
        self._digest = RangeDigest()
        self._span = span
        if self._rules.carried:
            self._spool = SpoolWriter(
                spool_path(self._layout.spool, span.first), carried_schema(self._source, self._rules)
            )
        return True

    def _taken(self, span: Span, batch: Batch) -> _Step:
        """Spool a batch, claim its ids, render and pack what is not done."""
        if self._spool is not None:
            self._spool.write(batch.carried)
            self._spool_sizes[span.first] = self._spool.bytes
        self._position = batch.end
        work = list(self._work(span, batch.rows))
        read = batch.end.ordinal - span.first
        if self._known_digest is not None and batch.end.ordinal == self._known_digest[0]:
            self._same_as_before(span)
        size = (self._spool.bytes if self._spool else 0) + self._reply_bytes
        if size >= self._rules.part_bytes and read >= span.read:
            # What the range was planned to hold would be too large a part: it ends here, and the journal knows.
            # Never before rows that were read earlier, for some of those may be done.
            span = replace(span, last=batch.end.ordinal - 1)
        last_of_range = batch.end.ordinal > span.last
        if read >= span.read:
            span = replace(span, read=read, digest=self._digest.hexdigest())
        if last_of_range:
            span = replace(span, finish=encode_position(batch.end))
            if self._ids is not None:
                self._ids.sync()
        self._span = span
        self._journal.post_span(span)
        if last_of_range:
            work += self._flushed(span)
            self._end_span()
        return _Step(span=span, work=tuple(work), read_to=batch.end.ordinal)

    def _work(self, span: Span, rows: Sequence[Row | BadRow]) -> Iterator[Work]:
        done, first = self._done, span.first
        todo = [row for row in rows if not (row.ordinal - first < len(done) and done[row.ordinal - first])]
        bad = {row.ordinal: row.error for row in rows if isinstance(row, BadRow)}
        bad |= self._id_problems(row for row in rows if isinstance(row, Row))
        good = [row for row in todo if isinstance(row, Row) and row.ordinal not in bad]
        prepared = iter(self._operation.prepare(good))
        failed: list[RowResult] = []
        tokens = 0
        for row in todo:
            error = bad.get(row.ordinal)
            if error is None:
                item = next(prepared)
                if isinstance(item, Item):
                    self._reply_bytes += item.reply_bytes
                    tokens += item.tokens
                    pack = self._packer.add(item)
                    if pack:
                        yield Task(span=first, items=pack)
                    continue
                error = item
            failed.append(RowResult(ordinal=row.ordinal, error=error))
        if failed:
            yield Settled(span=first, rows=tuple(failed))
        fitting = TOKENS_AT_ONCE * len(rows) // max(1, tokens)
        self._rows_at_once = max(MIN_ROWS_AT_ONCE, min(MAX_ROWS_AT_ONCE, fitting))
        if self._operation.limits.items == 1:
            yield from self._flushed(span)

    def _flushed(self, span: Span) -> list[Work]:
        pack = self._packer.flush()
        return [Task(span=span.first, items=pack)] if pack else []

    def _id_problems(self, rows: Iterator[Row]) -> dict[int, ErrorInfo]:
        """Rows without an id, and rows that come second with theirs."""
        column, ids = self._rules.id_column, self._ids
        if column is None or ids is None:
            return {}
        problems: dict[int, ErrorInfo] = {}
        claims: list[tuple[Any, int]] = []
        for row in rows:
            value = row.values.get(column)
            if value is None:
                problems[row.ordinal] = ErrorInfo(
                    type=ErrorType.ROW, code="id_missing", message=f"column {column!r} names the row, and is null"
                )
            elif isinstance(value, dict | list):
                problems[row.ordinal] = ErrorInfo(
                    type=ErrorType.ROW, code="id_type", message=f"column {column!r} names the row, and is no scalar"
                )
            else:
                claims.append((value, row.ordinal))
        for ordinal, holder in ids.claim(claims).items():
            problems[ordinal] = ErrorInfo(
                type=ErrorType.ROW, code="duplicate_id", message=f"row {holder} has the same id in column {column!r}"
            )
        return problems

    def _same_as_before(self, span: Span) -> None:
        if self._known_digest is not None and self._digest.hexdigest() != self._known_digest[1]:
            raise InputChangedError(
                f"the input's rows {span.first} to {self._known_digest[0] - 1} are not what they were when this run "
                "read them first; put the old input back, or start anew with --fresh"
            )
        self._known_digest = None

    def _input_ended(self, span: Span) -> _Step:
        """The input ends within, or just before, the range."""
        if self._known_digest is not None:
            raise InputChangedError(
                f"the input ends at row {self._position.ordinal}, but row {self._known_digest[0] - 1} was read before; "
                "put the old input back, or start anew with --fresh"
            )
        end = self._position
        work = self._flushed(span)
        self._end_span()
        self._open_spans.clear()
        ended = _Step(ended=True, rows_total=end.ordinal)
        if end.ordinal == span.first:
            return ended
        span = replace(span, last=end.ordinal - 1, finish=encode_position(end))
        self._journal.post_span(span)
        return replace(ended, span=span, work=tuple(work), read_to=end.ordinal)

    def _rest_here(self, span: Span) -> _Step:
        """This invocation's limit lies within the range; the range stays open."""
        work = self._flushed(span)
        self._end_span()
        self._open_spans.clear()
        return _Step(span=span, work=tuple(work), read_to=self._position.ordinal, ended=True)

    def _end_span(self) -> None:
        self._end_spool()
        self._span = None
        if self._position.ordinal > self._next.ordinal:
            self._next = self._position

    def _end_spool(self) -> None:
        spool, self._spool = self._spool, None
        if spool is not None:
            spool.close()


def check_input(
    source: Source, reader: JournalReader, *, values: frozenset[str] | None, carried: Sequence[str]
) -> None:
    """Read every range that was read before once more, and compare.

    Raises InputChangedError, naming the first range that differs. Rows after the last range may be new. Blocking.
    """
    ranges = [(part.first, part.last + 1, part.start, part.digest) for part in reader.parts()]
    ranges += [(span.first, span.first + span.read, span.start, span.digest) for span in reader.spans() if span.digest]
    with _Digests(source, values=values, carried=carried) as digests:
        for first, end, start, digest in sorted(ranges):
            if digests.of(start, end)[0] != digest:
                raise InputChangedError(
                    f"the input changed: its rows {first} to {end - 1} are not what they were when this run read "
                    "them; put the old input back, or start anew with --fresh (the old results are moved aside, not "
                    "deleted)"
                )


def range_digest(
    source: Source, start: str, end: int, *, values: frozenset[str] | None, carried: Sequence[str]
) -> tuple[str, str]:
    """The digest of the rows from `start` up to the ordinal `end`, and the position of `end`. Blocking."""
    with _Digests(source, values=values, carried=carried) as digests:
        return digests.of(start, end)


class _Digests:
    """Digests of ranges read again; ranges that follow one another are read in one go."""

    def __init__(self, source: Source, *, values: frozenset[str] | None, carried: Sequence[str]) -> None:
        self._source = source
        self._values = values
        self._carried = carried
        self._cursor: Cursor | None = None
        self._position = Position()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._cursor is not None:
            self._cursor.close()

    def of(self, start: str, end: int) -> tuple[str, str]:
        """The digest of the rows from `start` up to the ordinal `end`, and the position of `end`."""
        position = decode_position(start)
        cursor = self._cursor
        if cursor is None or self._position != position:
            if cursor is not None:
                cursor.close()
            cursor = self._cursor = self._source.open(position, values=self._values, carried=self._carried)
        digest = RangeDigest()
        while position.ordinal < end:
            batch = cursor.read(end - position.ordinal, digest)
            if not batch.rows:
                break
            position = batch.end
        self._position = position
        return digest.hexdigest(), encode_position(position)


def columns_read(operation: Operation, rules: PlanRules) -> frozenset[str] | None:
    """The columns whose values rows must hold; None when a template may reach any."""
    if operation.columns is None or rules.id_column is None:
        return operation.columns
    return operation.columns | {rules.id_column}


def _continue_at(reader: JournalReader) -> Position:
    """Where the first row that no range holds begins."""
    parts = reader.parts()
    return decode_position(parts[-1].finish) if parts else Position()


def carried_schema(source: Source, rules: PlanRules) -> pa.Schema:
    """The columns that are carried over, with the input's types."""
    import pyarrow as pa  # noqa: PLC0415 - loaded when a run needs it

    return pa.schema([source.schema.field(name) for name in rules.carried])
