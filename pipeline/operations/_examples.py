"""What an example of a training must be: its messages, its pairs, its tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.errors import RowError
from pipeline.job.tokens import count
from pipeline.operations._json import write_body

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_ANSWERING = frozenset({"assistant", "tool"})
_CALLS = ("tool_calls", "function_call")
_TOKENS_A_MESSAGE = 3
"""What the chat format itself takes for each message, and once for each example (OpenAI's cookbook)."""


def tidied(body: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what tables hold because other rows have it: null fields, also of messages; make 1.0 a weight of 1."""
    given = {name: value for name, value in body.items() if value is not None}
    if isinstance(given.get("input"), Mapping):
        given["input"] = {name: _tidied(value) for name, value in given["input"].items() if value is not None}
    return {name: _tidied(value) for name, value in given.items()}


def _tidied(messages: Any) -> Any:
    if not isinstance(messages, list):
        return messages
    return [_tidied_message(message) if isinstance(message, dict) else message for message in messages]


def _tidied_message(message: dict[str, Any]) -> dict[str, Any]:
    weight = message.get("weight")
    given = {name: value for name, value in message.items() if value is not None or name == "content"}
    if isinstance(weight, float) and weight.is_integer():
        given["weight"] = int(weight)
    return given


def check_chat(body: Mapping[str, Any]) -> None:
    """Check a chat example. Raises RowError, whose code says what is wrong."""
    messages = _messages(body.get("messages"), "request.messages")
    for index, message in enumerate(messages):
        _check_weight(message, f"request.messages.{index}")
    if messages[-1]["role"] != "assistant":
        raise RowError(
            code="last_message", message="request.messages does not end with a message from the assistant to learn from"
        )
    if all(message.get("weight") == 0 for message in messages if message["role"] == "assistant"):
        raise RowError(
            code="weight",
            message="request.messages gives every message from the assistant the weight 0: none is learnt",
        )
    _check_tools(body)


def check_pair(body: Mapping[str, Any]) -> None:
    """Check a preference pair. Raises RowError, whose code says what is wrong."""
    asked = body.get("input")
    if not isinstance(asked, Mapping):
        raise RowError(code="type", message="request.input is no object with `messages`")
    messages = _messages(asked.get("messages"), "request.input.messages")
    if messages[-1]["role"] == "assistant":
        raise RowError(
            code="last_message",
            message="request.input.messages ends with a message from the assistant: that belongs in both outputs",
        )
    for name in ("preferred_output", "non_preferred_output"):
        output = _messages(body.get(name), f"request.{name}")
        for index, message in enumerate(output):
            if message["role"] not in _ANSWERING:
                raise RowError(
                    code="role", message=f"request.{name}.{index} has the role {message['role']}, not assistant or tool"
                )
        if output[-1]["role"] != "assistant":
            raise RowError(code="last_message", message=f"request.{name} does not end with the assistant")
    if body["preferred_output"] == body["non_preferred_output"]:
        raise RowError(code="same_outputs", message="request.preferred_output and non_preferred_output are the same")
    _check_tools(asked)


def example_tokens(body: Mapping[str, Any], model: str) -> int:
    """Count an example's tokens, as the service bills them: exactly where the tokenizer is installed, but for tools."""
    texts, messages = [], 1
    for message in _all_messages(body):
        messages += 1
        texts += list(_texts(message))
    if body.get("tools"):
        texts.append(write_body({"tools": body["tools"]}).decode())
    return sum(count(texts, model)) + _TOKENS_A_MESSAGE * messages


def _all_messages(body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if "messages" in body:
        yield from body["messages"]
        return
    yield from body["input"]["messages"]
    yield from body["preferred_output"]
    yield from body["non_preferred_output"]


def _texts(message: Mapping[str, Any]) -> Iterator[str]:
    content = message.get("content")
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        yield from (part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
    yield from (write_body({name: message[name]}).decode() for name in _CALLS if message.get(name))


def _messages(value: Any, path: str) -> list[dict[str, Any]]:
    """Check a list of messages, each with a role and something said."""
    if value is None or value == []:
        raise RowError(code="empty", message=f"{path} is empty or null")
    if not isinstance(value, list):
        raise RowError(code="type", message=f"{path} is {type(value).__name__}, not a list of messages")
    for index, message in enumerate(value):
        where = f"{path}.{index}"
        if not isinstance(message, dict):
            raise RowError(
                code="type", message=f"{where} is {type(message).__name__}, not an object with role and content"
            )
        role = message.get("role")
        if not isinstance(role, str) or role not in ROLES:
            raise RowError(code="role", message=f"{where} has none of the roles {', '.join(sorted(ROLES))}")
        _check_content(message, where)
    return value


def _check_content(message: Mapping[str, Any], where: str) -> None:
    content = message.get("content")
    calls = message["role"] == "assistant" and any(message.get(name) for name in _CALLS)
    if content in (None, "", []) and not calls:
        raise RowError(code="empty", message=f"{where} says nothing: its content is empty or null")
    if content is not None and not isinstance(content, str | list):
        raise RowError(code="type", message=f"{where} has a content that is neither text nor a list of parts")
    if isinstance(content, list) and not all(isinstance(part, dict) and part.get("type") for part in content):
        raise RowError(code="type", message=f"{where} has a part of its content without a type")
    if message["role"] == "tool" and not isinstance(message.get("tool_call_id"), str):
        raise RowError(code="tool_call_id", message=f"{where} is from a tool and names no tool_call_id")


def _check_weight(message: Mapping[str, Any], where: str) -> None:
    if message.get("weight") is None:
        return
    if message["role"] != "assistant":
        raise RowError(code="weight", message=f"{where} has a weight, which messages from the assistant alone may have")
    if type(message["weight"]) is not int or message["weight"] not in (0, 1):
        raise RowError(code="weight", message=f"{where} has a weight that is neither 0 nor 1")


def _check_tools(body: Mapping[str, Any]) -> None:
    tools = body.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise RowError(code="type", message="tools is no list of objects")
    if not isinstance(body.get("parallel_tool_calls"), bool | None):
        raise RowError(code="type", message="parallel_tool_calls is neither true nor false")
