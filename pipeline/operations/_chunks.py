"""Puts the chunks of a streamed chat or text completion together, as the service would have sent it in one piece."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from pipeline.model import Reply
from pipeline.operations._json import bad_reply, read_object
from pipeline.operations._sse import arrived_ms, events, is_stream, read_event

Kind = Literal["chat.completion", "text_completion"]

_DONE = b"[DONE]"
# Fields that services repeat in every chunk: the first word stands, while other texts are continued.
_SAID_ONCE = frozenset({"role", "id", "type", "name"})
_CHUNKS_OWN = frozenset({"choices", "object", "obfuscation", "usage"})
_FILTERED = "content_filter"
_FIRST_TOKENS = ("content", "refusal", "tool_calls", "function_call")


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A whole answer. `response` is its JSON; `first_token_ms` is None where it was not streamed."""

    root: dict[str, Any]
    response: bytes
    first_token_ms: float | None = None


class _Pieces(list[str]):
    """A text that is still coming."""


@dataclass(slots=True)
class _Choice:
    """One choice, as far as it came."""

    message: dict[str, Any] | None = None
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    text: _Pieces | None = None
    logprobs: dict[str, Any] = field(default_factory=dict)
    filtered: dict[str, Any] = field(default_factory=dict)
    finish_reason: str | None = None


def read_completion(reply: Reply, *, streamed: bool, kind: Kind) -> Completion:
    """Read a 2xx reply. Plain JSON is taken where a stream was asked for: some services ignore `stream`.

    Raises ReplyError for what is no answer, and for every stream that was cut: one without `[DONE]`, or with a choice
    that has no finish_reason. Raises StreamRefused where the content filter ended the stream by an error.
    """
    if not streamed or not is_stream(reply.body):
        return Completion(root=read_object(reply), response=reply.body)
    try:
        root, first_end = _assembled(reply.body, kind)
        response = orjson.dumps(root)
    except (RecursionError, orjson.JSONEncodeError):
        raise bad_reply("the stream nests too deep") from None
    return Completion(
        root=root, response=response, first_token_ms=None if first_end is None else arrived_ms(reply, first_end)
    )


