"""What a source of rows is: a stream of batches with ordinals, and places from which to read on.

A new source is one file in this folder that declares `FORMAT`; contract tests find it by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.model import BadRow, Row
    from pipeline.sources.digest import RangeDigest


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where the row `ordinal` begins: an index into the source's files, and a place within that file.

    `offset` is the source's own: bytes (uncompressed) in JSONL, rows in Parquet. `line` counts from 1, JSONL only.
    """

    ordinal: int = 0
    file: int = 0
    offset: int = 0
    line: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """One file of the input, known by name, size, modification time and inode."""

    path: Path
    size: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Consecutive rows. `carried` has exactly `len(rows)` rows, in the same order; a bad row's cells may be null.

    `end` is where the next row begins. An empty batch means that the input has ended.
    """

    rows: tuple[Row | BadRow, ...]
    carried: pa.RecordBatch
    end: Position


class Cursor(Protocol):
    """A reader within a source. Blocking: it is called in a worker thread."""

    def read(self, max_rows: int, digest: RangeDigest) -> Batch:
        """Read at most `max_rows` rows (fewer is usual) and feed their content to the digest.

        The digest of a range does not depend on how its rows were cut into batches.
        """

    def close(self) -> None:
        """Give back what is open."""


class Source(Protocol):
    """An input: its files, its columns with their fixed types, and cursors over its rows.

    The same files and types give the same rows with the same ordinals, always.
    """

    files: tuple[InputFile, ...]
    schema: pa.Schema

    @property
    def row_count(self) -> int | None:
        """The number of rows; None where it takes reading to know."""

    def open(self, start: Position, *, values: frozenset[str] | None, carried: Sequence[str]) -> Cursor:
        """Read from `start` on. `values` names the columns that rows must hold (None: all), `carried` those to carry.

        Batches have the carried columns in the order given.
        """


@runtime_checkable
class Measured(Protocol):
    """A source that does not know its rows, but how much of it lies before a position."""

    def share_before(self, position: Position) -> float | None:
        """The share of its bytes that lie before a position, 0 to 1; None where that takes reading to know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What a format is opened with.

    `files` are in their order; none for a format that `lists` them itself, of `paths`: absolute files, folders and
    globs. `declared` holds the types of columns that the job names, as it writes them. `kept_schema` is the schema of
    an earlier invocation, from which the types are then taken; None: they are found.
    """

    files: tuple[InputFile, ...]
    declared: Mapping[str, str]
    kept_schema: pa.Schema | None
    paths: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One way of writing rows, as its module declares it under `FORMAT`.

    `name` is what a job file says under `input.format`: the module's name with hyphens for underscores. `title` is how
    messages call one such file. `suffixes` end the names of its files, in lower case; `auto` and folders go by them.
    A format without any is never guessed, and takes all files of a folder. `magic` begins each of its files, where
    something does. `lists` is for a format whose rows are the files themselves: `open` then finds them. `open` raises
    SourceError for files that cannot be read as this.
    """

    name: str
    title: str
    suffixes: tuple[str, ...] = ()
    magic: bytes = b""
    lists: bool = False
    open: Callable[[Opening], Source]

    def names(self, path: Path) -> bool:
        """Whether a file's name says this format."""
        return path.name.lower().endswith(self.suffixes) if self.suffixes else False
