"""The only writer of Parquet: parts of results and files of attempts, whole or absent, checked before they count."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import DamageError
from pipeline.model import CHUNK, Attempt
from pipeline.store.codec import Kept, attempt_values
from pipeline.store.files import TEMPORARY_SUFFIX, publish, sha256_of, storage

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

ROW_GROUP_BYTES = 4 * 1024 * 1024
EXPORTED_GROUP_BYTES = 32 * 1024 * 1024
CHUNK_ROWS = 256

_ORIGIN = "pipeline"
COMMON_AFTER = ("error", "usage", "request", "response")


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFile:
    """A published part: what its bytes and rows come to. `sections` as in the journal's `Part`."""

    ok: int
    failed: int
    bytes: int
    sha256: str
    sections: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a part says of its rows' place in the input, in its footer, for a journal that must be rebuilt.

    `start` and `finish` are positions in the input, `digest` is of its rows, `fingerprint` of the job's semantic keys.
    `generation` counts how often rows of the part were replaced.
    """

    start: str
    finish: str
    digest: str
    fingerprint: str
    generation: int = 0


def part_name(first: int, last: int) -> str:
    """The file of a range; reading names in order gives the rows in order."""
    return f"part-{first:012d}-{last:012d}.parquet"


@cache
def common_fields() -> Mapping[str, pa.Field]:
    """The columns that every operation's parts have, by name."""
    import pyarrow as pa  # noqa: PLC0415 - loaded when a run needs it

    return {
        "ordinal": pa.field("ordinal", pa.int64(), nullable=False),
        "status": pa.field("status", pa.string(), nullable=False),
        "error": pa.field(
            "error",
            pa.struct(
                [("type", pa.string()), ("code", pa.string()), ("message", pa.string()), ("http_status", pa.int32())]
            ),
        ),
        "usage": pa.field(
            "usage",
            pa.struct(
                [
                    ("input_tokens", pa.int64()),
                    ("output_tokens", pa.int64()),
                    ("total_tokens", pa.int64()),
                    ("cached_tokens", pa.int64()),
                    ("reasoning_tokens", pa.int64()),
                    ("seconds", pa.float64()),
                    ("characters", pa.int64()),
                ]
            ),
        ),
        "request": pa.field(
            "request",
            pa.struct(
                [
                    ("attempts", pa.int32()),
                    ("deployment", pa.string()),
                    ("model", pa.string()),
                    ("variant", pa.string()),
                    ("client_request_id", pa.string()),
                    ("request_id", pa.string()),
                    ("apim_request_id", pa.string()),
                    ("region", pa.string()),
                    ("latency_ms", pa.float64()),
                    ("finished_at", pa.timestamp("us", tz="UTC")),
                ]
            ),
        ),
        "response": pa.field("response", pa.string()),
    }


def part_schema(carried: pa.Schema, results: pa.Schema) -> pa.Schema:
    """The columns of a part: ordinal, what is carried, status, the operation's own, then how it came about."""
    import pyarrow as pa  # noqa: PLC0415 - loaded when a run needs it

    common = common_fields()
    return pa.schema(
        [
            common["ordinal"],
            # A row that could not be read has no cells, whatever the input says of nulls.
            *[carried.field(i).remove_metadata().with_nullable(True) for i in range(len(carried))],
            common["status"],
            *results,
            *[common[name] for name in COMMON_AFTER],
        ]
    )


def has_pieces(schema: pa.Schema) -> bool:
    """Whether a row of these parts may be several rows of the file; a column `chunk` that is carried says nothing."""
    names = schema.names
    return "status" in names and CHUNK in names[names.index("status") :]


def temporary_of(path: Path) -> Path:
    """Where a part lies until it is published."""
    return path.with_name(path.name + TEMPORARY_SUFFIX)


