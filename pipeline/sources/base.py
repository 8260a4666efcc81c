"""What a source of rows is: a stream of batches with ordinals, and places from which to read on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

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

    def open(self, start: Position, *, values: frozenset[str] | None, carried: Sequence[str]) -> Cursor:
        """Read from `start` on. `values` names the columns that rows must hold (None: all), `carried` those to carry.

        Batches have the carried columns in the order given.
        """
