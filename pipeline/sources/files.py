"""Files themselves as rows: one row a file of a folder, with its path, size and time of change.

The files are listed once, when the input is opened, and sorted by path; a row says nothing of a file's content.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.job.paths import exists, is_folder, static_folder
from pipeline.model import BadRow, ErrorInfo, ErrorType, Row
from pipeline.sources.base import Batch, Format, InputFile, Opening, Position
from pipeline.sources.digest import RangeDigest
from pipeline.sources.errors import SourceError
from pipeline.sources.types import record_batch

BATCH_ROWS = 1024

_SCHEMA = pa.schema([("path", pa.string()), ("bytes", pa.int64()), ("modified", pa.timestamp("us", tz="UTC"))])
_LISTED = pa.schema([("path", pa.large_binary()), ("size", pa.int64()), ("mtime_ns", pa.int64())])
_LISTED_AT_ONCE = 65_536
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SKIPPED = (b"_", b".")
_LINK, _SPECIAL = -1, -2
"""What stands for the size of what is not a regular file."""


class FilesSource:
    """The files of folders and globs, in the order of their paths below the folder that holds them all.

    Memory is the length of their paths and sixteen bytes a file. `files` is one entry for all of them: the folder,
    the sum of their sizes, a number made of all paths, sizes and times, and how many there are.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        absolute = [os.path.abspath(text) for text in paths]  # noqa: PTH100 - a pattern is no Path
        root = static_folder(absolute)
        self._listed = _listing(absolute, root)
        self.schema = _SCHEMA
        digest = RangeDigest()
        digest.columns(self._listed)
        sizes = self._listed.column("size").to_numpy()
        self.files: tuple[InputFile, ...] = (
            InputFile(
                path=root,
                size=int(sizes[sizes > 0].sum()),
                mtime_ns=int(digest.hexdigest()[:15], 16),
                inode=self._listed.num_rows,
            ),
        )

    @property
    def row_count(self) -> int | None:
        """How many files were found."""
        return len(self._listed)

    def open(self, start: Position, *, values: frozenset[str] | None, carried: Sequence[str]) -> FilesCursor:
        """Read from `start` on. Raises SourceError for a carried column that the schema does not hold."""
        missing = [name for name in carried if name not in self.schema.names]
        if missing:
            raise SourceError(f"the input has no column {', '.join(missing)}; it has {', '.join(self.schema.names)}")
        return FilesCursor(self._listed, start, values=values, carried=carried)


class FilesCursor:
    """A reader within a list of files."""

    def __init__(
        self, listed: pa.RecordBatch, start: Position, *, values: frozenset[str] | None, carried: Sequence[str]
    ) -> None:
        self._listed = listed
        self._end = start
        self._names = tuple(name for name in _SCHEMA.names if values is None or name in values)
        self._carried = pa.schema([_SCHEMA.field(name) for name in carried])

    def read(self, max_rows: int, digest: RangeDigest) -> Batch:
        """Read at most `max_rows` rows. The digest is of every column, whichever are asked for."""
        listed = self._listed.slice(self._end.offset, min(max_rows, BATCH_ROWS))
        digest.columns(listed)
        first = self._end.ordinal
        cells = [_cells(*file) for file in zip(*listed.to_pydict().values(), strict=True)]
        rows = tuple(self._row(first + place, file) for place, file in enumerate(cells))
        arrays = [pa.array([file[field.name] for file in cells], field.type) for field in self._carried]
        carried = record_batch(arrays, self._carried, rows=len(rows))
        self._end = Position(ordinal=first + len(rows), offset=self._end.offset + len(rows))
        return Batch(rows=rows, carried=carried, end=self._end)

    def _row(self, ordinal: int, file: dict[str, Any]) -> Row | BadRow:
        error = file["error"]
        if error is not None:
            return BadRow(ordinal=ordinal, error=error)
        return Row(ordinal=ordinal, values={name: file[name] for name in self._names})

    def close(self) -> None:
        """Nothing is open."""


