"""A service on a raw socket that breaks its replies in every way there is, and what each operation asks of it."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from pipeline import operations
from pipeline.clock import SystemClock
from pipeline.errors import ReplyError
from pipeline.job.spec import Job
from pipeline.model import Call, Item, NoReply, Reply, Row
from pipeline.operations.base import Operation
from pipeline.pace.verdict import Answered
from pipeline.service.address import address, target
from pipeline.service.classify import classify
from pipeline.service.wire import HttpxTransport, PyreqwestTransport, Wire
from pipeline.simulator.serve import SimulatorProcess
from pipeline.simulator.sounds import write_sound

WIRES: dict[str, Callable[[bytes], httpx.AsyncBaseTransport]] = {
    "pyreqwest": lambda certificates: PyreqwestTransport(connections=100, proxy=None, certificates=certificates),
    "httpx": lambda certificates: HttpxTransport(proxy=None, certificates=certificates),
}
HUGE_BYTES = 200_000_000
PIECE = b" " * 1_000_000
DRIP_S = 0.3
_LINGER_ZERO = struct.pack("ii", 1, 0)
_GONE = (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, ssl.SSLError, TimeoutError)
_HTML = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>Please sign in.</body></html>"
_OK = b"HTTP/1.1 200 OK\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """A reply as it should have come. `place`, from 0 up to 1, is where in its body it is broken."""

    content_type: str
    body: bytes
    place: float = 0.5

    @property
    def half(self) -> bytes:
        """The body up to the place."""
        return self.body[: int(len(self.body) * self.place)]

    def head(self, *lines: bytes) -> bytes:
        """A head with this type, and other lines."""
        return _OK + b"content-type: " + self.content_type.encode() + b"\r\n" + b"".join(lines) + b"\r\n"


@dataclass(slots=True)
class Line:
    """One connection of the service, after a request was read."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def write(self, data: bytes) -> None:
        """Hand bytes to the socket."""
        self.writer.write(data)
        await self.writer.drain()

    async def reset(self) -> None:
        """End the connection by a TCP reset, once what was written is on its way."""
        await asyncio.sleep(0.01)
        connection = self.writer.get_extra_info("socket")
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        self.writer.transport.abort()

    async def wait(self) -> None:
        """Wait until the other side is gone."""
        while await self.reader.read(65_536):
            pass


Breaks = Callable[[Line, Whole], Awaitable[None]]


async def _reset_before(line: Line, whole: Whole) -> None:
    await line.reset()


async def _reset_during(line: Line, whole: Whole) -> None:
    await line.write(whole.head(_length(whole.body)) + whole.half)
    await line.reset()


async def _fin_early(line: Line, whole: Whole) -> None:
    """The service's function closes the connection when it returns."""


async def _cut_head(line: Line, whole: Whole) -> None:
    head = whole.head(_length(whole.body))
    await line.write(head[: max(1, int(len(head) * whole.place))])


async def _cut_length(line: Line, whole: Whole) -> None:
    await line.write(whole.head(_length(whole.body)) + whole.half)


async def _cut_chunk(line: Line, whole: Whole) -> None:
    await line.write(whole.head(b"transfer-encoding: chunked\r\n") + b"%x\r\n" % len(whole.body) + whole.half)


async def _no_last_chunk(line: Line, whole: Whole) -> None:
    await line.write(whole.head(b"transfer-encoding: chunked\r\n") + _chunk(whole.body))


async def _half_body(line: Line, whole: Whole) -> None:
    await line.write(whole.head(b"connection: close\r\n") + whole.half)


async def _garbage(line: Line, whole: Whole) -> None:
    await line.write(b"\x16\x03\x01\x02 this is not HTTP\r\n\r\n")


async def _huge_header(line: Line, whole: Whole) -> None:
    await line.write(whole.head(b"x-huge: " + b"x" * 300_000 + b"\r\n", _length(whole.body)) + whole.body)


