"""Refuses what a request of the Responses API must not hold, and reads the text of its input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.simulator.base import Place, bad_request, missing
from pipeline.simulator.operations._fields import Kinds, Ranges, check_choice, check_fields

_FIELDS: Kinds = {
    "background": bool,
    "conversation": (str, dict),
    "include": list,
    "input": (str, list),
    "instructions": str,
    "max_output_tokens": int,
    "max_tool_calls": int,
    "metadata": dict,
    "model": str,
    "parallel_tool_calls": bool,
    "previous_response_id": str,
    "prompt": dict,
    "prompt_cache_key": str,
    "reasoning": dict,
    "safety_identifier": str,
    "service_tier": str,
    "store": bool,
    "stream": bool,
    "stream_options": dict,
    "temperature": (int, float),
    "text": dict,
    "tool_choice": (str, dict),
    "tools": list,
    "top_logprobs": int,
    "top_p": (int, float),
    "truncation": str,
    "user": str,
}
_RANGES: Ranges = {
    "max_output_tokens": (16, None),
    "temperature": (0, 2),
    "top_p": (0, 1),
    "top_logprobs": (0, 20),
}
_NOT_PLAYED = ("background", "conversation", "prompt")
_FORMATS = ("text", "json_object", "json_schema")


def check_responses(body: Mapping[str, Any], place: Place) -> None:
    """Raise RefusedError for the first thing that is wrong."""
    check_fields(body, _FIELDS, _RANGES)
    for name in _NOT_PLAYED:
        if body.get(name):
            raise bad_request(f"'{name}' is not supported by this simulator.", param=name, code="unsupported_parameter")
    if body.get("previous_response_id"):
        raise bad_request(
            f"Previous response with id '{body['previous_response_id']}' not found.",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    _check_input(body.get("input"))
    check_choice("truncation", body.get("truncation"), ("auto", "disabled"))
    if place.facts.reasons and body.get("temperature") not in (None, 1):
        raise bad_request(
            "Unsupported parameter: 'temperature' is not supported with this model.",
            param="temperature",
            code="unsupported_parameter",
        )
    _check_tools(body.get("tools") or [], body.get("tool_choice"))
    _check_format((body.get("text") or {}).get("format") or {"type": "text"})


def item_text(item: Mapping[str, Any]) -> str:
    """Give the text of an item of the input, its parts joined by line ends: a message's, or a tool's output."""
    content = item.get("content", item.get("output"))
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(part["text"] for part in parts if isinstance(part.get("text"), str))


def _check_input(given: Any) -> None:
    if not given:
        raise missing("input")
    if isinstance(given, str):
        return
    for index, item in enumerate(given):
        kind = item.get("type", "message") if isinstance(item, dict) else None
        if not isinstance(kind, str) or (kind == "message" and not isinstance(item.get("role"), str)):
            raise bad_request(
                f"Invalid value: 'input[{index}]' is neither a message with a role nor an item with a type.",
                param=f"input[{index}]",
                code="invalid_value",
            )
        content = item.get("content", item.get("output"))
        parts = content if isinstance(content, list) else []
        if not isinstance(content, str | list | None) or not all(isinstance(part, dict) for part in parts):
            raise bad_request(
                f"Invalid type for 'input[{index}].content': expected one of a string or array of objects.",
                param=f"input[{index}].content",
                code="invalid_type",
            )


def _check_tools(tools: Sequence[Any], choice: Any) -> None:
    names = []
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict) or not isinstance(tool.get("type"), str):
            raise missing(f"tools[{index}].type")
        if tool["type"] == "function":
            if not isinstance(tool.get("name"), str):
                raise missing(f"tools[{index}].name")
            names.append(tool["name"])
    if isinstance(choice, dict) and choice.get("type") == "function" and choice.get("name") not in names:
        raise bad_request(
            f"Tool choice '{choice.get('name')}' not found in 'tools' parameter.",
            param="tool_choice",
            code="invalid_value",
        )


def _check_format(wanted: Mapping[str, Any]) -> None:
    check_choice("text.format.type", wanted.get("type", ""), _FORMATS)
    if wanted["type"] == "json_schema":
        for name, kind in (("name", str), ("schema", dict)):
            if not isinstance(wanted.get(name), kind):
                raise missing(f"text.format.{name}")
