"""Ranges of the input: their rules, their places, and whether the input still holds what was read of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Self

from pipeline.errors import InputChangedError
from pipeline.model import Row
from pipeline.sources.base import Position
from pipeline.sources.digest import RangeDigest

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.job.spec import Job
    from pipeline.operations.base import Operation
    from pipeline.sources.base import Cursor, Source
    from pipeline.store.ids import IdTable
    from pipeline.store.journal import JournalReader

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRules:
    """What the job says of ranges and rows. `limit`: rows from this ordinal on are left for another invocation.

    `only_again`: so are all rows but those that are asked again. `dedupe`: rows that ask for the same are asked once.
    """

    carried: tuple[str, ...]
    id_column: str | None
    part_rows: int
    part_bytes: int
    limit: int | None
    window_bytes: int
    only_again: bool = False
    dedupe: bool = False


def plan_rules(job: Job, source: Source, *, limit: int | None, only_again: bool = False) -> PlanRules:
    """What a job over a source comes to. `limit`, `only_again`: as in `PlanRules`."""
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
        only_again=only_again,
        dedupe=job.run.dedupe is not None,
    )


def encode_position(position: Position) -> str:
    """A position as the journal keeps it."""
    return json.dumps(asdict(position))


def decode_position(text: str) -> Position:
    """A position as the source wants it."""
    return Position(**json.loads(text))


def columns_read(operation: Operation, rules: PlanRules) -> frozenset[str] | None:
    """The columns whose values rows must hold; None when a template may reach any."""
    if operation.columns is None or rules.id_column is None:
        return operation.columns
    return operation.columns | {rules.id_column}


def carried_schema(source: Source, rules: PlanRules) -> pa.Schema:
    """The columns that are carried over, with the input's types."""
    import pyarrow as pa  # noqa: PLC0415 - loaded when a run needs it

    return pa.schema([source.schema.field(name) for name in rules.carried])


def continue_at(reader: JournalReader) -> Position:
    """Where the first row that no range holds begins."""
    parts = reader.parts()
    return decode_position(parts[-1].finish) if parts else Position()


def rows_known(reader: JournalReader) -> int:
    """The ordinal after the last row whose content the journal knows."""
    ends = [part.last + 1 for part in reader.parts()] + [span.first + span.read for span in reader.spans()]
    return max(ends, default=0)


def end_of_ranges(reader: JournalReader) -> Position | None:
    """Where the last range ends; None while it was not read to its end."""
    spans = reader.spans()
    parts = reader.parts()
    if spans and (not parts or spans[-1].first > parts[-1].last):
        return None if spans[-1].finish is None else decode_position(spans[-1].finish)
    return continue_at(reader)


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
                    "deleted). A job that has `input.incremental` from its start takes such changes"
                )


def claim_ids(source: Source, ids: IdTable, *, column: str, end: int) -> None:
    """Claim the ids of the rows before the ordinal `end` again, for a table of ids that is gone. Blocking."""
    with closing(source.open(Position(), values=frozenset({column}), carried=())) as cursor:
        position, digest = Position(), RangeDigest()
        while position.ordinal < end:
            batch = cursor.read(min(_ROWS_AT_ONCE, end - position.ordinal), digest)
            if not batch.rows:
                break
            position = batch.end
            rows = [row for row in batch.rows if isinstance(row, Row)]
            ids.claim([(row.values[column], row.ordinal) for row in rows if may_be_id(row.values.get(column))])
    ids.sync()


def may_be_id(value: object) -> bool:
    """Whether a cell can name a row: a scalar that is there."""
    return value is not None and not isinstance(value, dict | list)


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
