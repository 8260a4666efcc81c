"""Parts: every type comes back as it went in, the same journal gives the same bytes, half a part never shows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import starmap
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import DamageError, StorageError
from pipeline.model import Attempt, ErrorInfo, ErrorType, RequestInfo, RowResult, Usage
from pipeline.store.codec import attempt_values, kept
from pipeline.store.files import sha256_of
from pipeline.store.parts import (
    ROW_GROUP_BYTES,
    attempts_batch,
    common_fields,
    part_name,
    part_schema,
    read_ordinals,
    write_attempts,
    write_part,
)

VECTOR = pa.schema([pa.field("embedding", pa.list_(pa.field("item", pa.float32(), nullable=False), 3))])
CHAT = pa.schema([(name, pa.string()) for name in ("output_text", "refusal", "finish_reason", "tool_calls")])
FAILED = ErrorInfo(type=ErrorType.RATE_LIMIT, code="c", message="m", http_status=429)
NOT_KEPT = {(ErrorInfo, "param")}
Result = tuple[RowResult, RequestInfo]

CARRIED: dict[str, tuple[pa.DataType, list[Any]]] = {
    "bool": (pa.bool_(), [True, None, False]),
    "int64": (pa.int64(), [2**63 - 1, None, -(2**63)]),
    "uint64": (pa.uint64(), [2**64 - 1, None, 0]),
    "float16": (pa.float16(), [1.5, None, 0.0]),
    "float64": (pa.float64(), [1e300, None, -0.0]),
    "decimal": (pa.decimal128(10, 2), [Decimal("1.20"), None, Decimal(-3)]),
    "wide_decimal": (pa.decimal256(60, 2), [Decimal("1.20"), None, Decimal(-3)]),
    "string": (pa.string(), ["", None, "größe\x00"]),
    "large_string": (pa.large_string(), ["a", None, "b"]),
    "binary": (pa.binary(), [b"\xff", None, b""]),
    "fixed_binary": (pa.binary(2), [b"ab", None, b"cd"]),
    "date": (pa.date32(), [date(1, 1, 1), None, date(9999, 12, 31)]),
    "time": (pa.time64("us"), [None, None, datetime(2026, 1, 1, 1, 2, 3, 4, tzinfo=UTC).time()]),
    "timestamp": (pa.timestamp("us"), [None, datetime(2026, 1, 1), None]),  # noqa: DTZ001 - a naive column
    "timestamp_ns_zone": (pa.timestamp("ns", tz="Europe/Stockholm"), [0, None, 1]),
    "duration": (pa.duration("us"), [0, None, 1]),
    "null": (pa.null(), [None, None, None]),
    "list": (pa.list_(pa.string()), [["a", None], None, []]),
    "large_list": (pa.large_list(pa.int64()), [[1], None, []]),
    "vector": (pa.list_(pa.float64(), 2), [[1.0, 2.0], None, [3.0, 4.0]]),
    "struct": (pa.struct([("a", pa.int64()), ("b", pa.list_(pa.string()))]), [{"a": 1, "b": ["x"]}, None, {"a": None}]),
    "map": (pa.map_(pa.string(), pa.int64()), [[("k", 1)], None, []]),
    "dictionary": (pa.dictionary(pa.int32(), pa.string()), ["x", None, "x"]),
}


def ok(ordinal: int, **values: Any) -> Result:
    return RowResult(ordinal=ordinal, values=values), RequestInfo(attempts=1, finished_at=1_700_000_000.25)


def failed(ordinal: int) -> Result:
    return RowResult(ordinal=ordinal, error=FAILED), RequestInfo()


def vector(ordinal: int, floats: int = 3) -> bytes:
    values: bytes = pa.array([float(ordinal + n) for n in range(floats)], pa.float32()).buffers()[1].to_pybytes()
    return values[: 4 * floats]


def write(
    path: Path,
    results: Sequence[Result],
    *,
    first: int = 0,
    schema: pa.Schema = CHAT,
    carried: Sequence[pa.RecordBatch] | None = None,
    compression: str = "zstd",
) -> Any:
    names = carried[0].schema if carried else pa.schema([])
    return write_part(
        path / part_name(first, first + len(results) - 1),
        first=first,
        last=first + len(results) - 1,
        schema=part_schema(names, schema),
        carried=carried,
        results=starmap(kept, results),
        compression=compression,
    )


def only_file(path: Path) -> Path:
    (file,) = path.iterdir()
    return file


@pytest.mark.parametrize("compression", ["zstd", "snappy", "gzip", "lz4", "none"])
def test_the_common_columns_say_how_each_row_ended(tmp_path: Path, compression: str) -> None:
    usage = Usage(**{item.name: number for number, item in enumerate(fields(Usage), start=1)})
    names = [item.name for item in fields(RequestInfo)]
    request = RequestInfo(**{**dict.fromkeys(names, "x"), "attempts": 2, "latency_ms": 1.5, "finished_at": 1.25})  # type: ignore[arg-type]
    text = {name: name for name in CHAT.names}
    results = [(RowResult(ordinal=7, values=text, usage=usage, response=b'{"a":1}'), request), failed(8)]
    done = write(tmp_path, results, first=7, compression=compression)
    file = tmp_path / "part-000000000007-000000000008.parquet"
    assert (done.ok, done.failed, done.bytes, done.sha256) == (1, 1, file.stat().st_size, sha256_of(file))
    first, second = pq.read_table(file).to_pylist()
    assert first == {
        "ordinal": 7,
        "status": "ok",
        **text,
        "error": None,
        "usage": {item.name: number for number, item in enumerate(fields(Usage), start=1)},
        "request": {
            **dict.fromkeys(names, "x"),
            "attempts": 2,
            "latency_ms": 1.5,
            "finished_at": datetime(1970, 1, 1, 0, 0, 1, 250_000, tzinfo=UTC),
        },
        "response": '{"a":1}',
    }
    assert second["status"] == "failed"
    assert second["error"] == {"type": "RateLimitError", "code": "c", "message": "m", "http_status": 429}
    assert second["usage"] is None
    assert second["request"]["attempts"] == 0
    assert {second[name] for name in CHAT.names} == {None}


def test_the_columns_of_error_usage_and_request_are_the_models_own() -> None:
    common = common_fields()
    for name, kind in {"error": ErrorInfo, "usage": Usage, "request": RequestInfo}.items():
        kept = [item.name for item in fields(kind) if (kind, item.name) not in NOT_KEPT]
        assert [child.name for child in common[name].type] == kept


@pytest.mark.parametrize("name", CARRIED)
def test_a_carried_column_of_every_type_comes_back(tmp_path: Path, name: str) -> None:
    type_, values = CARRIED[name]
    batch = pa.RecordBatch.from_arrays([pa.array(values, type_)], schema=pa.schema([pa.field("in", type_)]))
    write(tmp_path, [ok(0), failed(1), ok(2)], carried=[batch])
    column = pq.read_table(only_file(tmp_path)).column("in")
    assert column.equals(pa.chunked_array([batch.column(0)]))


def test_a_row_without_cells_fits_a_column_that_the_input_calls_never_null(tmp_path: Path) -> None:
    schema = pa.schema([pa.field("in", pa.int64(), nullable=False, metadata={"PARQUET:field_id": "9"})])
    batch = pa.RecordBatch.from_arrays([pa.array([1, None], pa.int64())], schema=schema)
    write(tmp_path, [ok(0), failed(1)], carried=[batch])
    assert pq.read_table(only_file(tmp_path)).column("in").to_pylist() == [1, None]


def test_vectors_come_back_and_are_split_into_bytes(tmp_path: Path) -> None:
    write(tmp_path, [ok(0, embedding=vector(0)), failed(1), ok(2, embedding=vector(2))], schema=VECTOR)
    table = pq.read_table(only_file(tmp_path))
    assert table.schema.field("embedding").type == VECTOR.field("embedding").type
    assert table.column("embedding").to_pylist() == [[0, 1, 2], None, [2, 3, 4]]
    group = pq.ParquetFile(only_file(tmp_path)).metadata.row_group(0)
    columns = {group.column(n).path_in_schema: group.column(n).encodings for n in range(group.num_columns)}
    assert "BYTE_STREAM_SPLIT" in columns["embedding.list.element"]


def test_a_part_of_failed_rows_alone_has_the_same_columns(tmp_path: Path) -> None:
    for schema in (CHAT, VECTOR):
        for folder, results in {"a": [failed(0)], "b": [ok(0, **dict.fromkeys(schema.names))]}.items():
            (tmp_path / folder).mkdir(exist_ok=True)
            write(tmp_path / folder, results, schema=schema)
        read = [pq.read_schema(only_file(tmp_path / folder)) for folder in ("a", "b")]
        assert read[0].equals(read[1])


def test_replies_that_are_not_text_are_kept_as_far_as_they_are(tmp_path: Path) -> None:
    write(tmp_path, [(RowResult(ordinal=0, error=FAILED, response=b"a\xffb"), RequestInfo())])
    assert pq.read_table(only_file(tmp_path)).column("response").to_pylist() == ["a\ufffdb"]


def cut(batch: pa.RecordBatch, *lengths: int) -> Iterator[pa.RecordBatch]:
    at = 0
    for length in (*lengths, batch.num_rows):
        if at < batch.num_rows:
            yield batch.slice(at, length)
            at += length


def test_the_same_rows_give_the_same_bytes_however_the_input_was_cut(tmp_path: Path) -> None:
    rows = 5000
    batch = pa.RecordBatch.from_pydict(
        {
            "id": pa.array([f"row {n}" if n % 7 else None for n in range(rows)]),
            "text": pa.array([f"{n} " * (n % 90) for n in range(rows)]),
            "tags": pa.array([[str(n)] * (n % 3) for n in range(rows)]),
        }
    )
    results = [ok(n, embedding=vector(n)) if n % 11 else failed(n) for n in range(rows)]
    digests = set()
    for number, lengths in enumerate([(), (rows,), (1,), (7, 1000, 1024, 5), (1023, 1025), (2500,)]):
        (tmp_path / str(number)).mkdir()
        done = write(tmp_path / str(number), results, schema=VECTOR, carried=list(cut(batch, *lengths)))
        digests.add(done.sha256)
    assert len(digests) == 1


def test_row_groups_are_bounded(tmp_path: Path) -> None:
    rows, floats = 6000, 1536
    schema = pa.schema([pa.field("embedding", pa.list_(pa.field("item", pa.float32(), nullable=False), floats))])
    blob = vector(0, floats)
    write(tmp_path, [ok(n, embedding=blob) for n in range(rows)], schema=schema, compression="none")
    metadata = pq.ParquetFile(only_file(tmp_path)).metadata
    groups = [metadata.row_group(n) for n in range(metadata.num_row_groups)]
    assert len(groups) >= 2
    assert max(group.num_rows for group in groups) * floats * 4 < 2 * ROW_GROUP_BYTES
    assert read_ordinals(only_file(tmp_path)) == (0, rows - 1)


def test_more_carried_rows_than_the_part_holds_are_left_out(tmp_path: Path) -> None:
    batch = pa.RecordBatch.from_pydict({"in": list(range(3000))})
    for n, piece in enumerate([[batch], list(cut(batch, 1500))]):
        (tmp_path / str(n)).mkdir()
        write(tmp_path / str(n), [ok(n) for n in range(1500)], carried=piece)
        assert pq.read_table(only_file(tmp_path / str(n))).column("in").to_pylist() == list(range(1500))


@pytest.mark.parametrize(
    "ordinals",
    [[0, 1, 3], [1, 2, 3], [0, 1], [0, 2, 1], []],
    ids=["a hole", "no beginning", "no end", "out of order", "nothing"],
)
def test_rows_that_are_not_whole_are_damage_and_no_file(tmp_path: Path, ordinals: list[int]) -> None:
    with pytest.raises(DamageError):
        write_part(
            tmp_path / part_name(0, 2),
            first=0,
            last=2,
            schema=part_schema(pa.schema([]), CHAT),
            carried=None,
            results=starmap(kept, [ok(n) for n in ordinals]),
            compression="zstd",
        )
    assert list(tmp_path.iterdir()) == []


def test_a_spool_that_ends_early_is_damage_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(DamageError, match="spool ends before row 2"):
        write(tmp_path, [ok(0), ok(1), ok(2)], carried=[pa.RecordBatch.from_pydict({"in": [0, 1]})])
    assert list(tmp_path.iterdir()) == []


def test_what_a_crash_left_under_the_temporary_name_is_replaced(tmp_path: Path) -> None:
    (tmp_path / (part_name(0, 0) + ".tmp")).write_bytes(b"half")
    write(tmp_path, [ok(0)])
    assert [file.name for file in tmp_path.iterdir()] == [part_name(0, 0)]


def test_the_users_umask_decides_who_may_read_a_part(tmp_path: Path) -> None:
    write(tmp_path, [ok(0)])
    probe = tmp_path / "probe"
    probe.touch()
    assert (tmp_path / part_name(0, 0)).stat().st_mode == probe.stat().st_mode


FULL_DISK = """
import resource, sys
from pathlib import Path
import pyarrow as pa
from pipeline.errors import StorageError
from pipeline.model import RequestInfo, RowResult
from pipeline.store.codec import kept
from pipeline.store.parts import part_schema, write_attempts, write_part

folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
rows = (kept(RowResult(ordinal=n, values={"t": str(n) * 50}), RequestInfo()) for n in range(2000))
try:
    write_part(folder / "part.parquet", first=0, last=1999, schema=part_schema(pa.schema([]), pa.schema([("t",
        pa.string())])), carried=None, results=rows, compression="none")
except StorageError as error:
    print(error)
"""


@pytest.mark.parametrize("bytes_left", [0, 10, 20_000])
def test_a_disk_that_refuses_is_a_storage_error_and_no_file(tmp_path: Path, bytes_left: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), str(bytes_left)], capture_output=True, text=True, check=True
    )
    assert ended.stdout.startswith("writing part.parquet: ")
    assert "run the same command again" in ended.stdout
    assert ended.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_gone_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        write(tmp_path / "gone", [ok(0)])


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" * 100, b"\x00" * 1000])
def test_what_is_no_parquet_cannot_be_read_back(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.parquet"
    file.write_bytes(content)
    with pytest.raises(DamageError, match="cannot be read back"):
        read_ordinals(file)


def test_ordinals_that_are_not_contiguous_or_missing_are_damage(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    for ordinals in ([0, 2], [1, 0], []):
        pq.write_table(pa.table({"ordinal": pa.array(ordinals, pa.int64())}), file)
        with pytest.raises(DamageError):
            read_ordinals(file)
    with pytest.raises(DamageError, match="other columns"):
        read_ordinals(file, schema=pa.schema([("x", pa.string())]))


def test_files_of_attempts_are_private_and_have_a_column_for_every_field(tmp_path: Path) -> None:
    attempt = Attempt(
        ordinals=(1, 2),
        deployment="d",
        started_at=1.5,
        latency_ms=2.0,
        status=None,
        verdict="transient",
        code="timeout",
        client_request_id="c",
        request_id=None,
        apim_request_id=None,
        region=None,
        estimated_tokens=3,
        input_tokens=None,
        output_tokens=None,
        retry_after_ms=float("inf"),
    )
    file = tmp_path / "attempts.parquet"
    write_attempts(file, [[attempt_values(attempt)]])
    assert pq.read_table(file).to_batches() == [attempts_batch([attempt])]
    assert attempts_batch([]).num_rows == 0
    (read,) = pq.read_table(file).to_pylist()
    assert list(read) == [item.name for item in fields(Attempt)]
    assert (read["ordinals"], read["started_at"]) == ([1, 2], datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC))
    assert file.stat().st_mode & 0o777 == 0o600
