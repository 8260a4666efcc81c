"""Chat answers are functions of their request."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from pipeline.simulator.base import Answer, Family, Occasion, Place, RefusedError
from pipeline.simulator.config import AnswersConfig
from pipeline.simulator.ledger import messages_key
from pipeline.simulator.models import facts_of
from pipeline.simulator.operations._text import Lengths
from pipeline.simulator.operations.chat import Chat

USER = [{"role": "user", "content": "First sentence. Second sentence."}]


def place(model: str = "gpt-4o-mini", family: Family = Family.CLASSIC) -> Place:
    return Place(
        family=family, api_version="2024-10-21", deployment="d", model=model, facts=facts_of(model), dimensions=1536
    )


def ask(
    body: dict[str, Any], where: Place | None = None, *, filtered: bool = False, lengths: Lengths | None = None
) -> Answer:
    chat = Chat(lengths=lengths)
    where = where or place()
    return chat.answer(chat.read(body, where), where, Occasion(created_s=1, filtered=filtered))


def answered(body: dict[str, Any], where: Place | None = None, *, filtered: bool = False) -> dict[str, Any]:
    values: dict[str, Any] = orjson.loads(ask(body, where, filtered=filtered).body)
    return values


def refused(body: dict[str, Any], where: Place | None = None) -> dict[str, Any]:
    with pytest.raises(RefusedError) as caught:
        ask(body, where)
    assert caught.value.status == 400
    error: dict[str, Any] = orjson.loads(caught.value.body)["error"]
    return error


def test_an_answer_is_the_first_sentence_and_the_messages_tag() -> None:
    body = answered({"messages": USER})
    message = body["choices"][0]["message"]
    assert message["content"] == f"First sentence. [sha:{messages_key(USER)[:8]}]"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["object"] == "chat.completion"


def test_admission_counts_characters_and_what_may_be_answered() -> None:
    chat = Chat()
    assert chat.read({"messages": USER}, place()).tokens == 8 + 16
    assert chat.read({"messages": USER, "max_tokens": 100, "n": 3}, place()).tokens == 8 + 300
    assert chat.read({"messages": USER, "max_completion_tokens": 50}, place()).tokens == 8 + 50


def test_usage_adds_up() -> None:
    usage = answered({"messages": USER, "n": 2})["usage"]
    assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"]


def test_the_azure_families_have_filter_results_and_openai_has_none() -> None:
    for family in Family:
        body = answered({"messages": USER}, place(family=family))
        assert ("prompt_filter_results" in body) is family.azure
        assert ("content_filter_results" in body["choices"][0]) is family.azure


def test_max_tokens_cut_the_answer() -> None:
    choice = answered({"messages": USER, "max_tokens": 2})["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("First se", "length")


def chosen(number: int, *, sigma: float = 0.0, seed: int = 0, **body: object) -> tuple[str, str, int]:
    """Give an answer's text, how it ended, and its tokens, where answers are about 150 tokens long."""
    lengths = Lengths(config=AnswersConfig(median_tokens=150, sigma=sigma, most_tokens=400), seed=seed)
    messages = [{"role": "user", "content": f"Row {number} is here. Nothing else."}]
    values = orjson.loads(ask({"messages": messages, **body}, lengths=lengths).body)
    choice = values["choices"][0]
    return choice["message"]["content"], choice["finish_reason"], values["usage"]["completion_tokens"]


def test_an_answer_is_as_long_as_configured_and_begins_as_ever() -> None:
    text, reason, tokens = chosen(1, max_tokens=4_096)
    assert text.startswith("Row 1 is here. [sha:")
    assert (len(text), reason, tokens) == (600, "stop", 150)


def test_a_bound_below_an_answers_length_cuts_it() -> None:
    text, reason, tokens = chosen(1, max_tokens=100)
    assert (len(text), reason, tokens) == (400, "length", 100)
    assert chosen(1, max_tokens=4_096)[0].startswith(text)


def test_lengths_differ_by_row_about_their_median_and_are_the_same_each_time() -> None:
    drawn = sorted(chosen(number, sigma=0.4)[2] for number in range(400))
    assert drawn[200] == pytest.approx(150, rel=0.1)
    assert drawn[20] < 100
    assert drawn[380] > 250
    assert drawn[-1] <= 400
    assert [chosen(number, sigma=0.4) for number in range(9)] == [chosen(number, sigma=0.4) for number in range(9)]
    assert chosen(1, sigma=0.4)[2] != chosen(1, sigma=0.4, seed=1)[2]


