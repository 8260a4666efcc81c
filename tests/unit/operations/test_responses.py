from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from pipeline.errors import JobFileError, ReplyError
from pipeline.job.tokens import estimate
from pipeline.model import ErrorInfo, ErrorType, Item, Reply, Row, RowResult, Target
from pipeline.operations import _pictures
from pipeline.operations.base import Operation

CLASSIC = Target(deployment="my-gpt", model="m", body_model=None, api="azure", api_version="2025-04-01-preview")
V1 = Target(deployment="my-gpt", model="m", body_model="my-gpt", api="azure-v1")
OPENAI = Target(deployment="gpt-4.1", model="m", body_model="gpt-4.1", api="openai")
REQUEST = {"input": "{{ q }}"}


def prepared(operation: Operation, value: Any = "hi") -> Item | ErrorInfo:
    (one,) = operation.prepare([Row(ordinal=7, values={"q": value})])
    return one


def item(operation: Operation, value: Any = "hi") -> Item:
    one = prepared(operation, value)
    assert isinstance(one, Item), one
    return one


def answered(operation: Operation, body: Any) -> RowResult:
    reply = Reply(status=200, headers={}, body=body if isinstance(body, bytes) else orjson.dumps(body), latency_ms=1)
    (result,) = operation.parse([item(operation)], reply)
    assert result.ordinal == 7
    return result


def message(*parts: Any) -> dict[str, Any]:
    return {"type": "message", "role": "assistant", "content": list(parts)}


def text(value: str) -> dict[str, Any]:
    return {"type": "output_text", "text": value, "annotations": []}


def completed(*output: Any, **others: Any) -> dict[str, Any]:
    return {"id": "r", "object": "response", "status": "completed", "output": list(output), **others}


@pytest.mark.parametrize(("target", "model"), [(CLASSIC, "my-gpt"), (V1, "my-gpt"), (OPENAI, "gpt-4.1")])
def test_every_family_needs_the_model_in_the_body(make: Any, target: Target, model: str) -> None:
    fields = {"instructions": "Be brief.", "max_output_tokens": 99, "store": False, "reasoning": {"effort": "low"}}
    operation = make("responses", {**REQUEST, **fields})
    call = operation.build([item(operation)], target)
    assert call.endpoint == "responses"
    assert json.loads(call.body) == {"model": model, "input": "hi", **fields}


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (None, "empty"),
        ("", "empty"),
        ([], "empty"),
        (5, "type"),
        ({}, "type"),
        (["x"], "type"),
        ("\ud800", "type"),
        ([{"role": "user", "content": ["x"]}], "type"),
        ([{"role": "user", "content": [{"text": "x"}]}], "type"),
    ],
)
def test_inputs_that_cannot_be_asked_are_row_errors(make: Any, value: Any, code: str) -> None:
    one = prepared(make("responses", REQUEST), value)
    assert isinstance(one, ErrorInfo)
    assert (one.type, one.code) == (ErrorType.ROW, code)


@pytest.mark.parametrize("instead", [{"prompt": {"id": "pmpt_1"}}, {"previous_response_id": "{{ q }}"}])
def test_a_kept_prompt_or_an_earlier_response_may_stand_in_for_the_input(make: Any, instead: Any) -> None:
    operation = make("responses", instead)
    assert "input" not in json.loads(operation.build([item(operation)], V1).body)


def test_background_responses_are_refused_with_the_job_or_with_the_row(make: Any) -> None:
    with pytest.raises(JobFileError, match="background"):
        make("responses", {**REQUEST, "background": True})
    one = prepared(make("responses", {**REQUEST, "background": "{{ q }}"}))
    assert isinstance(one, ErrorInfo)
    assert one.code == "unsupported"
    assert isinstance(prepared(make("responses", {**REQUEST, "background": False})), Item)


def test_the_estimate_is_the_prompt_and_the_most_that_may_be_answered(make: Any) -> None:
    tools = [{"type": "function", "name": "look"}]
    wanted = {"format": {"type": "json_object"}}
    operation = make("responses", {**REQUEST, "tools": tools, "text": wanted, "instructions": "y" * 10})
    fixed = 10 + len(orjson.dumps(tools)) + len(orjson.dumps(wanted))
    assert item(operation, "x" * 41).tokens == estimate(41 + fixed) + 16
    called = {"type": "function_call_output", "call_id": "c", "output": "z" * 100}
    items = [{"role": "user", "content": "x" * 8}, called, {"role": "user", "content": [{"type": "x", "text": "ab"}]}]
    assert item(operation, items).tokens == estimate(8 + len(orjson.dumps(called)) + 2 + fixed) + 16
    pictures = [{"type": "input_image", "image_url": "https://example.org/a.png", "detail": "low"}]
    expected = estimate(fixed) + _pictures.LOW_DETAIL_PICTURE_TOKENS + 16
    assert item(operation, [{"role": "user", "content": pictures}]).tokens == expected
    assert item(make("responses", {**REQUEST, "max_output_tokens": 300}), "x").tokens == 301


