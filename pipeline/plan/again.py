"""Reads rows once more whose answers came long after they were asked for, so that none has to be kept in memory.

Also the columns that are carried over, for rows that are finished and in no part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from pipeline.errors import InputChangedError
from pipeline.model import Item, Row
from pipeline.plan.ranges import PlanRules, columns_read, decode_position, range_digest
from pipeline.sources.digest import RangeDigest

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.operations.base import Operation
    from pipeline.sources.base import Source
    from pipeline.store.journal import Span

ROWS_AT_ONCE = 512


def read_again(
    source: Source, operation: Operation, rules: PlanRules, spans: Sequence[Span], wanted: Sequence[int]
) -> Iterator[list[tuple[int, Item]]]:
    """Give the items of these rows, which were made before, with the first ordinal of their range, in order. Blocking.

    `wanted` rises and lies in `spans`, which rise too. Raises InputChangedError where the rows are not what they were.
    """
    left = list(reversed(wanted))
    for span in spans:
        if not left or left[-1] > span.last:
            continue
        mine = set()
        while left and left[-1] <= span.last:
            mine.add(left.pop())
        yield from _of_range(source, operation, rules, span, mine)
    if left:
        raise InputChangedError(_CHANGED.format(first=left[-1], last=left[0]))


def _of_range(
    source: Source, operation: Operation, rules: PlanRules, span: Span, wanted: set[int]
) -> Iterator[list[tuple[int, Item]]]:
    digest = RangeDigest()
    position = decode_position(span.start)
    end = span.first + span.read
    cursor = source.open(position, values=columns_read(operation, rules), carried=rules.carried)
    try:
        while position.ordinal < end:
            batch = cursor.read(min(ROWS_AT_ONCE, end - position.ordinal), digest)
            if not batch.rows:
                break
            position = batch.end
            rows = [row for row in batch.rows if isinstance(row, Row) and row.ordinal in wanted]
            items = [item for item in operation.prepare(rows) if isinstance(item, Item)]
            if items:
                wanted.difference_update(item.ordinal for item in items)
                yield [(span.first, item) for item in items]
    finally:
        cursor.close()
    if wanted or digest.hexdigest() != span.digest:
        raise InputChangedError(_CHANGED.format(first=span.first, last=end - 1))


def carried_again(
    source: Source, operation: Operation, rules: PlanRules, span: Span
) -> Iterator[pa.RecordBatch] | None:
    """The carried columns of a range, as far as it was read; None where the input is not what it was. Blocking."""
    values, end = columns_read(operation, rules), span.first + span.read
    if range_digest(source, span.start, end, values=values, carried=rules.carried)[0] != span.digest:
        return None
    return _carried(source, rules, span, end)


def _carried(source: Source, rules: PlanRules, span: Span, end: int) -> Iterator[pa.RecordBatch]:
    position = decode_position(span.start)
    with closing(source.open(position, values=frozenset(), carried=rules.carried)) as cursor:
        digest = RangeDigest()
        while position.ordinal < end:
            batch = cursor.read(min(ROWS_AT_ONCE, end - position.ordinal), digest)
            if not batch.rows:
                return
            position = batch.end
            yield batch.carried


_CHANGED = (
    "the input's rows {first} to {last} are not what they were when they were sent in a batch; put the old input back, "
    "and run the same command again: the batch's results are kept"
)