def test_no_answer_is_shorter_than_its_extract() -> None:
    lengths = Lengths(config=AnswersConfig(median_tokens=1))
    content = orjson.loads(ask({"messages": USER}, lengths=lengths).body)["choices"][0]["message"]["content"]
    assert content == answered({"messages": USER})["choices"][0]["message"]["content"]


def test_a_stop_ends_the_answer() -> None:
    for stop in ("sentence", ["x", "sentence"]):
        choice = answered({"messages": USER, "stop": stop})["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("First ", "stop")


def test_every_choice_has_its_own_text() -> None:
    choices = answered({"messages": USER, "n": 4})["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    assert len({choice["message"]["content"] for choice in choices}) == 4


def test_a_json_schema_is_fitted() -> None:
    schema = {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    content = answered({"messages": USER, "response_format": wanted})["choices"][0]["message"]["content"]
    assert orjson.loads(content)["title"].startswith("First sentence.")


def test_a_json_object_is_one() -> None:
    messages = [{"role": "user", "content": "Answer in JSON."}]
    body = {"messages": messages, "response_format": {"type": "json_object"}}
    content = answered(body)["choices"][0]["message"]["content"]
    assert "summary" in orjson.loads(content)


TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"properties": {"x": {"type": "integer"}}}}}
    for name in ("first", "second")
]


@pytest.mark.parametrize(
    ("choice", "called"),
    [
        (None, "first"),
        ("auto", "first"),
        ("required", "first"),
        ("none", None),
        ({"type": "function", "function": {"name": "second"}}, "second"),
    ],
)
def test_tools_are_called_as_the_choice_says(choice: object, called: str | None) -> None:
    body = {"messages": USER, "tools": TOOLS, "tool_choice": choice}
    message = answered(body)["choices"][0]["message"]
    if called is None:
        assert "tool_calls" not in message
    else:
        function = message["tool_calls"][0]["function"]
        assert function["name"] == called
        assert type(orjson.loads(function["arguments"])["x"]) is int


def test_a_tools_own_message_is_answered_with_text() -> None:
    messages = [*USER, {"role": "tool", "tool_call_id": "1", "content": "42"}]
    message = answered({"messages": messages, "tools": TOOLS})["choices"][0]["message"]
    assert message["content"]


