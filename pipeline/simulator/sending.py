"""Hands replies to the socket: whole ones, streams, and all the ways in which a reply can be broken."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
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

_DRIP_INTERVAL_S = 0.3
_FLUSHED_S = 0.02  # time for the kernel to take what was written before the connection is reset
_HUGE_HEADER = (b"x-huge", b"x" * 300_000)
_HUGE_BODY_MB = 200
_DEEP_JSON = b"[" * 100_000
_HTML = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>Please sign in to the network.</body></html>"
_JSON_TYPE = (b"content-type", b"application/json")
_STREAM_TYPE = (b"content-type", b"text/event-stream; charset=utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What is sent, when, and what is wrong with it."""

    status: int
    headers: Headers
    answer: Answer
    first_byte_s: float = 0.0
    output_s: float = 0.0
    fault: FaultKind | None = None
    injected: bool = False


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


async def hand_over(reply: Reply, line: Line) -> None:
    """Send a reply at its time and in its manner; returns once the socket has it, or the connection is gone."""
    if reply.first_byte_s > 0:
        await line.clock.sleep(reply.first_byte_s)
    events = reply.answer.events
    if not events and reply.output_s > 0:
        await line.clock.sleep(reply.output_s)
    if reply.fault is not None:
        await _break(reply, reply.fault, line)
    elif events:
        await line.send(
            {"type": "http.response.start", "status": reply.status, "headers": [*reply.headers, _STREAM_TYPE]}
        )
        pause_s = reply.output_s / len(events)
        for event in events:
            if pause_s > 0:
                await line.clock.sleep(pause_s)
            await line.send({"type": "http.response.body", "body": event, "more_body": True})
        await line.send({"type": "http.response.body", "body": b""})
    else:
        await _send_body(line, reply, reply.answer.body)


async def _send_body(
    line: Line, reply: Reply, body: bytes, *, content_type: bytes = b"application/json", extra: Iterable[Any] = ()
) -> None:
    headers = [
        *reply.headers,
        *extra,
        (b"content-type", content_type),
        (b"content-length", b"%d" % len(body)),
    ]
    await line.send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await line.send({"type": "http.response.body", "body": body})


async def _break(reply: Reply, fault: FaultKind, line: Line) -> None:
    body = reply.answer.body or b"".join(reply.answer.events)
    match fault:
        case FaultKind.HTML:
            await _send_body(line, reply, _HTML, content_type=b"text/html; charset=utf-8")
        case FaultKind.EMPTY_OBJECT:
            await _send_body(line, reply, b"{}")
        case FaultKind.DEEP_JSON:
            await _send_body(line, reply, _DEEP_JSON)
        case FaultKind.WRONG_CHARSET:
            content_type = b"application/json; charset=utf-16"
            await _send_body(line, reply, body.decode().encode("utf-16"), content_type=content_type)
        case FaultKind.HUGE_HEADER:
            await _send_body(line, reply, body, extra=[_HUGE_HEADER])
        case FaultKind.HUGE_BODY:
            await _send_pieces(line, reply, [b" " * 1_000_000] * _HUGE_BODY_MB, pause_s=0)
        case FaultKind.DRIP:
            pieces = [body[position : position + 1] for position in range(len(body))]
            await _send_pieces(line, reply, pieces, pause_s=_DRIP_INTERVAL_S)
        case _:
            await _cut_off(line, fault, reply.headers, body)
            while (await line.receive())["type"] != "http.disconnect":
                pass


async def _send_pieces(line: Line, reply: Reply, pieces: list[bytes], *, pause_s: float) -> None:
    length = (b"content-length", b"%d" % sum(map(len, pieces)))
    headers = [*reply.headers, _JSON_TYPE, length]
    await line.send({"type": "http.response.start", "status": reply.status, "headers": headers})
    for left, piece in zip(range(len(pieces) - 1, -1, -1), pieces, strict=True):
        if line.transport.is_closing():
            return
        await line.send({"type": "http.response.body", "body": piece, "more_body": left > 0})
        await line.clock.sleep(pause_s)


async def _cut_off(line: Line, fault: FaultKind, headers: Headers, body: bytes) -> None:
    """Write what reaches the client, past the HTTP server, and end the connection; a hanging one is left open."""
    half = body[: len(body) // 2]
    length = b"content-length: %d\r\n" % len(body)
    transport = line.transport
    match fault:
        case FaultKind.HANG:
            return
        case FaultKind.RESET_BEFORE:
            reset(transport)
            return
        case FaultKind.RESET_DURING:
            transport.write(_head(headers, length) + half)
            await line.clock.sleep(_FLUSHED_S)
            reset(transport)
            return
        case FaultKind.CUT_LENGTH:
            transport.write(_head(headers, length) + half)
        case FaultKind.CUT_CHUNK:
            transport.write(_head(headers, b"transfer-encoding: chunked\r\n") + b"%x\r\n%b" % (len(body), half))
        case FaultKind.HALF_BODY:
            transport.write(_head(headers, b"connection: close\r\n") + half)
        case FaultKind.GARBAGE:
            transport.write(b"\x16\x03\x01\x02 this is not HTTP\r\n\r\n")
        case _:
            pass
    transport.close()


def _head(headers: Headers, framing: bytes) -> bytes:
    lines = b"".join(b"%b: %b\r\n" % header for header in [*headers, _JSON_TYPE])
    return b"HTTP/1.1 200 OK\r\n%b%b\r\n" % (lines, framing)