async def _endless_header(line: Line, whole: Whole) -> None:
    await line.write(_OK)
    while True:
        await line.write(b"x-more: " + b"y" * 8_000 + b"\r\n")


async def _drip(line: Line, whole: Whole) -> None:
    await line.write(whole.head(_length(whole.body)))
    for at in range(len(whole.body)):
        await line.write(whole.body[at : at + 1])
        await asyncio.sleep(DRIP_S)


async def _drip_head(line: Line, whole: Whole) -> None:
    head = whole.head(b"x-slow: " + b"x" * 10_000 + b"\r\n")
    for at in range(len(head)):
        await line.write(head[at : at + 1])
        await asyncio.sleep(DRIP_S)


async def _never_answers(line: Line, whole: Whole) -> None:
    await line.wait()


async def _never_ends(line: Line, whole: Whole) -> None:
    await line.write(whole.head(_length(whole.body)) + whole.half)
    await line.wait()


def _saying(body: bytes, content_type: bytes) -> Breaks:
    async def say(line: Line, whole: Whole) -> None:
        await line.write(_OK + b"content-type: " + content_type + b"\r\n" + _length(body) + b"\r\n" + body)

    return say


async def _wrong_charset(line: Line, whole: Whole) -> None:
    body = whole.body.decode("utf-8", "replace").encode("utf-16")
    await line.write(whole.head(_length(body)) + body)