def write_part(
    path: Path,
    *,
    first: int,
    last: int,
    schema: pa.Schema,
    carried: Iterable[pa.RecordBatch] | None,
    results: Iterator[Kept],
    compression: str,
    origin: Origin | None = None,
) -> PartFile:
    """Make the part of a range and publish it. Takes and raises what `make_part` does."""
    made = make_part(
        path,
        first=first,
        last=last,
        schema=schema,
        carried=carried,
        results=results,
        compression=compression,
        origin=origin,
    )
    try:
        with storage(f"writing {path.name}"):
            publish(temporary_of(path), path)
    except BaseException:
        with suppress(OSError):
            temporary_of(path).unlink()
        raise
    return made


def make_part(
    path: Path,
    *,
    first: int,
    last: int,
    schema: pa.Schema,
    carried: Iterable[pa.RecordBatch] | None,
    results: Iterator[Kept],
    compression: str,
    origin: Origin | None = None,
) -> PartFile:
    """Write and check the part of a range, under its temporary name. The same rows give the same bytes.

    Where the schema has pieces, a row is written once for each of its own: everything is repeated but the values and
    `usage`, which the first has alone.

    `carried` are batches whose first row is `first` (None: nothing is carried); rows after `last` are ignored.
    Raises StorageError when the disk refuses, DamageError when rows are missing or the file reads back wrong.
    """
    temporary = temporary_of(path)
    try:
        with storage(f"writing {path.name}"):
            temporary.unlink(missing_ok=True)
            ok = _write_rows(temporary, first, last, schema, carried, results, compression, origin)
            rows = last - first + 1
            _check(temporary, first=first, last=last, schema=schema)
            size = temporary.stat().st_size
            digest = sha256_of(temporary)
            sections = json.dumps([[size_, digest_] for size_, digest_ in read_sections(temporary)])
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    return PartFile(ok=ok, failed=rows - ok, bytes=size, sha256=digest, sections=sections)


def _write_rows(
    temporary: Path,
    first: int,
    last: int,
    schema: pa.Schema,
    carried: Iterable[pa.RecordBatch] | None,
    results: Iterator[Kept],
    compression: str,
    origin: Origin | None,
) -> int:
    """Write the rows, a bounded row group at a time; returns how many are ok."""
    import pyarrow as pa  # noqa: PLC0415 - loaded when a run needs it
    import pyarrow.parquet as pq  # noqa: PLC0415

    # Parts are the user's to share: the umask decides who may read them.
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666))
    ok = 0
    with (
        pa.OSFile(str(temporary), "wb") as sink,
        pq.ParquetWriter(sink, schema, compression=compression, **_encodings(schema)) as writer,
    ):
        group: list[pa.RecordBatch] = []
        group_bytes = 0
        for ordinal, cells in _chunks(first, last, carried):
            count = _length(cells, ordinal, last)
            offset = 0
            while offset < count:
                taken = _take(results, first=ordinal + offset, most=count - offset)
                ok += sum(row.error is None for row in taken)
                own = None if cells is None else cells.slice(offset, len(taken))
                offset += len(taken)
                for batch in batches_of(schema, own, taken):
                    group.append(batch)
                    group_bytes += batch.nbytes
                    if group_bytes >= ROW_GROUP_BYTES:
                        _write_group(writer, schema, group)
                        group, group_bytes = [], 0
        if group:
            _write_group(writer, schema, group)
        if origin is not None:
            writer.add_key_value_metadata({_ORIGIN: json.dumps(asdict(origin))})
    return ok


def _take(results: Iterator[Kept], *, first: int, most: int) -> list[Kept]:
    """The next results, up to `most` rows or a row group's bytes. Raises DamageError where one is missing."""
    taken: list[Kept] = []
    size = 0
    while len(taken) < most and size < ROW_GROUP_BYTES:
        row = next(results, None)
        if row is None or row.ordinal != first + len(taken):
            raise DamageError(
                f"row {first + len(taken)} is missing in the journal; run `pipeline verify` on the folder"
            )
        taken.append(row)
        if row.response is not None:
            size += len(row.response)
        if row.values is not None:
            size += _size(row.values.values())
    return taken


def _size(values: Iterable[Any]) -> int:
    """Characters and bytes of values, at any depth of lists."""
    size = 0
    for value in values:
        kind = type(value)
        if kind is str or kind is bytes:
            size += len(value)
        elif kind is list:
            size += _size(value)
    return size