def test_the_texts_of_all_messages_are_one_answer(make: Any) -> None:
    body = completed({"type": "reasoning", "summary": []}, message(text("Hel"), text("lo")), message(text(".")))
    result = answered(make("responses", REQUEST), body)
    assert result.values == {
        "output_text": "Hello.",
        "refusal": None,
        "finish_reason": "stop",
        "tool_calls": None,
        "content_filter": None,
        "response_status": "completed",
        "time_to_first_token_ms": None,
    }
    assert result.response == orjson.dumps(body)


def test_refusals_and_tool_calls_have_columns_of_their_own(make: Any) -> None:
    call = {"type": "function_call", "id": "fc", "call_id": "c", "name": "look", "arguments": "{}"}
    operation = make("responses", REQUEST)
    called = answered(operation, completed(call, {"type": "web_search_call", "id": "w"}))
    assert called.values is not None
    assert json.loads(called.values["tool_calls"]) == [call]
    assert (called.values["finish_reason"], called.values["output_text"]) == ("tool_calls", None)
    refused = answered(operation, completed(message({"type": "refusal", "refusal": "No."})))
    assert refused.values is not None
    assert (refused.values["refusal"], refused.values["output_text"]) == ("No.", None)


@pytest.mark.parametrize(
    ("details", "finish_reason"),
    [
        ({"reason": "max_output_tokens"}, "length"),
        ({"reason": "content_filter"}, "content_filter"),
        ({"reason": "a reason of next year"}, "a reason of next year"),
        ({}, "incomplete"),
        (None, "incomplete"),
        ({"reason": 5}, "incomplete"),
    ],
)
def test_an_incomplete_response_is_an_answer_with_its_reason(make: Any, details: Any, finish_reason: str) -> None:
    body = {**completed(message(text("Onc"))), "status": "incomplete", "incomplete_details": details}
    result = answered(make("responses", REQUEST), body)
    assert result.ok
    assert result.values is not None
    assert (result.values["finish_reason"], result.values["response_status"]) == (finish_reason, "incomplete")
    assert result.values["output_text"] == "Onc"


@pytest.mark.parametrize("code", ["invalid_prompt", "image_too_large", "bio_policy", "a_code_of_next_year"])
def test_a_response_that_failed_for_what_was_asked_is_a_failed_row(make: Any, code: str) -> None:
    body = completed(status="failed", error={"code": code, "message": "It cannot be done."}, usage={"total_tokens": 4})
    result = answered(make("responses", REQUEST), body)
    assert result.error == ErrorInfo(
        type=ErrorType.BAD_REQUEST, code=code, message="It cannot be done.", http_status=200
    )
    assert result.usage is not None
    assert result.usage.total_tokens == 4
    assert result.response == orjson.dumps(body)


@pytest.mark.parametrize(
    "error",
    [
        {"code": "server_error", "message": "Oh."},
        {"code": "rate_limit_exceeded", "message": "Slow."},
        {"code": "vector_store_timeout", "message": "Late."},
        {"message": "No code."},
        {"code": None},
        None,
        "server_error",
    ],
)
def test_a_response_that_failed_by_the_services_fault_is_a_failed_attempt(make: Any, error: Any) -> None:
    with pytest.raises(ReplyError):
        answered(make("responses", REQUEST), completed(status="failed", error=error))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b'{"status":"completed","output":[',
        {},
        {"error": {"message": "no"}},
        completed(status="in_progress"),
        completed(status="queued"),
        completed(status="cancelled"),
        completed(status=None),
        completed(status=["completed"]),
        {"status": "completed"},
        {"status": "completed", "output": {}},
        completed("x"),
        completed(message({"type": "output_text"})),
        completed(message({"type": "refusal", "refusal": 5})),
    ],
)
def test_an_answer_that_is_none_is_a_reply_error(make: Any, body: Any) -> None:
    with pytest.raises(ReplyError) as raised:
        answered(make("responses", REQUEST), body)
    assert raised.value.code == "bad_reply"


def test_usage_is_read_by_this_apis_names(make: Any) -> None:
    usage = {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 4},
        "output_tokens": 20,
        "output_tokens_details": {"reasoning_tokens": 5},
        "total_tokens": 30,
    }
    read = answered(make("responses", REQUEST), completed(usage=usage)).usage
    assert read is not None
    assert (read.input_tokens, read.output_tokens, read.total_tokens) == (10, 20, 30)
    assert (read.cached_tokens, read.reasoning_tokens) == (4, 5)


def test_the_filters_verdicts_are_told_apart_by_their_side(make: Any) -> None:
    verdicts = [
        {"source_type": "prompt", "content_filter_results": {"hate": {}}},
        {"source_type": "completion", "content_filter_results": {"violence": {}}},
    ]
    result = answered(make("responses", REQUEST), completed(content_filters=verdicts))
    assert result.values is not None
    assert json.loads(result.values["content_filter"]) == {"prompt": {"hate": {}}, "completion": {"violence": {}}}
