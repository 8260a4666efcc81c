"""Rows come back out of a part as the journal had them."""

from __future__ import annotations

import struct
from itertools import starmap
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.model import CHUNK, ErrorInfo, ErrorType, RequestInfo, RowResult, Usage
from pipeline.store.codec import kept
from pipeline.store.parts import part_schema, write_part
from pipeline.store.salvage import Done, outcomes, rows_of_part

VECTOR = pa.list_(pa.float32(), 2)
REQUEST = RequestInfo(attempts=2, deployment="d", request_id="r", latency_ms=1.5, finished_at=1_700_000_000.123456)
FAILED = ErrorInfo(type=ErrorType.RATE_LIMIT, code="c", message="m", http_status=429)


def vector(number: int) -> bytes:
    return struct.pack("<2f", number, -number)


PLAIN: list[Done] = [
    (RowResult(ordinal=5, values={"embedding": vector(1)}, usage=Usage(input_tokens=3), response=b"{}"), REQUEST),
    (RowResult(ordinal=6, error=FAILED), RequestInfo()),
    (RowResult(ordinal=7, values={"embedding": vector(2)}), RequestInfo()),
]
PIECES: list[Done] = [
    (
        RowResult(
            ordinal=5,
            values={CHUNK: [0, 1, 2], "embedding": [vector(1), vector(2), vector(3)]},
            usage=Usage(input_tokens=9),
        ),
        REQUEST,
    ),
    (RowResult(ordinal=6, error=FAILED), REQUEST),
    (RowResult(ordinal=7, values={CHUNK: [0], "embedding": [vector(4)]}), REQUEST),
]


@pytest.mark.parametrize("rows", [PLAIN, PIECES])
def test_rows_come_back_as_they_were(tmp_path: Path, rows: list[Done]) -> None:
    results = pa.schema([("embedding", VECTOR)] if rows is PLAIN else [(CHUNK, pa.int32()), ("embedding", VECTOR)])
    schema = part_schema(pa.schema([]), results)
    path = tmp_path / "part.parquet"
    write_part(path, first=5, last=7, schema=schema, carried=None, results=starmap(kept, rows), compression="none")

    assert list(rows_of_part(path)) == rows
    assert list(rows_of_part(path, [0])) == rows
    assert list(rows_of_part(path, [])) == []


def test_rows_of_one_request_lie_together() -> None:
    assert [len(outcome.rows) for outcome in outcomes(iter(PLAIN))] == [1, 2]
    assert [len(outcome.rows) for outcome in outcomes(iter(PIECES))] == [3]
