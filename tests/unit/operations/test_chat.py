from __future__ import annotations

import json
import tracemalloc
from typing import Any

import orjson
import pyarrow as pa
import pytest

from pipeline.errors import ReplyError
from pipeline.job.tokens import estimate
from pipeline.model import ErrorInfo, ErrorType, Item, Reply, Row, RowResult, Target
from pipeline.operations import _asked, _pictures
from pipeline.operations.base import Operation

AZURE = Target(deployment="d", model="gpt-4o-mini", body_model=None)
OPENAI = Target(deployment="d", model="gpt-4o-mini", body_model="gpt-4o-mini")
SAY = {"messages": [{"role": "user", "content": "{{ q }}"}]}
WHOLE = {"messages": "{{ messages }}"}


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def prepared(operation: Operation, **values: Any) -> Item | ErrorInfo:
    (one,) = operation.prepare([Row(ordinal=7, values=values)])
    return one


def item(operation: Operation, **values: Any) -> Item:
    one = prepared(operation, **values)
    assert isinstance(one, Item), one
    return one


def code(operation: Operation, **values: Any) -> str:
    one = prepared(operation, **values)
    assert isinstance(one, ErrorInfo), one
    assert one.type is ErrorType.ROW
    return one.code


def answer(operation: Operation, body: Any, **values: Any) -> RowResult:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    asked = item(operation, **(values or {"q": "hi"}))
    (result,) = operation.parse([asked], Reply(status=200, headers={}, body=data, latency_ms=1))
    assert result.ordinal == 7
    return result


def completion(**choice: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}, **choice}]}


def test_a_request_holds_what_the_job_says_and_the_rows_values(make: Any) -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
    chat = make("chat", {**SAY, "tools": tools, "response_format": schema, "temperature": 0.5, "brand_new": {"x": 1}})
    call = chat.build([item(chat, q="hi")], AZURE)
    assert call.endpoint == "chat/completions"
    assert json.loads(call.body) == {
        "messages": [{"role": "user", "content": "hi"}],
        "tools": tools,
        "response_format": schema,
        "temperature": 0.5,
        "brand_new": {"x": 1},
    }


def test_the_model_comes_first_and_only_where_the_path_does_not_say_it(make: Any) -> None:
    chat = make("chat", SAY)
    asked = item(chat, q="hi")
    assert b"model" not in chat.build([asked], AZURE).body
    body = chat.build([asked], OPENAI).body
    assert body.startswith(b'{"model":"gpt-4o-mini",')
    assert list(json.loads(body)) == ["model", "messages"]


def test_a_models_name_is_escaped(make: Any) -> None:
    chat = make("chat", SAY)
    target = Target(deployment="d", model="m", body_model='a"b')
    assert json.loads(chat.build([item(chat, q="hi")], target).body)["model"] == 'a"b'


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (None, "type"),
        ("hi", "type"),
        ({}, "type"),
        (3, "type"),
        ([], "empty"),
        (["hi"], "type"),
        ([{}], "type"),
        ([{"role": "", "content": "x"}], "type"),
        ([{"role": 1, "content": "x"}], "type"),
        ([{"role": "user"}], "empty"),
        ([{"role": "user", "content": None}], "empty"),
        ([{"role": "user", "content": ""}], "empty"),
        ([{"role": "user", "content": []}], "empty"),
        ([{"role": "system", "content": ""}], "empty"),
        ([{"role": "developer", "content": ""}], "empty"),
        ([{"role": "assistant"}], "empty"),
        ([{"role": "tool", "content": None}], "empty"),
        ([{"role": "user", "content": 5}], "type"),
        ([{"role": "user", "content": {}}], "type"),
        ([{"role": "user", "content": ["x"]}], "type"),
        ([{"role": "user", "content": [{"text": "x"}]}], "type"),
        ([{"role": "user", "content": "x"}] * 2049, "too_long"),
        ([{"role": "user", "content": "x" * 1_048_577}], "too_long"),
        ([{"role": "user", "content": [{"type": "text", "text": "x" * 600_000}] * 2}], "too_long"),
        ([{"role": "user", "content": "x", "n": 2**64}], "type"),
        ([{"role": "user", "content": "\ud800"}], "type"),
        ([{"role": "user", "content": "x", "deep": nested(300)}], "type"),
        ([{"role": "user", "content": "x", "deep": nested(5000)}], "type"),
    ],
)
def test_messages_that_cannot_be_asked_are_row_errors(make: Any, messages: Any, expected: str) -> None:
    assert code(make("chat", WHOLE), messages=messages) == expected


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "x" * 1_048_576}],
        [{"role": "user", "content": "x"}] * 2048,
        [{"role": "user", "content": " "}],
        [{"role": "assistant", "content": ""}],
        [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}],
        [{"role": "assistant", "refusal": "no"}],
        [{"role": "tool", "content": "", "tool_call_id": "1"}],
        [{"role": "a role of next year", "content": "x"}],
        [{"role": "user", "content": [{"type": "a part of next year"}]}],
    ],
)
def test_messages_that_the_service_may_take_are_sent_as_they_are(make: Any, messages: Any) -> None:
    chat = make("chat", WHOLE)
    assert json.loads(chat.build([item(chat, messages=messages)], AZURE).body) == {"messages": messages}


