"""Server-sent events, read strictly by the standard's rules from a whole body (WHATWG HTML, 9.2.6)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson

from pipeline.errors import ReplyError
from pipeline.model import ErrorInfo, ErrorType, Reply
from pipeline.operations._json import bad_reply
from pipeline.service.classify import error_info

_BOM = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """One event. `name` is empty where the stream names none; `end` counts the body's bytes up to its blank line."""

    name: bytes
    data: bytes
    end: int


class StreamRefused(Exception):  # noqa: N818 - it ends one row, as a refused request does
    """The service refused the request inside of its stream, for good: asking again would be refused and billed again.

    `info` is the row's error.
    """

    def __init__(self, info: ErrorInfo) -> None:
        self.info = info
        super().__init__(info.message)


def events(body: bytes) -> Iterator[Event]:
    """Give the events that hold data. An event without its blank line is none: the stream was cut there.

    Lines end with CRLF, LF or CR. Comments, ids and unknown fields are skipped.
    """
    end = len(_BOM) if body.startswith(_BOM) else 0
    name = b""
    data: list[bytes] = []
    for line in body[end:].splitlines(keepends=True):
        end += len(line)
        text = line.rstrip(b"\r\n")
        if len(text) == len(line):
            return
        if text:
            field, _, value = text.partition(b":")
            value = value.removeprefix(b" ")
            if field == b"data":
                data.append(value)
            elif field == b"event":
                name = value
            continue
        joined = b"\n".join(data)
        if joined:
            yield Event(name, joined, end)
        name, data = b"", []


def is_stream(body: bytes) -> bool:
    """Tell a stream from the plain JSON object that services answer which do not know `stream`."""
    return body.lstrip()[:1] != b"{"


def arrived_ms(reply: Reply, end: int) -> float | None:
    """When the first `end` bytes of the body had come, in ms after sending; None where nobody noted it."""
    return next((at for count, at in reply.arrivals if count >= end), None)


def read_event(event: Event) -> dict[str, Any]:
    """Read an event's JSON object.

    Raises ReplyError for anything else and for the services' in-stream errors, StreamRefused where such an error is
    the content filter's.
    """
    try:
        value = orjson.loads(event.data)
    except orjson.JSONDecodeError:
        raise bad_reply(f"an event of the stream is not JSON ({len(event.data)} bytes)") from None
    if type(value) is not dict:
        raise bad_reply("an event of the stream is JSON but no object")
    if value.get("error") or event.name == b"error" or "error" in (value.get("object"), value.get("type")):
        raise refusal(event.data)
    return value


def refusal(error: bytes) -> ReplyError | StreamRefused:
    """Judge an error that came after a 200: the content filter's is final, any other a failure of this attempt."""
    said = error_info(Reply(status=200, headers={}, body=error, latency_ms=0))
    if said.code == "content_filter":
        return StreamRefused(
            ErrorInfo(type=ErrorType.BAD_REQUEST, code=said.code, message=said.message, http_status=200)
        )
    return bad_reply(f"the stream holds an error: {said.code}: {said.message}")
