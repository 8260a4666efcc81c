"""The simulator bills a prompt as `plan --simulate` counts it, whatever the prompt holds."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from pipeline.job.tokens import estimate
from pipeline.model import Item
from pipeline.operations._asked import Asked
from pipeline.operations._prompt import chat_prompt, responses_prompt
from pipeline.operations.base import Prompt
from pipeline.simulator.operations._billed import billed_tokens
from pipeline.simulator.operations.responses import framed

SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "description": "Zürich, 東京"}}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Tell the weather.", "parameters": SCHEMA}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
ASKED = {"role": "user", "content": "What is the weather like?"}

CHATS: dict[str, dict[str, Any]] = {
    "text": {"messages": [ASKED]},
    "several": {
        "messages": [{"role": "system", "content": "Be brief."}, ASKED, {"role": "assistant", "content": None}]
    },
    "two parts": {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]
    },
    "a name": {"messages": [{**ASKED, "name": "Ada"}]},
    "a call": {"messages": [ASKED, {"role": "assistant", "tool_calls": [CALL]}]},
    "tools": {"messages": [ASKED], "tools": [TOOL]},
    "schema": {
        "messages": [ASKED],
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}},
    },
}
RESPONSES: dict[str, dict[str, Any]] = {
    "text": {"input": "What is the weather like?"},
    "instructions": {"input": [ASKED], "instructions": "Be brief."},
    "a call": {"input": [ASKED, {"type": "function_call", "call_id": "1", "name": "weather", "arguments": "{}"}]},
    "tools": {"input": "Go.", "tools": [{"type": "function", "name": "weather", "parameters": SCHEMA}]},
    "schema": {"input": "Go.", "text": {"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA}}},
}


def item(body: dict[str, Any]) -> Item:
    return Item(ordinal=0, content=Asked(body=orjson.dumps(body)), tokens=0)


def planned(prompt: Prompt) -> int:
    return prompt.tokens + sum(estimate(len(text)) for text in prompt.texts)


@pytest.mark.parametrize("name", CHATS)
def test_a_chat_is_billed_as_planned(name: str) -> None:
    body = CHATS[name]
    billed = billed_tokens(body, body["messages"], "tools", "functions", "response_format")
    assert billed == planned(chat_prompt([item(body)]))


@pytest.mark.parametrize("name", RESPONSES)
def test_a_response_is_billed_as_planned(name: str) -> None:
    body = RESPONSES[name]
    assert billed_tokens(body, framed(body), "tools", "text") == planned(responses_prompt([item(body)]))


@pytest.mark.parametrize("told", ["tools", "response_format"])
def test_what_the_model_is_told_beside_its_messages_is_billed(told: str) -> None:
    bare = CHATS["text"]
    body = {**bare, told: CHATS["tools" if told == "tools" else "schema"][told]}
    assert billed_tokens(body, body["messages"], told) > billed_tokens(bare, bare["messages"], told) + 20
