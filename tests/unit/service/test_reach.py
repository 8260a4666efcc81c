"""How far an endpoint is reached, and which step fails."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from pipeline.clock import SystemClock
from pipeline.errors import RefusedError
from pipeline.service.reach import NotReachedError, Reached, reach

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def listening(context: ssl.SSLContext | None = None, *, says: bytes | None = b"") -> AsyncIterator[int]:
    """A port whose every connection is told `says` and closed; None: told nothing until the other side goes."""
    over: list[asyncio.Future[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        done = asyncio.get_running_loop().create_future()
        over.append(done)
        try:
            if says is None:
                await reader.read()
            writer.write(says or b"")
            writer.close()
            await writer.wait_closed()
        except OSError:
            pass
        finally:
            done.set_result(None)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]
        await asyncio.gather(*over)


def served_as(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def bundle(tmp_path: Path, authority: trustme.CA) -> Path:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


async def look(url: str, *, ca_bundle: Path | None = None, timeout_s: float = 5.0, **environ: str) -> Reached:
    return await reach(url, ca_bundle=ca_bundle, environ=environ, clock=SystemClock(), timeout_s=timeout_s)


async def test_plain_connections_are_reached_without_tls() -> None:
    async with listening() as port:
        reached = await look(f"http://127.0.0.1:{port}/openai")
    assert (reached.host, reached.port, reached.proxy, reached.addresses, reached.tls) == (
        "127.0.0.1",
        port,
        False,
        1,
        None,
    )


async def test_a_certificate_of_a_known_issuer_verifies(authority: trustme.CA, bundle: Path) -> None:
    async with listening(served_as(authority, "127.0.0.1")) as port:
        reached = await look(f"https://127.0.0.1:{port}", ca_bundle=bundle)
        by_variable = await look(f"https://127.0.0.1:{port}", SSL_CERT_FILE=str(bundle))
    assert reached.tls == by_variable.tls == "TLSv1.3"


async def test_a_certificate_of_an_unknown_issuer_names_the_bundle_as_the_way_out(authority: trustme.CA) -> None:
    async with listening(served_as(authority, "127.0.0.1")) as port:
        with pytest.raises(NotReachedError, match="does not verify") as caught:
            await look(f"https://127.0.0.1:{port}")
    assert "ca_bundle" in caught.value.advice


async def test_a_certificate_of_another_name_does_not_verify(authority: trustme.CA, bundle: Path) -> None:
    async with listening(served_as(authority, "other.example")) as port:
        with pytest.raises(NotReachedError, match=r"does not verify: .*IP address mismatch"):
            await look(f"https://127.0.0.1:{port}", ca_bundle=bundle)


async def test_a_port_that_speaks_no_tls_is_said_to(bundle: Path) -> None:
    async with listening(says=b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        with pytest.raises(NotReachedError, match=f"no TLS with 127.0.0.1 port {port}"):
            await look(f"https://127.0.0.1:{port}", ca_bundle=bundle)


async def test_a_closed_port_refuses() -> None:
    async with listening() as port:
        pass
    with pytest.raises(NotReachedError, match=f"no connection to 127.0.0.1 port {port}: it was refused"):
        await look(f"http://127.0.0.1:{port}")


async def test_a_host_that_says_nothing_is_given_up(bundle: Path) -> None:
    async with listening(says=None) as port:
        with pytest.raises(NotReachedError, match=r"within 0\.05 s"):
            await look(f"https://127.0.0.1:{port}", ca_bundle=bundle, timeout_s=0.05)


async def test_a_name_that_is_none_is_said_to_be() -> None:
    with pytest.raises(NotReachedError, match="cannot be looked up"):
        await look(f"https://{'a' * 70}.example")


async def test_the_proxy_of_the_environment_is_what_is_connected_to() -> None:
    async with listening() as port:
        reached = await look("https://name.example", HTTPS_PROXY=f"http://user:canary@127.0.0.1:{port}")
    assert (reached.host, reached.port, reached.proxy) == ("127.0.0.1", port, True)
    with pytest.raises(NotReachedError, match=r"no connection to the proxy 127\.0\.0\.1 port") as caught:
        await look("https://name.example", HTTPS_PROXY=f"http://user:canary@127.0.0.1:{port}")
    assert "canary" not in f"{caught.value} {caught.value.advice}"


async def test_a_bundle_that_is_none_refuses(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="cannot be read"):
        await look("https://127.0.0.1:1", ca_bundle=tmp_path / "none.pem")