def _write_group(writer: pq.ParquetWriter, schema: pa.Schema, group: list[pa.RecordBatch]) -> None:
    """Write a row group in one piece, so that its pages do not show how the input was cut into batches."""
    import pyarrow as pa  # noqa: PLC0415 - loaded when a run needs it

    writer.write_table(pa.Table.from_batches(group, schema).combine_chunks(), row_group_size=1 << 30)


def _chunks(
    first: int, last: int, carried: Iterable[pa.RecordBatch] | None
) -> Iterator[tuple[int, pa.RecordBatch | None]]:
    """Bounded runs of rows: (first ordinal, carried cells), until `last` is covered."""
    ordinal = first
    if carried is None:
        while ordinal <= last:
            yield ordinal, None
            ordinal += CHUNK_ROWS
        return
    for batch in carried:
        for offset in range(0, batch.num_rows, CHUNK_ROWS):
            if ordinal > last:
                return
            piece = batch.slice(offset, min(CHUNK_ROWS, last - ordinal + 1))
            yield ordinal, piece
            ordinal += piece.num_rows
    if ordinal <= last:
        raise DamageError(f"the spool ends before row {ordinal}; run the job again to rebuild it")


def _length(cells: pa.RecordBatch | None, ordinal: int, last: int) -> int:
    return min(CHUNK_ROWS, last - ordinal + 1) if cells is None else int(cells.num_rows)


def batches_of(schema: pa.Schema, cells: pa.RecordBatch | None, taken: Sequence[Kept]) -> Iterator[pa.RecordBatch]:
    """The columns of rows, with the carried cells beside their results.

    Rows are as they are, else all of their pieces: bounded, for a long text may be carried as often as it has pieces.
    """
    if not has_pieces(schema):
        yield _batch(schema, cells, taken)
        return
    pieces: list[Kept] = []
    rows: list[int] = []
    size = 0
    for index, row in enumerate(taken):
        cell_bytes = 0 if cells is None else cells.slice(index, 1).nbytes
        for piece in _pieces(row):
            pieces.append(piece)
            rows.append(index)
            size += cell_bytes
            if len(pieces) >= CHUNK_ROWS or size >= ROW_GROUP_BYTES:
                yield _batch(schema, None if cells is None else cells.take(rows), pieces)
                pieces, rows, size = [], [], 0
    if pieces:
        yield _batch(schema, None if cells is None else cells.take(rows), pieces)


def _pieces(row: Kept) -> Iterator[Kept]:
    """A row for each of its pieces; the row itself when it failed. Usage stays with the first, so that sums are right.

    Raises DamageError where the columns do not have an entry for every piece.
    """
    if row.values is None:
        yield row
        return
    try:
        entries = list(zip(*row.values.values(), strict=True))
    except (TypeError, ValueError):
        entries = []
    if not entries:
        raise DamageError(f"row {row.ordinal} is not whole in the journal; run `pipeline verify` on the folder")
    for index, entry in enumerate(entries):
        values = dict(zip(row.values, entry, strict=True))
        yield row._replace(values=values, usage=None if index else row.usage)


def _batch(schema: pa.Schema, cells: pa.RecordBatch | None, taken: Sequence[Kept]) -> pa.RecordBatch:
    """Put carried cells and results side by side."""
    import pyarrow as pa  # noqa: PLC0415 - loaded when a run needs it

    columns: list[pa.Array] = []
    common = common_fields()
    for item in schema:
        if item.name == "ordinal":
            columns.append(pa.array([row.ordinal for row in taken], pa.int64()))
        elif item.name in common:
            columns.append(_common_column(item, taken))
        elif cells is not None and item.name in cells.schema.names:
            columns.append(cells.column(item.name))
        else:
            columns.append(
                column_of(item, [None if row.values is None else row.values.get(item.name) for row in taken])
            )
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _common_column(item: pa.Field, taken: Sequence[Kept]) -> pa.Array:
    import pyarrow as pa  # noqa: PLC0415 - loaded when a run needs it

    values: list[Any]
    match item.name:
        case "status":
            values = ["ok" if row.error is None else "failed" for row in taken]
        case "error":
            return _struct(item, [row.error for row in taken])
        case "usage":
            return _struct(item, [row.usage for row in taken])
        case "request":
            return _struct(item, [row.request for row in taken])
        case _:
            values = [None if row.response is None else row.response.decode("utf-8", "replace") for row in taken]
    return pa.array(values, item.type)


