"""`run.right_size`: requests reserve what answers need; what that cuts is asked again and comes whole."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import httpx
import pytest
from in_memory import Bench, refusal

from pipeline.pace.lengths import LEARNT_FROM
from pipeline.testing import MemoryTransport

CAP = 4096
ROWS = 400
DICE = random.Random(3)
LENGTHS = [max(20, round(DICE.gauss(150, 30))) for _ in range(ROWS)]


def answered(request: httpx.Request) -> httpx.Response:
    """An answer of as many words as the row says, a word a token, cut at the request's bound."""
    body = json.loads(request.content)
    length = int(body["messages"][-1]["content"])
    given = min(length, body["max_tokens"])
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": " ".join(map(str, range(given)))},
        "finish_reason": "stop" if given == length else "length",
    }
    usage = {"prompt_tokens": 5, "completion_tokens": given, "total_tokens": 5 + given}
    return httpx.Response(200, json={"choices": [choice], "usage": usage})


def bench_of(tmp_path: Path, *, right_size: str | None, **run: Any) -> Bench:
    request = {"messages": [{"role": "user", "content": "{{ text }}"}], "max_tokens": CAP}
    changes = {"request": request, "run": {"workers": 4, **run} | ({"right_size": right_size} if right_size else {})}
    return Bench(folder=tmp_path, operation="chat", changes=changes).texts(*map(str, LENGTHS))


@pytest.mark.anyio
@pytest.mark.parametrize("right_size", ["p99", "p50"])
async def test_every_answer_comes_whole_and_most_requests_reserve_little(tmp_path: Path, right_size: str) -> None:
    bench = bench_of(tmp_path, right_size=right_size)
    service = MemoryTransport(answered)
    summary = await bench.run(service)
    assert (summary.exit_code, summary.rows.ok) == (0, ROWS)
    table = bench.table()
    assert [row["output_text"].split() for row in table] == [[*map(str, range(length))] for length in LENGTHS]
    assert {row["finish_reason"] for row in table} == {"stop"}
    bounds = [json.loads(request.content)["max_tokens"] for request in service.requests]
    assert set(bounds[:LEARNT_FROM]) == {CAP}
    small = [bound for bound in bounds if bound < CAP]
    assert len(small) > (ROWS - LEARNT_FROM) * 0.9
    assert max(small) < 400
    again = len(bounds) - ROWS
    assert again == sum(row["request"]["attempts"] - 1 for row in table)
    assert (again > 30) == (right_size == "p50")
    spent = sum(row["usage"]["output_tokens"] for row in table)
    assert spent == summary.tokens.output > sum(LENGTHS) or again == 0


@pytest.mark.anyio
async def test_without_it_every_request_reserves_what_the_job_says(tmp_path: Path) -> None:
    service = MemoryTransport(answered)
    await bench_of(tmp_path, right_size=None).run(service)
    assert {json.loads(request.content)["max_tokens"] for request in service.requests} == {CAP}


@pytest.mark.anyio
async def test_an_answer_that_we_cut_never_stands_for_the_whole_one(tmp_path: Path) -> None:
    """The second asking is refused: the row fails, though a cut answer was paid for."""
    cut: set[str] = set()

    def shaky(request: httpx.Request) -> httpx.Response:
        text = json.loads(request.content)["messages"][-1]["content"]
        if text in cut:
            return refusal(400, "content_filter")
        reply = answered(request)
        if json.loads(reply.content)["choices"][0]["finish_reason"] == "length":
            cut.add(text)
        return reply

    bench = bench_of(tmp_path, right_size="p50")
    await bench.run(MemoryTransport(shaky))
    table = bench.table()
    failed = [row for row in table if row["status"] == "failed"]
    assert failed
    assert {row["error"]["code"] for row in failed} == {"content_filter"}
    for row in table:
        if row["status"] == "ok":
            assert len(row["output_text"].split()) == int(row["text"])