def _cells(path: bytes, size: int, mtime_ns: int) -> dict[str, Any]:
    """A file's columns, and under `error` why it cannot be asked about."""
    name = path.decode(errors="backslashreplace")
    error = None
    try:
        text: str | None = path.decode()
    except UnicodeDecodeError:
        text = None
        error = _error("path", f"{name}: the file's name is not UTF-8; rename it")
    if size == _LINK:
        error = _error("not_a_file", f"{name}: is a link, and links are not followed")
    elif size == _SPECIAL:
        error = _error("not_a_file", f"{name}: is no regular file")
    return {"path": text, "bytes": size if size >= 0 else None, "modified": _time(mtime_ns), "error": error}


def _error(code: str, message: str) -> ErrorInfo:
    return ErrorInfo(type=ErrorType.ROW, code=code, message=message)


def _time(mtime_ns: int) -> datetime | None:
    """The time of change; None where it is beyond the years that a date can have."""
    try:
        return _EPOCH + timedelta(microseconds=mtime_ns // 1000)
    except OverflowError:
        return None


def _listing(paths: Sequence[str], root: Path) -> pa.RecordBatch:
    """List all files, sorted by their paths below the root. Raises SourceError where there are none, or one twice."""
    base = os.fsencode(root)
    chunks: list[pa.RecordBatch] = []
    names: list[bytes] = []
    sizes: list[int] = []
    times: list[int] = []

    def flush() -> None:
        chunks.append(pa.record_batch([names, sizes, times], schema=_LISTED))
        for cells in (names, sizes, times):
            cells.clear()

    for path, found in _found(paths):
        names.append(os.path.relpath(path, base) if base == b"/" else path[len(base) + 1 :])
        sizes.append(_size(found))
        times.append(found.st_mtime_ns)
        if len(names) == _LISTED_AT_ONCE:
            flush()
    flush()
    table = pa.Table.from_batches(chunks).sort_by("path").combine_chunks()
    if table.num_rows == 0:
        raise SourceError("the input names no file")
    listed = table.to_batches()[0]
    _refuse_twice(listed.column("path"))
    return listed


def _size(found: os.stat_result) -> int:
    if stat.S_ISREG(found.st_mode):
        return found.st_size
    return _LINK if stat.S_ISLNK(found.st_mode) else _SPECIAL


def _refuse_twice(names: pa.Array[Any]) -> None:
    import pyarrow.compute as pc  # noqa: PLC0415 - an import of a tenth of a second, for whoever lists files

    twice = names.slice(1).filter(pc.equal(names.slice(1), names.slice(0, len(names) - 1)))
    if len(twice):
        name = twice[0].as_py().decode(errors="backslashreplace")
        raise SourceError(f"{name}: the input names this file twice; its rows would be sent twice")


def _found(paths: Sequence[str]) -> Iterator[tuple[bytes, os.stat_result]]:
    """Every file that the paths name, by its own state: a link is not followed."""
    for text in paths:
        before = None
        if is_folder(text):
            for before in _walk(os.fsencode(text)):
                yield before
        elif exists(text):
            before = os.fsencode(text), os.lstat(text)
            yield before
        elif glob.has_magic(text):
            for before in _matches(text):
                yield before
        else:
            raise SourceError(f"{text}: no such file or folder")
        if before is None:
            raise SourceError(f"{text}: holds no file (names that begin with _ or . are skipped)")


def _matches(pattern: str) -> Iterator[tuple[bytes, os.stat_result]]:
    for match in glob.iglob(pattern, recursive=True):  # noqa: PTH207 - Path.glob takes no absolute pattern
        path = os.fsencode(os.path.normpath(match))
        if os.path.basename(path).startswith(_SKIPPED):  # noqa: PTH119 - bytes are no Path
            continue
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            continue
        if not stat.S_ISDIR(found.st_mode):
            yield path, found


def _walk(folder: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    folders = [folder]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith(_SKIPPED):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                        continue
                    try:
                        yield entry.path, entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
        except OSError as error:
            raise SourceError(f"{os.fsdecode(folder)}: cannot be listed: {error.strerror}") from error


def _open(given: Opening) -> FilesSource:
    if given.declared:
        raise SourceError("input.columns: rows of files have their own types; leave it out")
    return FilesSource(given.paths)


FORMAT = Format(name="files", title="file", lists=True, open=_open)
