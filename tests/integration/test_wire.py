"""The default wires over real sockets: cuts, resets, drips, TLS, redirects, closing."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trustme

from pipeline.clock import SystemClock
from pipeline.model import NoReply, NoReplyKind, Reply
from pipeline.service import wire as wire_module
from pipeline.service.wire import HttpxTransport, PyreqwestTransport, Wire

pytestmark = pytest.mark.anyio
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
WIRES: dict[str, Callable[[bytes], httpx.AsyncBaseTransport]] = {
    "pyreqwest": lambda certificates: PyreqwestTransport(connections=100, proxy=None, certificates=certificates),
    "httpx": lambda certificates: HttpxTransport(proxy=None, certificates=certificates),
}


class Server:
    """A socket that does what a handler says, and counts connections."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.idle = asyncio.Event()
        self.accepted = 0
        self.open = 0
        self.port = 0
        self.writers: list[asyncio.StreamWriter] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self.open += 1
        self.writers.append(writer)
        self.idle.clear()
        try:
            await self._handler(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError, ssl.SSLError):
            return
        finally:
            self.open -= 1
            writer.close()
            if not self.open:
                self.idle.set()


@asynccontextmanager
async def serving(handler: Handler, context: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server(handler)
    listener = await asyncio.start_server(server, "127.0.0.1", 0, ssl=context)
    server.port = listener.sockets[0].getsockname()[1]
    async with listener:
        yield server
        for writer in server.writers:
            writer.transport.abort()  # a farewell by TLS waits for an answer, which may never come
        await asyncio.sleep(0)


async def request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
    return head + await reader.readexactly(int(length.split(b":")[1]))


def answering(raw: bytes, *, keep: bool = False) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await request(reader)
            writer.write(raw)
            await writer.drain()
            if not keep:
                return

    return handle


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request(reader)
    writer.transport.abort()


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(1000):
        pass


async def dripping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.01)


async def send(
    transport: httpx.AsyncBaseTransport,
    port: int,
    *,
    timeout_s: float = 5.0,
    scheme: str = "http",
    host: str = "127.0.0.1",
    stream: bool = False,
) -> Reply | NoReply:
    async with Wire(transport, clock=SystemClock()) as wire:
        return await wire.send(
            f"{scheme}://{host}:{port}/x?secret=1", {"api-key": "secret"}, b"{}", timeout_s=timeout_s, stream=stream
        )


HEADER = b"HTTP/1.1 200 OK\r\n"


