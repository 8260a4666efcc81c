"""Hands replies to the socket: whole ones, streams, and all the ways in which a reply can be broken."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.clock import Clock
from pipeline.simulator.base import Answer
from pipeline.simulator.config import FaultKind
from pipeline.simulator.protocol import reset, transport_of

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

SILENT = frozenset({FaultKind.RESET_BEFORE, FaultKind.CLOSE_EARLY, FaultKind.GARBAGE, FaultKind.HANG})
"""The faults that let no status line through."""

_FLUSHED_S = 0.02  # time for the kernel to take what was written before the connection is reset
_HUGE_HEADER = (b"x-huge", b"x" * 300_000)
_HUGE_BODY_MB = 200
_DEEP_JSON = b"[" * 100_000
_HTML = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>Please sign in to the network.</body></html>"
_STREAM_TYPE = (b"content-type", b"text/event-stream; charset=utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What is sent, when, and what is wrong with it. `place` is where in its body: a share from 0 up to 1."""

    status: int
    headers: Headers
    answer: Answer
    first_byte_s: float = 0.0
    output_s: float = 0.0
    fault: FaultKind | None = None
    injected: bool = False
    place: float = 0.0
    drip_interval_s: float = 0.3

    @property
    def content(self) -> bytes:
        """The whole body, a stream's events joined."""
        return self.answer.body or b"".join(self.answer.events)

    @property
    def content_type(self) -> bytes:
        """What the body is."""
        return _STREAM_TYPE[1] if self.answer.events else self.answer.content_type


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One request's connection."""

    scope: Scope
    receive: Receive
    send: Send
    clock: Clock

    @property
    def transport(self) -> asyncio.Transport:
        """What is under it."""
        return transport_of(self.scope)


async def read_body(receive: Receive) -> bytes | None:
    """Read the whole body; None when the client went away."""
    parts = []
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message["body"])
        more = message["more_body"]
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def hand_over(reply: Reply, line: Line) -> int | None:
    """Send a reply at its time and in its manner; returns once the socket has it, or the connection is gone.

    Gives how many bytes of the body were sent where a fault cut it or put an error in the place of its rest.
    """
    if reply.first_byte_s > 0:
        await line.clock.sleep(reply.first_byte_s)
    events = reply.answer.events
    if not events and reply.output_s > 0:
        await line.clock.sleep(reply.output_s)
    if reply.fault is not None:
        return await _break(reply, reply.fault, line)
    if events:
        await _send_events(line, reply, events)
    else:
        await _send_body(line, reply, reply.answer.body)
    return None


async def _send_events(line: Line, reply: Reply, events: Sequence[bytes]) -> None:
    await line.send({"type": "http.response.start", "status": reply.status, "headers": [*reply.headers, _STREAM_TYPE]})
    pause_s = reply.output_s / len(events)
    for event in events:
        if pause_s > 0:
            await line.clock.sleep(pause_s)
        await line.send({"type": "http.response.body", "body": event, "more_body": True})
    await line.send({"type": "http.response.body", "body": b""})


async def _send_body(
    line: Line, reply: Reply, body: bytes, *, content_type: bytes | None = None, extra: Iterable[Any] = ()
) -> None:
    headers = [
        *reply.headers,
        *extra,
        (b"content-type", content_type or reply.content_type),
        (b"content-length", b"%d" % len(body)),
    ]
    await line.send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await line.send({"type": "http.response.body", "body": body})


async def _break(reply: Reply, fault: FaultKind, line: Line) -> int | None:
    body = reply.content
    match fault:
        case FaultKind.HTML:
            await _send_body(line, reply, _HTML, content_type=b"text/html; charset=utf-8")
        case FaultKind.EMPTY_OBJECT:
            await _send_body(line, reply, b"{}", content_type=b"application/json")
        case FaultKind.DEEP_JSON:
            await _send_body(line, reply, _DEEP_JSON, content_type=b"application/json")
        case FaultKind.WRONG_CHARSET:
            content_type = b"application/json; charset=utf-16"
            await _send_body(line, reply, body.decode(errors="replace").encode("utf-16"), content_type=content_type)
        case FaultKind.HUGE_HEADER:
            await _send_body(line, reply, body, extra=[_HUGE_HEADER])
        case FaultKind.HUGE_BODY:
            await _send_pieces(line, reply, [b" " * 1_000_000] * _HUGE_BODY_MB, pause_s=0)
        case FaultKind.ERROR_EVENT:
            events = reply.answer.events
            told = events[: int(reply.place * len(events))]
            await _send_events(line, reply, [*told, reply.answer.error_event])
            return sum(map(len, told))
        case FaultKind.DRIP:
            pieces = [body[position : position + 1] for position in range(len(body))]
            await _send_pieces(line, reply, pieces, pause_s=reply.drip_interval_s)
        case _:
            sent_bytes = await _cut_off(line, fault, reply)
            while (await line.receive())["type"] != "http.disconnect":
                pass
            return sent_bytes
    return None


async def _send_pieces(line: Line, reply: Reply, pieces: list[bytes], *, pause_s: float) -> None:
    headers = [*reply.headers, (b"content-type", reply.content_type)]
    if not reply.answer.events:
        headers.append((b"content-length", b"%d" % sum(map(len, pieces))))
    await line.send({"type": "http.response.start", "status": reply.status, "headers": headers})
    for left, piece in zip(range(len(pieces) - 1, -1, -1), pieces, strict=True):
        if line.transport.is_closing():
            return
        await line.send({"type": "http.response.body", "body": piece, "more_body": left > 0})
        await line.clock.sleep(pause_s)


async def _cut_off(line: Line, fault: FaultKind, reply: Reply) -> int | None:
    """Write what reaches the client, past the HTTP server, and end the connection; a hanging one is left open.

    Gives how many bytes of the body were written, None where there is no body.
    """
    body = reply.content
    headers = [*reply.headers, (b"content-type", reply.content_type)]
    share = reply.place if fault is FaultKind.CUT_STREAM else 0.5
    half = body[: int(len(body) * share)]
    length = b"content-length: %d\r\n" % len(body)
    transport = line.transport
    match fault:
        case FaultKind.HANG:
            return None
        case FaultKind.RESET_BEFORE:
            reset(transport)
            return None
        case FaultKind.RESET_DURING:
            transport.write(_head(headers, length) + half)
            await line.clock.sleep(_FLUSHED_S)
            reset(transport)
            return len(half)
        case FaultKind.CUT_LENGTH:
            transport.write(_head(headers, length) + half)
        case FaultKind.CUT_CHUNK | FaultKind.CUT_STREAM:
            transport.write(_head(headers, b"transfer-encoding: chunked\r\n") + b"%x\r\n%b" % (len(body), half))
        case FaultKind.HALF_BODY:
            transport.write(_head(headers, b"connection: close\r\n") + half)
        case _:
            if fault is FaultKind.GARBAGE:
                transport.write(b"\x16\x03\x01\x02 this is not HTTP\r\n\r\n")
            transport.close()
            return None
    transport.close()
    return len(half)


def _head(headers: Headers, framing: bytes) -> bytes:
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    return b"HTTP/1.1 200 OK\r\n%b%b\r\n" % (lines, framing)
