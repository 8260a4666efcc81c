"""Chat completions: an extract of the last user's message, tagged with a digest of all messages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from pipeline.simulator.base import Answer, Asked, JsonOperation, Occasion, Place, bad_request, estimated_tokens
from pipeline.simulator.config import Quirk, SimulatorConfig
from pipeline.simulator.cost import Rounding
from pipeline.simulator.ledger import messages_key
from pipeline.simulator.operations._billed import billed_tokens
from pipeline.simulator.operations._chat_checks import check_chat, message_text
from pipeline.simulator.operations._filters import FILTERED_JSON, PROMPT_JSON, SAFE_JSON
from pipeline.simulator.operations._text import (
    Lengths,
    cut_to,
    data_event,
    first_sentence,
    fit_json,
    pieces,
    stop_at,
)

_SMALL_PICTURE_TOKENS = 85
_PICTURE_TOKENS = 765
_REASONING_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """What one choice says. `tool_calls` is empty where it is text."""

    text: str
    tool_calls: tuple[dict[str, Any], ...]
    finish_reason: str
    tokens: int


class Chat(JsonOperation):
    """POST …/chat/completions."""

    name = "chat"
    path = "chat/completions"
    field = "messages"
    azure_name = "ChatCompletions_Create"

    def __init__(self, *, async_filter: bool = False, lengths: Lengths | None = None) -> None:
        self._async_filter = async_filter
        self._lengths = lengths or Lengths()

    def read(self, body: Mapping[str, Any], place: Place) -> Asked:
        """Check the fields; charge the messages with their pictures, and what may be answered."""
        check_chat(body, place)
        messages = body["messages"]
        texts = []
        characters = 0
        for message in messages:
            text = message_text(message)
            characters += len(text)
            texts.append(text)
        prompt_tokens = math.ceil(characters / 4)
        if prompt_tokens > place.facts.context_tokens:
            raise bad_request(
                f"This model's maximum context length is {place.facts.context_tokens} tokens. However, your messages "
                f"resulted in {prompt_tokens} tokens. Please reduce the length of the messages.",
                param="messages",
                code="context_length_exceeded",
            )
        charge = place.cost.charge(
            texts=texts,
            rounding=Rounding.SUM,
            most=_most_tokens(body),
            choices=body.get("n") or 1,
            pictures=_pictures(messages),
        )
        return Asked(
            body=body,
            tokens=charge.tokens,
            answer_tokens=charge.answer,
            keys=(messages_key(messages),),
            texts=tuple(texts),
        )

    def answer(self, asked: Asked, place: Place, occasion: Occasion) -> Answer:
        """Answer with text, JSON that fits the schema, or a call of a tool; streamed where asked."""
        key = asked.keys[0]
        filtered = occasion.filtered
        count = asked.body.get("n") or 1
        choices = [_choose(asked, place, index, self._lengths, filtered=filtered) for index in range(count)]
        usage = _usage(asked, place, choices)
        head = {
            "id": f"chatcmpl-{key}",
            "object": "chat.completion",
            "created": occasion.created_s,
            "model": place.model,
            "system_fingerprint": f"fp_{key[:10]}",
        }
        output_tokens = sum(choice.tokens for choice in choices)
        if asked.body.get("stream"):
            events = _events(asked, place, head, choices, usage)
            if self._async_filter and place.family.azure:
                events = _with_late_filter(events, head, asked, choices)
            return Answer(events=tuple(events), output_tokens=output_tokens)
        body: dict[str, Any] = {
            **head,
            "choices": [_full_choice(asked, place, index, choice) for index, choice in enumerate(choices)],
            "usage": usage,
        }
        if place.family.azure:
            body["prompt_filter_results"] = PROMPT_JSON
        else:
            body["service_tier"] = "default"
        return Answer(body=orjson.dumps(body), output_tokens=output_tokens)


def make_operation(config: SimulatorConfig) -> Chat:
    """Make the operation with the service's quirks that the configuration wants."""
    return Chat(async_filter=Quirk.ASYNC_FILTER in config.quirks, lengths=Lengths.of(config))


