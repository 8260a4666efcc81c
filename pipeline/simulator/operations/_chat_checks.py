"""Refuses what a chat request must not hold, in the service's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.simulator.base import Place, bad_request, missing
from pipeline.simulator.operations._fields import Kinds, check_fields, check_stops

_FIELDS: Kinds = {
    "audio": dict,
    "data_sources": list,
    "frequency_penalty": (int, float),
    "function_call": (str, dict),
    "functions": list,
    "logit_bias": dict,
    "logprobs": bool,
    "max_completion_tokens": int,
    "max_tokens": int,
    "messages": list,
    "metadata": dict,
    "modalities": list,
    "model": str,
    "n": int,
    "parallel_tool_calls": bool,
    "prediction": dict,
    "presence_penalty": (int, float),
    "prompt_cache_key": str,
    "reasoning_effort": str,
    "response_format": dict,
    "safety_identifier": str,
    "seed": int,
    "service_tier": str,
    "stop": (str, list),
    "store": bool,
    "stream": bool,
    "stream_options": dict,
    "temperature": (int, float),
    "tool_choice": (str, dict),
    "tools": list,
    "top_logprobs": int,
    "top_p": (int, float),
    "user": str,
    "user_security_context": dict,
    "verbosity": str,
    "web_search_options": dict,
}
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_RANGES: Mapping[str, tuple[float | None, float | None]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "n": (1, 128),
    "max_tokens": (1, None),
    "max_completion_tokens": (1, None),
    "top_logprobs": (0, 20),
}
_MOST_MESSAGES = 2_048
_MOST_TOOLS = 128


def message_text(message: Mapping[str, Any]) -> str:
    """Give a message's text, its parts joined by line ends."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content or () if isinstance(part.get("text"), str))


def check_chat(body: Mapping[str, Any], place: Place) -> None:
    """Raise RefusedError for the first thing that is wrong."""
    check_fields(body, _FIELDS, _RANGES)
    _check_messages(body.get("messages"))
    if place.facts.reasons:
        _check_reasoning(body)
    if body.get("tools") or body.get("tool_choice"):
        _check_tools(body.get("tools") or [], body.get("tool_choice"))
    if body.get("response_format"):
        _check_format(body["response_format"], body["messages"])
    check_stops(body.get("stop"))


def _check_messages(messages: Any) -> None:
    if messages is None:
        raise missing("messages")
    if not messages:
        raise bad_request(
            "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array instead.",
            param="messages",
            code="empty_array",
        )
    if len(messages) > _MOST_MESSAGES:
        raise bad_request(
            f"Invalid 'messages': array too long. Expected an array with maximum length {_MOST_MESSAGES}, but got an "
            f"array with length {len(messages)} instead.",
            param="messages",
            code="array_above_max_length",
        )
    for index, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else message
        if not isinstance(role, str) or role not in _ROLES:
            raise bad_request(
                f"Invalid value: '{role}'. Supported values are: 'system', 'assistant', 'user', 'function', 'tool', "
                "and 'developer'.",
                param=f"messages[{index}].role",
                code="invalid_value",
            )
        content = message.get("content")
        parts = content if isinstance(content, list) else []
        if not isinstance(content, str | list | None) or not all(isinstance(part, dict) for part in parts):
            raise bad_request(
                f"Invalid type for 'messages[{index}].content': expected one of a string or array of objects.",
                param=f"messages[{index}].content",
                code="invalid_type",
            )


def _check_reasoning(body: Mapping[str, Any]) -> None:
    if body.get("max_tokens") is not None:
        raise bad_request(
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' "
            "instead.",
            param="max_tokens",
            code="unsupported_parameter",
        )
    if body.get("temperature") not in (None, 1):
        raise bad_request(
            f"Unsupported value: 'temperature' does not support {body['temperature']} with this model. Only the "
            "default (1) value is supported.",
            param="temperature",
            code="unsupported_value",
        )


def _check_tools(tools: Sequence[Any], choice: Any) -> None:
    names = []
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise missing(f"tools[{index}].function")
        names.append(function["name"])
    if len(tools) > _MOST_TOOLS:
        raise bad_request(
            f"Invalid 'tools': array too long. Expected an array with maximum length {_MOST_TOOLS}, but got an array "
            f"with length {len(tools)} instead.",
            param="tools",
            code="array_above_max_length",
        )
    if choice is not None and not tools:
        raise bad_request("'tool_choice' is only allowed when 'tools' are specified.", param="tool_choice")
    if isinstance(choice, dict):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        if name not in names:
            raise bad_request(
                f"Tool choice '{name}' not found in 'tools' parameter.", param="tool_choice", code="invalid_value"
            )


def _check_format(wanted: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> None:
    match wanted.get("type"):
        case "text":
            return
        case "json_object":
            if not any("json" in message_text(message).lower() for message in messages):
                raise bad_request(
                    "'messages' must contain the word 'json' in some form, to use 'response_format' of type "
                    "'json_object'.",
                    param="messages",
                )
        case "json_schema":
            schema = wanted.get("json_schema")
            for name, kind in (("name", str), ("schema", dict)):
                if not isinstance(schema, dict) or not isinstance(schema.get(name), kind):
                    raise missing(f"response_format.json_schema.{name}")
        case other:
            raise bad_request(
                f"Invalid value: '{other}'. Supported values are: 'json_object', 'json_schema', and 'text'.",
                param="response_format.type",
                code="invalid_value",
            )