def _struct(item: pa.Field, values: Sequence[Sequence[Any] | None]) -> pa.Array:
    """A struct column from its fields' values; building it by child is several times faster than from dicts."""
    import pyarrow as pa  # noqa: PLC0415 - loaded when a run needs it

    empty = (None,) * item.type.num_fields
    columns = zip(*[empty if value is None else value for value in values], strict=True)
    children = [_child(child.type, column) for child, column in zip(item.type, columns, strict=True)]
    missing = pa.array([value is None for value in values], pa.bool_())
    return pa.StructArray.from_arrays(children, fields=list(item.type), mask=missing)


def _child(kind: pa.DataType, values: Sequence[Any]) -> pa.Array:
    """Values of one type; a moment is kept in seconds, and its column counts microseconds."""
    import pyarrow as pa  # noqa: PLC0415 - loaded when a run needs it

    if pa.types.is_timestamp(kind):
        values = [None if value is None else round(value * 1_000_000) for value in values]
    return pa.array(values, kind)


def column_of(item: pa.Field, values: Sequence[Any]) -> pa.Array:
    """An operation's column from the values that the journal kept; vectors come as little-endian float32 bytes."""
    import pyarrow as pa  # noqa: PLC0415 - loaded when a run needs it

    kind = item.type
    if not (pa.types.is_fixed_size_list(kind) and kind.value_type == pa.float32()):
        return pa.array(values, kind)
    nothing = bytes(4 * kind.list_size)
    joined = b"".join(nothing if value is None else value for value in values)
    floats = pa.Array.from_buffers(pa.float32(), len(values) * kind.list_size, [None, pa.py_buffer(joined)])
    missing = pa.array([value is None for value in values], pa.bool_())
    return pa.FixedSizeListArray.from_arrays(floats, type=kind, mask=missing)


def _encodings(schema: pa.Schema) -> dict[str, Any]:
    """Dictionaries where values repeat; split bytes for vectors, which then compress by about 15 %."""
    import pyarrow as pa  # noqa: PLC0415 - loaded when a run needs it

    vectors: list[str] = []
    dictionaries: list[str] = []
    unique = {"ordinal", "response", "output_text"}
    unique_parts = {"client_request_id", "request_id", "apim_request_id", "finished_at", "latency_ms"}
    for item in schema:
        kind = item.type
        if pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type):
            vectors.append(f"{item.name}.list.element")  # the name that Parquet itself gives to items of lists
        elif pa.types.is_struct(kind):
            dictionaries += [f"{item.name}.{child.name}" for child in kind if child.name not in unique_parts]
        elif item.name not in unique and not pa.types.is_nested(kind):
            dictionaries.append(item.name)
    options: dict[str, Any] = {"use_dictionary": dictionaries}
    if vectors:
        options["use_byte_stream_split"] = vectors
    return options


def _check(path: Path, *, first: int, last: int, schema: pa.Schema) -> None:
    """Read back the footer, the row count and the ordinals of a file that is about to count."""
    ordinals = read_ordinals(path, schema=schema)
    if ordinals != (first, last):
        raise DamageError(f"{path.name} reads back as rows {ordinals}, not {first} to {last}")


