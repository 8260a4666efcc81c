"""What a prompt is billed for: its texts, what frames a message, and what the model is told of tools and schemas.

The product counts the same in a module of its own: a service that borrowed its client's count could not witness it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from pipeline.simulator.base import estimated_tokens

# Source: OpenAI's cookbook on counting tokens of chats.
_ANSWER_BEGINS_TOKENS = 3
_MESSAGE_TOKENS = 3
_NAME_TOKENS = 1

_UNREAD = frozenset({"role", "type", "id", "call_id", "tool_call_id", "status", "detail", "file_id"})
_NO_TEXT = frozenset({"image_url", "input_audio", "file_data", "encrypted_content"})


def billed_tokens(body: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], *told: str) -> int:
    """Count a prompt's tokens but for its pictures; `told` are the body's fields that the model reads as JSON."""
    framed = sum(_MESSAGE_TOKENS + (_NAME_TOKENS if message.get("name") else 0) for message in messages)
    read = sum(estimated_tokens(text) for message in messages for text in _texts(message))
    written = sum(estimated_tokens(orjson.dumps(body[name]).decode()) for name in told if body.get(name))
    return _ANSWER_BEGINS_TOKENS + framed + read + written


def _texts(node: Any) -> Iterator[str]:
    """Give every text in a message that a model reads, calls of tools among them."""
    match node:
        case str():
            yield node
        case list():
            for part in node:
                yield from _texts(part)
        case dict():
            for name, value in node.items():
                if name not in _UNREAD and name not in _NO_TEXT:
                    yield from _texts(value)
