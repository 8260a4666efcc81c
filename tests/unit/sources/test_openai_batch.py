"""Lines made for the Batch API as rows."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.sources import SourceError, first_url, open_source

BODY = {"model": "batch", "messages": [{"role": "user", "content": "Hello"}]}
LINE = {"custom_id": "task-0", "method": "POST", "url": "/v1/chat/completions", "body": BODY}


@pytest.fixture
def lines(jsonl: Callable[..., str]) -> Callable[..., str]:
    def write(*values: Any) -> str:
        return jsonl(*(value if isinstance(value, str) else json.dumps(value) for value in values))

    return write


def test_a_line_is_a_row_of_four_columns(lines: Callable[..., str], read_all: Callable[..., Any]) -> None:
    source = open_source([lines(LINE, LINE | {"custom_id": "task-1", "more": 1})], format="openai-batch")
    assert source.schema.names == ["custom_id", "method", "url", "body"]
    read = read_all(source, carried=source.schema.names)
    assert read.outline[0] == LINE
    assert read.rows[1].values["custom_id"] == "task-1"
    assert json.loads(read.carried.column("body")[0].as_py()) == BODY
    assert {field.type for field in read.carried.schema} == {pa.string()}


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("not json", "invalid_json"),
        ("[]", "not_an_object"),
        ('{"custom_id": {"a": 1}, "body": {}}', "column_type"),
        ('{"custom_id": "a", "method": ["POST"], "body": {}}', "column_type"),
        ('{"custom_id": "\\ud800"}', "surrogate"),
    ],
)
def test_a_bad_line_is_a_failed_row(
    lines: Callable[..., str], line: str, code: str, read_all: Callable[..., Any]
) -> None:
    source = open_source([lines(LINE, line, LINE)], format="openai-batch")
    assert read_all(source).outline == [LINE, code, LINE]


def test_a_number_that_names_a_line_is_its_text(lines: Callable[..., str], read_all: Callable[..., Any]) -> None:
    (row,) = read_all(open_source([lines(LINE | {"custom_id": 7})], format="openai-batch")).outline
    assert row["custom_id"] == "7"


def test_the_types_are_kept_with_the_run(lines: Callable[..., str], read_all: Callable[..., Any]) -> None:
    path = lines(LINE)
    kept = pa.ipc.read_schema(open_source([path], format="openai-batch").schema.serialize())
    again = open_source([path], format="openai-batch", kept_schema=kept)
    assert again.schema.equals(kept)
    assert read_all(again).outline == [LINE]


def test_it_is_never_guessed(lines: Callable[..., str]) -> None:
    assert "custom_id" in open_source([lines(LINE, LINE | {"more": 1})]).schema.names
    assert "more" in open_source([lines(LINE, LINE | {"more": 1})]).schema.names


def test_columns_cannot_be_declared(lines: Callable[..., str]) -> None:
    with pytest.raises(SourceError, match=r"^input\.columns: "):
        open_source([lines(LINE)], format="openai-batch", columns={"url": "string"})


@pytest.mark.parametrize(
    ("written", "url"),
    [
        ([LINE], "/v1/chat/completions"),
        (["", "", LINE | {"url": "/embeddings"}], "/embeddings"),
        (["junk", {"url": "/v1/responses"}, LINE], "/v1/responses"),
        ([{"url": None}, {"url": 7}, {"a": 1}], "7"),
        (["{}", "[]"], None),
        ([""], None),
    ],
)
def test_the_first_line_that_has_one_says_the_url(
    lines: Callable[..., str], written: list[Any], url: str | None
) -> None:
    assert first_url([lines(*written)]) == url


def test_the_url_of_a_packed_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(LINE).encode()))
    assert first_url([str(path)]) == "/v1/chat/completions"


def test_an_input_that_is_not_there_says_no_url(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file or folder"):
        first_url([str(tmp_path / "gone.jsonl")])
