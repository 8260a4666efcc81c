"""A new format of the input: one file, found without a word said elsewhere. Each line of a text file is a row."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa

from pipeline.model import Row
from pipeline.sources.base import Batch, Format, InputFile, Position
from pipeline.sources.digest import RangeDigest


class LineSource:
    """Text files, a line a row."""

    def __init__(self, files: Sequence[InputFile]) -> None:
        self.files = tuple(files)
        self.schema = pa.schema([("line", pa.string())])

    @property
    def row_count(self) -> int | None:
        return None

    def open(self, start: Position, *, values: frozenset[str] | None, carried: Sequence[str]) -> LineCursor:
        return LineCursor([file.path for file in self.files], start, carried)


class LineCursor:
    """A reader within text files; a position's offset counts lines."""

    def __init__(self, paths: Sequence[Path], start: Position, carried: Sequence[str]) -> None:
        self._paths = paths
        self._at = start
        self._schema = pa.schema([(name, pa.string()) for name in carried])

    def read(self, max_rows: int, digest: RangeDigest) -> Batch:
        lines: list[str] = []
        at = self._at
        while not lines and at.file < len(self._paths):
            with self._paths[at.file].open(encoding="utf-8") as file:
                lines = [line.rstrip("\n") for line in islice(file, at.offset, at.offset + max_rows)]
            if not lines:
                at = Position(ordinal=at.ordinal, file=at.file + 1)
        digest.raw("".join(f"{line}\n" for line in lines).encode())
        rows = tuple(Row(ordinal=at.ordinal + index, values={"line": line}) for index, line in enumerate(lines))
        carried = pa.RecordBatch.from_pylist([dict.fromkeys(self._schema.names, line) for line in lines], self._schema)
        self._at = Position(ordinal=at.ordinal + len(lines), file=at.file, offset=at.offset + len(lines))
        return Batch(rows=rows, carried=carried, end=self._at)

    def close(self) -> None:
        """Nothing stays open."""


FORMAT = Format(name="lines", title="text file", suffixes=(".txt",), open=lambda given: LineSource(given.files))
