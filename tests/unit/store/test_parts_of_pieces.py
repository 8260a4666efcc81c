"""Parts whose rows come as several pieces: a row of the file each, and every row of the input counted once."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import DamageError
from pipeline.model import ErrorInfo, ErrorType, Outcome, RequestInfo, RowResult, Usage
from pipeline.store import parts
from pipeline.store.codec import Kept, decode_rows, encode_outcome, kept
from pipeline.store.failures import failures
from pipeline.store.folder import Layout, Sealer, hold_folder
from pipeline.store.journal import Journal, Span
from pipeline.store.parts import (
    CHUNK_ROWS,
    ROW_GROUP_BYTES,
    PartFile,
    part_name,
    part_schema,
    read_ordinals,
    write_part,
)
from pipeline.store.spool import SpoolWriter, spool_path
from pipeline.store.verify import verify_folder
from pipeline.views.row import row_lines
from pipeline.views.rows import Found, find_row

SIZE = 2
VECTOR = pa.list_(pa.field("item", pa.float32(), nullable=False), SIZE)
PIECES = pa.schema([pa.field("chunk", pa.int32()), pa.field("embedding", VECTOR)])
REQUEST = RequestInfo(attempts=1, deployment="d", client_request_id="c", finished_at=1_700_000_000.0)
USAGE = Usage(input_tokens=10, total_tokens=10)
FAILED = ErrorInfo(type=ErrorType.ROW, code="too_long", message="m")
Result = tuple[RowResult, RequestInfo]


def floats(ordinal: int, piece: int) -> list[float]:
    return [float(ordinal), float(piece)]


def ok(ordinal: int, pieces: int = 1) -> Result:
    values = {
        "chunk": list(range(pieces)),
        "embedding": [struct.pack("<2f", *floats(ordinal, piece)) for piece in range(pieces)],
    }
    return RowResult(ordinal=ordinal, values=values, usage=USAGE, response=b"{}"), REQUEST


def failed(ordinal: int) -> Result:
    return RowResult(ordinal=ordinal, error=FAILED), RequestInfo()


def from_journal(result: Result) -> Kept:
    """What the journal gives back."""
    (row,) = decode_rows(encode_outcome(Outcome(rows=(result[0],), request=result[1])))
    return row


def write(folder: Path, results: Sequence[Result], carried: Sequence[pa.RecordBatch] | None = None) -> PartFile:
    last = len(results) - 1
    return write_part(
        folder / part_name(0, last),
        first=0,
        last=last,
        schema=part_schema(carried[0].schema if carried else pa.schema([]), PIECES),
        carried=carried,
        results=map(from_journal, results),
        compression="zstd",
    )


def only_file(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


def test_a_row_of_several_pieces_is_as_many_rows(tmp_path: Path) -> None:
    cells = pa.RecordBatch.from_pydict({"text": ["a", "b", None, "d"]})
    done = write(tmp_path, [ok(0), ok(1, 3), failed(2), ok(3, 2)], [cells])
    assert (done.ok, done.failed) == (3, 1)
    rows = pq.read_table(only_file(tmp_path)).to_pylist()
    assert [(row["ordinal"], row["text"], row["status"], row["chunk"], row["embedding"]) for row in rows] == [
        (0, "a", "ok", 0, floats(0, 0)),
        (1, "b", "ok", 0, floats(1, 0)),
        (1, "b", "ok", 1, floats(1, 1)),
        (1, "b", "ok", 2, floats(1, 2)),
        (2, None, "failed", None, None),
        (3, "d", "ok", 0, floats(3, 0)),
        (3, "d", "ok", 1, floats(3, 1)),
    ]
    assert [row["usage"] and row["usage"]["input_tokens"] for row in rows] == [10, 10, None, None, None, 10, None]
    assert {row["request"]["client_request_id"] for row in rows if row["status"] == "ok"} == {"c"}
    assert [row["response"] for row in rows] == ["{}", "{}", "{}", "{}", None, "{}", "{}"]
    assert read_ordinals(only_file(tmp_path)) == (0, 3)


def test_sums_over_pieces_are_those_of_rows(tmp_path: Path) -> None:
    write(tmp_path, [ok(0, 5), failed(1), ok(2), ok(3, 9)])
    query = "SELECT sum(usage.input_tokens), count(*), count(chunk), count(DISTINCT ordinal) FROM read_parquet(?)"
    assert duckdb.execute(query, [str(only_file(tmp_path))]).fetchone() == (30, 16, 15, 4)


@pytest.mark.parametrize("pieces", [1, CHUNK_ROWS - 1, CHUNK_ROWS, CHUNK_ROWS + 1, 2048])
def test_any_number_of_pieces_is_written_whole(tmp_path: Path, pieces: int) -> None:
    cells = pa.RecordBatch.from_pydict({"n": list(range(400))})
    write(tmp_path, [ok(n, pieces if n in (0, 7, 399) else 1) for n in range(400)], [cells])
    table = pq.read_table(only_file(tmp_path))
    assert table.column("n").to_pylist() == table.column("ordinal").to_pylist()
    expected = [(n, piece) for n in range(400) for piece in range(pieces if n in (0, 7, 399) else 1)]
    assert list(zip(table.column("ordinal").to_pylist(), table.column("chunk").to_pylist(), strict=True)) == expected
    assert table.column("embedding").to_pylist() == [floats(n, piece) for n, piece in expected]


@pytest.mark.parametrize("kind", [pa.string(), pa.dictionary(pa.int32(), pa.string()), pa.list_(pa.string())])
def test_carried_cells_of_every_shape_are_repeated(tmp_path: Path, kind: pa.DataType) -> None:
    values = [["a", "b"], None] if pa.types.is_list(kind) else ["a", None]
    cells = pa.RecordBatch.from_arrays([pa.array(values, kind)], ["in"])
    write(tmp_path, [ok(0, 2), ok(1, 2)], [cells])
    assert pq.read_table(only_file(tmp_path)).column("in").to_pylist() == [values[0]] * 2 + [values[1]] * 2


def test_long_texts_that_are_carried_do_not_widen_the_row_groups(tmp_path: Path) -> None:
    text = "x" * (ROW_GROUP_BYTES // 4)
    cells = pa.RecordBatch.from_pydict({"text": [text] * 20})
    write(tmp_path, [ok(n, 20) for n in range(20)], [cells])
    metadata = pq.ParquetFile(only_file(tmp_path)).metadata
    assert metadata.num_rows == 400
    assert max(metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)) <= 8


def test_a_batch_has_no_more_pieces_than_memory_should_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for bytes_at_once, results, expected in (
        (1, [ok(0, 2 * CHUNK_ROWS + 1)], [CHUNK_ROWS, CHUNK_ROWS, 1]),
        (100, [ok(n, 10) for n in range(6)], [20, 20, 20]),
    ):
        monkeypatch.setattr(parts, "ROW_GROUP_BYTES", bytes_at_once)
        (tmp_path / str(bytes_at_once)).mkdir()
        write(tmp_path / str(bytes_at_once), results)
        metadata = pq.ParquetFile(only_file(tmp_path / str(bytes_at_once))).metadata
        assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == expected


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        digests.add(write(tmp_path / name, [ok(n, n % 5 + 1) for n in range(600)]).sha256)
    assert len(digests) == 1


def test_a_column_chunk_of_the_inputs_own_is_no_number_of_pieces(tmp_path: Path) -> None:
    schema = pa.schema([pa.field("embedding", VECTOR)])
    cells = pa.RecordBatch.from_pydict({"chunk": [5, 5, None]})
    results = [kept(RowResult(ordinal=n, values={"embedding": struct.pack("<2f", n, 0)}), REQUEST) for n in range(3)]
    write_part(
        tmp_path / part_name(0, 2),
        first=0,
        last=2,
        schema=part_schema(cells.schema, schema),
        carried=[cells],
        results=iter(results),
        compression="zstd",
    )
    table = pq.read_table(only_file(tmp_path))
    assert table.column("chunk").to_pylist() == [5, 5, None]
    assert read_ordinals(only_file(tmp_path)) == (0, 2)


@pytest.mark.parametrize(
    "values",
    [
        {"chunk": [0, 1], "embedding": [bytes(8)]},
        {"chunk": [], "embedding": []},
        {"chunk": 0, "embedding": bytes(8)},
        {},
    ],
)
def test_values_that_are_not_one_for_every_piece_are_damage_and_no_file(tmp_path: Path, values: Any) -> None:
    with pytest.raises(DamageError, match="row 1 is not whole"):
        write(tmp_path, [ok(0), (RowResult(ordinal=1, values=values), REQUEST)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("pairs", "bounds"),
    [
        ([(0, 0), (1, 0), (1, 1), (2, None), (3, 0)], (0, 3)),
        ([(5, 0), (5, 1), (5, 2)], (5, 5)),
        ([(0, None), (1, None)], (0, 1)),
        ([(0, 0), (0, 0)], None),
        ([(0, 0), (0, 2)], None),
        ([(0, 0), (0, None)], None),
        ([(0, None), (0, None)], None),
        ([(0, None), (0, 1)], None),
        ([(0, 1), (0, 2)], None),
        ([(0, 0), (1, 1)], None),
        ([(0, 0), (2, 0)], None),
        ([(1, 0), (0, 0)], None),
        ([(0, 0), (0, 1), (0, 0)], None),
        ([(0, 0), (None, 0)], None),
        ([], None),
    ],
)
def test_pieces_count_from_nought_within_each_row(
    tmp_path: Path, pairs: list[tuple[int | None, int | None]], bounds: tuple[int, int] | None
) -> None:
    file = tmp_path / "x.parquet"
    schema = pa.schema([("ordinal", pa.int64()), ("status", pa.string()), ("chunk", pa.int32())])
    pq.write_table(pa.Table.from_pylist([{"ordinal": n, "status": "ok", "chunk": m} for n, m in pairs], schema), file)
    if bounds is not None:
        assert read_ordinals(file) == bounds
        return
    with pytest.raises(DamageError):
        read_ordinals(file)


@pytest.mark.parametrize("first_pieces", [65_535, 65_536, 65_537])
def test_pieces_are_followed_from_batch_to_batch(tmp_path: Path, first_pieces: int) -> None:
    file = tmp_path / "x.parquet"
    numbers = [*range(first_pieces), *range(3)]
    ordinals = [0] * first_pieces + [1] * 3
    pq.write_table(pa.table({"ordinal": ordinals, "status": ["ok"] * len(numbers), "chunk": numbers}), file)
    assert read_ordinals(file) == (0, 1)


def test_repeated_ordinals_without_pieces_are_damage(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    pq.write_table(pa.table({"chunk": [0, 1], "ordinal": [0, 0], "status": ["ok", "ok"]}), file)
    with pytest.raises(DamageError, match="not contiguous"):
        read_ordinals(file)


SEALED = [ok(0), ok(1, 3), failed(2)]
LOOSE = [ok(3, 2), failed(4)]


@pytest.fixture
async def layout(tmp_path: Path) -> Layout:
    """A run that ended with rows 0 to 2 in a part, and 3 and 4 in the journal."""
    cells = pa.RecordBatch.from_pydict({"id": [f"r{n}" for n in range(3)]})
    with hold_folder(tmp_path / "out", fresh=False, now=datetime(2026, 1, 1, tzinfo=UTC)) as layout:
        journal = Journal(layout.journal)
        await journal.note("job", {"input": {"id": "id"}})
        await journal.note("variants", {})
        sealed = Span(first=0, last=2, start="a", read=3, digest="d", finish="b")
        journal.post_span(sealed)
        journal.post_span(Span(first=3, last=9, start="b", read=2, digest="e"))
        for row, request in SEALED + LOOSE:
            await journal.commit(Outcome(rows=(row,), request=request))
        spool = SpoolWriter(spool_path(layout.spool, 0), cells.schema)
        spool.write(cells)
        spool.close()
        schema = part_schema(cells.schema, PIECES)
        sealer = Sealer(layout=layout, schema=schema, carries=True, compression="zstd")
        await journal.seal(sealer.part_of(sealed, last=2, finish="b", digest="d"), rest=None)
        await journal.close()
    return layout


@pytest.mark.anyio
async def test_verify_counts_rows_and_not_pieces(layout: Layout) -> None:
    verified = verify_folder(layout)
    assert [finding for finding in verified.findings if finding.file.endswith(".parquet")] == []
    assert (verified.ok, verified.failed, verified.loose) == (3, 2, 2)


@pytest.mark.anyio
@pytest.mark.parametrize("ordinal", range(5))
async def test_a_row_is_shown_with_all_of_its_pieces_wherever_it_is(layout: Layout, ordinal: int) -> None:
    found = find_row(layout, ordinal)
    assert found is not None
    row = (SEALED + LOOSE)[ordinal][0]
    assert found.where == ("journal" if ordinal > 2 else part_name(0, 2))
    pieces = len((row.values or {}).get("chunk", ()))
    if not row.ok:
        assert found.values.get("chunk") is None
    else:
        assert found.values["chunk"] == list(range(pieces))
        assert len(found.values["embedding"]) == pieces
        assert found.values["usage"]["input_tokens"] == 10
    if ordinal == 1:
        assert found.values["embedding"] == [floats(1, piece) for piece in range(3)]
        assert found.values["id"] == "r1"
    assert row_lines(found)


@pytest.mark.anyio
async def test_pieces_over_several_row_groups_are_found(tmp_path: Path, layout: Layout) -> None:
    part = layout.part(part_name(0, 2))
    table = pq.read_table(part)
    pq.write_table(table, part, row_group_size=2)
    found = find_row(layout, 1)
    assert found is not None
    assert found.values["chunk"] == [0, 1, 2]
    assert find_row(layout, 2).values["status"] == "failed"  # type: ignore[union-attr]


@pytest.mark.anyio
async def test_failed_rows_are_listed_once(layout: Layout) -> None:
    assert [(one.ordinal, one.id, one.code) for one in failures(layout)] == [
        (2, "r2", "too_long"),
        (4, None, "too_long"),
    ]


@pytest.mark.parametrize("value", [[[0.5] * 100, [0.5] * 3], list(range(9)), [[0.5] * 9] * 20])
def test_long_vectors_of_pieces_are_cut_for_the_eye(value: list[Any]) -> None:
    lines = row_lines(Found(ordinal=0, where="journal", values={"embedding": value}, attempts=[]))
    assert any("values)" in line for line in lines)
    assert max(map(len, lines)) < 100
