"""Everything finished as one file, wherever its rows are."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from in_memory import Bench, Said, Service, refusal

from pipeline import operations
from pipeline.errors import DamageError
from pipeline.model import RequestInfo, RowResult
from pipeline.plan.again import carried_again
from pipeline.plan.ranges import plan_rules
from pipeline.sources import open_source
from pipeline.store.codec import kept
from pipeline.store.export import Exported, Finished, Format, write_export
from pipeline.store.folder import Layout
from pipeline.store.journal import Journal, Part, Span
from pipeline.store.parts import part_schema, write_part

FORMULAS = ["=1+1", "+1", "-1", "@A1", "\t=1", "\r=1", "\n=1"]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(folder=tmp_path).texts(*(f"text {n}" for n in range(25)))


def schema_of(bench: Bench) -> pa.Schema:
    return bench.schemas()[0].remove_metadata()


Cells = Callable[[Span], Iterator[pa.RecordBatch] | None]


def cells_of_input(bench: Bench) -> Cells:
    job = bench.job()
    source = open_source(job.input.path, format="jsonl")
    operation, rules = operations.get(job.operation).factory(job), plan_rules(job, source, limit=None)
    return lambda span: carried_again(source, operation, rules, span)


def export(
    bench: Bench,
    kind: Format,
    *,
    schema: pa.Schema | None = None,
    replace: bool = False,
    cells: Cells = lambda _: None,
) -> Exported:
    finished = Finished(layout=bench.layout, schema=schema or schema_of(bench), cells=cells)
    return write_export(bench.folder / f"all.{kind}", finished, kind, replace=replace)


def read(bench: Bench, kind: Format) -> list[dict[str, Any]]:
    path = bench.folder / f"all.{kind}"
    if kind is Format.PARQUET:
        return list(pq.read_table(path).to_pylist())
    if kind is Format.JSONL:
        return [json.loads(line) for line in path.read_text().splitlines()]
    return list(csv.DictReader(io.StringIO(path.read_bytes().decode(), newline="")))


@pytest.mark.anyio
@pytest.mark.parametrize("kind", Format)
async def test_every_row_is_exported_once_and_in_order(bench: Bench, kind: Format) -> None:
    await bench.run(Service())
    assert export(bench, kind) == Exported(rows=25)
    rows = read(bench, kind)
    assert [int(row["ordinal"]) for row in rows] == list(range(25))
    assert [row["text"] for row in rows] == [f"text {n}" for n in range(25)]
    assert list(rows[0]) == schema_of(bench).names


@pytest.mark.anyio
async def test_a_parquet_export_is_the_parts_in_one(bench: Bench) -> None:
    await bench.run(Service())
    export(bench, Format.PARQUET)
    assert pq.read_table(bench.folder / "all.parquet").to_pylist() == bench.table()


def cut_at(texts: list[str], _: int) -> Said:
    return refusal(401) if "text 14" in texts else None


@pytest.mark.anyio
@pytest.mark.parametrize("kind", Format)
async def test_rows_that_are_in_no_part_yet_are_exported_with_their_cells(bench: Bench, kind: Format) -> None:
    bench.operation = "chat"
    bench.changes["run"] = {"workers": 4, "grace": "5s"}
    assert (await bench.run(Service(cut_at, latency_s=0.01))).exit_code == 3
    with bench.journal() as reader:
        loose = [row.ordinal for span in reader.spans() for row, _ in reader.results(span.first, span.last)]
        sealed = sum(part.last - part.first + 1 for part in reader.parts())
    assert loose
    assert export(bench, kind, cells=cells_of_input(bench)) == Exported(rows=sealed + len(loose))
    rows = read(bench, kind)
    assert [int(row["ordinal"]) for row in rows] == [*range(sealed), *loose]
    assert [row["text"] for row in rows] == [f"text {int(row['ordinal'])}" for row in rows]
    assert all(row["output_text"] == f"answer to {row['text']}" for row in rows)


@pytest.mark.anyio
async def test_rows_whose_cells_are_gone_are_exported_and_counted(bench: Bench) -> None:
    bench.operation = "chat"
    bench.changes["run"] = {"workers": 4, "grace": "5s"}
    await bench.run(Service(cut_at, latency_s=0.01))
    for path in bench.layout.spool.iterdir():
        path.unlink()
    for row in bench.rows:
        row["text"] += "!"
    exported = export(bench, Format.JSONL, cells=cells_of_input(bench))
    rows = read(bench, Format.JSONL)
    assert exported.without_cells > 0
    assert sum(row["text"] is None for row in rows) == exported.without_cells
    assert all(row["output_text"] for row in rows)


@pytest.mark.anyio
async def test_what_is_there_is_not_replaced_unless_that_is_asked_for(bench: Bench) -> None:
    await bench.run(Service())
    path = bench.folder / "all.jsonl"
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        export(bench, Format.JSONL)
    assert path.read_text() == "mine"
    assert export(bench, Format.JSONL, replace=True).rows == 25


@pytest.mark.anyio
@pytest.mark.parametrize("kind", Format)
async def test_an_export_that_fails_leaves_no_file_and_the_old_one_as_it_was(bench: Bench, kind: Format) -> None:
    await bench.run(Service())
    schema = schema_of(bench)
    bench.parts()[-1].write_bytes(b"damaged")
    with pytest.raises(DamageError):
        export(bench, kind, schema=schema)
    (bench.folder / f"all.{kind}").write_text("old")
    with pytest.raises(DamageError):
        export(bench, kind, schema=schema, replace=True)
    assert (bench.folder / f"all.{kind}").read_text() == "old"
    assert [path.name for path in bench.folder.iterdir() if path.name.startswith(".")] == []


@pytest.mark.anyio
async def test_a_cell_that_a_spreadsheet_would_run_is_marked_in_csv_and_only_there(tmp_path: Path) -> None:
    bench = Bench(folder=tmp_path, operation="chat").texts(*FORMULAS, "plain = text", "'quoted")
    for row in bench.rows:
        row["n"] = -5
    await bench.run(Service())
    for kind in (Format.CSV, Format.JSONL):
        export(bench, kind)
    texts = [row["text"] for row in read(bench, Format.CSV)]
    assert texts == [*(f"'{text}" for text in FORMULAS), "plain = text", "'quoted"]
    assert {row["n"] for row in read(bench, Format.CSV)} == {"-5"}
    assert [row["text"] for row in read(bench, Format.JSONL)] == [row["text"] for row in bench.rows]


@pytest.mark.anyio
async def test_a_column_whose_name_a_spreadsheet_would_run_is_marked_in_csv(tmp_path: Path) -> None:
    bench = Bench(folder=tmp_path).texts("a")
    bench.rows[0]["=cmd()"] = 1
    await bench.run(Service())
    export(bench, Format.CSV)
    assert "'=cmd()" in read(bench, Format.CSV)[0]


@pytest.mark.anyio
async def test_values_that_a_format_has_no_kind_for_are_written_as_text(tmp_path: Path) -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    cells = {"price": Decimal("1.10"), "at": at, "blob": b"\x00\xff", "nan": float("nan"), "flag": True, "list": [1, 2]}
    table = pa.Table.from_pylist([cells])
    layout = Layout(tmp_path)
    layout.journal.parent.mkdir(parents=True)
    schema = part_schema(table.schema, pa.schema([("audio", pa.binary())]))
    journal = Journal(layout.journal)
    journal.post_span(Span(first=0, last=0, start="{}"))
    rows = iter([kept(RowResult(ordinal=0, values={"audio": b"sound"}), RequestInfo())])
    name = "part-000000000000-000000000000.parquet"
    file = write_part(
        layout.part(name),
        first=0,
        last=0,
        schema=schema,
        carried=table.to_batches(),
        results=rows,
        compression="none",
    )
    part = Part(
        first=0,
        last=0,
        name=name,
        ok=file.ok,
        failed=file.failed,
        bytes=file.bytes,
        sha256=file.sha256,
        digest="",
        generation=0,
        start="{}",
        finish="{}",
    )
    await journal.seal(part, rest=None)
    await journal.close()
    bench = Bench(folder=tmp_path)
    for kind in Format:
        write_export(tmp_path / f"all.{kind}", Finished(layout=layout, schema=schema), kind, replace=False)
    (line,) = read(bench, Format.JSONL)
    assert (line["price"], line["at"], line["nan"], line["flag"]) == ("1.10", "2026-01-02T03:04:05+00:00", None, True)
    assert (base64.b64decode(line["blob"]), base64.b64decode(line["audio"])) == (b"\x00\xff", b"sound")
    (cell,) = read(bench, Format.CSV)
    assert (cell["price"], cell["at"], cell["flag"], cell["list"]) == ("1.10", at.isoformat(), "true", "[1,2]")
    assert base64.b64decode(cell["blob"]) == b"\x00\xff"
    assert cell["error"] == ""
    assert pq.read_schema(tmp_path / "all.parquet").field("price").type == pa.decimal128(3, 2)


@pytest.mark.anyio
async def test_a_text_in_pieces_is_exported_as_the_parts_have_it(tmp_path: Path) -> None:
    bench = Bench(folder=tmp_path).texts("short", " ".join(["word"] * 9_000))
    bench.changes["request"] = {"input": "{{ text }}", "dimensions": 4, "on_too_long": "split"}
    await bench.run(Service())
    export(bench, Format.JSONL)
    assert [row["chunk"] for row in read(bench, Format.JSONL)] == [row["chunk"] for row in bench.table()]


@pytest.mark.anyio
async def test_an_export_is_read_as_the_umask_says(bench: Bench) -> None:
    await bench.run(Service())
    umask = os.umask(0)
    os.umask(umask)
    for kind in Format:
        export(bench, kind)
        assert stat.S_IMODE((bench.folder / f"all.{kind}").stat().st_mode) == 0o666 & ~umask