def read_ordinals(path: Path, *, schema: pa.Schema | None = None) -> tuple[int, int]:
    """The first and last ordinal of a part that holds every one between; else DamageError.

    Each is there once, in order; where the part has pieces, once for each of them, which `chunk` counts from 0.
    """
    import pyarrow as pa  # noqa: PLC0415 - loaded when a run needs it
    import pyarrow.parquet as pq  # noqa: PLC0415

    bounds: tuple[int, int] | None = None
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            if schema is not None and not file.schema_arrow.equals(schema):
                raise DamageError(f"{path.name} reads back with other columns than were written")
            pieces = has_pieces(file.schema_arrow)
            check = _Counting() if pieces else None
            for batch in file.iter_batches(65536, columns=["ordinal", CHUNK] if pieces else ["ordinal"]):
                ordinals = batch.column("ordinal")
                first, expected = (ordinals[0].as_py(),) * 2 if bounds is None else (bounds[0], bounds[1] + 1)
                if check is None:
                    last = _contiguous(ordinals, expected)
                else:
                    last = check.take(ordinals.to_pylist(), batch.column(CHUNK).to_pylist())
                if last is None:
                    raise DamageError(f"{path.name} holds ordinals that are not contiguous from {first}")
                bounds = first, last
    except (pa.ArrowInvalid, OSError) as error:
        raise DamageError(f"{path.name} cannot be read back ({type(error).__name__})") from error
    if bounds is None:
        raise DamageError(f"{path.name} holds no rows")
    return bounds


def read_columns(path: Path) -> pa.Schema:
    """The columns of a part. Raises DamageError."""
    import pyarrow as pa  # noqa: PLC0415 - loaded when a run needs it
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        return pq.read_schema(path).remove_metadata()
    except (pa.ArrowException, OSError) as error:
        raise DamageError(
            f"{path.name} cannot be read back ({type(error).__name__}); run `pipeline verify` on the folder"
        ) from error


def read_origin(path: Path) -> Origin | None:
    """What a part says of its place in the input; None where it says nothing. Raises DamageError."""
    import pyarrow as pa  # noqa: PLC0415 - loaded when a run needs it
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            said = (file.metadata.metadata or {}).get(_ORIGIN.encode())
        return None if said is None else Origin(**json.loads(said))
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        raise DamageError(f"{path.name} cannot be read back ({type(error).__name__})") from error


def read_sections(path: Path) -> list[tuple[int, str]]:
    """Bytes and SHA-256 of each row group of a whole part, in order, and at last of what follows them.

    The file's first bytes count with the first group.
    """
    import pyarrow.parquet as pq  # noqa: PLC0415 - loaded when a run needs it

    footer = pq.read_metadata(path)
    ends = [_group_end(footer.row_group(group)) for group in range(footer.num_row_groups)]
    found: list[tuple[int, str]] = []
    with path.open("rb") as file:
        for end in (*ends, path.stat().st_size):
            content = file.read(end - file.tell())
            found.append((len(content), hashlib.sha256(content).hexdigest()))
    return found


def whole_groups(path: Path, sections: str) -> list[int]:
    """The row groups of a damaged part that are what was written, as far as they can be found: by a whole footer."""
    known: list[tuple[int, str]] = [(size, digest) for size, digest in json.loads(sections)]
    if not known:
        return []
    whole: list[bool] = []
    with path.open("rb") as file:
        for size, digest in known:
            whole.append(hashlib.sha256(file.read(size)).hexdigest() == digest)
        ends = not file.read(1)
    return [group for group, is_whole in enumerate(whole[:-1]) if is_whole] if whole[-1] and ends else []


def _group_end(group: pq.RowGroupMetaData) -> int:
    """The offset of the first byte behind a row group."""
    columns = [group.column(index) for index in range(group.num_columns)]
    starts = (column.dictionary_page_offset or column.data_page_offset for column in columns)
    return max(int(start + column.total_compressed_size) for start, column in zip(starts, columns, strict=True))


def _contiguous(ordinals: pa.Array, expected: int) -> int | None:
    """The last of ordinals that count up from `expected`; None where they do not."""
    import pyarrow as pa  # noqa: PLC0415 - loaded when a run needs it
    import pyarrow.compute as pc  # noqa: PLC0415

    wanted = pa.array(range(expected, expected + len(ordinals)), pa.int64())
    return expected + len(ordinals) - 1 if pc.all(pc.equal(ordinals, wanted)).as_py() else None


