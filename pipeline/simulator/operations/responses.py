"""Responses: an extract of the last user's message, tagged with a digest of the whole input; JSON or typed events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from pipeline.simulator.base import (
    Answer,
    Asked,
    JsonOperation,
    Occasion,
    Place,
    Versions,
    bad_request,
    estimated_tokens,
)
from pipeline.simulator.config import SimulatorConfig
from pipeline.simulator.cost import Rounding
from pipeline.simulator.ledger import messages_key
from pipeline.simulator.operations._billed import billed_tokens
from pipeline.simulator.operations._filters import FILTERED_JSON, PROMPT_SAFE_JSON, SAFE_JSON
from pipeline.simulator.operations._responses_checks import check_responses, item_text
from pipeline.simulator.operations._text import Lengths, cut_to, first_sentence, fit_json, pieces, typed_event

_REASONING_TOKENS = 64
_CHARACTERS_OF_ARGUMENTS = 16
_ECHOED: Mapping[str, Any] = {  # what an answer repeats of its request, and what it says where the request says nothing
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "default",
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Output:
    """What is answered: text, a function's arguments, or nothing; and how it ended."""

    text: str = ""
    call: Mapping[str, Any] | None = None
    status: str = "completed"
    incomplete_reason: str | None = None
    error: Mapping[str, str] | None = None
    tokens: int = 0
    reasoning_tokens: int = 0


class Responses(JsonOperation):
    """POST …/responses; answers are not kept, so that none can be fetched or continued."""

    name = "responses"
    path = "responses"
    field = "input"
    azure_name = "Responses_Create"
    deployment_in_path = False
    versions = Versions(since="2025-03-01-preview", preview=True)
    can_fail = True

    def __init__(self, *, lengths: Lengths | None = None) -> None:
        self._lengths = lengths or Lengths()

    def read(self, body: Mapping[str, Any], place: Place) -> Asked:
        """Check the fields; charge the instructions, the input with its pictures, and what may be answered."""
        check_responses(body, place)
        given = body["input"]
        texts = (given,) if isinstance(given, str) else tuple(map(item_text, given))
        prompt_tokens = estimated_tokens(body.get("instructions") or "") + sum(map(estimated_tokens, texts))
        if prompt_tokens > place.facts.context_tokens:
            raise bad_request(
                "Your input exceeds the context window of this model. Please adjust your input and try again.",
                param="input",
                code="context_length_exceeded",
            )
        charge = place.cost.charge(
            texts=(body.get("instructions") or "", *texts),
            rounding=Rounding.EACH,
            most=body.get("max_output_tokens"),
            pictures=() if isinstance(given, str) else tuple(_pictures(given)),
        )
        return Asked(
            body=body,
            tokens=charge.tokens,
            answer_tokens=charge.answer,
            keys=(messages_key(given),),
            texts=texts,
        )

    def answer(self, asked: Asked, place: Place, occasion: Occasion) -> Answer:
        """Answer with text, JSON that fits the schema, or a call of a function; as typed events where asked."""
        output = _answer(asked, place, occasion, self._lengths)
        response = _response(asked, place, occasion, output)
        tokens = output.tokens + output.reasoning_tokens
        if asked.body.get("stream"):
            stream = _Stream()
            events = tuple(stream.tell(response, output))
            return Answer(events=events, output_tokens=tokens, error_event=_error_event(len(events)))
        return Answer(body=orjson.dumps(response), output_tokens=tokens)


def make_operation(config: SimulatorConfig) -> Responses:
    """Make the operation with answers as long as the configuration wants."""
    return Responses(lengths=Lengths.of(config))


