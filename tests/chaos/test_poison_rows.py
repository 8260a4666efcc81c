"""F19: poisonous rows between good ones. Each is one failed row with a code; its neighbours are answered as ever."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from in_memory import Bench, Service, answer_of

from pipeline.job.load import load_job
from pipeline.run import run_job
from pipeline.sources import SourceError
from tests.chaos.report import record

POISON_ROWS = int(os.environ.get("PIPELINE_POISON", "200"))
SEED = int(os.environ.get("PIPELINE_SEED", "20"))
BIG = 50 * 2**20
pytestmark = [pytest.mark.chaos, pytest.mark.anyio, pytest.mark.timeout(0 if POISON_ROWS > 1000 else 120)]


def good(ordinal: int) -> bytes:
    return json.dumps({"id": f"r{ordinal}", "text": f"Row {ordinal} speaks."}).encode()


def text(content: str) -> Callable[[int, random.Random], bytes]:
    return lambda ordinal, dice: b'{"id": "p%d", "text": %b}' % (ordinal, content.encode("utf-8", "surrogatepass"))


def flipped(ordinal: int, dice: random.Random) -> bytes:
    """A good line whose first brace is another byte: no JSON, whatever the byte."""
    return bytes([dice.choice([0, 1, 0x7F, 0x80, 0xFF, *b"xX(<,;"])]) + good(ordinal)[1:]


def cut(ordinal: int, dice: random.Random) -> bytes:
    line = good(ordinal)
    return line[: dice.randrange(1, len(line))]


LINES: dict[str, Callable[[int, random.Random], bytes]] = {
    "NUL": lambda ordinal, dice: b'{"id": "p", "text": "a\0b"}',
    "a lone surrogate": text(r'"\ud800"'),
    "a surrogate as bytes": text('"\ud800"'),
    "BOM within the file": lambda ordinal, dice: b"\xef\xbb\xbf" + good(ordinal),
    "a duplicate id": lambda ordinal, dice: b'{"id": "r0", "text": "again"}',
    "a missing column": lambda ordinal, dice: b'{"id": "p%d"}' % ordinal,
    "null": text("null"),
    "an empty text": text('""'),
    "10,000 deep": text("[" * 10_000 + "]" * 10_000),
    "NaN": text("NaN"),
    "Infinity": text("-Infinity"),
    "1e999": text("1e999"),
    "a list": text('["a", 1, null]'),
    "an object": text('{"a": {"b": 1}}'),
    "a number of 5,000 digits": text("9" * 5000),
    "not UTF-8": lambda ordinal, dice: b'{"id": "p%d", "text": "\xff\xfe"}' % ordinal,
    "no object": lambda ordinal, dice: b"[1, 2]",
    "two objects": lambda ordinal, dice: good(ordinal) + good(ordinal),
    "flipped": flipped,
    "cut": cut,
    "random bytes": lambda ordinal, dice: b"\x01" + dice.randbytes(40).replace(b"\n", b"x").replace(b"\r", b"y"),
}
CODES = {"invalid_json", "surrogate", "invalid_utf8", "duplicate_id", "null", "empty", "too_deep", "column_type",
         "not_an_object", "row_too_large", "type", "integer_range"}  # fmt: skip


def check(bench: Bench, poisoned: dict[int, str], total: int, calls: list[list[str]]) -> None:
    """Every row once, in its place; the poisoned ones failed with a code, the others answered with their own answer."""
    table = bench.table()
    assert [row["ordinal"] for row in table] == list(range(total))
    for row in table:
        kind = poisoned.get(row["ordinal"])
        if kind is None:
            assert row["status"] == "ok", row["error"]
            assert row["text"] == f"Row {row['ordinal']} speaks."
            assert row["output_text"] == answer_of(row["text"])
        else:
            assert row["status"] == "failed", kind
            assert row["error"]["code"] in CODES, (kind, row["error"])
            assert row["error"]["message"].isprintable(), kind
    assert sorted(texts[0] for texts in calls) == sorted(f"Row {n} speaks." for n in range(total) if n not in poisoned)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("closed", [True, False])
async def test_poisoned_lines_fail_alone(tmp_path: Path, end: bytes, *, closed: bool) -> None:
    dice = random.Random(SEED)
    bench = Bench(folder=tmp_path, operation="chat", changes={"output": {"part_rows": 1000, "columns": ["text"]}})
    bench.changes["input"] = {"columns": {"id": "string", "text": "string"}}
    kinds = list(LINES)
    lines: list[bytes] = []
    poisoned: dict[int, str] = {}
    for number in range(POISON_ROWS // 4):
        lines.append(good(len(lines)))
        kind = kinds[number % len(kinds)]
        poisoned[len(lines)] = kind
        lines.append(LINES[kind](len(lines), dice))
    lines.append(good(len(lines)))
    put(bench, end.join(lines) + (end if closed else b""))
    service = Service()
    summary = await run(bench, service)
    assert (summary.rows.ok, summary.rows.failed) == (len(lines) - len(poisoned), len(poisoned))
    check(bench, poisoned, len(lines), service.calls)
    record(fault="F19", what=f"poisoned lines, ends {end!r}, last one {closed}", tried=len(poisoned))


def put(bench: Bench, content: bytes) -> None:
    """Write the job file, and an input of these bytes."""
    Path(bench.job().input.path[0]).write_bytes(content)


async def run(bench: Bench, service: Service) -> Any:
    """Run over the input that is there already."""
    job = load_job(bench.folder / "job.json", environ={"AZURE_OPENAI_API_KEY": "k" * 32}, operations=["chat"])
    return await run_job(job, transport=service, dice=lambda: 0.0)


async def test_a_line_of_fifty_megabytes_fails_alone(tmp_path: Path) -> None:
    bench = Bench(folder=tmp_path, operation="chat", changes={"output": {"columns": ["text"]}})
    put(bench, b"\n".join([good(0), b'{"id": "p", "text": "' + b"a" * BIG + b'"}', good(2), b""]))
    service = Service()
    await run(bench, service)
    check(bench, {1: "50 MB"}, 3, service.calls)
    record(fault="F19", what="a line of 50 MB", tried=1)


@pytest.mark.parametrize("content", [b"", b"\n", b"\n\n\r\n", b"\xef\xbb\xbf"])
async def test_an_empty_input_is_a_run_of_no_rows_or_refused_in_words(tmp_path: Path, content: bytes) -> None:
    bench = Bench(folder=tmp_path, operation="chat", changes={"output": {"columns": "none"}})
    bench.changes["input"] = {"id": None}
    put(bench, content)
    service = Service()
    try:
        summary = await run(bench, service)
    except SourceError:
        summary = None
    assert summary is None or (summary.rows.ok, summary.rows.failed) == (0, 0)
    assert service.calls == []


async def test_poisoned_cells_of_a_parquet_file_fail_alone(tmp_path: Path) -> None:
    bench = Bench(folder=tmp_path, operation="chat", changes={"output": {"part_rows": 1000, "columns": ["text"]}})
    bench.changes["input"] = {"path": "in.parquet", "id": "id"}
    bench.job()
    texts: list[Any] = []
    ids: list[str] = []
    poisoned: dict[int, str] = {}
    kinds: list[tuple[str, bytes | None]] = [
        ("null", None),
        ("empty", b""),
        ("not UTF-8", b"\xff\xfe"),
        ("id", b"again"),
    ]
    for number in range(POISON_ROWS // 4):
        ids.append(f"r{len(ids)}")
        texts.append(f"Row {len(texts)} speaks.".encode())
        kind, value = kinds[number % len(kinds)]
        poisoned[len(texts)] = kind
        texts.append(value)
        ids.append("r0" if kind == "id" else f"r{len(ids)}")
    column = pa.array(texts, pa.binary()).view(pa.string())
    pq.write_table(pa.table({"id": ids, "text": column}), tmp_path / "in.parquet", row_group_size=37)
    service = Service()
    await run(bench, service)
    check(bench, poisoned, len(texts), service.calls)
    record(fault="F19", what="poisoned cells of Parquet", tried=len(poisoned))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
async def test_a_number_that_json_cannot_say_fails_its_row(tmp_path: Path, value: float) -> None:
    bench = Bench(folder=tmp_path, operation="chat", changes={"output": {"columns": ["text"]}})
    bench.changes["input"] = {"path": "in.parquet", "id": "id"}
    bench.changes["request"] = {
        "messages": [{"role": "user", "content": "{{ text }}{% if n != 1 %}{{ n }}{% endif %}"}]
    }
    bench.job()
    table = {"id": ["r0", "r1", "r2"], "text": [f"Row {n} speaks." for n in range(3)], "n": [1.0, value, 1.0]}
    pq.write_table(pa.table(table), tmp_path / "in.parquet")
    service = Service()
    await run(bench, service)
    assert [(row["status"], row["error"] and row["error"]["code"]) for row in bench.table()] == [
        ("ok", None),
        ("failed", "nan"),
        ("ok", None),
    ]