def read_choices(root: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The choices of a chat or text completion, by their index. Raises ReplyError where they are none."""
    choices = root.get("choices")
    if type(choices) is not list or not choices:
        raise bad_reply("the reply holds no choices")
    if any(type(choice) is not dict for choice in choices):
        raise bad_reply("a choice is no object")
    if len(choices) > 1:
        if any(type(choice.get("index")) is not int for choice in choices):
            raise bad_reply("a choice has no index")
        choices.sort(key=lambda choice: choice["index"])
    if type(choices[0].get("finish_reason")) not in (str, type(None)):
        raise bad_reply("finish_reason is no text")
    return choices


def _assembled(body: bytes, kind: Kind) -> tuple[dict[str, Any], int | None]:
    """The whole answer, and how many bytes had to come for its first token."""
    root: dict[str, Any] = {"object": kind}
    usage: Any = None
    choices: dict[int, _Choice] = {}
    first_end: int | None = None
    for event in events(body):
        if event.data.strip() == _DONE:
            break
        chunk = read_event(event)
        _take_root(root, chunk)
        usage = chunk.get("usage") or usage
        if _take_choices(choices, chunk.get("choices")) and first_end is None:
            first_end = event.end
    else:
        raise bad_reply(f"the stream ended before its [DONE] ({len(body)} bytes); it was cut")
    if not choices:
        raise bad_reply("the stream holds no choices")
    root["choices"] = [_whole_choice(index, choices[index], kind) for index in sorted(choices)]
    root["usage"] = usage
    return root, first_end


def _take_root(root: dict[str, Any], chunk: Mapping[str, Any]) -> None:
    """Keep the first word of everything beside the choices; of lists (the prompt's filter results) every entry."""
    for key, value in chunk.items():
        if key in _CHUNKS_OWN or not value:
            continue
        held = root.get(key)
        if type(held) is list and type(value) is list:
            held.extend(value)
        elif held is None:
            root[key] = value


def _take_choices(choices: dict[int, _Choice], parts: Any) -> bool:
    """Take a chunk's part of every choice; True when one of them holds a token of the answer."""
    if parts is None:
        return False
    if type(parts) is not list:
        raise bad_reply("the choices of a chunk are no list")
    spoke = False
    for part in parts:
        if type(part) is not dict:
            raise bad_reply("a choice of a chunk is no object")
        index = part.get("index", 0)
        if type(index) is not int:
            raise bad_reply("a choice of a chunk has no index")
        spoke = _take_choice(choices.setdefault(index, _Choice()), part) or spoke
    return spoke


def _take_choice(choice: _Choice, part: Mapping[str, Any]) -> bool:
    """Take what a chunk says of one choice; each of its parts may be absent, and come after the finish_reason."""
    delta, text, logprobs, finish_reason = (part.get(key) for key in ("delta", "text", "logprobs", "finish_reason"))
    if delta is not None:
        if type(delta) is not dict:
            raise bad_reply("the delta of a chunk is no object")
        choice.message = {} if choice.message is None else choice.message
        _merge_calls(choice.calls, delta.get("tool_calls"))
        _merge(choice.message, {key: value for key, value in delta.items() if key != "tool_calls"})
    if text is not None:
        if type(text) is not str:
            raise bad_reply("the text of a chunk is no text")
        choice.text = _Pieces() if choice.text is None else choice.text
        choice.text.append(text)
    if type(logprobs) is dict:
        _merge(choice.logprobs, logprobs)
    if finish_reason is not None:
        if type(finish_reason) is not str:
            raise bad_reply("finish_reason is no text")
        # A filter that works behind the stream may overrule an end that was told already. Some services say nothing
        # by an empty text.
        if finish_reason and choice.finish_reason != _FILTERED:
            choice.finish_reason = finish_reason
    _take_verdict(choice.filtered, part)
    return bool(text) or (delta is not None and any(delta.get(key) for key in _FIRST_TOKENS))


def _take_verdict(held: dict[str, Any], part: Mapping[str, Any]) -> None:
    """Take the filter's results, which come again and again: what was filtered once stays filtered."""
    found = part.get("content_filter_results") or part.get("content_filter_result")
    if type(found) is not dict:
        return
    for kind, verdict in found.items():
        before = held.get(kind)
        if not (type(before) is dict and before.get("filtered") is True):
            held[kind] = verdict


def _merge(held: dict[str, Any], delta: Mapping[str, Any]) -> None:
    """Continue what is held by what has come: texts and lists grow, objects are merged, the rest is replaced."""
    for key, value in delta.items():
        before = held.get(key)
        if value is None:
            held.setdefault(key, None)
        elif type(value) is str and key in _SAID_ONCE:
            held[key] = before or value
        elif before is not None and _grows(before) is not _grows(value):
            raise bad_reply("the stream's pieces do not fit together")
        elif type(value) is str:
            held[key] = _Pieces() if before is None else before
            held[key].append(value)
        elif type(value) is list:
            held[key] = [] if before is None else before
            held[key].extend(value)
        elif type(value) is dict:
            held[key] = {} if before is None else before
            _merge(held[key], value)
        else:
            held[key] = value


def _grows(value: Any) -> type | None:
    """In which way a value is continued: as a text, a list or an object; None where it is replaced."""
    kind = type(value)
    return str if kind is _Pieces else kind if kind in (str, list, dict) else None


def _merge_calls(calls: dict[int, dict[str, Any]], deltas: Any) -> None:
    """Continue tool calls by their index; a call without one goes on with the last, unless it brings an id."""
    if deltas is None:
        return
    if type(deltas) is not list:
        raise bad_reply("the tool calls of a chunk are no list")
    for delta in deltas:
        if type(delta) is not dict:
            raise bad_reply("a tool call of a chunk is no object")
        index = delta.get("index")
        if type(index) is not int:
            last = max(calls, default=-1)
            index = last + 1 if delta.get("id") or last < 0 else last
        _merge(calls.setdefault(index, {}), {key: value for key, value in delta.items() if key != "index"})


def _whole_choice(index: int, choice: _Choice, kind: Kind) -> dict[str, Any]:
    if choice.finish_reason is None:
        raise bad_reply("the stream ended before its answer did: a choice has no finish_reason")
    whole: dict[str, Any] = {"index": index}
    if kind == "chat.completion":
        message = {"role": "assistant", "content": None, **_whole(choice.message or {})}
        if choice.calls:
            message["tool_calls"] = [_whole(choice.calls[number]) for number in sorted(choice.calls)]
        whole["message"] = message
    else:
        whole["text"] = "".join(choice.text or ())
    whole["finish_reason"] = choice.finish_reason
    whole["logprobs"] = _whole(choice.logprobs) or None
    if choice.filtered:
        whole["content_filter_results"] = choice.filtered
    return whole


def _whole(value: Any) -> Any:
    """Join the texts that came in pieces."""
    if type(value) is _Pieces:
        return "".join(value)
    if type(value) is dict:
        return {key: _whole(each) for key, each in value.items()}
    return value
