"""The blocking half of the plan: it reads rows, renders and packs them, and spools what is carried over."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputChangedError
from pipeline.model import BadRow, ErrorInfo, ErrorType, Item, Row, RowResult
from pipeline.plan.ranges import (
    PlanRules,
    carried_schema,
    columns_read,
    continue_at,
    decode_position,
    encode_position,
    end_of_ranges,
)
from pipeline.plan.work import Packer, Settled, Task, Work
from pipeline.sources.base import Measured
from pipeline.sources.digest import RangeDigest
from pipeline.store.files import storage
from pipeline.store.journal import Again, Span
from pipeline.store.salvage import outcomes
from pipeline.store.spool import SpoolWriter, spool_path

if TYPE_CHECKING:
    from pipeline.operations.base import Operation
    from pipeline.plan.carrier import Carrier
    from pipeline.plan.same import Same
    from pipeline.sources.base import Batch, Cursor, Position, Source
    from pipeline.store.folder import Layout
    from pipeline.store.ids import IdTable
    from pipeline.store.journal import Journal
    from pipeline.store.salvage import Done

MIN_ROWS_AT_ONCE = 32
MAX_ROWS_AT_ONCE = 1024
TOKENS_AT_ONCE = 2**20
"""Rows read and rendered at once: as many as the last ones' size lets into about 4 MB, and the bounds of that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one batch came to. `left` rows are not done, and left for another invocation.

    `begun` are rows on their way, where some may wait for them: `copies`, with the ordinals of their originals.
    """

    span: Span | None = None
    work: tuple[Work, ...] = ()
    begun: tuple[int, ...] = ()
    copies: tuple[tuple[Item, int], ...] = ()
    left: int = 0
    read_to: int = 0
    ended: bool = False
    rows_total: int | None = None


class Reader:
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
        carrier: Carrier | None = None,
        same: Same | None = None,
    ) -> None:
        self._carrier = carrier
        self._same = same
        self._source = source
        self._measured = source if isinstance(source, Measured) else None
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
        self._wanted: frozenset[int] | None = None
        self._left = 0
        self._begun: list[int] = []
        self._copies: list[tuple[Item, int]] = []
        self._reply_bytes = 0
        self._known_digest: tuple[int, str] | None = None
        self._rows_at_once = MIN_ROWS_AT_ONCE
        with journal.reader() as reader:
            self._open_spans = deque(
                span for span in reader.open_ranges() if not rules.only_again or reader.again(span.first, span.last)
            )
            self._next = continue_at(reader)
            self._ends_at = end_of_ranges(reader)
        self._position = self._next

    @property
    def rows_expected(self) -> int | None:
        """How many rows there seem to be, those beyond the limit left out: by the source, or by its bytes read so far.

        None while neither tells. Any thread may ask.
        """
        if self._rules.only_again:
            return None
        at, rows = self._position, self._source.row_count
        if rows is None:
            share = None if self._measured is None else self._measured.share_before(at)
            rows = round(at.ordinal / share) if share and at.ordinal else None
        return rows if rows is None or self._rules.limit is None else min(rows, self._rules.limit)

    @property
    def spool_bytes(self) -> int:
        """Bytes of carried columns that wait for their part."""
        return sum(list(self._spool_sizes.values()))

    def forget_spool(self, first: int) -> None:
        """The range is sealed; its spool is gone."""
        self._spool_sizes.pop(first, None)

    def advance(self) -> Step:
        """Read one batch and make work of it."""
        if self._span is None and not self._begin():
            return Step(ended=True, rows_total=self._total_where_it_ends())
        span = self._span
        assert span is not None  # noqa: S101 - _begin has set it
        at = self._position.ordinal
        room = self._end_of(span) - at
        if room > 0 and self._known_digest is not None:
            room = min(room, self._known_digest[0] - at)
        if room <= 0:
            return self._input_ended(span) if self._ends_at_limit() else self._rest_here(span)
        batch = self._read(min(room, self._rows_at_once))
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

    def _read(self, most: int) -> Batch:
        """Read rows. Raises InputChangedError where the input was cut meanwhile, before anything comes of its rows."""
        assert self._cursor is not None  # noqa: S101 - _begin has set it
        try:
            batch = self._cursor.read(most, self._digest)
        except Exception:
            self._refuse_if_cut()
            raise
        self._refuse_if_cut()
        return batch

    def _refuse_if_cut(self) -> None:
        for file in self._source.files:
            try:
                now = file.path.stat()
            except OSError:
                continue  # what is open stays readable after its name is gone
            if now.st_ino == file.inode and now.st_size < file.size:
                raise InputChangedError(
                    f"the input was cut while it was read: {file.path} had {file.size:,} bytes at the start and has "
                    f"{now.st_size:,}; put the old input back and run the same command again, or start anew with "
                    "--fresh (the old results are moved aside, not deleted)"
                )

    def _total_where_it_ends(self) -> int | None:
        """How many rows the input has, where that shows without reading on."""
        if self._rules.only_again:
            return self._total_if_no_more(self._ends_at)
        if self._rules.limit is not None:
            return self._total_if_no_more(self._ends_at if self._open_spans else self._next)
        return self._position.ordinal

    def _ends_at_limit(self) -> bool:
        """Whether the limit is reached, and is where the input ends, too."""
        if self._rules.only_again or self._position.ordinal != self._rules.limit or self._cursor is None:
            return False
        cursor, self._cursor = self._cursor, None  # nobody reads on from behind the row that this may take
        with closing(cursor):
            return not cursor.read(1, RangeDigest()).rows

    def _total_if_no_more(self, end: Position | None) -> int | None:
        """How many rows the input has, where the last range ends at `end`, and no row follows."""
        if end is None:
            return None
        values = columns_read(self._operation, self._rules)
        with closing(self._source.open(end, values=values, carried=self._rules.carried)) as cursor:
            return None if cursor.read(1, RangeDigest()).rows else end.ordinal

    def _end_of(self, span: Span) -> int:
        """The ordinal after the last that this invocation reads of the range."""
        if self._rules.only_again:
            return span.first + span.read
        limit = self._rules.limit
        return span.last + 1 if limit is None else min(span.last + 1, limit)

    def _begin(self) -> bool:
        """Take up the next range: one that is open in the journal, else a new one. False at the limit."""
        limit = self._rules.limit
        if limit is not None and (self._open_spans[0].first if self._open_spans else self._next.ordinal) >= limit:
            return False
        if self._open_spans:
            # It counts as complete only once this invocation has read it to its end, and so has all of its work.
            span = replace(self._open_spans.popleft(), finish=None)
            start = decode_position(span.start)
            with self._journal.reader() as reader:
                self._done = reader.done(span.first, span.last)
                again = reader.again(span.first, span.last)
            self._wanted = frozenset(again) if self._rules.only_again else None
            self._known_digest = (span.first + span.read, span.digest) if span.read and span.digest else None
        elif self._rules.only_again:
            return False
        else:
            start = self._next
            rows = self._rules.part_rows
            # Ranges end at multiples of part_rows, so that a short head is followed by the rest of its range.
            last = (start.ordinal // rows + 1) * rows - 1
            span = Span(first=start.ordinal, last=last, start=encode_position(start))
            self._done = bytearray()
            self._wanted = None
            self._known_digest = None
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
        # A part that stands has the carried columns of its rows.
        if self._rules.carried and not isinstance(span, Again):
            self._spool = SpoolWriter(
                spool_path(self._layout.spool, span.first), carried_schema(self._source, self._rules)
            )
        return True

    def _taken(self, span: Span, batch: Batch) -> Step:
        """Spool a batch, claim its ids, render and pack what is not done."""
        if self._spool is not None:
            self._spool.write(batch.carried)
            self._spool_sizes[span.first] = self._spool.bytes
        self._position = batch.end
        self._left, self._begun, self._copies = 0, [], []
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
            if self._same is not None:
                self._same.table.sync()
        self._span = span
        if not isinstance(span, Again):
            self._journal.post_span(span)
        if last_of_range:
            work += self._flushed(span)
            self._end_span()
        return Step(
            span=span,
            work=tuple(work),
            begun=tuple(self._begun),
            copies=tuple(self._copies),
            left=self._left,
            read_to=batch.end.ordinal,
        )

    def _work(self, span: Span, rows: Sequence[Row | BadRow]) -> Iterator[Work]:
        done, first = self._done, span.first
        todo = [row for row in rows if not (row.ordinal - first < len(done) and done[row.ordinal - first])]
        if self._wanted is not None:
            wanted = [row for row in todo if row.ordinal in self._wanted]
            self._left = len(todo) - len(wanted)
            todo = wanted
        bad = {row.ordinal: row.error for row in rows if isinstance(row, BadRow)}
        bad |= self._id_problems(row for row in rows if isinstance(row, Row))
        good = [row for row in todo if isinstance(row, Row) and row.ordinal not in bad]
        ready = self._operation.prepare(good)
        carried = {} if self._carrier is None else self._carrier.take(good, ready)
        for outcome in outcomes(iter(carried.values())):
            yield Settled(span=first, rows=outcome.rows, request=outcome.request)
        originals = self._originals_of(ready, carried)
        prepared = iter(ready)
        failed: list[RowResult] = []
        tokens = 0
        for row in todo:
            error = bad.get(row.ordinal)
            if error is None:
                item = next(prepared)
                if isinstance(item, Item):
                    self._reply_bytes += item.reply_bytes
                    if row.ordinal in carried or self._waits(item, originals):
                        continue
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

    def _originals_of(self, ready: Sequence[Item | ErrorInfo], carried: Mapping[int, Done]) -> dict[int, int]:
        """Who asked first for what these items ask for; who did, or is carried over, is on its way from now on.

        A row that is carried over with an answer to another wording stands for nobody.
        """
        if self._same is None:
            return {}
        items = [one for one in ready if isinstance(one, Item)]
        odd = {at for at, (_, request) in carried.items() if not self._same.may_give(request)}
        originals = self._same.originals(item for item in items if item.ordinal not in odd)
        self._begun += [one.ordinal for one in items if one.ordinal in carried or one.ordinal not in originals]
        return originals

    def _waits(self, item: Item, originals: Mapping[int, int]) -> bool:
        """Whether an item is given what another row comes to."""
        if item.ordinal not in originals:
            return False
        self._copies.append((item, originals[item.ordinal]))
        return True

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

    def _input_ended(self, span: Span) -> Step:
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
        ended = Step(ended=True, rows_total=end.ordinal)
        if end.ordinal == span.first:
            with storage("removing the spool of a range without rows"):
                spool_path(self._layout.spool, span.first).unlink(missing_ok=True)
            return ended
        span = replace(span, last=end.ordinal - 1, finish=encode_position(end))
        self._journal.post_span(span)
        return replace(ended, span=span, work=tuple(work), read_to=end.ordinal)

    def _rest_here(self, span: Span) -> Step:
        """This invocation reads no further in the range, which stays open; at its limit, nowhere."""
        work = self._flushed(span)
        self._end_span()
        ended = not self._rules.only_again
        if ended:
            self._open_spans.clear()
        return Step(span=span, work=tuple(work), read_to=self._position.ordinal, ended=ended)

    def _end_span(self) -> None:
        self._end_spool()
        self._span = None
        if self._position.ordinal > self._next.ordinal:
            self._next = self._position

    def _end_spool(self) -> None:
        spool, self._spool = self._spool, None
        if spool is not None:
            spool.close()
