"""Whatever bytes an input holds, each line is a row or a bad row in its place, and reading on is reading from there."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from pipeline import operations
from pipeline.job.load import load_job
from pipeline.job.tokens import at_most, count, cut
from pipeline.model import BadRow, ErrorInfo, Item, Row
from pipeline.sources import SourceError, open_source
from pipeline.sources.base import Position, Source
from pipeline.sources.digest import RangeDigest
from tests.fuzz.effort import DEEP, JSON, effort, mangled

PIECES = (
    b"\n",
    b"\r\n",
    b"\r",
    b"\n\n",
    b"{}",
    b"null",
    b"[1]",
    b'{"a": ',
    b'"',
    b"\\",
    b"\\ud800",
    b"\xed\xa0\x80",
    b"\xff",
    b"\x00",
    b"\xef\xbb\xbf",
    b"9" * 25,
    b"9" * 5000,
    b"1e999",
    b"1e99999999999999999999999",
    b"0." + b"1" * 5000,
    b"NaN",
    b"[" * 300,
    b'{"a":' * 300,
    b"}" * 300,
    "\u2028".encode(),
    b'{"custom_id": "x", "method": "POST", "url": "/v1/chat/completions", "body": {}}',
)
TYPES = ("string", "int8", "int64", "double", "float", "bool", "date", "timestamp", "binary", "json", "decimal(10,2)",
         "decimal(76,0)", "list<int64>", "list<string>")  # fmt: skip
START = Position()
LINES = b"".join(
    json.dumps({"a": f"text {n}", "b": n, "c": [n, None], "d": {"e": n / 3}, "f": n % 2 == 0}).encode() + b"\n"
    for n in range(6)
)
BATCH = b"".join(
    json.dumps(
        {
            "custom_id": f"r{n}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"messages": [{"role": "user", "content": "x"}]},
        }
    ).encode()
    + b"\n"
    for n in range(4)
)


def rows_of(source: Source, start: Position = START, step: int = 100) -> list[tuple[Row | BadRow, Position]]:
    """Every row with the position behind its batch."""
    cursor = source.open(start, values=None, carried=source.schema.names)
    digest = RangeDigest()
    found: list[tuple[Row | BadRow, Position]] = []
    while (batch := cursor.read(step, digest)).rows:
        assert batch.carried.num_rows == len(batch.rows) <= step
        assert batch.carried.validate(full=True) is None
        found += [(row, batch.end) for row in batch.rows]
    cursor.close()
    return found


def read_and_check(path: Path, **opening: Any) -> None:
    """Open and read an input twice, whole and from behind its first row: the same rows, or an error in words."""
    try:
        source = open_source([str(path)], **opening)
        found = rows_of(source)
    except SourceError:
        return
    assert [row.ordinal for row, _ in found] == list(range(len(found)))
    for row, _ in found:
        if isinstance(row, BadRow):
            assert row.error.code
            assert path.name in row.error.message
            assert "\n" not in row.error.message
    for step in (1, 3):
        stepped = rows_of(source, step=step)
        assert [told(row) for row, _ in stepped] == [told(row) for row, _ in found]
        if stepped:
            behind = stepped[0][1]
            assert [told(row) for row, _ in rows_of(source, behind)] == [
                told(row) for row, _ in found[behind.ordinal :]
            ]


def told(row: Row | BadRow) -> Any:
    return (row.ordinal, row.error.code) if isinstance(row, BadRow) else (row.ordinal, repr(row.values))


@given(data=st.data())
@effort(100)
def test_lines_of_any_bytes_are_rows_in_their_places(tmp_path: Path, data: st.DataObject) -> None:
    content = data.draw(st.binary(max_size=100) | mangled(LINES, PIECES))
    declared = data.draw(st.dictionaries(st.sampled_from("abcdfx"), st.sampled_from(TYPES), max_size=3))
    path = tmp_path / "in.jsonl"
    path.write_bytes(gzip.compress(content) if data.draw(st.booleans()) else content)
    read_and_check(path, columns=declared)


@given(content=mangled(gzip.compress(LINES * 50, mtime=0), (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")))
@effort(60)
def test_a_damaged_compressed_file_is_rows_or_an_error_in_words(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "in.jsonl.gz"
    path.write_bytes(content)
    read_and_check(path)


@given(content=mangled(BATCH, PIECES))
@effort(80)
def test_lines_of_the_batch_api_are_rows_in_their_places(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)
    read_and_check(path, format="openai-batch")


def parquet(path: Path) -> bytes:
    table = pa.table({"a": [f"text {n}" for n in range(40)], "b": list(range(40)), "c": [[n, None] for n in range(40)]})
    pq.write_table(table, path, row_group_size=10)
    return path.read_bytes()


@given(data=st.data())
@effort(50)
def test_a_damaged_parquet_file_is_rows_or_an_error_in_words(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "in.parquet"
    path.write_bytes(data.draw(mangled(parquet(path), (b"PAR1", b"\x00" * 4, b"\xff" * 8))))
    read_and_check(path)


TEXTS = st.text(max_size=60) | st.sampled_from(
    ["<|endoftext|>", "\ud800", "\x00", "🏴󠁧󠁢󠁥󠁮󠁧󠁿" * 5, "a" * 5000, "\u202e", "ﷺ" * 50]
)


@given(
    text=TEXTS,
    most=st.integers(1, 40),
    model=st.sampled_from(["gpt-4o", "gpt-4", "text-embedding-3-small", "", "\x00"]),
)
@effort(80)
def test_tokens_of_any_text_are_counted_within_their_bound(text: str, most: int, model: str) -> None:
    if text.isascii() or "\ud800" not in text:
        (tokens,) = count([text], model)
        assert 0 <= tokens <= at_most(text)
        beginning = cut(text, most, model)
        assert text.startswith(beginning)
        assert count([beginning], model)[0] <= most
    else:
        assert at_most(text) >= len(text)


@given(name=st.sampled_from(["chat", "embeddings", "completions", "responses", "speech"]), value=JSON | DEEP | TEXTS)
@effort(100)
def test_any_value_of_a_row_is_an_item_or_the_rows_error(tmp_path: Path, name: str, value: Any) -> None:
    entry = operations.get(name)
    (tmp_path / "job.yaml").write_text(entry.starter)
    environ = {"AZURE_OPENAI_ENDPOINT": "https://x.openai.azure.com", "AZURE_OPENAI_API_KEY": "k" * 32}
    operation = entry.factory(load_job(tmp_path / "job.yaml", environ=environ, operations=operations.names()))
    columns = operation.columns
    assert columns
    (one,) = operation.prepare([Row(ordinal=3, values=dict.fromkeys(columns, value))])
    assert isinstance(one, Item | ErrorInfo)
    if isinstance(one, ErrorInfo):
        assert one.code
        assert "\n" not in one.message