@dataclass(slots=True)
class _Counting:
    """Follows ordinals and their pieces from batch to batch."""

    last: int | None = None
    piece: int | None = None

    def take(self, ordinals: Sequence[int | None], pieces: Sequence[int | None]) -> int | None:
        """The last ordinal; None where a row or a piece is missing or comes twice. A failed row has no piece."""
        last, at = self.last, self.piece
        for ordinal, piece in zip(ordinals, pieces, strict=True):
            if ordinal is None:
                return None
            begins = (last is None or ordinal == last + 1) and not piece
            if not begins and (ordinal != last or at is None or piece != at + 1):
                return None
            last, at = ordinal, piece
        self.last, self.piece = last, at
        return last


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], schema: pa.Schema, *, compression: str) -> None:
    """Write and publish a table of its own beside the parts: whole or absent. Raises StorageError."""
    import pyarrow as pa  # noqa: PLC0415 - loaded when a run needs it
    import pyarrow.parquet as pq  # noqa: PLC0415

    table = pa.Table.from_pylist(list(rows), schema=schema)
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    with storage(f"writing {path.name}"):
        pq.write_table(table, temporary, compression=compression)
        publish(temporary, path)


def write_batches(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write a table that may be large, a bounded row group in memory at a time. Raises OSError, FileExistsError too."""
    import pyarrow as pa  # noqa: PLC0415 - for commands that read rows
    import pyarrow.parquet as pq  # noqa: PLC0415

    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666))
    with (
        pa.OSFile(str(path), "wb") as sink,
        pq.ParquetWriter(sink, schema, compression="zstd", **_encodings(schema)) as writer,
    ):
        group: list[pa.RecordBatch] = []
        size = 0
        for batch in batches:
            group.append(batch)
            size += batch.nbytes
            if size >= EXPORTED_GROUP_BYTES:
                _write_group(writer, schema, group)
                group, size = [], 0
        if group:
            _write_group(writer, schema, group)


def attempts_schema() -> pa.Schema:
    """The columns of a file of attempts: one row an attempt, the fields of `Attempt`."""
    import pyarrow as pa  # noqa: PLC0415 - loaded when a run needs it

    return pa.schema(
        [
            ("ordinals", pa.list_(pa.int64())),
            ("deployment", pa.string()),
            ("started_at", pa.timestamp("us", tz="UTC")),
            ("latency_ms", pa.float64()),
            ("status", pa.int32()),
            ("verdict", pa.string()),
            ("code", pa.string()),
            ("client_request_id", pa.string()),
            ("request_id", pa.string()),
            ("apim_request_id", pa.string()),
            ("region", pa.string()),
            ("estimated_tokens", pa.int64()),
            ("input_tokens", pa.int64()),
            ("output_tokens", pa.int64()),
            ("retry_after_ms", pa.float64()),
        ]
    )


def attempts_batch(attempts: Sequence[Attempt]) -> pa.RecordBatch:
    """Lay attempts out in the columns of `attempts_schema`."""
    return _attempts_batch([attempt_values(attempt) for attempt in attempts])


def _attempts_batch(attempts: Sequence[Sequence[Any]]) -> pa.RecordBatch:
    import pyarrow as pa  # noqa: PLC0415 - loaded when a run needs it

    schema = attempts_schema()
    values = list(zip(*attempts, strict=True)) or [()] * len(schema)
    columns = [_child(item.type, column) for item, column in zip(schema, values, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def write_attempts(path: Path, chunks: Iterable[Sequence[Sequence[Any]]]) -> None:
    """Write and publish a file of attempts, a chunk in memory at a time. Raises StorageError when the disk refuses.

    Attempts are as `attempt_values` gives them.
    """
    import pyarrow as pa  # noqa: PLC0415 - loaded when a run needs it
    import pyarrow.parquet as pq  # noqa: PLC0415

    schema = attempts_schema()
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    with storage(f"writing {path.name}"):
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        os.close(handle)
        with (
            pa.OSFile(str(temporary), "wb") as sink,
            pq.ParquetWriter(sink, schema, compression="zstd") as writer,
        ):
            for attempts in chunks:
                writer.write_batch(_attempts_batch(attempts))
        publish(temporary, path)
