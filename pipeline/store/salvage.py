"""Takes finished rows back out of parts, whole or damaged, as the journal had them before they were sealed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.model import CHUNK, ErrorInfo, ErrorType, Outcome, RequestInfo, RowResult, Usage
from pipeline.store.codec import Kept, kept
from pipeline.store.parts import COMMON_AFTER, has_pieces

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS_AT_ONCE = 256
_FLOAT_BYTES = 4

Done = tuple[RowResult, RequestInfo]


def rows_of_part(path: Path, groups: Collection[int] | None = None) -> Iterator[Done]:
    """The rows of these row groups (None: of all) that are whole, in order, a bounded number in memory.

    A row whose pieces reach into a group that is left out is not whole. Raises pyarrow's errors and OSError.
    """
    import pyarrow.parquet as pq  # noqa: PLC0415 - loaded when a run needs it

    with pq.ParquetFile(path, pre_buffer=False) as file:
        pieces = has_pieces(file.schema_arrow)
        for run in _runs(range(file.num_row_groups) if groups is None else groups):
            batches = file.iter_batches(_ROWS_AT_ONCE, row_groups=run)
            rows = (row for batch in batches for row in _rows(batch))
            yield from _joined(rows, is_last=run[-1] == file.num_row_groups - 1) if pieces else rows


def renewed(path: Path, results: Iterable[Kept]) -> Iterator[Kept]:
    """The rows of a part, with these in the place of theirs; both rise. Raises pyarrow's errors and OSError."""
    left = iter(results)
    new = next(left, None)
    for row, request in rows_of_part(path):
        if new is not None and new.ordinal == row.ordinal:
            yield new
            new = next(left, None)
        else:
            yield kept(row, request)


def carried_of_part(path: Path) -> Iterator[pa.RecordBatch]:
    """The carried columns of a part, one row for each of the input. Raises pyarrow's errors and OSError."""
    import pyarrow.compute as pc  # noqa: PLC0415 - loaded when a run needs it
    import pyarrow.parquet as pq  # noqa: PLC0415

    with pq.ParquetFile(path, pre_buffer=False) as file:
        schema = file.schema_arrow
        names = schema.names[1 : schema.names.index("status")]
        pieces = has_pieces(schema)
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[*names, CHUNK] if pieces else names):
            first = batch.filter(pc.equal(pc.fill_null(batch.column(CHUNK), 0), 0)) if pieces else batch
            yield first.select(names)


def outcomes(rows: Iterator[Done]) -> Iterator[Outcome]:
    """Rows as the journal keeps them: neighbours that one request answered lie together."""
    for request, group in groupby(rows, key=lambda row: row[1]):
        yield Outcome(rows=tuple(row for row, _ in group), request=request)


def _runs(groups: Collection[int]) -> Iterator[list[int]]:
    """Groups that follow one another."""
    run: list[int] = []
    for group in sorted(groups):
        if run and group != run[-1] + 1:
            yield run
            run = []
        run.append(group)
    if run:
        yield run


def _rows(batch: pa.RecordBatch) -> Iterator[Done]:
    names = batch.schema.names
    # What stands before the status is the input's own.
    own = names[names.index("status") + 1 : -len(COMMON_AFTER)]
    columns = {name: _values(batch.column(name)) for name in own}
    common = {name: batch.column(name).to_pylist() for name in ("ordinal", "status", *COMMON_AFTER)}
    for index, ordinal in enumerate(common["ordinal"]):
        values = {name: column[index] for name, column in columns.items()}
        nothing = common["status"][index] != "ok" and all(value is None for value in values.values())
        response = common["response"][index]
        yield (
            RowResult(
                ordinal=ordinal,
                values=None if nothing else values,
                error=_error(common["error"][index]),
                usage=None if common["usage"][index] is None else Usage(**common["usage"][index]),
                response=None if response is None else response.encode(),
            ),
            _request(common["request"][index]),
        )


def _values(column: pa.Array) -> list[Any]:
    """Values as operations give them: vectors as little-endian float32 bytes."""
    import pyarrow as pa  # noqa: PLC0415 - loaded when a run needs it

    kind = column.type
    if not (pa.types.is_fixed_size_list(kind) and kind.value_type == pa.float32()):
        values: list[Any] = column.to_pylist()
        return values
    floats = column.values
    buffer, width = floats.buffers()[1], kind.list_size * _FLOAT_BYTES
    begin = floats.offset * _FLOAT_BYTES + column.offset * width
    return [
        None if is_null else buffer[begin + index * width : begin + (index + 1) * width].to_pybytes()
        for index, is_null in enumerate(column.is_null().to_pylist())
    ]


def _error(value: Mapping[str, Any] | None) -> ErrorInfo | None:
    if value is None:
        return None
    return ErrorInfo(
        type=ErrorType(value["type"]), code=value["code"], message=value["message"], http_status=value["http_status"]
    )


def _request(value: Mapping[str, Any]) -> RequestInfo:
    at = value["finished_at"]
    return RequestInfo(**{**value, "finished_at": None if at is None else at.timestamp()})


def _joined(rows: Iterator[Done], *, is_last: bool) -> Iterator[Done]:
    """Rows with all of their pieces. What the groups before and after this run of groups began or go on with is not.

    `is_last`: the run reaches to the part's end, where its last row ends, too.
    """
    pieces: list[Done] = []
    for row in rows:
        number = (row[0].values or {}).get(CHUNK)
        if number:
            if pieces:
                pieces.append(row)
            continue
        if pieces:
            yield _whole(pieces)
        pieces = [row]
    if pieces and is_last:
        yield _whole(pieces)


def _whole(pieces: list[Done]) -> Done:
    first, request = pieces[0]
    if first.values is None:
        return pieces[0]
    columns = {name: [(row.values or {})[name] for row, _ in pieces] for name in first.values}
    return (
        RowResult(ordinal=first.ordinal, values=columns, error=first.error, usage=first.usage, response=first.response),
        request,
    )
