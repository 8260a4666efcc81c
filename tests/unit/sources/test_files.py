"""One row a file: which files, in which order, and what is not one."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.model import BadRow
from pipeline.sources import SourceError, open_source
from pipeline.sources.base import Source

SEEN = ["a.wav", "b/c.wav", "b/d e.wav", "b.wav", "ü.wav"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "b" / "_hidden").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / "empty").mkdir()
    for name in (*SEEN, ".hidden.wav", "_hidden.wav", "b/_hidden/x.wav", ".git/x.wav"):
        (root / name).write_bytes(name.encode())
    return root


def files(*paths: Path | str) -> Source:
    return open_source([str(path) for path in paths], format="files")


def names(source: Source, read_all: Callable[..., Any]) -> list[str]:
    return [one if isinstance(one, str) else one["path"] for one in read_all(source).outline]


def test_a_row_is_a_files_path_size_and_time_of_change(tree: Path, read_all: Callable[..., Any]) -> None:
    moment = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
    for path in tree.rglob("*.wav"):
        os.utime(path, ns=(0, 1714979289_123456789))
    source = files(tree)
    assert source.schema == pa.schema(
        [("path", pa.string()), ("bytes", pa.int64()), ("modified", pa.timestamp("us", tz="UTC"))]
    )
    expected = [
        {"path": name, "bytes": len(name.encode()), "modified": moment}
        for name in sorted(SEEN, key=lambda name: name.encode())
    ]
    read = read_all(source, carried=source.schema.names)
    assert (read.outline, read.carried.to_pylist()) == (expected, expected)
    assert source.row_count == len(SEEN)


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["*.wav"], ["a.wav", "b.wav", "ü.wav"]),
        (["**/*.wav"], ["a.wav", "b.wav", "b/_hidden/x.wav", "b/c.wav", "b/d e.wav", "ü.wav"]),
        (["b"], ["c.wav", "d e.wav"]),
        (["b/c.wav"], ["c.wav"]),
        (["b/c.wav", "a.wav"], ["a.wav", "b/c.wav"]),
        (["b", "a.wav"], ["a.wav", "b/c.wav", "b/d e.wav"]),
        (["[ab].wav", "b/*"], ["a.wav", "b.wav", "b/c.wav", "b/d e.wav"]),
    ],
)
def test_folders_globs_and_lists_are_read_below_their_common_folder(
    tree: Path, paths: list[str], expected: list[str], read_all: Callable[..., Any]
) -> None:
    source = files(*(tree / path for path in paths))
    assert names(source, read_all) == sorted(expected, key=str.encode)
    for name in expected:
        assert (source.files[0].path / name).is_file()


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["empty"], "holds no file"),
        (["*.mp3"], "holds no file"),
        (["gone"], "no such file or folder"),
        (["x" * 5000], "no such file or folder"),
        (["x" * 5000 + "*"], "holds no file"),
        (["a.wav", "a.wav"], "a.wav: the input names this file twice"),
        (["b", "b/c.wav"], "c.wav: the input names this file twice"),
        (["*.wav", "[a].wav"], "a.wav: the input names this file twice"),
    ],
)
def test_an_input_without_files_or_with_one_twice_is_refused(tree: Path, paths: list[str], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        files(*(tree / path for path in paths))


def test_columns_cannot_be_declared(tree: Path) -> None:
    with pytest.raises(SourceError, match=r"^input\.columns: "):
        open_source([str(tree)], format="files", columns={"path": "string"})


def test_a_column_that_is_none_cannot_be_carried(tree: Path, read_all: Callable[..., Any]) -> None:
    with pytest.raises(SourceError, match="no column text; it has path, bytes, modified"):
        read_all(files(tree), carried=["text"])


def test_links_pipes_and_names_that_are_no_text_are_failed_rows(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    root = tmp_path / "odd"
    (root / "folder").mkdir(parents=True)
    (root / "good.wav").write_bytes(b"x")
    (root / "broken").symlink_to("gone")
    (root / "link").symlink_to("good.wav")
    (root / "linked").symlink_to("folder")
    (root / "loop").symlink_to(".")
    os.mkfifo(root / "pipe")
    (root / os.fsdecode(b"\xff.wav")).write_bytes(b"x")
    read = read_all(files(root), carried=["path", "bytes"])
    said = [row.error.message if isinstance(row, BadRow) else row.values["path"] for row in read.rows]
    link = "is a link, and links are not followed"
    assert said == [
        f"broken: {link}",
        "good.wav",
        f"link: {link}",
        f"linked: {link}",
        f"loop: {link}",
        "pipe: is no regular file",
        "\\xff.wav: the file's name is not UTF-8; rename it",
    ]
    codes = {row.error.code for row in read.rows if isinstance(row, BadRow)}
    assert codes == {"not_a_file", "path"}
    assert read.carried.column("path").to_pylist()[-1] is None
    assert read.carried.column("bytes").to_pylist() == [None, 1, None, None, None, None, 1]


def test_the_folder_itself_may_be_a_link(tree: Path, tmp_path: Path, read_all: Callable[..., Any]) -> None:
    (tmp_path / "latest").symlink_to(tree)
    assert names(files(tmp_path / "latest"), read_all) == sorted(SEEN, key=str.encode)


def test_a_time_of_change_beyond_all_calendars_is_null(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "a").touch()
    os.utime(source / "a", ns=(0, 2**62))
    found = files(source)
    (row,) = read_all(found, carried=["modified"]).outline
    assert row["modified"].year == 2116
    os.utime(source / "a", (0, 300_000_000_000))
    if os.stat(source / "a").st_mtime > 299_999_999_999:  # noqa: PTH116 - some file systems hold fewer years
        (row,) = read_all(files(source)).outline
        assert row["modified"] is None


@pytest.mark.parametrize("change", ["size", "time", "name", "more", "fewer"])
def test_any_change_of_the_files_changes_what_they_are_known_by(
    tree: Path, change: str, read_all: Callable[..., Any]
) -> None:
    for path in tree.rglob("*.wav"):
        os.utime(path, ns=(0, 10**18))
    before = files(tree)
    again = files(tree)
    assert again.files == before.files
    match change:
        case "size":
            (tree / "a.wav").write_bytes(b"another size")
            os.utime(tree / "a.wav", ns=(0, 10**18))
        case "time":
            os.utime(tree / "a.wav", ns=(0, 10**18 + 1))
        case "name":
            (tree / "a.wav").rename(tree / "c.wav")
        case "more":
            (tree / "z.wav").touch()
        case _:
            (tree / "a.wav").unlink()
    after = files(tree)
    assert after.files != before.files
    assert read_all(after).digest != read_all(before).digest


def test_the_list_is_that_of_the_moment_of_opening(tree: Path, read_all: Callable[..., Any]) -> None:
    source = files(tree)
    (tree / "0.wav").touch()
    (tree / "b.wav").unlink()
    assert names(source, read_all) == sorted(SEEN, key=str.encode)


def test_one_entry_stands_for_all_files_however_many(tree: Path) -> None:
    (entry,) = files(tree).files
    assert (entry.path, entry.size, entry.inode) == (tree, sum(len(name.encode()) for name in SEEN), len(SEEN))