async def _huge_body(line: Line, whole: Whole) -> None:
    chunked = whole.place < 0.5
    await line.write(whole.head(b"transfer-encoding: chunked\r\n" if chunked else b"content-length: 200000000\r\n"))
    for _ in range(HUGE_BYTES // len(PIECE)):
        await line.write(_chunk(PIECE) if chunked else PIECE)


def _bomb() -> Breaks:
    packed: list[bytes] = []

    async def explode(line: Line, whole: Whole) -> None:
        if not packed:
            packed.append(gzip.compress(b" " * HUGE_BYTES, compresslevel=1))
        await line.write(whole.head(b"content-encoding: gzip\r\n", _length(packed[0])) + packed[0])

    return explode


def _framed(*lines: bytes) -> Breaks:
    async def frame(line: Line, whole: Whole) -> None:
        await line.write(whole.head(*lines) + whole.body)

    return frame


def _length(body: bytes) -> bytes:
    return b"content-length: %d\r\n" % len(body)


def _chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


READ, TIMEOUT, BAD, SAME = "read", "timeout", "bad_reply", "same"
MISBEHAVIOURS: dict[str, tuple[Breaks, frozenset[str]]] = {
    "reset before the reply": (_reset_before, frozenset({READ})),
    "reset during the reply": (_reset_during, frozenset({READ})),
    "closed before the reply": (_fin_early, frozenset({READ})),
    "cut within the head": (_cut_head, frozenset({READ})),
    "shorter than its length": (_cut_length, frozenset({READ})),
    "cut within a chunk": (_cut_chunk, frozenset({READ})),
    "no last chunk": (_no_last_chunk, frozenset({READ})),
    # What is missing may be a line feed that nobody needs.
    "half a body that ends with the connection": (_half_body, frozenset({BAD, SAME})),
    "garbage for a status line": (_garbage, frozenset({READ})),
    "a header of 300 kB": (_huge_header, frozenset({READ, SAME})),
    "a head without end": (_endless_header, frozenset({READ})),
    "a byte each 0.3 s": (_drip, frozenset({TIMEOUT})),
    "a head of a byte each 0.3 s": (_drip_head, frozenset({TIMEOUT})),
    "never answers": (_never_answers, frozenset({TIMEOUT})),
    "stops within the body": (_never_ends, frozenset({TIMEOUT})),
    "a web page with status 200": (_saying(_HTML, b"text/html; charset=utf-8"), frozenset({BAD})),
    "an empty object": (_saying(b"{}", b"application/json"), frozenset({BAD})),
    "an empty body": (_saying(b"", b"application/json"), frozenset({BAD})),
    "100,000 opening brackets": (_saying(b"[" * 100_000, b"application/json"), frozenset({BAD})),
    "100,000 objects within another": (_saying(b'{"a":' * 100_000, b"application/json"), frozenset({BAD})),
    "UTF-16": (_wrong_charset, frozenset({BAD})),
    "a body of 200 MB": (_huge_body, frozenset({BAD})),
    "200 MB in a gzip of 200 kB": (_bomb(), frozenset({BAD})),
    "two lengths": (_framed(b"content-length: 2\r\n", b"content-length: 3\r\n"), frozenset({READ})),
    "a length of 5,000 digits": (_framed(b"content-length: " + b"9" * 5_000 + b"\r\n"), frozenset({READ, BAD})),
    "a negative length": (_framed(b"content-length: -2\r\n"), frozenset({READ})),
    "a chunk whose size is no number": (_framed(b"transfer-encoding: chunked\r\n", b"\r\nzz\r\n"), frozenset({READ})),
}
"""Every way to break a reply, and what an attempt that meets it may come to (`Ask.outcome`)."""


@dataclass(slots=True)
class Service:
    """A listening socket, and who is connected to it. `most` is the most connections that were open at once."""

    port: int = 0
    accepted: int = 0
    open: int = 0
    most: int = 0
    requests: list[bytes] = field(default_factory=list)
    idle: asyncio.Event = field(default_factory=asyncio.Event)


@asynccontextmanager
async def serving(
    handle: Callable[[Line], Awaitable[None]], *, tls: ssl.SSLContext | None = None, keep: bool = False
) -> AsyncIterator[Service]:
    """Serve raw connections: `handle` is called after each request, and the connection closed when it is done.

    `keep` has `Service.requests` keep what was asked.
    """
    service = Service()
    writers: set[asyncio.StreamWriter] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        service.accepted += 1
        service.open += 1
        service.most = max(service.most, service.open)
        service.idle.clear()
        writers.add(writer)
        try:
            request = await read_request(reader)
            if keep:
                service.requests.append(request)
            await handle(Line(reader, writer))
        except _GONE:
            return
        finally:
            service.open -= 1
            writers.discard(writer)
            writer.close()
            if not service.open:
                service.idle.set()

    listener = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls, limit=1 << 20, backlog=1024)
    service.port = listener.sockets[0].getsockname()[1]
    try:
        yield service
    finally:
        listener.close()
        for writer in list(writers):
            writer.transport.abort()
        await asyncio.sleep(0)


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """Read one request, head and body."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next(int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:"))
    return head + await reader.readexactly(length)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request of one operation, its whole reply, and what the operation makes of that."""

    operation: Operation
    items: list[Item]
    call: Call
    whole: Whole
    results: list[dict[str, Any]]

    async def send(self, wire: Wire, port: int, *, timeout_s: float) -> Reply | NoReply:
        """Send it once, as a deployment does."""
        headers = {"content-type": self.call.content_type, "accept": self.call.accept}
        headers["accept-encoding"] = "gzip" if self.call.shows_end else "identity"
        url = f"http://127.0.0.1:{port}/x"
        return await wire.send(url, headers, self.call.body, timeout_s=timeout_s, stream=self.call.stream)

    def outcome(self, reply: Reply | NoReply) -> str:
        """What an attempt came to, as the lane judges it.

        The kind of a missing reply, `bad_reply`, or `same`: a result that is the whole reply's, to the byte.
        """
        verdict = classify(reply)
        if isinstance(verdict, Answered):
            assert isinstance(reply, Reply)
            try:
                results = self.operation.parse(self.items, reply)
            except ReplyError as error:
                return error.info.code
            return SAME if _told(results) == self.results else f"answered otherwise: {results!r}"[:300]
        if isinstance(reply, NoReply) and verdict.name == "transient":
            return reply.kind.value
        return verdict.name