def test_a_filtered_answer_is_empty_and_says_why() -> None:
    choice = answered({"messages": USER}, filtered=True)["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "content_filter")
    assert choice["content_filter_results"]["violence"]["filtered"] is True


def events(body: dict[str, Any], family: Family = Family.CLASSIC) -> list[dict[str, Any]]:
    lines = ask({**body, "stream": True}, place(family=family)).events
    assert lines[-1] == b"data: [DONE]\n\n"
    return [orjson.loads(line.removeprefix(b"data: ")) for line in lines[:-1]]


def test_azures_first_event_has_no_choice_and_no_id_and_openais_has() -> None:
    first = events({"messages": USER})[0]
    assert (first["id"], first["model"], first["choices"]) == ("", "", [])
    assert events({"messages": USER}, Family.OPENAI)[0]["choices"]


@pytest.mark.parametrize("family", list(Family))
def test_a_stream_says_what_the_whole_reply_says(family: Family) -> None:
    whole = answered({"messages": USER, "n": 2}, place(family=family))
    texts = {0: "", 1: ""}
    reasons = {}
    for event in events({"messages": USER, "n": 2}, family):
        for choice in event["choices"]:
            texts[choice["index"]] += choice["delta"].get("content") or ""
            reasons[choice["index"]] = choice["finish_reason"]
    for choice in whole["choices"]:
        assert texts[choice["index"]] == choice["message"]["content"]
        assert reasons[choice["index"]] == choice["finish_reason"]


def test_a_streams_usage_comes_last_and_only_when_asked() -> None:
    with_usage = events({"messages": USER, "stream_options": {"include_usage": True}})
    assert with_usage[-1]["choices"] == []
    assert with_usage[-1]["usage"] == answered({"messages": USER})["usage"]
    assert all(event["usage"] is None for event in with_usage[:-1])
    assert all("usage" not in event for event in events({"messages": USER}))


def test_a_streamed_tool_call_is_the_whole_one() -> None:
    whole = answered({"messages": USER, "tools": TOOLS})["choices"][0]["message"]["tool_calls"][0]
    arguments = ""
    for event in events({"messages": USER, "tools": TOOLS}):
        for choice in event["choices"]:
            for call in choice["delta"].get("tool_calls", ()):
                arguments += call["function"]["arguments"]
    assert arguments == whole["function"]["arguments"]


def test_a_reasoning_model_thinks_within_its_limit() -> None:
    body = answered({"messages": USER, "max_completion_tokens": 60}, place("o4-mini"))
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == 60
    assert body["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("model", "change", "code", "param"),
    [
        ("gpt-4o", {"messages": None}, "missing_required_parameter", "messages"),
        ("gpt-4o", {"messages": []}, "empty_array", "messages"),
        ("gpt-4o", {"messages": "text"}, "invalid_type", "messages"),
        ("gpt-4o", {"messages": USER * 2049}, "array_above_max_length", "messages"),
        ("gpt-4o", {"messages": ["text"]}, "invalid_value", "messages[0].role"),
        ("gpt-4o", {"messages": [{"role": "robot", "content": "x"}]}, "invalid_value", "messages[0].role"),
        ("gpt-4o", {"messages": [{"role": "user", "content": 5}]}, "invalid_type", "messages[0].content"),
        ("gpt-4o", {"messages": [{"role": "user", "content": ["x"]}]}, "invalid_type", "messages[0].content"),
        ("gpt-4o", {"messages": [{"role": "user", "content": "x" * 600_000}]}, "context_length_exceeded", "messages"),
        ("gpt-4o", {"temperature": 2.1}, "decimal_above_max_value", "temperature"),
        ("gpt-4o", {"temperature": "hot"}, "invalid_type", "temperature"),
        ("gpt-4o", {"temperature": True}, "invalid_type", "temperature"),
        ("gpt-4o", {"presence_penalty": -3}, "decimal_below_min_value", "presence_penalty"),
        ("gpt-4o", {"max_tokens": 0}, "integer_below_min_value", "max_tokens"),
        ("gpt-4o", {"max_tokens": 1.5}, "invalid_type", "max_tokens"),
        ("gpt-4o", {"n": 129}, "integer_above_max_value", "n"),
        ("gpt-4o", {"stop": ["a"] * 5}, "invalid_value", "stop"),
        ("gpt-4o", {"stop": [1]}, "invalid_value", "stop"),
        ("gpt-4o", {"tools": [{}]}, "missing_required_parameter", "tools[0].function"),
        ("gpt-4o", {"tools": TOOLS * 65}, "array_above_max_length", "tools"),
        ("gpt-4o", {"tool_choice": "auto"}, None, "tool_choice"),
        ("gpt-4o", {"tools": TOOLS, "tool_choice": {"function": {"name": "no"}}}, "invalid_value", "tool_choice"),
        ("gpt-4o", {"response_format": {"type": "xml"}}, "invalid_value", "response_format.type"),
        ("gpt-4o", {"response_format": {"type": "json_object"}}, None, "messages"),
        (
            "gpt-4o",
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "missing_required_parameter",
            "response_format.json_schema.schema",
        ),
        (
            "gpt-4o",
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}}},
            "invalid_schema",
            "response_format",
        ),
        ("gpt-4o", {"max_token": 5}, None, None),
        ("gpt-5-mini", {"max_tokens": 5}, "unsupported_parameter", "max_tokens"),
        ("o3", {"temperature": 0.5}, "unsupported_value", "temperature"),
    ],
)
def test_what_is_wrong_is_refused_by_code_and_field(
    model: str, change: dict[str, Any], code: str | None, param: str | None
) -> None:
    error = refused({"messages": USER, **change}, place(model))
    assert (error["code"], error["param"]) == (code, param)


def test_pictures_cost_tokens_by_their_detail() -> None:
    def prompt_tokens(detail: str) -> int:
        picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": detail}}
        tokens: int = answered({"messages": [{"role": "user", "content": [picture]}]})["usage"]["prompt_tokens"]
        return tokens

    assert prompt_tokens("high") - prompt_tokens("low") == 680