def _pictures(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Give the detail of each picture, empty where the request does not say."""
    parts = [part for message in messages if isinstance(message.get("content"), list) for part in message["content"]]
    pictures = [part.get("image_url") for part in parts if part.get("type") == "image_url"]
    return [str(picture.get("detail") or "") if isinstance(picture, dict) else "" for picture in pictures]


def _most_tokens(body: Mapping[str, Any]) -> int | None:
    return body.get("max_completion_tokens") or body.get("max_tokens")


def _summary(asked: Asked) -> str:
    """Take the first sentence of the last message that a user wrote."""
    messages: Sequence[Mapping[str, Any]] = asked.body["messages"]
    for message, text in zip(reversed(messages), reversed(asked.texts), strict=True):
        if message["role"] == "user":
            return first_sentence(text)
    return ""


def _choose(asked: Asked, place: Place, index: int, lengths: Lengths, *, filtered: bool) -> _Choice:
    body = asked.body
    key = asked.keys[0]
    tag = f"[sha:{key[:8]}]" if index == 0 else f"[sha:{key[:8]} choice:{index}]"
    text = f"{_summary(asked)} {tag}".lstrip()
    if filtered:
        return _Choice(text="", tool_calls=(), finish_reason="content_filter", tokens=0)
    tool = _tool(body)
    if tool is not None:
        arguments = fit_json(tool.get("parameters") or {}, text, f"{key}#{index}", param="tools")
        call = {
            "id": f"call_{key}{index:04x}",
            "type": "function",
            "function": {"name": tool["name"], "arguments": arguments},
        }
        named = isinstance(body.get("tool_choice"), dict)
        finish = "stop" if named else "tool_calls"
        return _Choice(text="", tool_calls=(call,), finish_reason=finish, tokens=estimated_tokens(arguments) + 8)
    wanted = body.get("response_format") or {}
    if wanted.get("type") == "json_schema":
        schema = wanted["json_schema"].get("schema") or {}
        text = fit_json(schema, text, f"{key}#{index}", param="response_format")
    elif wanted.get("type") == "json_object":
        text = orjson.dumps({"summary": text}).decode()
    else:
        text = lengths.lengthen(text, f"{key}#{index}")
    return _cut(text, body, place)


def _cut(text: str, body: Mapping[str, Any], place: Place) -> _Choice:
    most = _most_tokens(body)
    if most is not None:
        most = max(0, most - _reasoning_tokens(body, place))
    text, is_cut = cut_to(stop_at(text, body.get("stop")), most)
    reason = "length" if is_cut else "stop"
    return _Choice(text=text, tool_calls=(), finish_reason=reason, tokens=estimated_tokens(text))


def _tool(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Find the function that is called: the one named, else the first, but never in answer to a tool's own message."""
    functions: list[Mapping[str, Any]] = [tool["function"] for tool in body.get("tools") or ()]
    choice = body.get("tool_choice") or "auto"
    if not functions or choice == "none":
        return None
    if isinstance(choice, dict):
        return next(function for function in functions if function["name"] == choice["function"]["name"])
    if choice == "auto" and body["messages"][-1]["role"] == "tool":
        return None
    return functions[0]


def _reasoning_tokens(body: Mapping[str, Any], place: Place) -> int:
    if not place.facts.reasons or body.get("reasoning_effort") in ("none", "minimal"):
        return 0
    return min(_REASONING_TOKENS, _most_tokens(body) or _REASONING_TOKENS)


def _usage(asked: Asked, place: Place, choices: Sequence[_Choice]) -> dict[str, Any]:
    messages = asked.body["messages"]
    pictures = _pictures(messages)
    seen = sum(_SMALL_PICTURE_TOKENS if detail == "low" else _PICTURE_TOKENS for detail in pictures)
    prompt = billed_tokens(asked.body, messages, "tools", "functions", "response_format") + seen
    reasoning = _reasoning_tokens(asked.body, place) * len(choices)
    completion = sum(choice.tokens for choice in choices) + reasoning
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _logprobs(asked: Asked, choice: _Choice) -> dict[str, Any] | None:
    if not asked.body.get("logprobs"):
        return None
    pieces = [choice.text[start : start + 4] for start in range(0, len(choice.text), 4)]
    return {
        "content": [
            {"token": piece, "logprob": -0.01, "bytes": list(piece.encode()), "top_logprobs": []} for piece in pieces
        ],
        "refusal": None,
    }


def _full_choice(asked: Asked, place: Place, index: int, choice: _Choice) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if choice.tool_calls else choice.text,
        "refusal": None,
        "annotations": [],
    }
    if choice.tool_calls:
        message["tool_calls"] = choice.tool_calls
    full = {
        "index": index,
        "message": message,
        "finish_reason": choice.finish_reason,
        "logprobs": _logprobs(asked, choice),
    }
    if place.family.azure:
        full["content_filter_results"] = _filter_results(choice)
    return full


