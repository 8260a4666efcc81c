"""`run.on_truncated` of chat, completions and responses: keep, fail, or ask once more with twice the bound."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from pipeline.model import ErrorType, Item, Reply, Row, RowResult, Target
from pipeline.operations.base import Operation

TARGET = Target(deployment="d", model="m", body_model="m", api="openai")
MESSAGES = {"messages": [{"role": "user", "content": "{{ q }}"}]}
CASES: list[tuple[str, dict[str, Any], dict[str, int]]] = [
    ("chat", {**MESSAGES, "max_completion_tokens": 50}, {"max_completion_tokens": 100}),
    ("chat", {**MESSAGES, "max_tokens": 50}, {"max_tokens": 100}),
    (
        "chat",
        {**MESSAGES, "max_completion_tokens": 50, "max_tokens": 40},
        {"max_completion_tokens": 100, "max_tokens": 80},
    ),
    ("completions", {"prompt": "{{ q }}", "max_tokens": 7}, {"max_tokens": 14}),
    ("responses", {"input": "{{ q }}", "max_output_tokens": 16}, {"max_output_tokens": 32}),
]
CUT = {
    "chat": {"choices": [{"index": 0, "message": {"content": "Onc"}, "finish_reason": "length"}]},
    "completions": {"choices": [{"index": 0, "text": "Onc", "finish_reason": "length"}]},
    "responses": {
        "status": "incomplete",
        "incomplete_details": {"reason": "max_output_tokens"},
        "output": [{"type": "message", "content": [{"type": "output_text", "text": "Onc"}]}],
    },
}


def item(operation: Operation) -> Item:
    (one,) = operation.prepare([Row(ordinal=7, values={"q": "hi", "most": 50})])
    assert isinstance(one, Item), one
    return one


def cut(operation: Operation, asked: Item) -> RowResult:
    body = orjson.dumps({**CUT[operation.name], "usage": {"total_tokens": 9}})
    (result,) = operation.parse([asked], Reply(status=200, headers={}, body=body, latency_ms=1))
    assert result.usage is not None
    assert result.response == body
    return result


def sent(operation: Operation, asked: Item) -> Any:
    return json.loads(operation.build([asked], TARGET).body)


@pytest.mark.parametrize(("name", "request_", "twice"), CASES)
def test_retry_asks_once_more_for_the_same_with_twice_the_bound(
    make: Any, name: str, request_: dict[str, Any], twice: dict[str, int]
) -> None:
    operation = make(name, request_, run={"on_truncated": "retry"})
    first = item(operation)
    again = cut(operation, first).again
    assert again is not None
    assert again.ordinal == 7
    assert sent(operation, again) == {**sent(operation, first), **twice}
    assert again.tokens - first.tokens == max(twice.values()) // 2
    assert operation.build([again], TARGET).tokens == again.tokens


@pytest.mark.parametrize(("name", "request_", "twice"), CASES)
def test_the_second_answer_is_kept_as_it_is(
    make: Any, name: str, request_: dict[str, Any], twice: dict[str, int]
) -> None:
    operation = make(name, request_, run={"on_truncated": "retry"})
    again = cut(operation, item(operation)).again
    assert again is not None
    second = cut(operation, again)
    assert (second.again, second.error) == (None, None)
    assert second.values is not None
    assert (second.values["output_text"], second.values["finish_reason"]) == ("Onc", "length")


@pytest.mark.parametrize(("name", "request_", "twice"), CASES)
def test_without_a_bound_there_is_nothing_to_double_and_the_answer_is_kept(
    make: Any, name: str, request_: dict[str, Any], twice: dict[str, int]
) -> None:
    unbound = {key: value for key, value in request_.items() if key not in twice}
    for fields in ({}, dict.fromkeys(twice, "50"), dict.fromkeys(twice, 0)):
        operation = make(name, {**unbound, **fields}, run={"on_truncated": "retry"})
        result = cut(operation, item(operation))
        assert result.again is None
        assert result.ok


@pytest.mark.parametrize(("name", "request_", "twice"), CASES)
def test_keep_keeps_and_fail_fails_with_what_was_billed(
    make: Any, name: str, request_: dict[str, Any], twice: dict[str, int]
) -> None:
    operation = make(name, request_)
    kept = cut(operation, item(operation))
    assert kept.ok
    assert kept.again is None
    failing = make(name, request_, run={"on_truncated": "fail"})
    failed = cut(failing, item(failing))
    assert failed.error is not None
    assert (failed.error.type, failed.error.code) == (ErrorType.REPLY, "truncated")
    assert next(iter(twice)) in failed.error.message
    assert failed.values is None


def test_the_doubled_estimate_counts_every_copy(make: Any) -> None:
    chat = make("chat", {**MESSAGES, "max_tokens": 50, "n": 3}, run={"on_truncated": "retry"})
    first = item(chat)
    again = cut(chat, first).again
    assert again is not None
    assert again.tokens - first.tokens == 150


def test_a_bound_out_of_a_column_is_doubled_too(make: Any) -> None:
    chat = make("chat", {**MESSAGES, "max_tokens": "{{ most }}"}, run={"on_truncated": "retry"})
    again = cut(chat, item(chat)).again
    assert again is not None
    assert sent(chat, again)["max_tokens"] == 100


def test_a_streamed_request_with_pictures_is_asked_again_whole(make: Any) -> None:
    picture = {"type": "image_file", "image_file": {"data": "{{ photo }}"}}
    request = {"messages": [{"role": "user", "content": [picture]}], "max_tokens": 50, "stream": True}
    chat = make("chat", request, run={"on_truncated": "retry"})
    (asked,) = chat.prepare([Row(ordinal=0, values={"photo": b"\xff\xd8\xff rest"})])
    again = cut(chat, asked).again
    assert again is not None
    assert sent(chat, again) == {**sent(chat, asked), "max_tokens": 100}