def _pictures(items: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Give the detail of each picture, empty where the request does not say."""
    for item in items:
        content = item.get("content")
        for part in content if isinstance(content, list) else ():
            if part.get("type") == "input_image":
                yield str(part.get("detail") or "")


def _summary(asked: Asked) -> str:
    given = asked.body["input"]
    if isinstance(given, str):
        return first_sentence(given)
    for item, text in zip(reversed(given), reversed(asked.texts), strict=True):
        if item.get("role") == "user":
            return first_sentence(text)
    return ""


def _answer(asked: Asked, place: Place, occasion: Occasion, lengths: Lengths) -> _Output:
    body = asked.body
    key = asked.keys[0]
    if occasion.failure is not None:
        error = {"code": occasion.failure.code, "message": occasion.failure.message}
        return _Output(status="failed", error=error)
    if occasion.filtered:
        return _Output(status="incomplete", incomplete_reason="content_filter")
    most = body.get("max_output_tokens")
    reasoning = _reasoning_tokens(body, place)
    text = f"{_summary(asked)} [sha:{key[:8]}]".lstrip()
    function = _function(body)
    if function is not None:
        arguments = fit_json(function.get("parameters") or {}, text, key, param="tools")
        call = {"call_id": f"call_{key}", "name": function["name"], "arguments": arguments}
        return _Output(call=call, tokens=estimated_tokens(arguments) + 8, reasoning_tokens=reasoning)
    wanted = (body.get("text") or {}).get("format") or {}
    if wanted.get("type") == "json_schema":
        text = fit_json(wanted["schema"], text, key, param="text.format.schema")
    elif wanted.get("type") == "json_object":
        text = orjson.dumps({"summary": text}).decode()
    else:
        text = lengths.lengthen(text, key)
    text, is_cut = cut_to(text, None if most is None else max(0, most - reasoning))
    return _Output(
        text=text,
        status="incomplete" if is_cut else "completed",
        incomplete_reason="max_output_tokens" if is_cut else None,
        tokens=estimated_tokens(text),
        reasoning_tokens=reasoning,
    )


def _reasoning_tokens(body: Mapping[str, Any], place: Place) -> int:
    if not place.facts.reasons or (body.get("reasoning") or {}).get("effort") in ("none", "minimal"):
        return 0
    return min(_REASONING_TOKENS, body.get("max_output_tokens") or _REASONING_TOKENS)


def _function(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Find the function that is called: the one named, else the first, but never in answer to a function's output."""
    functions: list[Mapping[str, Any]] = [tool for tool in body.get("tools") or () if tool["type"] == "function"]
    choice = body.get("tool_choice") or "auto"
    if not functions or choice == "none":
        return None
    if isinstance(choice, dict):
        return next((function for function in functions if function["name"] == choice.get("name")), functions[0])
    given = body["input"]
    if choice == "auto" and isinstance(given, list) and given[-1].get("type") == "function_call_output":
        return None
    return functions[0]


def _items(key: str, output: _Output, *, reasons: bool) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    if reasons and output.reasoning_tokens:
        items.append({"id": f"rs_{key}", "type": "reasoning", "summary": []})
    if output.call is not None:
        items.append({"id": f"fc_{key}", "type": "function_call", "status": "completed", **output.call})
    elif output.text:
        part = {"type": "output_text", "annotations": [], "logprobs": [], "text": output.text}
        message = {"id": f"msg_{key}", "type": "message", "status": output.status, "role": "assistant"}
        items.append({**message, "content": [part]})
    return items


def framed(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Give what is billed as messages: instructions are one, as any other."""
    given, instructions = body["input"], body.get("instructions")
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else list(given)
    return [{"role": "system", "content": instructions}, *messages] if instructions else messages


def _response(asked: Asked, place: Place, occasion: Occasion, output: _Output) -> dict[str, Any]:
    body = asked.body
    reason = output.incomplete_reason
    echoed = {name: default if body.get(name) is None else body[name] for name, default in _ECHOED.items()}
    prompt = billed_tokens(body, framed(body), "tools", "text")
    answered = output.tokens + output.reasoning_tokens
    response = {
        "id": f"resp_{asked.keys[0]}",
        "object": "response",
        "created_at": occasion.created_s,
        "status": output.status,
        "background": False,
        "error": output.error,
        "incomplete_details": None if reason is None else {"reason": reason},
        "model": place.model,
        "output": _items(asked.keys[0], output, reasons=place.facts.reasons),
        **echoed,
        "usage": {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": answered,
            "output_tokens_details": {"reasoning_tokens": output.reasoning_tokens},
            "total_tokens": prompt + answered,
        },
    }
    if place.family.azure and output.error is None:
        response["content_filters"] = _filters(blocked=reason == "content_filter")
    return response


def _filters(*, blocked: bool) -> list[dict[str, Any]]:
    return [
        {"blocked": False, "source_type": "prompt", "content_filter_results": PROMPT_SAFE_JSON},
        {
            "blocked": blocked,
            "source_type": "completion",
            "content_filter_results": FILTERED_JSON if blocked else SAFE_JSON,
        },
    ]


@dataclass(slots=True)
class _Stream:
    """Writes a stream's events and numbers them."""

    _number: int = field(default=0)

    def tell(self, response: Mapping[str, Any], output: _Output) -> Iterator[bytes]:
        """Tell a response from its creation to its end."""
        begun = {**response, "status": "in_progress", "output": [], "usage": None, "error": None}
        begun["incomplete_details"] = None
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        for index, item in enumerate(response["output"]):
            yield from self._tell_item(index, item)
        yield self._event(f"response.{output.status}", response=response)

    def _tell_item(self, index: int, item: Mapping[str, Any]) -> Iterator[bytes]:
        empty: dict[str, Any] = {"arguments": ""} if item["type"] == "function_call" else {"content": []}
        opening = item if item["type"] == "reasoning" else {**item, "status": "in_progress", **empty}
        yield self._event("response.output_item.added", output_index=index, item=opening)
        if item["type"] == "message":
            yield from self._tell_text({"item_id": item["id"], "output_index": index}, item["content"][0])
        elif item["type"] == "function_call":
            yield from self._tell_arguments({"item_id": item["id"], "output_index": index}, item["arguments"])
        yield self._event("response.output_item.done", output_index=index, item=item)

    def _tell_text(self, where: Mapping[str, Any], part: Mapping[str, Any]) -> Iterator[bytes]:
        where = {**where, "content_index": 0}
        yield self._event("response.content_part.added", **where, part={**part, "text": ""})
        for piece in pieces(part["text"]):
            yield self._event("response.output_text.delta", **where, delta=piece, logprobs=[])
        yield self._event("response.output_text.done", **where, text=part["text"], logprobs=[])
        yield self._event("response.content_part.done", **where, part=part)

    def _tell_arguments(self, where: Mapping[str, Any], arguments: str) -> Iterator[bytes]:
        for piece in _slices(arguments):
            yield self._event("response.function_call_arguments.delta", **where, delta=piece)
        yield self._event("response.function_call_arguments.done", **where, arguments=arguments)

    def _event(self, kind: str, **values: Any) -> bytes:
        event = typed_event({"type": kind, "sequence_number": self._number, **values})
        self._number += 1
        return event


def _slices(text: str) -> Sequence[str]:
    size = _CHARACTERS_OF_ARGUMENTS
    return [text[start : start + size] for start in range(0, len(text), size)]


def _error_event(number: int) -> bytes:
    return typed_event(
        {
            "type": "error",
            "sequence_number": number,
            "code": "server_error",
            "message": "The server had an error while processing your request. Sorry about that!",
            "param": None,
        }
    )
