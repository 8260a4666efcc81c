"""Every finished row of a run as one file, Parquet, JSONL or CSV, in the input's order, a batch in memory at a time.

Rows come from parts, and from the journal where they are in none yet. A row that is being asked again is not finished,
whatever its part still says of it.
"""

from __future__ import annotations

import base64
import csv
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import orjson

from pipeline.errors import DamageError, StorageError
from pipeline.store.files import TEMPORARY_SUFFIX, publish, storage, sync_folder
from pipeline.store.journal import JournalReader, Part, Span
from pipeline.store.parts import batches_of, write_batches
from pipeline.store.salvage import carried_of_part, renewed
from pipeline.store.spool import read_spool, spool_path
from pipeline.store.verify import arrow_errors

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.store.folder import Layout

_BATCH_ROWS = 1024
_CHUNK_ROWS = 256
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What a cell may begin with that a spreadsheet takes for a formula (OWASP, CSV injection)."""


class Format(StrEnum):
    """What an export may be written as; also the suffix of its file."""

    PARQUET = "parquet"
    JSONL = "jsonl"
    CSV = "csv"


@dataclass(slots=True)
class Exported:
    """What an export holds. `without_cells` rows lack the input's columns: the input is not what it was.

    `asked_again` rows are left out: a retry sends them again, and they are not answered yet.
    """

    rows: int = 0
    without_cells: int = 0
    asked_again: int = 0


@dataclass(slots=True, kw_only=True)
class Finished:
    """The finished rows of a folder, as of one moment; `schema` are the columns of its parts.

    `cells` gives the carried columns of an open range, from its first row on; None where it cannot, and the spool is
    looked at.
    """

    layout: Layout
    schema: pa.Schema
    cells: Callable[[Span], Iterator[pa.RecordBatch] | None] = lambda _: None
    exported: Exported = field(default_factory=Exported)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All finished rows in the order of ordinals. Raises FileNotFoundError, DamageError, StorageError."""
        with JournalReader(self.layout.journal) as reader, reader.snapshot():
            ranges: list[Part | Span] = [*reader.parts(), *reader.spans()]
            for one in sorted(ranges, key=lambda one: one.first):
                found = self._of_part(reader, one) if isinstance(one, Part) else self._of_journal(reader, one)
                for batch in found:
                    self.exported.rows += batch.num_rows
                    yield batch

    def _of_part(self, reader: JournalReader, part: Part) -> Iterator[pa.RecordBatch]:
        """The rows of a part, without those that are asked again and not answered yet."""
        import pyarrow as pa  # noqa: PLC0415 - for commands that read rows
        import pyarrow.compute as pc  # noqa: PLC0415

        again = reader.again(part.first, part.last)
        done = reader.done(part.first, part.last) if again else b""
        pending = [ordinal for ordinal in again if not done[ordinal - part.first]]
        self.exported.asked_again += len(pending)
        unanswered = pa.array(pending, pa.int64())
        for batch in self._as_it_is(reader, part):
            yield batch.filter(pc.invert(pc.is_in(batch.column("ordinal"), unanswered))) if pending else batch

    def _as_it_is(self, reader: JournalReader, part: Part) -> Iterator[pa.RecordBatch]:
        """The rows of a part; those that were asked again, and are answered, in the place of the old ones."""
        import pyarrow as pa  # noqa: PLC0415 - for commands that read rows
        import pyarrow.parquet as pq  # noqa: PLC0415

        path = self.layout.part(part.name)
        try:
            if reader.count_done(part.first, part.last):
                yield from self._renewed(reader, part, path)
                return
            with pq.ParquetFile(path, pre_buffer=False) as file:
                for batch in file.iter_batches(_BATCH_ROWS):
                    yield pa.RecordBatch.from_arrays(batch.columns, schema=self.schema)
        except arrow_errors() as error:
            raise DamageError(
                f"{part.name} cannot be read ({type(error).__name__}); run `pipeline verify` on the folder"
            ) from error

    def _renewed(self, reader: JournalReader, part: Part, path: Path) -> Iterator[pa.RecordBatch]:
        rows = renewed(path, reader.kept(part.first, part.last))
        if self.schema.names[1] == "status":
            while taken := list(islice(rows, _CHUNK_ROWS)):
                yield from batches_of(self.schema, None, taken)
            return
        for cells in carried_of_part(path):
            yield from batches_of(self.schema, cells, list(islice(rows, cells.num_rows)))

    def _of_journal(self, reader: JournalReader, span: Span) -> Iterator[pa.RecordBatch]:
        """Rows that are done and in no part, with their cells as far as they can be found."""
        names = self.schema.names
        carried = [self.schema.field(name) for name in names[1 : names.index("status")]]
        rows = reader.kept(span.first, span.last)
        cells = None
        if carried and reader.count_done(span.first, span.last):
            found = self.cells(span)
            spool = spool_path(self.layout.spool, span.first)
            cells = _Cells(_readable(spool) if found is None else found, span.first, carried)
        while taken := list(islice(rows, _CHUNK_ROWS)):
            ordinals = [row.ordinal for row in taken]
            yield from batches_of(self.schema, None if cells is None else cells.of(ordinals), taken)
        if cells is not None:
            self.exported.without_cells += cells.missing


