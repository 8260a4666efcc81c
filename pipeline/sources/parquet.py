"""Parquet files: typed columns, read a few rows at a time, whatever their row groups claim."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.model import BadRow, ErrorInfo, ErrorType, Row
from pipeline.sources.base import Batch, Format, InputFile, Opening, Position
from pipeline.sources.digest import RangeDigest, plain_array, plain_type
from pipeline.sources.errors import SourceError
from pipeline.sources.types import record_batch

MAX_ROW_BYTES = 32 * 2**20
"""A row whose wanted columns are larger is a failed row."""

_DECODED_ROWS = 64
"""Most rows decoded at once: a few bytes of dictionary may stand for rows of any size, so their number is the bound."""
_WARY_ROWS = 16
"""The bound where the row group is so large that 64 of its largest value could be too much."""
_WARY_BYTES = 256 * 2**20
_DECODED_BYTES = 16 * 2**20
_BATCH_ROWS = 1024
_BATCH_BYTES = 2**20
_STREAM_BYTES = 2**18


class ParquetSource:
    """Parquet files, in order, as one input. All have the same columns with the same types, in any order."""

    def __init__(self, files: Sequence[InputFile], *, kept_schema: pa.Schema | None) -> None:
        self.files = tuple(files)
        first, *others = (_schema_and_rows(file) for file in self.files)
        self.schema, rows = first
        self._rows = [rows]
        for file, (schema, rows) in zip(self.files[1:], others, strict=True):
            self._rows.append(rows)
            if more := sorted(set(schema.names).difference(self.schema.names)):
                raise SourceError(f"{file.path}: has columns that the files before it lack: {', '.join(more)}")
            self.schema = _agreed(self.schema, schema, f"{file.path}: does not agree with the files before it")
        self._row_count = sum(self._rows)
        if kept_schema is not None:
            self.schema = _agreed(
                kept_schema, self.schema, f"{self.files[0].path}: does not agree with the earlier input"
            )

    @property
    def row_count(self) -> int | None:
        """The number of rows of all files."""
        return self._row_count

    def open(self, start: Position, *, values: frozenset[str] | None, carried: Sequence[str]) -> ParquetCursor:
        """Read from `start` on. Raises SourceError for a column that the files do not hold."""
        wanted = set(self.schema.names) if values is None else values
        missing = sorted({*wanted, *carried}.difference(self.schema.names))
        if missing:
            raise SourceError(f"the input has no column {', '.join(missing)}; it has {', '.join(self.schema.names)}")
        return ParquetCursor(
            self.files,
            start=start,
            read=pa.schema([field for field in self.schema if field.name in wanted or field.name in carried]),
            values=[name for name in self.schema.names if name in wanted],
            carried=carried,
        )


class ParquetCursor:
    """A reader within Parquet files."""

    def __init__(
        self,
        files: Sequence[InputFile],
        *,
        start: Position,
        read: pa.Schema,
        values: Sequence[str],
        carried: Sequence[str],
    ) -> None:
        self._files = files
        self._read = read
        self._values = tuple(values)
        self._carried = tuple(carried)
        self._end = start
        self._reader: _FileReader | None = None

    def read(self, max_rows: int, digest: RangeDigest) -> Batch:
        """Read at most `max_rows` rows, about a megabyte of them, out of one file.

        Raises SourceError for a damaged file.
        """
        at = self._end
        while at.file < len(self._files):
            if self._reader is None:
                self._reader = _FileReader(self._files[at.file], self._read, row=at.offset)
            table = self._reader.next(min(max_rows, _BATCH_ROWS))
            if table is not None:
                rows = table.num_rows
                self._end = Position(ordinal=at.ordinal + rows, file=at.file, offset=at.offset + rows)
                digest.columns(table)
                return self._batch(table, at)
            self.close()
            if at.file + 1 == len(self._files):
                break
            at = self._end = Position(ordinal=at.ordinal, file=at.file + 1)
        empty = record_batch([pa.array([], field.type) for field in self._read], self._read, rows=0)
        return self._batch(empty, at)

    def close(self) -> None:
        """Close the open file."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _batch(self, table: pa.RecordBatch, start: Position) -> Batch:
        faults = _faults(table)
        if faults:
            kept = pa.array([None if index in faults else index for index in range(table.num_rows)], pa.int64())
            table = table.take(kept)
        columns = []
        for name in self._values:
            values, unreadable = _python_values(table.column(name))
            columns.append(values)
            for index in unreadable:
                faults.setdefault(
                    index, ("value_range", f"column {name}: the value is beyond Python's range of its type")
                )
        names = self._values
        cells: Iterable[tuple[Any, ...]]
        cells = zip(*columns, strict=True) if columns else itertools.repeat((), table.num_rows)
        rows: list[Row | BadRow] = [
            Row(ordinal=ordinal, values=dict(zip(names, row, strict=True)))
            for ordinal, row in enumerate(cells, start=start.ordinal)
        ]
        for index, (code, reason) in faults.items():
            message = f"{self._files[start.file].path.name}: row {start.offset + index}: {reason}"
            error = ErrorInfo(type=ErrorType.ROW, code=code, message=message)
            rows[index] = BadRow(ordinal=start.ordinal + index, error=error)
        schema = pa.schema([self._read.field(name) for name in self._carried])
        carried = record_batch([table.column(name) for name in self._carried], schema, rows=table.num_rows)
        return Batch(rows=tuple(rows), carried=carried, end=self._end)


