"""What requests of the text operations are billed for: the texts of their prompts, and what bounds their tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from pipeline.operations._asked import DEFAULT_OUTPUT_TOKENS, Asked
from pipeline.operations._json import write_body
from pipeline.operations._pictures import LOW_DETAIL_PICTURE_TOKENS, MARK, PICTURE_TOKENS
from pipeline.operations.base import Bound, Prompt

if TYPE_CHECKING:
    from pipeline.model import Item

# Around each message, for a name, and before the answer. Source: OpenAI's cookbook on counting tokens of chats.
MESSAGE_TOKENS = 3
NAME_TOKENS = 1
ANSWER_BEGINS_TOKENS = 3

# The dearest picture: 2833 and 8 tiles of 5667, by the models that count a picture dearest (OpenAI's guide).
MOST_PICTURE_TOKENS = 48_169

# No model writes more for one answer: what a request without a bound of its own may cost.
MOST_OUTPUT_TOKENS = 131_072

# Parts that take more tokens than their bytes in the body. A quotation mark within a text is escaped there.
_PICTURE_KEYS = (b'"image_url":{', b'"input_image"', b'"input_file"')

_NOT_COUNTED = frozenset({"role", "type", "id", "call_id", "tool_call_id", "status", "detail", "file_id"})


def bound_of(items: Sequence[Item]) -> Bound:
    """Bound a request by its bytes: a token is at least one, and what frames a message is shorter than its JSON."""
    (item,) = items
    asked: Asked = item.content
    pictures = sum(asked.body.count(key) for key in _PICTURE_KEYS)
    most = asked.output_tokens if asked.bounds else asked.output_tokens // DEFAULT_OUTPUT_TOKENS * MOST_OUTPUT_TOKENS
    return Bound(input=len(asked.body) + pictures * MOST_PICTURE_TOKENS, output=most)


def body_of(items: Sequence[Item]) -> dict[str, Any]:
    """The request's body as JSON values, with nothing where its pictures are."""
    (item,) = items
    body: dict[str, Any] = orjson.loads(item.content.body.replace(MARK, b""))
    return body


def chat_prompt(items: Sequence[Item]) -> Prompt:
    """The texts of a chat's messages, tools and schema, and the frames of its messages."""
    body = body_of(items)
    messages = body["messages"]
    tokens = ANSWER_BEGINS_TOKENS + sum(_message_tokens(message) for message in messages)
    texts = [text for message in messages for text in _texts(message)]
    return Prompt(
        texts=(*texts, *_written(body, "tools", "functions", "response_format")), tokens=tokens, roles=len(messages)
    )


def responses_prompt(items: Sequence[Item]) -> Prompt:
    """The texts of a response's instructions, input, tools and format, and the frames of its items."""
    body = body_of(items)
    given = body.get("input")
    instructions = body.get("instructions")
    framed = [{"role": "user", "content": given}] if isinstance(given, str) else list(given or [])
    if isinstance(instructions, str) and instructions:
        framed.insert(0, {"role": "system", "content": instructions})
    tokens = ANSWER_BEGINS_TOKENS + sum(_message_tokens(item) for item in framed)
    texts = [text for item in framed for text in _texts(item)]
    return Prompt(texts=(*texts, *_written(body, "tools", "text")), tokens=tokens, roles=len(framed))


def completions_prompt(items: Sequence[Item]) -> Prompt:
    """The prompt: a text, or tokens already."""
    prompt = body_of(items)["prompt"]
    return Prompt(texts=(prompt,)) if isinstance(prompt, str) else Prompt(texts=(), tokens=len(prompt))


def _message_tokens(message: dict[str, Any]) -> int:
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    return (
        MESSAGE_TOKENS
        + (NAME_TOKENS if message.get("name") else 0)
        + sum(_picture_tokens(part) for part in parts if isinstance(part, dict))
    )


def _picture_tokens(part: dict[str, Any]) -> int:
    if part.get("type") not in ("image_url", "input_image"):
        return 0
    source = part.get("image_url")
    detail = source.get("detail") if isinstance(source, dict) else part.get("detail")
    return LOW_DETAIL_PICTURE_TOKENS if detail == "low" else PICTURE_TOKENS


def _texts(node: Any) -> Iterator[str]:
    """Every text of a message that is read by the model; pictures and recordings are none."""
    match node:
        case str():
            yield node
        case list():
            for part in node:
                yield from _texts(part)
        case dict():
            for key, value in node.items():
                if key not in _NOT_COUNTED and key not in (
                    "image_url",
                    "input_audio",
                    "file_data",
                    "encrypted_content",
                ):
                    yield from _texts(value)


def _written(body: dict[str, Any], *keys: str) -> Iterator[str]:
    """What the model is told of tools and schemas, which takes about as many tokens as their JSON."""
    for key in keys:
        if body.get(key):
            yield write_body(body[key]).decode()
