"""Helpers of the tests of sources: write an input, read it whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.model import BadRow, Row
from pipeline.sources.base import Position, Source
from pipeline.sources.digest import RangeDigest


@dataclass(slots=True, kw_only=True)
class Read:
    """All that was read: rows, carried columns, the digest, and the position behind every row boundary met."""

    rows: list[Row | BadRow] = field(default_factory=list)
    carried: pa.Table
    digest: str
    ends: list[Position] = field(default_factory=list)

    @property
    def outline(self) -> list[Any]:
        """A bad row as its code, another as its values."""
        return [row.error.code if isinstance(row, BadRow) else dict(row.values) for row in self.rows]


@pytest.fixture
def read_all() -> Callable[..., Read]:
    def read(
        source: Source,
        *,
        start: Position | None = None,
        values: frozenset[str] | None = None,
        carried: Sequence[str] = (),
        cuts: Iterable[int] = (),
        rows: int | None = None,
    ) -> Read:
        """Read by batches of the sizes in `cuts`, then of 1,000; stop behind `rows` rows."""
        start = start or Position()
        cursor = source.open(start, values=values, carried=carried)
        digest = RangeDigest()
        batches: list[pa.RecordBatch] = []
        result = Read(carried=pa.table({}), digest="")
        sizes = iter(cuts)
        while rows is None or len(result.rows) < rows:
            size = next(sizes, 1000)
            size = size if rows is None else min(size, rows - len(result.rows))
            batch = cursor.read(size, digest)
            assert len(batch.rows) <= size
            assert batch.carried.num_rows == len(batch.rows)
            assert batch.carried.schema.names == list(carried)
            assert [batch.carried.schema.field(name).type for name in carried] == [
                source.schema.field(name).type for name in carried
            ]
            if not batch.rows:
                break
            assert [row.ordinal for row in batch.rows] == list(range(batch.end.ordinal))[-len(batch.rows) :]
            result.rows.extend(batch.rows)
            result.ends.append(batch.end)
            batches.append(batch.carried)
        cursor.close()
        schema = pa.schema([source.schema.field(name) for name in carried])
        result.carried = pa.Table.from_batches(batches, schema) if carried else pa.table({})
        result.digest = digest.hexdigest()
        return result

    return read


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., str]:
    def write(*lines: bytes | str, name: str = "in.jsonl", end: bytes = b"\n", last: bytes | None = None) -> str:
        """Write lines; `end` ends each, `last` the last one where it differs."""
        encoded = [line.encode() if isinstance(line, str) else line for line in lines]
        path = tmp_path / name
        path.write_bytes(end.join(encoded) + (end if last is None else last))
        return str(path)

    return write