def test_more_tools_than_a_request_holds_are_a_row_error(make: Any) -> None:
    chat = make("chat", {**SAY, "tools": "{{ tools }}"})
    assert isinstance(prepared(chat, q="hi", tools=[{}] * 128), Item)
    assert code(chat, q="hi", tools=[{}] * 129) == "too_long"


def test_a_row_errors_message_holds_nothing_of_the_row(make: Any) -> None:
    one = prepared(make("chat", WHOLE), messages=[{"role": "user", "content": "top secret\ud800"}])
    assert isinstance(one, ErrorInfo)
    assert "secret" not in one.message


def test_a_template_that_fails_is_a_template_error(make: Any) -> None:
    one = prepared(make("chat", {"messages": [{"role": "user", "content": "Say {{ q }}!"}]}), q=None)
    assert isinstance(one, ErrorInfo)
    assert one.type is ErrorType.TEMPLATE


@pytest.mark.parametrize(
    ("fields", "output"),
    [
        ({}, 16),
        ({"max_tokens": 50}, 50),
        ({"max_completion_tokens": 60}, 60),
        ({"max_completion_tokens": 60, "max_tokens": 50}, 60),
        ({"max_tokens": 50, "n": 3}, 150),
        ({"n": 2}, 32),
        ({"max_tokens": "50"}, 16),
        ({"max_tokens": 0}, 16),
        ({"n": True}, 16),
    ],
)
def test_the_estimate_is_the_prompt_and_the_most_that_may_be_answered(
    make: Any,
    fields: dict[str, Any],
    output: int,
) -> None:
    chat = make("chat", {**SAY, **fields})
    asked = item(chat, q="x" * 41)
    assert asked.tokens == estimate(41) + output
    assert chat.build([asked], AZURE).tokens == asked.tokens


def test_tools_schemas_and_earlier_tool_calls_count_by_their_json(make: Any) -> None:
    tools = [{"name": "x" * 100}]
    calls = [{"id": "y" * 100}]
    chat = make("chat", {**WHOLE, "tools": tools, "response_format": {"type": "json_object"}})
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": calls}]
    characters = 1 + sum(len(orjson.dumps(each)) for each in (tools, calls, {"type": "json_object"}))
    assert item(chat, messages=messages).tokens == estimate(characters) + _asked.DEFAULT_OUTPUT_TOKENS


def test_pictures_count_by_their_detail_and_not_by_their_bytes(make: Any) -> None:
    chat = make("chat", WHOLE)
    url = "data:image/png;base64," + "A" * 10_000
    parts = [
        {"type": "text", "text": "x" * 40},
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
    ]
    expected = (
        estimate(40) + _pictures.PICTURE_TOKENS + _pictures.LOW_DETAIL_PICTURE_TOKENS + _asked.DEFAULT_OUTPUT_TOKENS
    )
    assert item(chat, messages=[{"role": "user", "content": parts}]).tokens == expected


def test_the_first_choice_answers_and_all_are_kept_when_there_are_several(make: Any) -> None:
    choices = [{"index": n, "message": {"content": f"answer {n}"}, "finish_reason": "stop"} for n in (2, 0, 1)]
    result = answer(make("chat", SAY), {"choices": choices})
    assert result.values is not None
    assert result.values["output_text"] == "answer 0"
    assert [choice["index"] for choice in json.loads(result.values["choices"])] == [0, 1, 2]


def test_one_choice_leaves_the_choices_column_null(make: Any) -> None:
    result = answer(make("chat", SAY), completion(finish_reason="stop"))
    assert result.values is not None
    assert result.values["choices"] is None


@pytest.mark.parametrize("outer", ["prompt_filter_results", "prompt_annotations"])
@pytest.mark.parametrize("inner", ["content_filter_results", "content_filter_result"])
def test_filter_verdicts_are_found_in_every_spelling(make: Any, outer: str, inner: str) -> None:
    verdict = {"hate": {"filtered": False, "severity": "safe"}}
    body = {outer: [{"prompt_index": 0, inner: verdict}], **completion(**{inner: verdict})}
    result = answer(make("chat", SAY), body)
    assert result.values is not None
    assert json.loads(result.values["content_filter"]) == {"prompt": verdict, "completion": verdict}


