from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from pipeline.errors import ReplyError
from pipeline.job.tokens import estimate
from pipeline.model import ErrorInfo, ErrorType, Item, Reply, Row, RowResult, Target
from pipeline.operations.base import Operation

AZURE = Target(deployment="d", model="m", body_model=None)
OPENAI = Target(deployment="d", model="m", body_model="m", api="openai")
REQUEST = {"prompt": "{{ q }}"}


def prepared(operation: Operation, value: Any = "Once upon") -> Item | ErrorInfo:
    (one,) = operation.prepare([Row(ordinal=7, values={"q": value})])
    return one


def item(operation: Operation, value: Any = "Once upon") -> Item:
    one = prepared(operation, value)
    assert isinstance(one, Item), one
    return one


def answered(operation: Operation, body: Any) -> RowResult:
    reply = Reply(status=200, headers={}, body=body if isinstance(body, bytes) else orjson.dumps(body), latency_ms=1)
    (result,) = operation.parse([item(operation)], reply)
    assert result.ordinal == 7
    return result


def test_a_request_holds_what_the_job_says_and_the_rows_prompt(make: Any) -> None:
    fields = {"max_tokens": 5, "best_of": 3, "n": 2, "echo": True, "logprobs": 2, "suffix": "!", "stop": ["\n"]}
    operation = make("completions", {**REQUEST, **fields})
    call = operation.build([item(operation)], AZURE)
    assert call.endpoint == "completions"
    assert json.loads(call.body) == {"prompt": "Once upon", **fields}
    assert json.loads(operation.build([item(operation)], OPENAI).body)["model"] == "m"


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("", "empty"),
        (None, "empty"),
        ([], "empty"),
        (["a", "b"], "type"),
        ([1, "a"], "type"),
        ([True], "type"),
        (5, "type"),
        ({}, "type"),
        ("\ud800", "type"),
        ([2**70], "type"),
    ],
)
def test_prompts_that_cannot_be_asked_are_row_errors(make: Any, value: Any, code: str) -> None:
    one = prepared(make("completions", REQUEST), value)
    assert isinstance(one, ErrorInfo)
    assert (one.type, one.code) == (ErrorType.ROW, code)


@pytest.mark.parametrize(
    ("fields", "output"),
    [
        ({}, 16),
        ({"max_tokens": 50}, 50),
        ({"max_tokens": 50, "n": 2}, 100),
        ({"max_tokens": 50, "n": 2, "best_of": 3}, 150),
        ({"best_of": 4}, 64),
        ({"n": True, "best_of": "4"}, 16),
        ({"max_tokens": 0, "n": 0}, 16),
    ],
)
def test_the_estimate_is_the_prompt_and_all_that_may_be_written(make: Any, fields: dict[str, Any], output: int) -> None:
    operation = make("completions", {**REQUEST, **fields})
    assert item(operation, "x" * 41).tokens == estimate(41) + output


def test_a_prompt_in_tokens_is_as_long_as_its_tokens(make: Any) -> None:
    operation = make("completions", REQUEST)
    asked = item(operation, [5, 6, 7])
    assert asked.tokens == 3 + 16
    assert json.loads(operation.build([asked], AZURE).body)["prompt"] == [5, 6, 7]


def test_an_answer_is_read_with_its_filter_and_usage(make: Any) -> None:
    safe = {"hate": {"filtered": False}}
    body = {
        "choices": [{"index": 0, "text": " a time", "finish_reason": "stop", "content_filter_results": safe}],
        "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": safe}],
        "usage": {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5},
    }
    result = answered(make("completions", REQUEST), body)
    assert result.values == {
        "output_text": " a time",
        "finish_reason": "stop",
        "choices": None,
        "content_filter": '{"prompt":{"hate":{"filtered":false}},"completion":{"hate":{"filtered":false}}}',
        "time_to_first_token_ms": None,
    }
    assert result.usage is not None
    assert (result.usage.input_tokens, result.usage.output_tokens) == (2, 3)


def test_several_choices_are_kept_in_order(make: Any) -> None:
    choices = [{"index": n, "text": f"{n}", "finish_reason": "stop"} for n in (1, 0)]
    result = answered(make("completions", REQUEST), {"choices": choices})
    assert result.values is not None
    assert result.values["output_text"] == "0"
    assert [choice["text"] for choice in json.loads(result.values["choices"])] == ["0", "1"]


def test_a_filtered_text_is_ok_with_whatever_was_let_through(make: Any) -> None:
    for text in ("Onc", "", None):
        result = answered(
            make("completions", REQUEST), {"choices": [{"text": text, "finish_reason": "content_filter"}]}
        )
        assert result.ok
        assert result.values is not None
        assert result.values["output_text"] == text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        {},
        {"choices": []},
        {"choices": [{}]},
        {"choices": [{"text": 5}]},
        {"choices": [{"text": None}]},
        {"choices": [{"text": "x", "finish_reason": 5}]},
        {"choices": [{"message": {"content": "x"}}]},
    ],
)
def test_an_answer_that_is_none_is_a_reply_error(make: Any, body: Any) -> None:
    with pytest.raises(ReplyError):
        answered(make("completions", REQUEST), body)