def packed(body: bytes) -> Handler:
    """A reply of these bytes as gzip, whole as HTTP knows it."""
    return answering(HEADER + f"content-encoding: gzip\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)


FAULTS: dict[str, tuple[Handler, NoReplyKind]] = {
    "reset before the reply": (reset, NoReplyKind.READ),
    "closed before the reply": (answering(b""), NoReplyKind.READ),
    "cut within the header": (answering(HEADER + b"content-le"), NoReplyKind.READ),
    "shorter than its length": (answering(HEADER + b"content-length: 20\r\n\r\n{}"), NoReplyKind.READ),
    "cut within a chunk": (answering(HEADER + b"transfer-encoding: chunked\r\n\r\n5\r\nab"), NoReplyKind.READ),
    "no last chunk": (answering(HEADER + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n"), NoReplyKind.READ),
    "garbage": (answering(b"GARBAGE garbage\r\n\r\n"), NoReplyKind.READ),
    "broken gzip": (answering(HEADER + b"content-encoding: gzip\r\ncontent-length: 5\r\n\r\nabcde"), NoReplyKind.READ),
    "gzip of two members": (packed(gzip.compress(b'{"a": 1}') + gzip.compress(b'{"b": 2}')), NoReplyKind.READ),
    "gzip with something behind it": (packed(gzip.compress(b'{"a": 1}') + b"x"), NoReplyKind.READ),
    "gzip that is cut": (packed(gzip.compress(b"0123456789" * 9000)[:-20]), NoReplyKind.READ),
    "gzip without its checksum": (packed(gzip.compress(b'{"a": 1}')[:-8]), NoReplyKind.READ),
    "gzip of another checksum": (packed(gzip.compress(b'{"a": 1}')[:-8] + bytes(8)), NoReplyKind.READ),
    "never answers": (silent, NoReplyKind.TIMEOUT),
    "drips": (dripping, NoReplyKind.TIMEOUT),
}


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_fault_is_no_reply_of_its_kind(wire: str, fault: str, *, stream: bool) -> None:
    handler, kind = FAULTS[fault]
    timeout_s = 0.2 if kind is NoReplyKind.TIMEOUT else 5.0
    async with serving(handler) as server:
        reply = await send(WIRES[wire](b""), server.port, timeout_s=timeout_s, stream=stream)
        assert isinstance(reply, NoReply)
        assert reply.kind is kind
        assert reply.latency_ms < 2000
        assert "secret" not in repr(reply)


@pytest.mark.parametrize("wire", WIRES)
async def test_a_refused_connection_and_an_unknown_host_are_told_apart(wire: str) -> None:
    refused = await send(WIRES[wire](b""), 1)
    unknown = await send(WIRES[wire](b""), 1, host="no-such-host.invalid", scheme="https")
    assert isinstance(refused, NoReply)
    assert refused.kind is NoReplyKind.CONNECT
    assert isinstance(unknown, NoReply)
    # A box without any name server cannot know that a name does not exist.
    assert unknown.kind in {NoReplyKind.UNKNOWN_HOST, NoReplyKind.CONNECT}


MEBIBYTE = 1 << 20


def in_pieces(body: bytes, *, chunked: bool) -> Handler:
    """Answer with a body in pieces that are no round numbers, chunked or with its length."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        framing = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % len(body)
        writer.write(HEADER + framing + b"\r\n\r\n")
        for start in range(0, len(body), 100_003):
            piece = body[start : start + 100_003]
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            await writer.drain()
        writer.write(b"0\r\n\r\n" if chunked else b"")

    return handle


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [0, 1, MEBIBYTE - 1, MEBIBYTE, MEBIBYTE + 1, 2 * MEBIBYTE, 5_120_000])
async def test_a_reply_of_any_size_in_pieces_comes_whole(wire: str, size: int, *, chunked: bool) -> None:
    body = (bytes(range(255)) * 20_100)[:size]
    async with serving(in_pieces(body, chunked=chunked)) as server:
        reply = await send(WIRES[wire](b""), server.port)
    assert isinstance(reply, Reply)
    assert reply.body == body


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("beyond", [0, 1])
async def test_a_reply_may_be_as_large_as_the_cap_and_no_byte_larger(
    wire: str, beyond: int, monkeypatch: pytest.MonkeyPatch, *, chunked: bool, stream: bool
) -> None:
    monkeypatch.setattr(wire_module, "REPLY_CAP_BYTES", 2 * MEBIBYTE)
    body = bytes(2 * MEBIBYTE + beyond)
    async with serving(in_pieces(body, chunked=chunked)) as server:
        reply = await send(WIRES[wire](b""), server.port, stream=stream)
    if beyond:
        assert isinstance(reply, NoReply)
        assert reply.kind is NoReplyKind.TOO_LARGE
    else:
        assert isinstance(reply, Reply)
        assert reply.body == body


@pytest.mark.parametrize("wire", WIRES)
async def test_a_streamed_reply_comes_whole_and_says_when_its_bytes_came(wire: str) -> None:
    pieces = [b"data: 1\n\n", b"data: 2\n\n", b"data: [DONE]\n\n"]

    async def streaming(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(HEADER + b"transfer-encoding: chunked\r\n\r\n")
        for piece in pieces:
            await asyncio.sleep(0.05)
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    async with serving(streaming) as server:
        reply = await send(WIRES[wire](b""), server.port, stream=True)
    assert isinstance(reply, Reply)
    assert reply.body == b"".join(pieces)
    assert [count for count, _ in reply.arrivals] == [9, 18, 32]
    moments = [at for _, at in reply.arrivals]
    assert moments[0] >= 50
    assert moments[1] - moments[0] >= 25
    assert moments[-1] <= reply.latency_ms


@pytest.mark.parametrize("wire", WIRES)
async def test_a_streamed_reply_that_never_ends_is_cut_off_at_the_cap(
    wire: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire_module, "REPLY_CAP_BYTES", 100_000)

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(HEADER + b"transfer-encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"1000\r\n%b\r\n" % (b"x" * 0x1000))
            await writer.drain()

    async with serving(endless) as server:
        reply = await send(WIRES[wire](b""), server.port, stream=True)
    assert isinstance(reply, NoReply)
    assert reply.kind is NoReplyKind.TOO_LARGE


@pytest.mark.parametrize("wire", WIRES)
async def test_a_reply_with_an_unreadable_header_is_still_a_reply(wire: str) -> None:
    raw = HEADER + b"x-odd: \xe9\xff\r\nRetry-After: 3\r\ncontent-length: 2\r\n\r\n{}"
    async with serving(answering(raw)) as server:
        reply = await send(WIRES[wire](b""), server.port)
    assert isinstance(reply, Reply)
    assert (reply.body, reply.headers["retry-after"]) == (b"{}", "3")


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("raw", "framed"),
    [
        (b"content-length: 2\r\n\r\n{}", True),
        (b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", True),
        (b"connection: close\r\n\r\n{}", False),
        (b"\r\n{}", False),
    ],
)
async def test_a_reply_that_ends_with_its_connection_says_that_it_may_have_been_cut(
    wire: str,
    raw: bytes,
    *,
    framed: bool,
    stream: bool,
) -> None:
    async with serving(answering(HEADER + raw)) as server:
        reply = await send(WIRES[wire](b""), server.port, stream=stream)
    assert isinstance(reply, Reply)
    assert (reply.body, reply.framed) == (b"{}", framed)


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("coding", "body"),
    [
        (b"gzip", gzip.compress(b"{}", mtime=0)),
        (b"deflate", zlib.compress(b"{}")),
        (b"identity", b"{}"),
        (b"none such", b"{}"),
    ],
)
async def test_header_names_come_in_lower_case_and_bodies_decoded(
    wire: str, coding: bytes, body: bytes, *, stream: bool
) -> None:
    raw = b"X-Said: first\r\nx-sAID: last\r\nContent-Encoding: %b\r\nContent-Length: %d\r\n\r\n%b"
    async with serving(answering(HEADER + raw % (coding, len(body), body))) as server:
        reply = await send(WIRES[wire](b""), server.port, stream=stream)
    assert isinstance(reply, Reply)
    assert reply.body == b"{}"
    assert reply.headers["x-said"] == "last"
    assert all(name == name.lower() for name in reply.headers)


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_never_followed(wire: str, status: int) -> None:
    async with serving(answering(OK)) as elsewhere:
        location = f"http://127.0.0.1:{elsewhere.port}/".encode()
        raw = b"HTTP/1.1 %d R\r\nlocation: %b\r\ncontent-length: 0\r\n\r\n" % (status, location)
        async with serving(answering(raw)) as server:
            reply = await send(WIRES[wire](b""), server.port)
        assert isinstance(reply, Reply)
        assert reply.status == status
        assert elsewhere.accepted == 0


@pytest.mark.parametrize("wire", WIRES)
async def test_what_is_sent_is_a_fixed_set_of_headers(wire: str) -> None:
    seen: list[bytes] = []

    async def noting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await request(reader))
        writer.write(OK)

    async with serving(noting) as server:
        await send(WIRES[wire](b""), server.port)
    names = sorted(line.split(b":")[0].lower() for line in seen[0].split(b"\r\n\r\n")[0].split(b"\r\n")[1:])
    allowed = {b"accept", b"accept-encoding", b"api-key", b"content-length", b"host", b"user-agent"}
    assert {b"api-key", b"content-length", b"host"} <= set(names) <= allowed
    assert len(names) == len(set(names))


@pytest.mark.parametrize("wire", WIRES)
async def test_a_hundred_in_flight_share_a_hundred_connections(wire: str) -> None:
    async with serving(answering(OK, keep=True)) as server, Wire(WIRES[wire](b""), clock=SystemClock()) as sender:
        url = f"http://127.0.0.1:{server.port}/x"
        for _ in range(3):
            replies = await asyncio.gather(*(sender.send(url, {}, b"{}", timeout_s=10) for _ in range(100)))
            assert all(isinstance(reply, Reply) for reply in replies)
        assert server.accepted <= 100


@pytest.mark.parametrize("wire", WIRES)
async def test_a_storm_of_deadlines_leaves_no_connection_behind(wire: str) -> None:
    async with serving(silent) as server, Wire(WIRES[wire](b""), clock=SystemClock()) as sender:
        url = f"http://127.0.0.1:{server.port}/x"
        for _ in range(5):
            replies = await asyncio.gather(*(sender.send(url, {}, b"{}", timeout_s=0.05) for _ in range(40)))
            assert all(isinstance(reply, NoReply) and reply.kind is NoReplyKind.TIMEOUT for reply in replies)
        async with asyncio.timeout(5):
            await server.idle.wait()


@pytest.mark.parametrize("wire", WIRES)
async def test_a_connection_that_the_server_closed_while_idle_is_no_failure(wire: str) -> None:
    async with serving(answering(OK)) as server, Wire(WIRES[wire](b""), clock=SystemClock()) as sender:
        for _ in range(8):
            reply = await sender.send(f"http://127.0.0.1:{server.port}/x", {}, b"{}", timeout_s=5)
            assert isinstance(reply, Reply)
            async with asyncio.timeout(5):
                await server.idle.wait()
            # Being idle is what is tested: a request that crosses the close on its way is a failed attempt.
            await asyncio.sleep(0.2)


def contexts(tmp_path: Path) -> tuple[trustme.CA, Path]:
    authority = trustme.CA()
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(bundle))
    return authority, bundle


def tls(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(
    ("name", "issuer", "works"),
    [("127.0.0.1", "trusted", True), ("127.0.0.1", "unknown", False), ("other.example", "trusted", False)],
)
async def test_tls_is_verified_against_name_and_issuer(
    wire: str,
    tmp_path: Path,
    name: str,
    issuer: str,
    works: bool,  # noqa: FBT001 - a column of the table
) -> None:
    authority, bundle = contexts(tmp_path)
    certificates = bundle.read_bytes() if issuer == "trusted" else b""
    async with serving(answering(OK), tls(authority, name)) as server:
        reply = await send(WIRES[wire](certificates), server.port, scheme="https")
    if works:
        assert isinstance(reply, Reply)
    else:
        assert isinstance(reply, NoReply)
        assert reply.kind is NoReplyKind.TLS


@pytest.mark.parametrize("wire", WIRES)
async def test_an_old_tls_or_no_tls_at_all_is_never_spoken(wire: str, tmp_path: Path) -> None:
    authority, bundle = contexts(tmp_path)

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(5)
        writer.write(OK)
        await writer.drain()

    async with serving(plain) as server:
        reply = await send(WIRES[wire](bundle.read_bytes()), server.port, scheme="https")
    assert isinstance(reply, NoReply)
    assert reply.kind in {NoReplyKind.TLS, NoReplyKind.CONNECT}
    old = tls(authority, "127.0.0.1")
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.options &= ~ssl.OP_NO_TLSv1_1
    old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    async with serving(answering(OK), old) as server:
        reply = await send(WIRES[wire](bundle.read_bytes()), server.port, scheme="https")
    assert isinstance(reply, NoReply)
    assert reply.kind in {NoReplyKind.TLS, NoReplyKind.CONNECT}


@pytest.mark.parametrize("wire", ["pyreqwest", "httpx"])
async def test_a_proxy_is_asked_for_a_tunnel_and_never_sees_the_key(wire: str) -> None:
    seen: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")

    async with serving(proxy) as server:
        address = f"http://user:pass%40word@127.0.0.1:{server.port}"
        transport: httpx.AsyncBaseTransport
        if wire == "pyreqwest":
            transport = PyreqwestTransport(connections=1, proxy=address, certificates=b"")
        else:
            transport = HttpxTransport(proxy=address, certificates=b"")
        reply = await send(transport, 443, scheme="https", host="res.example")
    assert isinstance(reply, NoReply)
    assert reply.kind is NoReplyKind.CONNECT
    assert seen[0].startswith(b"CONNECT res.example:443 ")
    assert b"dXNlcjpwYXNzQHdvcmQ=" in seen[0]
    assert b"secret" not in seen[0]