_TEXT = [{"role": "user", "content": "{{ text }}"}]
_RECORDING = {"file": "{{ file }}"}
ASKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "chat": ("chat", "gpt-4o-mini", {"messages": _TEXT, "max_tokens": 60}),
    "chat, streamed": ("chat", "gpt-4o-mini", {"messages": _TEXT, "max_tokens": 60, "stream": True}),
    "responses": ("responses", "gpt-4o-mini", {"input": "{{ text }}"}),
    "responses, streamed": ("responses", "gpt-4o-mini", {"input": "{{ text }}", "stream": True}),
    "completions": ("completions", "gpt-35-turbo-instruct", {"prompt": "{{ text }}"}),
    "completions, streamed": ("completions", "gpt-35-turbo-instruct", {"prompt": "{{ text }}", "stream": True}),
    "embeddings": ("embeddings", "text-embedding-3-small", {"input": "{{ text }}", "dimensions": 64}),
    "transcription": ("transcription", "whisper", _RECORDING),
    "transcription as text": ("transcription", "whisper", {**_RECORDING, "response_format": "text"}),
    "translation as subtitles": ("translation", "whisper", {**_RECORDING, "response_format": "srt"}),
    "speech": ("speech", "tts-1", {"input": "{{ text }}", "voice": "alloy"}),
    "speech as flac": ("speech", "tts-1", {"input": "{{ text }}", "voice": "alloy", "response_format": "flac"}),
    "image": ("image", "gpt-image-1", {"prompt": "{{ text }}", "quality": "low"}),
}
"""What is asked: the operation, the model, the request."""


async def make_asks(simulator: SimulatorProcess, folder: Path) -> dict[str, Ask]:
    """Ask a simulator everything once, for the whole replies."""
    (folder / "words.wav").write_bytes(write_sound(["quay", "seven", "is", "open"], "wav"))
    asks = {}
    async with Wire(WIRES["pyreqwest"](b""), clock=SystemClock()) as wire:
        for name, (operation, model, request) in ASKS.items():
            asks[name] = await _ask(wire, simulator, operation, model, request, folder)
    return asks


async def _ask(
    wire: Wire, simulator: SimulatorProcess, name: str, model: str, request: dict[str, Any], folder: Path
) -> Ask:
    place = address(endpoint=simulator.url, deployment=model, api="azure", api_version="2025-04-01-preview")
    deployment = {"name": "d", "endpoint": simulator.url, "deployment": model, "model": model, "api": "azure"}
    job = Job.model_validate(
        {
            "name": "hostile",
            "operation": name,
            "input": {"path": "rows.jsonl", "media_root": folder},
            "request": request,
            "deployments": [{**deployment, "auth": "entra"}],
            "output": {"path": "out"},
        }
    )
    operation = operations.get(name).factory(job)
    values = {"text": "Say in one sentence what the tide does at quay seven.", "file": "words.wav"}
    items = operation.prepare([Row(ordinal=0, values=values)])
    assert all(isinstance(item, Item) for item in items), items
    asked = [item for item in items if isinstance(item, Item)]
    call = operation.build(asked, target(place, model=model))
    headers = {"api-key": "k", "content-type": call.content_type, "accept": call.accept}
    reply = await wire.send(place.url(call.endpoint), headers, call.body, timeout_s=30, stream=call.stream)
    assert isinstance(reply, Reply), reply
    assert reply.status == 200, reply.body
    results = _told(operation.parse(asked, reply))
    assert results[0]["error"] is None
    whole = Whole(content_type=reply.headers["content-type"], body=reply.body)
    return Ask(operation=operation, items=asked, call=call, whole=whole, results=results)


def _told(results: list[Any]) -> list[dict[str, Any]]:
    """What results say, but for when the first token came."""
    told = []
    for row in results:
        values = {name: value for name, value in (row.values or {}).items() if name != "time_to_first_token_ms"}
        told.append({"ordinal": row.ordinal, "values": values, "error": row.error, "files": row.files})
    return told


def broken_at(whole: Whole, place: float) -> Whole:
    """The same reply, to be broken at another place."""
    return replace(whole, place=place)
