"""A run that embeds long texts in pieces, from job file to parts that others read."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import anyio
import duckdb
import pytest
from in_memory import SIZE, Bench, Said, Service, refusal, vector_of

from pipeline.job.tokens import count
from pipeline.operations._text_pieces import split_text
from pipeline.store.verify import verify_folder

MODEL = "text-embedding-3-small"
MOST = 8192
MOST_INPUTS = 6
ROWS = 27


def text_of(ordinal: int, dice: Random) -> str:
    """Short, empty, long and equal texts, some of more pieces than a request carries."""
    texts = {
        1: "",
        2: f"Row {ordinal} tells a story. " * dice.randrange(3_000, 5_000),
        4: "the same long text " * 3_000,
        5: f"{ordinal}日本語" * 6_000,
        7: f" {ordinal}" * MOST * MOST_INPUTS,
        8: "the same short text",
    }
    return texts.get(ordinal % 9, f"short {ordinal}")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    dice = Random(7)
    request = {"input": "{{ text }}", "dimensions": SIZE, "on_too_long": "split"}
    place = {"endpoint": "https://x.openai.azure.com", "deployment": "d", "model": MODEL, "api": "azure"}
    changes: dict[str, Any] = {
        "request": request,
        "deployments": [{**place, "max_inputs": MOST_INPUTS}],
        "output": {"columns": ["id", "n"]},
    }
    return Bench(folder=tmp_path, changes=changes).texts(*(text_of(n, dice) for n in range(ROWS)))


def pieces_of(text: str) -> list[str] | None:
    """What is sent of a text; None where it cannot be."""
    if not text:
        return None
    pieces = split_text(text, MOST, MODEL)
    return pieces if len(pieces) <= MOST_INPUTS else None


def assert_pieces(bench: Bench) -> None:
    """The parts hold every row, with the vector of every piece, in order; equal to what DuckDB reads."""
    expected: list[tuple[Any, ...]] = []
    for ordinal, row in enumerate(bench.rows):
        pieces = pieces_of(row["text"])
        if pieces is None:
            expected.append((ordinal, row["id"], row["n"], "failed", None, None))
            continue
        assert "".join(pieces) == row["text"]
        expected += [
            (ordinal, row["id"], row["n"], "ok", number, vector_of(piece)) for number, piece in enumerate(pieces)
        ]
    assert max(row[4] or 0 for row in expected) >= 3
    names = ("ordinal", "id", "n", "status", "chunk", "embedding")
    assert [tuple(row[name] for name in names) for row in bench.table()] == expected
    query = f"SELECT {', '.join(names)} FROM read_parquet(?) ORDER BY ordinal, chunk"  # noqa: S608 - our own names
    read = duckdb.execute(query, [f"{bench.out}/*.parquet"]).fetchall()
    assert [(*row[:5], None if row[5] is None else list(row[5])) for row in read] == expected
    assert verify_folder(bench.layout).findings == ()


def assert_requests(service: Service) -> None:
    for texts in service.calls:
        assert len(texts) <= MOST_INPUTS
        assert max(count(texts, MODEL)) <= MOST


@pytest.mark.anyio
async def test_long_texts_are_embedded_in_pieces_and_every_row_is_counted_once(bench: Bench) -> None:
    service = Service()
    summary = await bench.run(service)
    assert_pieces(bench)
    assert_requests(service)
    failed = [n for n, row in enumerate(bench.rows) if pieces_of(row["text"]) is None]
    assert set(bench.failed().values()) == {("RowError", "empty"), ("RowError", "too_long")}
    assert sorted(bench.failed()) == failed
    rows = summary.rows
    assert (rows.total, rows.ok, rows.failed, rows.pending) == (ROWS, ROWS - len(failed), len(failed), 0)
    assert len(bench.parts()) == 3
    tokens = sum((row["usage"] or {}).get("input_tokens", 0) for row in bench.table())
    assert tokens == summary.tokens.input == sum(len(text) for call in service.calls for text in call)


@pytest.mark.anyio
@pytest.mark.parametrize("limit", [1, 5, 13, 20])
async def test_a_run_goes_on_where_its_limit_ended_it(bench: Bench, limit: int) -> None:
    first, second = Service(), Service()
    await bench.run(first, limit=limit)
    await bench.run(second)
    assert_pieces(bench)
    assert_requests(second)
    assert bench.failed().keys() == {n for n, row in enumerate(bench.rows) if pieces_of(row["text"]) is None}
    late = {piece for row in bench.rows[limit:] for piece in pieces_of(row["text"]) or ()}
    assert {text for call in second.calls for text in call} == late


@pytest.mark.anyio
@pytest.mark.parametrize("calls", [1, 3, 6])
async def test_a_run_that_is_killed_asks_again_only_for_what_was_not_answered(bench: Bench, calls: int) -> None:
    with anyio.CancelScope() as scope:

        def judge(_: list[str], number: int) -> Said:
            if number > calls:
                scope.cancel()
                return refusal(500)
            return None

        first = Service(judge)
        await bench.run(first)
    assert scope.cancelled_caught
    second = Service()
    await bench.run(second)
    assert_pieces(bench)
    assert sum(map(len, second.calls)) < sum(len(pieces_of(row["text"]) or ()) for row in bench.rows)


@pytest.mark.anyio
async def test_a_piece_that_is_refused_fails_its_row_and_no_other(bench: Bench) -> None:
    (bad,) = [n for n, row in enumerate(bench.rows) if row["text"].startswith("Row 11 ")]
    poison = (pieces_of(bench.rows[bad]["text"]) or [])[1]

    def judge(texts: list[str], _: int) -> Said:
        if poison not in texts:
            return None
        return refusal(400, "content_filter", f"Invalid 'input[{texts.index(poison)}]': refused")

    await bench.run(Service(judge))
    unasked = {n for n, row in enumerate(bench.rows) if pieces_of(row["text"]) is None}
    assert bench.failed().keys() == {bad, *unasked}
    (row,) = [row for row in bench.table() if row["ordinal"] == bad]
    assert (row["status"], row["chunk"], row["embedding"]) == ("failed", None, None)
    assert row["error"]["type"] == "BadRequestError"


@pytest.mark.anyio
async def test_a_vector_size_that_is_learnt_is_that_of_a_piece(bench: Bench) -> None:
    bench.changes["request"] = {"input": "{{ text }}", "on_too_long": "split"}
    place = bench.changes["deployments"][0]
    bench.changes["deployments"] = [place, {**place, "name": "other", "model": "text-embedding-3-large"}]
    await bench.run(Service(), limit=5)
    await bench.run(Service())
    assert_pieces(bench)