class _FileReader:
    """The rows of one file from one of them on, in the plain types of the schema."""

    def __init__(self, file: InputFile, schema: pa.Schema, *, row: int) -> None:
        self._path = file.path
        self._schema = schema
        self._file = _opened(file)
        metadata = self._file.metadata
        ends = itertools.accumulate(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        self._starts = [0, *ends]
        actual = self._file.schema_arrow
        self._is_plain = all(actual.field(field.name).type == field.type for field in schema)
        self._pieces = self._decoded(row)
        self._rest: pa.RecordBatch | None = None

    def next(self, max_rows: int) -> pa.RecordBatch | None:
        """Give at most `max_rows` rows, about a megabyte; None at the end of the file."""
        pieces: list[pa.RecordBatch] = []
        rows = size = 0
        while rows < max_rows and size < _BATCH_BYTES:
            piece = self._next_piece() if self._rest is None else self._rest
            self._rest = None
            if piece is None:
                break
            piece_size = piece.nbytes
            if pieces and piece_size > _BATCH_BYTES:
                self._rest = piece
                break
            fitting = max(1, piece.num_rows * _BATCH_BYTES // max(_BATCH_BYTES, piece_size))
            wanted = min(max_rows - rows, fitting)
            if piece.num_rows > wanted:
                self._rest = piece.slice(wanted)
                piece = piece.slice(0, wanted)
            pieces.append(piece)
            rows += piece.num_rows
            size += piece_size
        if not pieces:
            return None
        if len(pieces) == 1:
            return pieces[0]
        whole: pa.RecordBatch = pa.concat_batches(pieces)
        return whole

    def close(self) -> None:
        self._file.close()

    def _next_piece(self) -> pa.RecordBatch | None:
        try:
            return next(self._pieces, None)
        except (pa.ArrowException, OSError, UnicodeError) as error:
            raise SourceError(f"{self._path}: damaged: {error}") from error

    def _decoded(self, row: int) -> Iterator[pa.RecordBatch]:
        group = bisect.bisect_right(self._starts, row) - 1
        skip = row - self._starts[group]
        for index in range(group, self._file.num_row_groups):
            for batch in self._group(index):
                if skip >= batch.num_rows:
                    skip -= batch.num_rows
                    continue
                for piece in _decodable(batch.slice(skip)):
                    yield self._plain(piece)
                skip = 0

    def _group(self, group: int) -> Iterator[pa.RecordBatch]:
        """Decode a row group, as many rows at once as memory can take; one by one where that was too many."""
        rows = _rows_at_once(self._file.metadata.row_group(group), self._schema.names)
        done = 0
        while True:
            skip = done
            try:
                for batch in self._file.iter_batches(
                    batch_size=rows, row_groups=[group], columns=self._schema.names, use_threads=False
                ):
                    if skip >= batch.num_rows:
                        skip -= batch.num_rows
                        continue
                    yield batch.slice(skip)
                    done += batch.num_rows - skip
                    skip = 0
            except MemoryError as error:
                if rows == 1:
                    raise SourceError(f"{self._path}: row group {group} does not fit in memory") from error
                rows = 1
            else:
                return

    def _plain(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        if self._is_plain and batch.schema.names == self._schema.names:
            return batch
        arrays = []
        for field in self._schema:
            array = plain_array(batch.column(batch.schema.get_field_index(field.name)))
            arrays.append(array if array.type == field.type else array.cast(field.type))
        return record_batch(arrays, self._schema, rows=batch.num_rows)


def _decodable(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Cut a batch so that its dictionaries, written out, take no more memory than other columns may."""
    rows = batch.num_rows
    for column in batch.columns:
        if pa.types.is_dictionary(column.type):
            rows = min(rows, max(1, _DECODED_BYTES // max(1, _largest(column.dictionary))))
    for start in range(0, batch.num_rows, max(1, rows)):
        yield batch.slice(start, rows)


def _largest(values: pa.Array[Any]) -> int:
    """At most how many bytes the largest of these values has."""
    if pa.types.is_primitive(values.type) or not len(values):
        return 8
    try:
        longest = pc.max(pc.binary_length(values)).as_py()
    except pa.ArrowNotImplementedError:
        longest = values.nbytes
    return int(longest or 1)


def _opened(file: InputFile) -> pq.ParquetFile:
    try:
        # Pre-buffering would hold whole row groups; a stream holds a page or two.
        return pq.ParquetFile(file.path, pre_buffer=False, buffer_size=_STREAM_BYTES)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{file.path}: cannot be read as Parquet: {error}") from error


def _schema_and_rows(file: InputFile) -> tuple[pa.Schema, int]:
    with _opened(file) as opened:
        schema = opened.schema_arrow
        names = schema.names
        twice = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
        if twice:
            raise SourceError(f"{file.path}: has several columns {', '.join(sorted(twice))}")
        return pa.schema([pa.field(field.name, plain_type(field.type)) for field in schema]), opened.metadata.num_rows


def _agreed(expected: pa.Schema, actual: pa.Schema, what: str) -> pa.Schema:
    """Give the columns of `expected`; a column that has held no value so far takes the type of `actual`.

    Raises SourceError where a column is missing or has another type.
    """
    fields: list[pa.Field[Any]] = []
    for field in expected:
        if field.name not in actual.names:
            raise SourceError(f"{what}: column {field.name} is missing")
        type_ = actual.field(field.name).type
        known = type_ if pa.types.is_null(field.type) else field.type
        if type_ != known and not pa.types.is_null(type_):
            raise SourceError(f"{what}: column {field.name} is {type_}, not {known}")
        fields.append(field.with_type(known))
    return pa.schema(fields)


def _rows_at_once(group: pq.RowGroupMetaData, names: Sequence[str]) -> int:
    wanted = set(names)
    chunks = (group.column(index) for index in range(group.num_columns))
    size: int = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in wanted)
    mean = max(1, size // max(1, group.num_rows))
    most = min(_DECODED_ROWS, max(_WARY_ROWS, _WARY_BYTES // max(1, size)))
    return int(max(1, min(most, _DECODED_BYTES // mean)))


def _faults(table: pa.RecordBatch) -> dict[int, tuple[str, str]]:
    """Find what is wrong with rows as a whole: too large, or text that is not UTF-8."""
    faults: dict[int, tuple[str, str]] = {}
    if table.nbytes > MAX_ROW_BYTES:
        for index in range(table.num_rows):
            size = table.slice(index, 1).nbytes
            if size > MAX_ROW_BYTES:
                faults[index] = ("row_too_large", f"the row has {size} bytes, more than {MAX_ROW_BYTES}")
    for name, column in zip(table.schema.names, table.columns, strict=True):
        if not _is_valid(column):
            for index in range(table.num_rows):
                if not _is_valid(column.slice(index, 1)):
                    faults.setdefault(index, ("invalid_utf8", f"column {name}: not UTF-8"))
    return faults


def _is_valid(column: pa.Array[Any]) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _python_values(column: pa.Array[Any]) -> tuple[list[Any], list[int]]:
    """Give the cells as Python values, times to the microsecond, and the indices of those that Python cannot hold."""
    if (type_ := _microseconds(column.type)) != column.type:
        column = column.cast(type_, safe=False)
    try:
        return column.to_pylist(), []
    except (ValueError, OverflowError, pa.ArrowException):
        pass
    cells: list[Any] = []
    unreadable: list[int] = []
    for index, cell in enumerate(column):
        try:
            cells.append(cell.as_py())
        except (ValueError, OverflowError, pa.ArrowException):
            cells.append(None)
            unreadable.append(index)
    return cells, unreadable


def _microseconds(type_: pa.DataType) -> pa.DataType:
    types = pa.types
    if types.is_timestamp(type_) and type_.unit == "ns":
        return pa.timestamp("us", tz=type_.tz)
    if types.is_time64(type_) and type_.unit == "ns":
        return pa.time64("us")
    if types.is_duration(type_) and type_.unit == "ns":
        return pa.duration("us")
    return type_


def _open(given: Opening) -> ParquetSource:
    if given.declared:
        raise SourceError("input.columns: a Parquet file has its own types; leave it out")
    return ParquetSource(given.files, kept_schema=given.kept_schema)


FORMAT = Format(name="parquet", title="Parquet file", suffixes=(".parquet", ".pq"), magic=b"PAR1", open=_open)
