"""What items of the text operations hold, how they become a request, and how a truncated answer is asked for again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from pipeline.errors import RowError
from pipeline.model import Call, ErrorInfo, ErrorType, Item, RowResult, Target
from pipeline.operations._json import write_body
from pipeline.operations._pictures import MARK, Picture, data_url

# Azure's own admission estimate when a request names no bound on its answer (Microsoft's simulator of its quotas).
DEFAULT_OUTPUT_TOKENS = 16

_NO_BOUND = 2**31  # no service's context is as long: whatever it is, it is left to the service to judge

EVENT_STREAM = "text/event-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One row's request: `body` is its JSON object but for the model, the stream's fields and what bounds its answer.

    `bounds` are the fields that bound the answer, with their tokens; `output_tokens` is the part of the item's
    estimate that they make. `body` holds a mark for each of `pictures`, in order. `again` marks the second asking.
    `whole` is the item as the job wants it, where this one has a smaller bound.
    """

    body: bytes
    bounds: tuple[tuple[str, int], ...] = ()
    output_tokens: int = DEFAULT_OUTPUT_TOKENS
    stream: bool = False
    own_stream_options: bool = False
    pictures: tuple[Picture, ...] = ()
    again: bool = False
    whole: Item | None = None


def packed(asked: Asked) -> Any:
    """Write down what an item holds as plain values (`Portable`). Its pictures are bytes: none is a file's."""
    whole = asked.whole
    return (
        asked.body,
        asked.bounds,
        asked.output_tokens,
        asked.stream,
        asked.own_stream_options,
        [(picture.kind, picture.source) for picture in asked.pictures],
        asked.again,
        None if whole is None else (whole.ordinal, packed(whole.content), whole.tokens, whole.output_tokens),
    )


def unpacked(values: Any) -> Asked:
    """Make again what `packed` wrote."""
    body, bounds, output_tokens, stream, own_stream_options, pictures, again, whole = values
    return Asked(
        body=body,
        bounds=tuple((name, tokens) for name, tokens in bounds),
        output_tokens=output_tokens,
        stream=stream,
        own_stream_options=own_stream_options,
        pictures=tuple(Picture(kind, source) for kind, source in pictures),
        again=again,
        whole=None
        if whole is None
        else Item(ordinal=whole[0], content=unpacked(whole[1]), tokens=whole[2], output_tokens=whole[3]),
    )


def take_stream(body: dict[str, Any]) -> bool:
    """Take `stream` out of a body, and `stream_options` where nothing is streamed. Raises RowError, code `type`."""
    stream = body.pop("stream", None)
    if stream not in (None, False, True):
        raise RowError(code="type", message="request.stream is neither true nor false")
    if not stream:
        body.pop("stream_options", None)
    return bool(stream)


def ask(
    body: dict[str, Any], *, bounds: Sequence[str], copies: int, stream: bool, pictures: tuple[Picture, ...] = ()
) -> Asked:
    """Encode a checked body, whose answer the fields `bounds` bound; `copies` answers may be paid for.

    Raises RowError, code `type`, where it cannot be written.
    """
    bounding = tuple([(name, body.pop(name)) for name in bounds if _is_bound(body.get(name))])
    most = bounding[0][1] if bounding else DEFAULT_OUTPUT_TOKENS
    return Asked(
        body=write_body(body),
        bounds=bounding,
        output_tokens=most * copies,
        stream=stream,
        own_stream_options=body.get("stream_options") is not None,
        pictures=pictures,
    )


def _is_bound(value: Any) -> bool:
    return type(value) is int and 0 < value < _NO_BOUND


def takes_usage_option(target: Target, *, since: str) -> bool:
    """Whether the service takes `stream_options`: Azure's classic API does in versions of the date `since` and later.

    A classic version that is not known is taken for the latest.
    """
    return target.api != "azure" or target.api_version is None or target.api_version >= since


def call(endpoint: str, item: Item, *, model: str | None, usage_option: bool = False) -> Call:
    """Build the item's request, its model first. `usage_option`: ask a stream for its usage, unless the job says how.

    Reads the item's pictures: raises MediaError where one cannot be sent any more.
    """
    asked: Asked = item.content
    last: dict[str, Any] = dict(asked.bounds)
    if asked.stream:
        last["stream"] = True
        if usage_option and not asked.own_stream_options:
            last["stream_options"] = {"include_usage": True}
    parts = [
        b'"model":' + orjson.dumps(model) if model is not None else b"",
        asked.body[1:-1],
        orjson.dumps(last)[1:-1],
    ]
    body = b"{%b}" % b",".join(part for part in parts if part)
    if asked.pictures:
        first, *others = body.split(MARK)
        urls = [data_url(picture) for picture in asked.pictures]
        body = b"".join([first, *(piece for pair in zip(urls, others, strict=True) for piece in pair)])
    return Call(
        endpoint=endpoint,
        body=body,
        tokens=item.tokens,
        accept=EVENT_STREAM if asked.stream else "application/json",
        stream=asked.stream,
    )


def sized(item: Item, output_tokens: int) -> Item | None:
    """Bound an item's answer by `output_tokens`; None where the job names no bound, or none that is larger.

    The item's answers, where it asks for several, each have this bound.
    """
    asked: Asked = item.content
    if not asked.bounds or asked.whole is not None or min(bound for _, bound in asked.bounds) <= output_tokens:
        return None
    most = asked.output_tokens // asked.bounds[0][1] * output_tokens
    smaller = replace(
        asked, bounds=tuple((name, output_tokens) for name, _ in asked.bounds), output_tokens=most, whole=item
    )
    return replace(item, content=smaller, tokens=item.tokens - asked.output_tokens + most)


def truncated(item: Item, result: RowResult, *, policy: str, field: str) -> RowResult:
    """Apply `run.on_truncated` to an answer that its bound cut; `field` is the bound to name where there is none.

    `retry` asks once more with twice the bound. It keeps the answer where that was done already, and where the
    request names no bound: there is nothing to double then. An answer that a bound of `sized` cut is none: it is
    asked for as the job wants it, whatever the policy.
    """
    asked: Asked = item.content
    if asked.whole is not None:
        return replace(result, values=None, again=asked.whole)
    if policy == "fail":
        named = asked.bounds[0][0] if asked.bounds else field
        error = ErrorInfo(
            type=ErrorType.REPLY,
            code="truncated",
            message=f"the answer ended at its token limit (finish_reason length); raise request.{named}",
            http_status=200,
        )
        return replace(result, values=None, error=error)
    if policy == "retry" and asked.bounds and not asked.again:
        twice = replace(
            asked,
            bounds=tuple((name, 2 * tokens) for name, tokens in asked.bounds),
            output_tokens=2 * asked.output_tokens,
            again=True,
        )
        return replace(result, again=replace(item, content=twice, tokens=item.tokens + asked.output_tokens))
    return result
