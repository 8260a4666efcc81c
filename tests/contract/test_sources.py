"""What every format of the input keeps to, whether it is the product's or a file that somebody added."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import sources
from pipeline.model import BadRow
from pipeline.sources.base import Position, Source
from pipeline.sources.digest import RangeDigest

sys.path.insert(0, str(Path(__file__).parent))

OWN = "pipeline.sources"
TOYS = "toy_sources"
FOUND = [(package, name) for package in (OWN, TOYS) for name in sources.names(package)]
ROWS = 25


def write_jsonl(folder: Path) -> None:
    lines = [json.dumps({"line": f"line {n}", "n": n}) if n % 7 else '{"broken' for n in range(1, ROWS + 1)]
    (folder / "a.jsonl").write_text("\n".join(lines[:11]) + "\n")
    (folder / "b.jsonl").write_text("\n".join(lines[11:]))


def write_parquet(folder: Path) -> None:
    table = pa.table({"line": [f"line {n}" for n in range(ROWS)], "n": list(range(ROWS))})
    pq.write_table(table.slice(0, 11), folder / "a.parquet", row_group_size=4)
    pq.write_table(table.slice(11), folder / "b.parquet")


def write_lines(folder: Path) -> None:
    (folder / "a.txt").write_text("".join(f"line {n}\n" for n in range(11)))
    (folder / "b.txt").write_text("".join(f"line {n}\n" for n in range(11, ROWS)))


def write_files(folder: Path) -> None:
    for n in range(ROWS):
        (folder / f"{n % 3}").mkdir(exist_ok=True)
        (folder / f"{n % 3}" / f"recording {n}.wav").write_bytes(bytes(n))


def write_openai_batch(folder: Path) -> None:
    lines = [
        json.dumps({"custom_id": f"task-{n}", "method": "POST", "url": "/v1/embeddings", "body": {}})
        if n % 7
        else '{"broken'
        for n in range(1, ROWS + 1)
    ]
    (folder / "a.jsonl").write_text("\n".join(lines[:11]) + "\n")
    (folder / "b.jsonl").write_text("\n".join(lines[11:]))


WRITERS: dict[str, Callable[[Path], None]] = {
    "files": write_files,
    "jsonl": write_jsonl,
    "lines": write_lines,
    "openai-batch": write_openai_batch,
    "parquet": write_parquet,
}


@pytest.fixture(params=FOUND, ids=[name for _, name in FOUND])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    """An input of 25 rows in this format, in two or more files."""
    package, name = request.param
    (tmp_path / "in").mkdir()
    WRITERS[name](tmp_path / "in")
    return sources.open_source([str(tmp_path / "in")], format=name, package=package)


def read(source: Source, *, start: Position | None = None, cut: int = 1000) -> tuple[list[Any], list[Position], str]:
    """Read to the end: rows as comparable values, the ends of batches, the digest of it all."""
    digest = RangeDigest()
    cursor = source.open(start or Position(), values=None, carried=source.schema.names)
    rows: list[Any] = []
    ends: list[Position] = []
    while (batch := cursor.read(cut, digest)).rows:
        assert len(batch.rows) <= cut
        assert batch.carried.num_rows == len(batch.rows)
        assert batch.carried.schema.names == source.schema.names
        rows += [
            (row.ordinal, row.error.code if isinstance(row, BadRow) else dict(row.values), cells)
            for row, cells in zip(batch.rows, batch.carried.to_pylist(), strict=True)
        ]
        ends.append(batch.end)
    cursor.close()
    return rows, ends, digest.hexdigest()


def test_the_formats_of_the_product_and_a_new_file_are_found() -> None:
    assert {("pipeline.sources", "jsonl"), ("pipeline.sources", "parquet"), ("toy_sources", "lines")} <= set(FOUND)


def test_ordinals_count_from_nothing_without_a_gap(source: Source) -> None:
    rows, _, _ = read(source)
    assert [row[0] for row in rows] == list(range(ROWS))
    assert source.row_count in {None, ROWS}


@pytest.mark.parametrize("cut", [1, 3, 10])
def test_rows_and_digest_do_not_depend_on_how_they_are_read(source: Source, cut: int) -> None:
    rows, _, digest = read(source)
    again, _, same = read(source, cut=cut)
    assert (again, same) == (rows, digest)


def test_reading_goes_on_from_the_end_of_any_batch(source: Source) -> None:
    rows, ends, _ = read(source, cut=1)
    for count, end in enumerate(ends, start=1):
        assert end.ordinal == count
        assert read(source, start=end)[0] == rows[count:]


def test_a_cell_that_is_carried_is_what_the_row_says(source: Source) -> None:
    rows, _, _ = read(source)
    for _, values, cells in rows:
        # Objects are carried as JSON.
        assert isinstance(values, str) or cells == {
            name: json.dumps(value) if isinstance(value, dict) else value for name, value in values.items()
        }