class _Cells:
    """Carried cells of an open range, by ordinals that rise. What the batches do not have is null, and counted."""

    def __init__(self, batches: Iterator[pa.RecordBatch], first: int, carried: Sequence[pa.Field]) -> None:
        import pyarrow as pa  # noqa: PLC0415 - for commands that read rows

        self.missing = 0
        self._schema = pa.schema(carried)
        self._batches = batches
        self._next = first
        self._batch: pa.RecordBatch | None = None

    def of(self, ordinals: Sequence[int]) -> pa.RecordBatch:
        """The cells of these rows, one row each."""
        import pyarrow as pa  # noqa: PLC0415 - for commands that read rows

        rows = [self._row(ordinal) for ordinal in ordinals]
        return pa.Table.from_batches(rows, self._schema).combine_chunks().to_batches()[0]

    def _row(self, ordinal: int) -> pa.RecordBatch:
        import pyarrow as pa  # noqa: PLC0415 - for commands that read rows

        while self._batch is None or ordinal >= self._next:
            batch = next(self._batches, None)
            if batch is None:
                self.missing += 1
                nothing = [pa.nulls(1, item.type) for item in self._schema]
                return pa.RecordBatch.from_arrays(nothing, schema=self._schema)
            self._batch = batch
            self._next += batch.num_rows
        begin = self._next - self._batch.num_rows
        cells = self._batch.slice(ordinal - begin, 1)
        return pa.RecordBatch.from_arrays(cells.columns, schema=self._schema)


def _readable(path: Path) -> Iterator[pa.RecordBatch]:
    """The batches of a spool as far as it is whole: that of a killed run may be cut, or gone."""
    with suppress(StorageError, OSError):
        yield from read_spool(path)


def write_export(path: Path, finished: Finished, kind: Format, *, replace: bool) -> Exported:
    """Write all finished rows to a file that is whole or absent. Blocking; memory does not grow with the rows.

    `replace`: one that is there is replaced. Raises FileExistsError where it is there and is not to be replaced,
    StorageError, DamageError.
    """
    if not replace and path.exists():
        raise FileExistsError(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        if kind is Format.PARQUET:
            with storage(f"writing {path}"):
                write_batches(temporary, finished.schema, finished.batches())
        else:
            with storage(f"writing {path}"), temporary.open("xb") as file:
                write_lines(file, finished, kind)
        with storage(f"writing {path}"):
            if replace:
                publish(temporary, path)
            else:
                _publish_new(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()
    return finished.exported


def _publish_new(temporary: Path, path: Path) -> None:
    """Give a finished file a name that nobody took meanwhile. Raises FileExistsError."""
    handle = os.open(temporary, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(path) from None
        temporary.replace(path)
    sync_folder(path.parent)


def write_lines(file: BinaryIO, finished: Finished, kind: Format) -> None:
    """Write all finished rows as JSONL or CSV. Raises what `Finished.batches` raises, and OSError."""
    lines = _json_lines if kind is Format.JSONL else _csv_lines
    file.writelines(lines(finished.schema.names, finished.batches()))


def _json_lines(_: Sequence[str], batches: Iterable[pa.RecordBatch]) -> Iterator[bytes]:
    """A line a row. Bytes become base64, decimals text, what JSON has no number for null."""
    for batch in batches:
        for row in batch.to_pylist():
            yield _json(row) + b"\n"


def _csv_lines(names: Sequence[str], batches: Iterable[pa.RecordBatch]) -> Iterator[bytes]:
    """RFC 4180, with a head: structs, lists and the like are JSON; text that a spreadsheet would run is marked."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow([_inert(name) for name in names])
    yield _emptied(buffer)
    for batch in batches:
        for row in batch.to_pylist():
            writer.writerow([_cell(row[name]) for name in names])
        yield _emptied(buffer)


def _emptied(buffer: io.StringIO) -> bytes:
    text = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return text.encode()


def _cell(value: Any) -> Any:
    match value:
        case str():
            return _inert(value)
        case bool() | Mapping() | list():
            return _json(value).decode()
        case None | int() | float():
            return value
    return str(_plain(value))


def _inert(text: str) -> str:
    """Mark text that a spreadsheet would take for a formula: it is shown, and not run."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _json(value: Any) -> bytes:
    return orjson.dumps(value, default=_plain, option=orjson.OPT_NON_STR_KEYS)


def _plain(value: Any) -> Any:
    """What JSON has no kind for, as text."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    isoformat = getattr(value, "isoformat", None)
    return str(value) if isoformat is None else isoformat()