def _filter_results(choice: _Choice) -> orjson.Fragment | dict[str, Any]:
    if choice.tool_calls:
        return {}
    return FILTERED_JSON if choice.finish_reason == "content_filter" else SAFE_JSON


def _events(
    asked: Asked, place: Place, head: Mapping[str, Any], choices: Sequence[_Choice], usage: Mapping[str, Any]
) -> list[bytes]:
    """Make a stream's events, Azure's first one with its empty id and no choice among them."""
    azure = place.family.azure
    with_usage = (asked.body.get("stream_options") or {}).get("include_usage") is True
    head = {**head, "object": "chat.completion.chunk"}
    empty_usage = {"usage": None} if with_usage else {}
    events = []
    if azure:
        first = {
            "id": "",
            "object": "",
            "created": 0,
            "model": "",
            "prompt_filter_results": PROMPT_JSON,
            "choices": [],
        }
        events.append(data_event({**first, **empty_usage}))
    for index, choice in enumerate(choices):
        for delta in _deltas(choice):
            part: dict[str, Any] = {"index": index, "delta": delta, "finish_reason": None, "logprobs": None}
            if azure:
                part["content_filter_results"] = SAFE_JSON if delta.get("content") else {}
            events.append(data_event({**head, "choices": [part], **empty_usage}))
        last: dict[str, Any] = {"index": index, "delta": {}, "finish_reason": choice.finish_reason, "logprobs": None}
        if azure:
            last["content_filter_results"] = FILTERED_JSON if choice.finish_reason == "content_filter" else {}
        events.append(data_event({**head, "choices": [last], **empty_usage}))
    if with_usage:
        events.append(data_event({**head, "choices": [], "usage": usage}))
    events.append(b"data: [DONE]\n\n")
    return events


def _with_late_filter(
    events: Sequence[bytes], head: Mapping[str, Any], asked: Asked, choices: Sequence[_Choice]
) -> list[bytes]:
    """Add what an asynchronous filter says: events without a delta, the last of them behind the stream's own end.

    Its offsets count characters from the beginning of the prompt.
    """
    head = {**head, "object": "chat.completion.chunk"}
    start = sum(map(len, asked.texts))
    late = []
    for index, choice in enumerate(choices):
        offsets = {"check_offset": start, "start_offset": start, "end_offset": start + len(choice.text)}
        part: dict[str, Any] = {
            "index": index,
            "finish_reason": None,
            "content_filter_results": SAFE_JSON,
            "content_filter_raw": [],
            "content_filter_offsets": offsets,
        }
        late.append(data_event({**head, "choices": [part], "usage": None}))
    return [*events[:1], *late, *events[1:-1], *late, *events[-1:]]


def _deltas(choice: _Choice) -> list[dict[str, Any]]:
    if choice.tool_calls:
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": None}]
        for index, call in enumerate(choice.tool_calls):
            arguments = call["function"]["arguments"]
            opening = {**call, "index": index, "function": {"name": call["function"]["name"], "arguments": ""}}
            deltas.append({"tool_calls": [opening]})
            deltas += [
                {"tool_calls": [{"index": index, "function": {"arguments": arguments[start : start + 16]}}]}
                for start in range(0, len(arguments), 16)
            ]
        return deltas
    opening = {"role": "assistant", "content": "", "refusal": None}
    return [opening] + [{"content": piece} for piece in pieces(choice.text)]