def test_a_filtered_completion_is_ok_with_whatever_text_was_let_through(make: Any) -> None:
    chat = make("chat", SAY)
    for message, text in (
        ({"message": {"content": "Once"}}, "Once"),
        ({"message": {}}, None),
        ({"message": None}, None),
    ):
        result = answer(chat, completion(finish_reason="content_filter", **message))
        assert result.ok
        assert result.values is not None
        assert (result.values["finish_reason"], result.values["output_text"]) == ("content_filter", text)


def test_a_truncated_answer_is_kept_by_default_and_fails_where_the_job_says_so(make: Any) -> None:
    body = {**completion(finish_reason="length"), "usage": {"prompt_tokens": 3, "completion_tokens": 9}}
    assert answer(make("chat", SAY), body).ok
    failed = answer(make("chat", SAY, run={"on_truncated": "fail"}), body)
    assert failed.error is not None
    assert (failed.error.type, failed.error.code) == (ErrorType.REPLY, "truncated")
    assert failed.values is None
    assert failed.usage is not None
    assert failed.usage.output_tokens == 9
    assert failed.response == orjson.dumps(body)


def test_usage_is_read_with_its_details(make: Any) -> None:
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 20,
        "total_tokens": 30,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 5},
    }
    read = answer(make("chat", SAY), {**completion(), "usage": usage}).usage
    assert read is not None
    assert (read.input_tokens, read.output_tokens, read.total_tokens) == (10, 20, 30)
    assert (read.cached_tokens, read.reasoning_tokens) == (4, 5)


@pytest.mark.parametrize("wrong", [None, -1, 2**63, 1.5, "10", True, [], {}])
def test_figures_that_are_none_are_left_out_of_the_usage(make: Any, wrong: Any) -> None:
    usage = {"prompt_tokens": wrong, "total_tokens": 3, "prompt_tokens_details": wrong}
    read = answer(make("chat", SAY), {**completion(), "usage": usage}).usage
    assert read is not None
    assert (read.input_tokens, read.total_tokens, read.cached_tokens) == (None, 3, None)


def test_an_old_function_call_is_told_as_a_tool_call(make: Any) -> None:
    called = {"name": "look", "arguments": "{}"}
    result = answer(make("chat", SAY), completion(message={"content": None, "function_call": called}))
    assert result.values is not None
    assert json.loads(result.values["tool_calls"]) == [{"type": "function", "function": called}]


def test_an_answer_in_parts_is_joined(make: Any) -> None:
    parts = [{"type": "thinking", "thinking": "…"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    result = answer(make("chat", SAY), completion(message={"content": parts}))
    assert result.values is not None
    assert result.values["output_text"] == "ab"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>busy</html>",
        b'{"choices": [{"message": {"content": "cut',
        b'{"choices": [{"message": {"content": NaN}}]}',
        b'{"choices": [{"message": {"content": "\\ud800"}}]}',
        b"\xff",
        b"[" * 100_000,
        b'{"choices":[{"message":{"tool_calls":' + b"[" * 500 + b"]" * 500 + b"}}]}",
        {},
        {"error": {"message": "no"}},
        {"choices": None},
        {"choices": {}},
        {"choices": []},
        {"choices": [None]},
        {"choices": [{}]},
        {"choices": [{"message": []}]},
        completion(message={"content": 5}),
        completion(message={"content": "x", "refusal": {}}),
        completion(finish_reason=7),
        {"choices": [{"message": {"content": "a"}}, {"message": {"content": "b"}}]},
    ],
)
def test_an_answer_that_is_none_is_a_reply_error(make: Any, body: Any) -> None:
    with pytest.raises(ReplyError) as raised:
        answer(make("chat", SAY), body)
    assert raised.value.code == "bad_reply"


def test_hostile_keys_stay_inside_their_json(make: Any) -> None:
    verdict = {"__proto__": 1, '"; drop table rows; --': 2, **{f"key{n}": n for n in range(100_000)}}
    result = answer(make("chat", SAY), completion(content_filter_results=verdict))
    assert result.values is not None
    assert json.loads(result.values["content_filter"])["completion"] == verdict
    assert set(result.values) == set(make("chat", SAY).schema().names)


def test_the_whole_reply_is_handed_on(make: Any) -> None:
    body = orjson.dumps({**completion(), "brand_new": [1]})
    assert answer(make("chat", SAY), body).response == body


def test_all_columns_are_text_but_the_time(make: Any) -> None:
    *texts, time = make("chat", SAY).schema()
    assert {column.type for column in texts} == {pa.string()}
    assert (time.name, time.type) == ("time_to_first_token_ms", pa.float64())


def test_columns_are_those_of_the_templates(make: Any) -> None:
    assert make("chat", {**SAY, "user": "{{ who }}"}).columns == {"q", "who"}


def test_a_body_that_waits_takes_no_more_memory_than_its_bytes(make: Any) -> None:
    operation = make("chat", SAY)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        items = [prepared(operation, q="What of it?") for _ in range(1000)]
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(items) == 1000
    assert (after - before) / 1000 < 500
