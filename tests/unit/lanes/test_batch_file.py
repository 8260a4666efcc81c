"""Lines on their way out, and results on their way back, whatever they look like."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from pipeline.lanes.batch_file import LineResult, LinesFile, Results, custom_id
from pipeline.model import Call, Item
from pipeline.store.journal import BatchLine


def item(ordinal: int) -> Item:
    return Item(ordinal=ordinal, content=None, tokens=50, output_tokens=40, inputs=2)


def call(body: bytes = b'{"model":"d"}') -> Call:
    return Call(endpoint="chat/completions", body=body, tokens=1)


def result_of(ordinal: int, tmp_path: Path, *lines: Any) -> LineResult | None:
    path = tmp_path / "output.jsonl"
    path.write_bytes(b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines))
    with Results(path) as results:
        return results.of(ordinal)


def answer(ordinal: int, body: Any = None, status: Any = 200) -> dict[str, Any]:
    response = {"status_code": status, "request_id": "r-1", "body": {"a": 1} if body is None else body}
    return {"custom_id": custom_id(ordinal), "response": response, "error": None}


def test_a_file_of_lines_is_whole_or_absent_and_private(tmp_path: Path) -> None:
    file = LinesFile(tmp_path / "batches", "tag", url="/v1/chat/completions")
    file.add([item(7), item(8)], call(), tries=2)
    assert not file.path.exists()
    file.publish()
    (line,) = [json.loads(line) for line in file.path.read_text().splitlines()]
    assert line == {
        "custom_id": "row-7",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "d"},
    }
    assert file.lines == [BatchLine(tries=2, ordinals=(7, 8))]
    assert (file.filled.tokens, file.filled.inputs, file.filled.bytes) == (20, 4, file.path.stat().st_size)
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700


def test_a_dropped_file_leaves_nothing(tmp_path: Path) -> None:
    file = LinesFile(tmp_path / "batches", "tag", url="/x")
    file.add([item(0)], call(), tries=0)
    file.drop()
    assert list((tmp_path / "batches").iterdir()) == []


def test_results_are_found_by_the_lines_first_row(tmp_path: Path) -> None:
    found = result_of(1, tmp_path, answer(3, {"x": 3}), answer(1, {"x": 1}))
    assert found is not None
    assert found.reply is not None
    assert (found.reply.status, json.loads(found.reply.body), found.request_id) == (200, {"x": 1}, "r-1")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"null\n",
        b"[]\n",
        b'{"custom_id": 3}\n',
        b'{"custom_id": "row-1"',
        b"\xff\xfe\n",
        b"[" * 100_000 + b"\n",
        json.dumps(answer(5)).encode()[:-3],
    ],
)
def test_lines_that_are_none_are_passed_over(tmp_path: Path, line: bytes) -> None:
    assert result_of(2, tmp_path, answer(2), line) is not None
    assert result_of(1, tmp_path, answer(2), line) is None
    assert result_of(5, tmp_path, answer(2), line) is None


@pytest.mark.parametrize(
    ("response", "error", "code"),
    [
        (None, {"code": "batch_expired", "message": "Too late."}, "batch_expired"),
        (None, None, "no_result"),
        ({}, {}, "no_result"),
        ({"status_code": "200"}, "what", "no_result"),
        ("yes", {"code": None, "message": None}, "no_result"),
    ],
)
def test_a_line_without_a_response_says_why(tmp_path: Path, response: Any, error: Any, code: str) -> None:
    found = result_of(4, tmp_path, {"custom_id": custom_id(4), "response": response, "error": error})
    assert found is not None
    assert found.reply is None
    assert found.error is not None
    assert found.error.code == code


@pytest.mark.parametrize("body", ["text", None, [], {"error": {"code": "x"}}])
def test_any_body_becomes_a_reply(tmp_path: Path, body: Any) -> None:
    found = result_of(1, tmp_path, {**answer(1), "response": {"status_code": 400, "request_id": 5, "body": body}})
    assert found is not None
    assert found.reply is not None
    assert found.reply.status == 400
    assert found.request_id is None
