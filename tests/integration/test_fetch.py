"""Fetching over real sockets: pinned addresses under verified names, redirects, drips, closing."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from pipeline.clock import SystemClock
from pipeline.errors import MediaError, ReplyError
from pipeline.model import NoReply, NoReplyKind, Reply
from pipeline.service.fetch import Fetcher, open_fetcher
from pipeline.service.wire import Wire, fetching_transport

pytestmark = pytest.mark.anyio
NAME = "pictures.example.net"
PNG = b"\x89PNG\r\n\x1a\nand so on"
OK = b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ncontent-length: %d\r\n\r\n%b" % (len(PNG), PNG)


class Server:
    """Sends one answer to every request, and keeps the requests' heads. `drip` is sent a byte at a time after it."""

    def __init__(self, answer: bytes, *, drip: bool = False) -> None:
        self._answer = answer
        self._drip = drip
        self.heads: list[bytes] = []
        self.port = 0
        self.open = 0
        self.idle = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.idle.clear()
        try:
            while True:
                self.heads.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(self._answer)
                await writer.drain()
                while self._drip:
                    writer.write(b" ")
                    await writer.drain()
                    await asyncio.sleep(0.01)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError, ssl.SSLError):
            return
        finally:
            self.open -= 1
            writer.close()
            if not self.open:
                self.idle.set()


@asynccontextmanager
async def serving(answer: bytes, *, tls: ssl.SSLContext | None = None, drip: bool = False) -> AsyncIterator[Server]:
    server = Server(answer, drip=drip)
    listener = await asyncio.start_server(server, "127.0.0.1", 0, ssl=tls)
    server.port = listener.sockets[0].getsockname()[1]
    async with listener:
        yield server


async def fetch(server: Server, path: str = "/a.png") -> bytes:
    origin = f"http://127.0.0.1:{server.port}"
    async with open_fetcher(clock=SystemClock(), environ={}) as fetcher:
        return await fetcher.fetch(origin + path, allowed_origin=origin)


@pytest.fixture
def certified(tmp_path: Path) -> tuple[Callable[[str], ssl.SSLContext], Path]:
    """Make a server's TLS for a name, by an authority that the bundle trusts."""
    authority = trustme.CA()
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(bundle))

    def context(name: str) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(made)
        return made

    return context, bundle


async def get(url: str, *, bundle: Path, address: str | None) -> Reply | NoReply:
    async with Wire(fetching_transport(ca_bundle=bundle, environ={}), clock=SystemClock()) as wire:
        return await wire.get(url, {"accept": "image/*"}, address=address, timeout_s=5)


async def test_a_pinned_request_reaches_the_address_and_bears_the_name(
    certified: tuple[Callable[[str], ssl.SSLContext], Path],
) -> None:
    context, bundle = certified
    async with serving(OK, tls=context(NAME)) as server:
        reply = await get(f"https://{NAME}:{server.port}/a%2Fb?sig=x%2By%3D", bundle=bundle, address="127.0.0.1")
    assert isinstance(reply, Reply)
    assert (reply.status, reply.body) == (200, PNG)
    (head,) = server.heads
    assert head.startswith(b"GET /a%2Fb?sig=x%2By%3D HTTP/1.1\r\n")
    assert f"host: {NAME}:{server.port}\r\n".encode() in head.lower()


@pytest.mark.parametrize("name", ["other.example.net", "127.0.0.1"])
async def test_a_pinned_address_must_still_prove_the_name(
    certified: tuple[Callable[[str], ssl.SSLContext], Path], name: str
) -> None:
    context, bundle = certified
    async with serving(OK, tls=context(name)) as server:
        reply = await get(f"https://{NAME}:{server.port}/", bundle=bundle, address="127.0.0.1")
    assert isinstance(reply, NoReply)
    assert reply.kind is NoReplyKind.TLS
    assert server.heads == []


async def test_a_picture_at_the_deployments_own_origin_is_fetched_and_the_connection_closed() -> None:
    async with serving(OK) as server:
        assert await fetch(server) == PNG
        await server.idle.wait()
        assert len(server.heads) == 1


async def test_a_server_on_this_machine_is_reached_from_no_other_origin() -> None:
    async with serving(OK) as server, open_fetcher(clock=SystemClock(), environ={}) as fetcher:
        for url in (f"http://127.0.0.1:{server.port}/", f"https://127.0.0.1:{server.port}/"):
            with pytest.raises(MediaError):
                await fetcher.fetch(url, allowed_origin="http://127.0.0.1:1")
        assert server.open == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_reaches_nobody(status: int) -> None:
    async with serving(OK) as second:
        location = f"location: http://127.0.0.1:{second.port}/\r\ncontent-length: 0\r\n\r\n"
        async with serving(f"HTTP/1.1 {status} Moved\r\n{location}".encode()) as first:
            with pytest.raises(MediaError) as caught:
                await fetch(first)
        assert caught.value.code == "fetch"
        assert second.heads == []


DRIPPING = b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ncontent-length: 100000\r\n\r\n"


async def test_a_body_that_drips_ends_with_the_time() -> None:
    async with serving(DRIPPING, drip=True) as server:
        origin = f"http://127.0.0.1:{server.port}"
        async with Wire(fetching_transport(ca_bundle=None, environ={}), clock=SystemClock()) as wire:
            fetcher = Fetcher(wire, clock=SystemClock(), environ={}, timeout_s=0.2)
            with pytest.raises(ReplyError) as caught:
                await fetcher.fetch(origin, allowed_origin=origin)
        assert caught.value.code == "fetch"
        await server.idle.wait()
        assert len(server.heads) == 1
