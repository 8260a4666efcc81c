"""Streamed answers of chat, completions and responses: put together whole, or a failed attempt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import orjson
import pyarrow as pa
import pytest

from pipeline.errors import ReplyError
from pipeline.model import Call, ErrorType, Item, Reply, Row, RowResult, Target
from pipeline.operations.base import Operation

CHAT = {"messages": [{"role": "user", "content": "{{ q }}"}], "stream": True}
REQUESTS: dict[str, dict[str, Any]] = {
    "chat": CHAT,
    "completions": {"prompt": "{{ q }}", "stream": True},
    "responses": {"input": "{{ q }}", "stream": True},
}
SAFE = {"hate": {"filtered": False, "severity": "safe"}}
USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
# Azure's first chunk: nothing but what the filter says of the prompt.
FIRST = {
    "id": "",
    "object": "",
    "created": 0,
    "model": "",
    "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": SAFE}],
    "choices": [],
    "usage": None,
}


def sse(*events: Any, end: bytes = b"\n", done: bool = True) -> bytes:
    """Write events: objects as data, pairs as a name and data, bytes as they are."""
    lines: list[bytes] = []
    for event in events:
        if isinstance(event, tuple):
            lines += [b"event: " + event[0].encode(), b"data: " + orjson.dumps(event[1]), b""]
        elif isinstance(event, bytes):
            lines.append(event)
        else:
            lines += [b"data: " + orjson.dumps(event), b""]
    if done:
        lines += [b"data: [DONE]", b""]
    return b"".join(line + end for line in lines)


def chunk(delta: Any = None, *, index: int = 0, finish_reason: str | None = None, **others: Any) -> dict[str, Any]:
    choice = {"index": index, "finish_reason": finish_reason, **({} if delta is None else {"delta": delta}), **others}
    return {"id": "c1", "object": "chat.completion.chunk", "created": 5, "model": "m", "choices": [choice]}


def usage_chunk() -> dict[str, Any]:
    return {"id": "c1", "object": "chat.completion.chunk", "created": 5, "model": "m", "choices": [], "usage": USAGE}


HELLO: tuple[Any, ...] = (
    FIRST,
    chunk({"role": "assistant", "content": "", "refusal": None}),
    chunk({"content": "Hé"}),
    chunk({"content": "llo 🌍"}),
    chunk({}, finish_reason="stop"),
    usage_chunk(),
)


def item(operation: Operation) -> Item:
    (one,) = operation.prepare([Row(ordinal=7, values={"q": "hi"})])
    assert isinstance(one, Item), one
    return one


def read(operation: Operation, body: bytes, arrivals: tuple[tuple[int, float], ...] = ()) -> RowResult:
    reply = Reply(status=200, headers={}, body=body, latency_ms=100, arrivals=arrivals)
    (result,) = operation.parse([item(operation)], reply)
    assert result.ordinal == 7
    return result


def values(operation: Operation, body: bytes) -> dict[str, Any]:
    result = read(operation, body)
    assert result.ok
    assert result.values is not None
    return dict(result.values)


def called(operation: Operation, target: Target) -> Call:
    return operation.build([item(operation)], target)


TARGETS = {
    ("openai", None): True,
    ("azure-v1", None): True,
    ("azure-v1", "preview"): True,
    ("azure", "2024-10-21"): True,
    ("azure", "2024-09-01-preview"): True,
    ("azure", "2025-04-01-preview"): True,
    ("azure", None): True,
    ("azure", "2024-08-01-preview"): False,
    ("azure", "2024-06-01"): False,
    ("azure", "2023-05-15"): False,
}


@pytest.mark.parametrize(("api", "version"), TARGETS)
def test_a_stream_is_asked_for_with_its_usage_where_the_service_takes_that(
    make: Any, api: str, version: str | None
) -> None:
    target = Target(deployment="d", model="m", body_model=None, api=api, api_version=version)
    call = called(make("chat", CHAT), target)
    body = json.loads(call.body)
    assert body["stream"] is True
    assert body.get("stream_options") == ({"include_usage": True} if TARGETS[api, version] else None)
    assert (call.stream, call.accept) == (True, "text/event-stream")


def test_what_the_job_says_of_the_streams_options_is_sent_as_it_is(make: Any) -> None:
    own = {"include_usage": False, "include_obfuscation": False}
    for target in (
        Target(deployment="d", model="m", body_model="m", api="openai"),
        Target(deployment="d", model="m", body_model=None, api="azure", api_version="2023-05-15"),
    ):
        body = called(make("chat", {**CHAT, "stream_options": own}), target).body
        assert body.count(b"stream_options") == 1
        assert json.loads(body)["stream_options"] == own


@pytest.mark.parametrize("fields", [{}, {"stream": False}, {"stream": None, "stream_options": {"include_usage": True}}])
def test_without_stream_nothing_of_it_is_sent(make: Any, fields: dict[str, Any]) -> None:
    request = {key: value for key, value in CHAT.items() if key != "stream"} | fields
    call = called(make("chat", request), Target(deployment="d", model="m", body_model="m", api="openai"))
    assert b"stream" not in call.body
    assert (call.stream, call.accept) == (False, "application/json")


def test_a_stream_that_is_neither_true_nor_false_is_a_row_error(make: Any) -> None:
    (one,) = make("chat", {**CHAT, "stream": "{{ q }}"}).prepare([Row(ordinal=0, values={"q": "yes"})])
    assert one.code == "type"


@pytest.mark.parametrize(
    ("api", "version", "expected"),
    [
        ("azure", "2024-10-21", False),
        ("azure", "2025-04-01-preview", True),
        ("azure-v1", None, True),
        ("openai", None, True),
    ],
)
def test_completions_are_asked_for_their_usage_where_the_service_takes_that(
    make: Any, api: str, version: str | None, *, expected: bool
) -> None:
    target = Target(deployment="d", model="m", body_model=None, api=api, api_version=version)
    body = json.loads(called(make("completions", REQUESTS["completions"]), target).body)
    assert body["stream"] is True
    assert ("stream_options" in body) is expected


def test_a_response_says_its_usage_unasked(make: Any) -> None:
    target = Target(deployment="d", model="m", body_model="m", api="openai")
    body = json.loads(called(make("responses", REQUESTS["responses"]), target).body)
    assert body == {"model": "m", "input": "hi", "stream": True}


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_stream_becomes_the_answer_that_it_would_have_been_in_one_piece(make: Any, end: bytes) -> None:
    result = read(make("chat", CHAT), sse(*HELLO, end=end))
    assert result.values is not None
    assert result.values["output_text"] == "Héllo 🌍"
    assert result.values["finish_reason"] == "stop"
    assert json.loads(result.values["content_filter"]) == {"prompt": SAFE}
    assert result.usage is not None
    assert (result.usage.input_tokens, result.usage.output_tokens, result.usage.total_tokens) == (9, 4, 13)
    assert result.response is not None
    assert json.loads(result.response) == {
        "id": "c1",
        "object": "chat.completion",
        "created": 5,
        "model": "m",
        "prompt_filter_results": FIRST["prompt_filter_results"],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Héllo 🌍", "refusal": None},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": USAGE,
    }


def test_comments_names_marks_and_events_after_the_end_change_nothing(make: Any) -> None:
    chat = make("chat", CHAT)
    plain = read(chat, sse(*HELLO))
    noisy = b"\xef\xbb\xbf: processing\n\n" + sse(*(("chunk", event) for event in HELLO)) + b"data: {broken\n\n"
    assert read(chat, noisy) == plain


def test_an_event_over_several_lines_is_one(make: Any) -> None:
    lines = [
        b"data: " + line for line in orjson.dumps(chunk({"content": "x"}), option=orjson.OPT_INDENT_2).split(b"\n")
    ]
    body = sse(*lines, b"", chunk({}, finish_reason="stop"))
    assert values(make("chat", CHAT), body)["output_text"] == "x"


def test_choices_and_deltas_may_be_missing_everywhere(make: Any) -> None:
    bare = {"id": "c1", "object": "chat.completion.chunk", "model": "m"}
    odd = [bare, {**bare, "choices": None}, {**bare, "choices": [{"index": 0}]}, {**bare, "choices": [{"delta": None}]}]
    got = values(make("chat", CHAT), sse(*odd, chunk({"content": "x"}), *odd, chunk({}, finish_reason="stop"), *odd))
    assert (got["output_text"], got["finish_reason"]) == ("x", "stop")


def test_what_the_filter_says_late_is_kept_and_what_was_filtered_once_stays_filtered(make: Any) -> None:
    low = {"hate": {"filtered": False, "severity": "low"}}
    high = {"hate": {"filtered": True, "severity": "high"}}
    offsets = {"check_offset": 4, "start_offset": 4, "end_offset": 9}
    body = sse(
        chunk({"content": "Once"}),
        chunk(None, content_filter_results={**SAFE, "self-harm": {"filtered": False}}, content_filter_offsets=offsets),
        chunk({}, finish_reason="stop"),
        chunk(None, content_filter_results=high),
        chunk(None, finish_reason="content_filter", content_filter_results=low),
        chunk(None, finish_reason="stop", content_filter_result={"error": {"code": "content_filter_error"}}),
    )
    got = values(make("chat", CHAT), body)
    assert (got["output_text"], got["finish_reason"]) == ("Once", "content_filter")
    completion = json.loads(got["content_filter"])["completion"]
    assert completion == {**high, "self-harm": {"filtered": False}, "error": {"code": "content_filter_error"}}


def test_prompts_that_are_judged_one_by_one_are_all_kept(make: Any) -> None:
    second = {**FIRST, "prompt_filter_results": [{"prompt_index": 1, "content_filter_results": {"jailbreak": {}}}]}
    got = values(make("chat", CHAT), sse(FIRST, second, chunk({"content": "x"}, finish_reason="stop")))
    assert json.loads(got["content_filter"])["prompt"] == [SAFE, {"jailbreak": {}}]


def test_tool_calls_are_joined_by_their_index(make: Any) -> None:
    def part(index: int, **function: str) -> dict[str, Any]:
        return {"index": index, "function": function}

    body = sse(
        chunk({"role": "assistant", "content": None}),
        chunk({"tool_calls": [{"index": 1, "id": "b", "type": "function", "function": {"name": "find"}}]}),
        chunk({"tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"name": "look"}}]}),
        chunk({"tool_calls": [part(0, arguments='{"x":'), part(1, arguments="{")]}),
        chunk({"tool_calls": [part(1, arguments="}"), part(0, arguments="1}"), part(0, name="look")]}),
        chunk({}, finish_reason="tool_calls"),
    )
    got = values(make("chat", CHAT), body)
    assert (got["output_text"], got["finish_reason"]) == (None, "tool_calls")
    assert json.loads(got["tool_calls"]) == [
        {"id": "a", "type": "function", "function": {"name": "look", "arguments": '{"x":1}'}},
        {"id": "b", "type": "function", "function": {"name": "find", "arguments": "{}"}},
    ]


def test_tool_calls_without_an_index_follow_one_another(make: Any) -> None:
    body = sse(
        chunk({"tool_calls": [{"id": "a", "function": {"name": "look", "arguments": "{"}}]}),
        chunk({"tool_calls": [{"function": {"arguments": "}"}}]}),
        chunk(
            {"tool_calls": [{"id": "b", "function": {"name": "find", "arguments": "{}"}}]}, finish_reason="tool_calls"
        ),
    )
    calls = json.loads(values(make("chat", CHAT), body)["tool_calls"])
    assert [(call["id"], call["function"]["arguments"]) for call in calls] == [("a", "{}"), ("b", "{}")]


def test_an_old_function_call_comes_in_pieces_too(make: Any) -> None:
    body = sse(
        chunk({"function_call": {"name": "look", "arguments": "{"}}),
        chunk({"function_call": {"name": "look", "arguments": "}"}}, finish_reason="function_call"),
    )
    assert json.loads(values(make("chat", CHAT), body)["tool_calls"]) == [
        {"type": "function", "function": {"name": "look", "arguments": "{}"}}
    ]


def test_a_refusal_comes_in_pieces(make: Any) -> None:
    body = sse(chunk({"refusal": "I can"}), chunk({"refusal": "not."}), chunk({}, finish_reason="stop"))
    got = values(make("chat", CHAT), body)
    assert (got["output_text"], got["refusal"]) == (None, "I cannot.")


def test_choices_are_told_apart_by_their_index(make: Any) -> None:
    body = sse(
        *(chunk({"role": "assistant", "content": f"{n}"}, index=n) for n in (2, 0, 1)),
        *(chunk({"content": "!"}, index=n, finish_reason="stop") for n in (0, 2, 1)),
    )
    got = values(make("chat", {**CHAT, "n": 3}), body)
    assert got["output_text"] == "0!"
    assert [choice["message"]["content"] for choice in json.loads(got["choices"])] == ["0!", "1!", "2!"]


def test_logprobs_and_fields_of_next_year_are_put_together(make: Any) -> None:
    body = sse(
        chunk({"content": "a", "reasoning_content": "Hm"}, logprobs={"content": [{"token": "a"}], "refusal": None}),
        chunk({"content": "b", "reasoning_content": "m.", "annotations": [1]}, logprobs={"content": [{"token": "b"}]}),
        chunk({"annotations": [2], "score": 1.5, "audio": {"id": "x", "data": "AA"}}),
        chunk({"score": 2, "audio": {"id": "x", "data": "BB"}}, finish_reason="stop", logprobs=None),
    )
    response = read(make("chat", CHAT), body).response
    assert response is not None
    (choice,) = json.loads(response)["choices"]
    assert choice["logprobs"] == {"content": [{"token": "a"}, {"token": "b"}], "refusal": None}
    assert choice["message"] == {
        "role": "assistant",
        "content": "ab",
        "reasoning_content": "Hmm.",
        "annotations": [1, 2],
        "score": 2,
        "audio": {"id": "x", "data": "AABB"},
    }


def test_an_answer_of_many_thousand_chunks_is_whole(make: Any) -> None:
    body = sse(*(chunk({"content": f"{n} "}) for n in range(10_000)), chunk({}, finish_reason="stop"))
    assert values(make("chat", CHAT), body)["output_text"] == "".join(f"{n} " for n in range(10_000))


def test_a_service_that_ignores_stream_is_read_all_the_same(make: Any) -> None:
    body = b' \n{"choices":[{"index":0,"message":{"content":"plain"},"finish_reason":"stop"}]}'
    result = read(make("chat", CHAT), body, arrivals=((len(body), 5.0),))
    assert result.values is not None
    assert result.values["output_text"] == "plain"
    assert result.values["time_to_first_token_ms"] is None
    assert result.response == body


@pytest.mark.parametrize(
    "token", [{"content": "x"}, {"refusal": "x"}, {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f"}}]}]
)
def test_the_first_token_came_when_its_event_was_whole(make: Any, token: dict[str, Any]) -> None:
    head = sse(FIRST, chunk({"role": "assistant", "content": ""}), done=False)
    first = sse(chunk(token), done=False)
    body = head + first + sse(chunk({"content": "y"}), chunk({}, finish_reason="stop"))
    arrivals = ((len(head), 10.0), (len(head + first) - 1, 20.0), (len(head + first), 30.0), (len(body), 40.0))
    result = read(make("chat", CHAT), body, arrivals)
    assert result.values is not None
    assert result.values["time_to_first_token_ms"] == 30.0


def test_the_time_is_null_where_nobody_noted_it_and_where_no_token_came(make: Any) -> None:
    chat = make("chat", CHAT)
    assert values(chat, sse(*HELLO))["time_to_first_token_ms"] is None
    body = sse(chunk({"role": "assistant"}), chunk({}, finish_reason="content_filter"))
    result = read(chat, body, arrivals=((len(body), 9.0),))
    assert result.values is not None
    assert result.values["time_to_first_token_ms"] is None


def test_an_empty_finish_reason_is_none(make: Any) -> None:
    chat = make("chat", CHAT)
    got = values(
        chat,
        sse(chunk({"content": "x"}, finish_reason=""), chunk({}, finish_reason="stop"), chunk({}, finish_reason="")),
    )
    assert got["finish_reason"] == "stop"
    with pytest.raises(ReplyError):
        read(chat, sse(chunk({"content": "x"}, finish_reason="")))


BROKEN: dict[str, bytes] = {
    "empty": b"",
    "html": b"<html>busy</html>",
    "no end": sse(*HELLO, done=False),
    "an end and nothing else": sse(),
    "no choices": sse(FIRST, usage_chunk()),
    "no finish_reason": sse(chunk({"content": "x"})),
    "a choice without finish_reason": sse(
        chunk({"content": "x"}, finish_reason="stop"), chunk({"content": "y"}, index=1)
    ),
    "no JSON": sse(b"data: {", b"", *HELLO),
    "no UTF-8": sse(b'data: {"id":"\xe2\x82"}', b"", *HELLO),
    "no object": sse([1], *HELLO),
    "an error": sse(*HELLO[:3], {"error": {"code": "server_error", "message": "Oh."}}),
    "choices of no kind": sse({"choices": {}}, *HELLO),
    "a choice of no kind": sse({"choices": [1]}, *HELLO),
    "an index of no kind": sse({"choices": [{"index": "0", "delta": {}}]}, *HELLO),
    "a delta of no kind": sse(chunk("x"), *HELLO),
    "content of no kind": sse(chunk({"content": 5}), *HELLO),
    "content of two kinds": sse(*HELLO[:3], chunk({"content": ["x"]}), *HELLO[3:]),
    "a finish_reason of no kind": sse(chunk({"content": "x"}, finish_reason=5)),  # type: ignore[arg-type]
    "tool calls of no kind": sse(chunk({"tool_calls": {}}), *HELLO),
    "a tool call of no kind": sse(chunk({"tool_calls": [1]}), *HELLO),
    "too deep": sse(
        b'data: {"choices":[{"index":0,"delta":{"x":' + b'{"x":' * 1000 + b"1" + b"}" * 1000 + b"}}]}", b""
    ),
    "deep enough to be read only": sse(
        b'data: {"choices":[{"index":0,"delta":{"x":' + b"[" * 400 + b"]" * 400 + b"}}]}", b"", *HELLO
    ),
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN)
def test_a_stream_that_holds_no_whole_answer_is_a_failed_attempt(make: Any, body: bytes) -> None:
    with pytest.raises(ReplyError) as raised:
        read(make("chat", CHAT), body)
    assert raised.value.code == "bad_reply"


def test_an_answer_that_the_filter_ends_by_an_error_is_a_failed_row_and_not_asked_for_again(make: Any) -> None:
    error = {"error": {"code": "content_filter", "message": "The response was filtered."}}
    result = read(make("chat", CHAT), sse(*HELLO[:3], error, done=False))
    assert result.error is not None
    assert (result.error.type, result.error.code) == (ErrorType.BAD_REQUEST, "content_filter")
    assert result.again is None


def response(status: str = "completed", **others: Any) -> dict[str, Any]:
    content = [{"type": "output_text", "text": "Héllo 🌍"}]
    return {
        "id": "r",
        "object": "response",
        "status": status,
        "output": [{"type": "message", "role": "assistant", "content": content}],
        "usage": {"input_tokens": 9, "output_tokens": 4, "total_tokens": 13},
        **others,
    }


def told(kind: str, **fields: Any) -> tuple[str, dict[str, Any]]:
    return kind, {"type": kind, "sequence_number": 1, **fields}


SPOKEN = (
    told("response.created", response=response("in_progress", output=[])),
    told("response.output_text.delta", delta="Héllo"),
    told("response.output_text.delta", delta=" 🌍"),
)
WHOLE: dict[str, tuple[Any, ...]] = {
    "chat": HELLO,
    "completions": (
        FIRST,
        {"id": "c", "object": "text_completion", "choices": [{"index": 0, "text": "Héllo", "finish_reason": None}]},
        {"id": "c", "object": "text_completion", "choices": [{"index": 0, "text": " 🌍", "finish_reason": "stop"}]},
        usage_chunk(),
    ),
    "responses": (*SPOKEN, told("response.completed", response=response())),
}


def cuts(body: bytes) -> Iterator[bytes]:
    for end in range(len(body)):
        yield body[:end]


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_stream_that_is_cut_anywhere_is_never_an_answer(make: Any, name: str, end: bytes) -> None:
    operation = make(name, REQUESTS[name])
    body = sse(*WHOLE[name], end=end, done=name != "responses")
    assert values(operation, body)["output_text"] == "Héllo 🌍"
    # The line feed of a last CRLF is not needed: the carriage return ends the blank line already.
    needed = body[:-1] if end == b"\r\n" else body
    for cut in cuts(needed):
        with pytest.raises(ReplyError):
            read(operation, cut)


@pytest.mark.parametrize("name", ["chat", "completions"])
def test_the_missing_end_of_a_stream_is_missed_although_every_choice_had_its_reason(make: Any, name: str) -> None:
    with pytest.raises(ReplyError, match="before its"):
        read(make(name, REQUESTS[name]), sse(*WHOLE[name], done=False))


def test_completions_are_put_together_with_their_logprobs(make: Any) -> None:
    def piece(text: str, finish_reason: str | None = None) -> dict[str, Any]:
        logprobs = {"tokens": [text], "token_logprobs": [-0.5], "text_offset": [len(text)]}
        choice = {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
        return {"id": "c", "object": "text_completion", "choices": [choice]}

    result = read(make("completions", REQUESTS["completions"]), sse(piece("a"), piece("bc", "length")))
    assert result.values is not None
    assert (result.values["output_text"], result.values["finish_reason"]) == ("abc", "length")
    assert result.response is not None
    whole = json.loads(result.response)
    assert whole["object"] == "text_completion"
    (choice,) = whole["choices"]
    assert choice["logprobs"] == {"tokens": ["a", "bc"], "token_logprobs": [-0.5, -0.5], "text_offset": [1, 2]}


@pytest.mark.parametrize(
    ("end", "status", "finish_reason"),
    [
        (told("response.completed", response=response()), "completed", "stop"),
        (
            told(
                "response.incomplete",
                response=response("incomplete", incomplete_details={"reason": "max_output_tokens"}),
            ),
            "incomplete",
            "length",
        ),
    ],
)
def test_the_last_event_of_a_response_holds_it_whole(make: Any, end: Any, status: str, finish_reason: str) -> None:
    body = sse(*SPOKEN, end, done=False)
    first = len(sse(*SPOKEN[:2], done=False))
    result = read(make("responses", REQUESTS["responses"]), body, ((first, 12.5), (len(body), 40.0)))
    assert result.values is not None
    assert (result.values["response_status"], result.values["finish_reason"]) == (status, finish_reason)
    assert result.values["output_text"] == "Héllo 🌍"
    assert result.values["time_to_first_token_ms"] == 12.5
    assert result.response == orjson.dumps(end[1]["response"])


def test_a_response_that_fails_within_its_stream_is_judged_by_its_code(make: Any) -> None:
    responses = make("responses", REQUESTS["responses"])
    failed = told("response.failed", response=response("failed", error={"code": "invalid_prompt", "message": "No."}))
    result = read(responses, sse(*SPOKEN, failed, done=False))
    assert result.error is not None
    assert (result.error.type, result.error.code) == (ErrorType.BAD_REQUEST, "invalid_prompt")
    for event in (
        told("response.failed", response=response("failed", error={"code": "server_error", "message": "Oh."})),
        ("error", {"type": "error", "code": "server_error", "message": "Oh."}),
        told("response.completed", response=None),
    ):
        with pytest.raises(ReplyError):
            read(responses, sse(*SPOKEN, event, done=False))


def test_results_of_a_stream_hold_the_columns_that_are_declared(make: Any) -> None:
    for name, events in WHOLE.items():
        operation = make(name, REQUESTS[name])
        got = values(operation, sse(*events, done=name != "responses"))
        assert set(got) == set(operation.schema().names)


WRONG: tuple[Any, ...] = (None, True, -1, 10**30, 1.5, "", "x", [], {}, [None], {"__proto__": "; drop"}, [[[]]])


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def rich() -> tuple[Any, ...]:
    call = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    logprobs = {"content": [{"token": "x"}], "refusal": None}
    return (
        FIRST,
        chunk({"role": "assistant", "content": "x", "refusal": "y", "tool_calls": [call]}, logprobs=logprobs),
        chunk({"content": "x", "refusal": "y", "tool_calls": [call], "function_call": {"name": "f"}}),
        chunk(None, finish_reason="stop", logprobs=logprobs, content_filter_results=SAFE),
        usage_chunk(),
    )


@pytest.mark.parametrize("name", REQUESTS)
def test_a_stream_with_anything_wrong_anywhere_is_a_result_that_fits_its_columns_or_a_failed_attempt(
    make: Any, name: str
) -> None:
    operation = make(name, REQUESTS[name])
    events = rich() if name == "chat" else [e[1] if isinstance(e, tuple) else e for e in WHOLE[name]]
    seen = 0
    for index, event in enumerate(events):
        for path in places(event):
            for wrong in WRONG:
                broken = json.dumps(replaced(event, path, wrong)).encode()
                body = sse(*events[:index], b"data: " + broken, b"", *events[index + 1 :], done=name != "responses")
                try:
                    result = read(operation, body)
                except ReplyError:
                    continue
                seen += 1
                assert result.response is None or orjson.loads(result.response) is not None
                if result.ok:
                    assert result.values is not None
                    for column in operation.schema():
                        pa.array([result.values[column.name]], column.type)
    assert seen > 50
