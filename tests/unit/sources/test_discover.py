from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.sources import SourceError, jsonl, open_source, parquet
from pipeline.sources.base import Format
from pipeline.sources.discover import discover

FORMATS: tuple[Format, ...] = (jsonl.FORMAT, parquet.FORMAT)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.jsonl", "a.jsonl", "_SUCCESS", ".hidden.jsonl", "_meta/x.jsonl", ".git/y.jsonl", "c/d.jsonl"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"a": 1}\n')
    return tmp_path / "in"


def names(tree: Path, *paths: str, format_: str = "auto") -> list[str]:
    found = discover([str(tree / path) for path in paths], format=format_, formats=FORMATS)
    return [file.path.relative_to(tree).as_posix() for file in found.files]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["."], ["a.jsonl", "b.jsonl", "c/d.jsonl"]),
        (["b.jsonl", "a.jsonl"], ["b.jsonl", "a.jsonl"]),
        (["*.jsonl"], ["a.jsonl", "b.jsonl"]),
        (["[ab].jsonl"], ["a.jsonl", "b.jsonl"]),
        (["c/*", "?.jsonl"], ["c/d.jsonl", "a.jsonl", "b.jsonl"]),
        (["**/d.jsonl"], ["c/d.jsonl"]),
        (["_meta/x.jsonl"], ["_meta/x.jsonl"]),
        (["_meta"], ["_meta/x.jsonl"]),
    ],
)
def test_files_folders_and_globs_are_found_in_order(tree: Path, paths: list[str], expected: list[str]) -> None:
    assert names(tree, *paths) == expected


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a[1].jsonl").write_text("{}\n")
    assert names(tmp_path, "a[1].jsonl") == ["a[1].jsonl"]


def test_a_file_is_known_by_size_time_and_inode(tree: Path) -> None:
    status = (tree / "a.jsonl").stat()
    (file,) = discover([str(tree / "a.jsonl")], format="auto", formats=FORMATS).files
    assert (file.size, file.mtime_ns, file.inode) == (status.st_size, status.st_mtime_ns, status.st_ino)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], "names no file"),
        (["missing.jsonl"], "no such file or folder"),
        (["missing*.jsonl"], "no file matches"),
        (["a.jsonl", "*.jsonl"], "names this file twice"),
        (["empty"], "holds no files"),
        (["skipped"], "holds no files"),
        (["mixed"], r"mixes formats: jsonl \(.*a\.jsonl\) and parquet \(.*b\.parquet\)"),
        (["odd"], r"notes\.md: neither its name nor its first bytes say a format; set input\.format \(.*parquet"),
        (["table.csv"], r"table\.csv: tables of text .* duckdb -c \"COPY \(FROM 'table\.csv'\) TO 'table\.parquet'\""),
        (["fake.parquet"], "is no Parquet file"),
        (["pipe.jsonl"], "is no regular file"),
    ],
)
def test_what_cannot_be_an_input_is_refused_with_a_reason(tree: Path, paths: list[str], message: str) -> None:
    for folder in ("empty", "skipped", "mixed", "odd"):
        (tree / folder).mkdir()
    (tree / "skipped" / "_x.jsonl").write_text("{}\n")
    (tree / "mixed" / "a.jsonl").write_text("{}\n")
    pq.write_table(pa.table({"a": [1]}), tree / "mixed" / "b.parquet")
    (tree / "odd" / "a.jsonl").write_text("{}\n")
    (tree / "odd" / "notes.md").write_text("hello")
    (tree / "table.csv").write_text("a,b\n")
    (tree / "fake.parquet").write_text("{}\n")
    os.mkfifo(tree / "pipe.jsonl")
    with pytest.raises(SourceError, match=message):
        open_source([str(tree / path) for path in paths])


def test_a_given_format_chooses_within_folders_and_is_believed_for_files(tree: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tree / "t.parquet")
    (tree / "rows.txt").write_text("{}\n")
    assert names(tree, ".", format_="jsonl") == ["a.jsonl", "b.jsonl", "c/d.jsonl"]
    assert names(tree, ".", format_="parquet") == ["t.parquet"]
    assert names(tree, "rows.txt", format_="jsonl") == ["rows.txt"]
    with pytest.raises(SourceError, match="holds no parquet files"):
        names(tree, "c", format_="parquet")
    with pytest.raises(SourceError, match="is a Parquet file"):
        names(tree, "t.parquet", format_="jsonl")
    with pytest.raises(SourceError, match=r"input\.format: 'csv' is not read"):
        names(tree, "rows.txt", format_="csv")


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a.JSONL", "a.jsonl.gz", "a.ndjson.zst"])
def test_names_say_json_lines(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}\n")
    found = discover([str(tmp_path)], format="auto", formats=FORMATS)
    assert found.format.name == "jsonl"


def test_a_parquet_file_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "t.data")
    assert discover([str(tmp_path / "t.data")], format="auto", formats=FORMATS).format.name == "parquet"
