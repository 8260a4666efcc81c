"""One attempt over a transport that is given: what it sends, what it makes of every failure."""

from __future__ import annotations

import gzip
import inspect
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import anyio
import httpx
import pyreqwest.exceptions
import pytest

from pipeline.clock import SystemClock
from pipeline.errors import RefusedError
from pipeline.model import NoReply, NoReplyKind, Reply
from pipeline.service import wire
from pipeline.service.wire import REPLY_CAP_BYTES, Wire, default_transport, kind_of, proxy_for
from pipeline.testing import MemoryTransport

pytestmark = pytest.mark.anyio
URL = "https://host.example/secret-path?secret=query"


def subclasses(root: type[BaseException]) -> set[type[BaseException]]:
    return {root}.union(*(subclasses(child) for child in root.__subclasses__()))


HTTPX_KINDS: dict[type[BaseException], NoReplyKind | None] = {
    **dict.fromkeys((httpx.TimeoutException, httpx.ConnectTimeout, httpx.ReadTimeout), NoReplyKind.TIMEOUT),
    **dict.fromkeys((httpx.WriteTimeout, httpx.PoolTimeout), NoReplyKind.TIMEOUT),
    **dict.fromkeys((httpx.ConnectError, httpx.ProxyError), NoReplyKind.CONNECT),
    **dict.fromkeys((httpx.ReadError, httpx.WriteError, httpx.CloseError, httpx.NetworkError), NoReplyKind.READ),
    **dict.fromkeys((httpx.ProtocolError, httpx.LocalProtocolError, httpx.RemoteProtocolError), NoReplyKind.READ),
    **dict.fromkeys((httpx.TransportError, httpx.RequestError, httpx.DecodingError), NoReplyKind.READ),
    **dict.fromkeys((httpx.TooManyRedirects, httpx.UnsupportedProtocol, httpx.HTTPStatusError), NoReplyKind.READ),
    **dict.fromkeys((httpx.HTTPError, httpx.InvalidURL, httpx.CookieConflict, httpx.StreamError)),
    **dict.fromkeys((httpx.StreamConsumed, httpx.StreamClosed, httpx.ResponseNotRead, httpx.RequestNotRead)),
}


def raised(kind: type[BaseException]) -> BaseException:
    if kind is httpx.HTTPStatusError:
        return httpx.HTTPStatusError(URL, request=httpx.Request("POST", URL), response=httpx.Response(500))
    if issubclass(kind, pyreqwest.exceptions.JSONDecodeError):
        return kind(URL, {"doc": "", "pos": 0, "causes": [{"message": URL}]})
    if issubclass(kind, pyreqwest.exceptions.DetailedPyreqwestError):
        return kind(URL, {"causes": [{"message": URL}]})
    parameters = inspect.signature(kind).parameters
    return kind() if "message" not in parameters and not issubclass(kind, httpx.HTTPError) else kind(URL)


async def send(transport: httpx.AsyncBaseTransport, *, timeout_s: float = 5.0) -> Reply | NoReply:
    async with Wire(transport, clock=SystemClock()) as sender:
        return await sender.send(URL, {"api-key": "secret-key", "accept": "*/*"}, b"secret-body", timeout_s=timeout_s)


def test_every_exception_of_httpx_is_known() -> None:
    known = {found for _, found in inspect.getmembers(httpx, inspect.isclass) if issubclass(found, Exception)}
    assert known - {httpx.TransportError} == set(HTTPX_KINDS) - {httpx.TransportError}


@pytest.mark.parametrize("kind", HTTPX_KINDS, ids=str)
async def test_every_exception_of_httpx_is_no_reply_or_a_defect_of_ours(kind: type[BaseException]) -> None:
    error = raised(kind)
    assert kind_of(error) is HTTPX_KINDS[kind]
    assert isinstance(error, Exception)
    transport = MemoryTransport(lambda _: error)
    if HTTPX_KINDS[kind] is None:
        with pytest.raises(kind):
            await send(transport)
    else:
        reply = await send(transport)
        assert isinstance(reply, NoReply)
        assert reply.kind is HTTPX_KINDS[kind]
        assert "secret" not in repr(reply)


@pytest.mark.parametrize(
    "kind",
    sorted(subclasses(pyreqwest.exceptions.PyreqwestError), key=str),
    ids=str,
)
async def test_every_exception_of_pyreqwest_is_no_reply(kind: type[BaseException]) -> None:
    error = raised(kind)
    assert isinstance(error, Exception)
    reply = await send(MemoryTransport(lambda _: error))
    assert isinstance(reply, NoReply)
    timed_out = issubclass(kind, pyreqwest.exceptions.RequestTimeoutError)
    assert reply.kind is (NoReplyKind.TIMEOUT if timed_out else NoReplyKind.READ)
    assert "secret" not in repr(reply)


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (caused(httpx.ConnectError("x"), socket.gaierror(-2, "Name or service not known")), NoReplyKind.UNKNOWN_HOST),
        (
            caused(httpx.ConnectError("x"), socket.gaierror(-3, "Temporary failure in name resolution")),
            NoReplyKind.CONNECT,
        ),
        (caused(httpx.ConnectError("x"), ssl.SSLCertVerificationError("certificate verify failed")), NoReplyKind.TLS),
        (httpx.ConnectError("[SSL: WRONG_VERSION_NUMBER] wrong version number"), NoReplyKind.TLS),
        (httpx.ConnectError("[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred"), NoReplyKind.CONNECT),
        (caused(httpx.ConnectError("x"), ConnectionRefusedError(111, "Connection refused")), NoReplyKind.CONNECT),
        (TimeoutError(), NoReplyKind.TIMEOUT),
        (ConnectionResetError(), NoReplyKind.READ),
        (anyio.BrokenResourceError(), NoReplyKind.READ),
        (KeyError("x"), None),
        (MemoryError(), None),
        (RuntimeError("x"), None),
    ],
    ids=repr,
)
def test_a_failed_connection_says_why(error: Exception, kind: NoReplyKind | None) -> None:
    assert kind_of(error) is kind


@pytest.mark.parametrize(("connecting", "said", "kind"), [
    (True, "tcp connect error: Connection refused (os error 111)", NoReplyKind.CONNECT),
    (True, "failed to lookup address information: Name or service not known", NoReplyKind.UNKNOWN_HOST),
    (True, "failed to lookup address information: Temporary failure in name resolution", NoReplyKind.CONNECT),
    (True, "invalid peer certificate: UnknownIssuer", NoReplyKind.TLS),
    (True, "received fatal alert: ProtocolVersion", NoReplyKind.TLS),
    (True, "tls handshake eof", NoReplyKind.CONNECT),
    (False, "connection closed before message completed", NoReplyKind.READ),
])  # fmt: skip
def test_pyreqwests_causes_say_why(connecting: bool, said: str, kind: NoReplyKind) -> None:  # noqa: FBT001 - a column
    stage = "client error (Connect)" if connecting else "client error (SendRequest)"
    causes: pyreqwest.exceptions.CauseErrorDetails = {"causes": [{"message": stage}, {"message": said}]}
    assert kind_of(pyreqwest.exceptions.ConnectError("connection error", causes)) is kind


def test_every_kind_of_no_reply_has_its_sentence() -> None:
    assert set(wire._MESSAGES) == set(NoReplyKind)


async def test_a_reply_is_whole_with_lower_case_names() -> None:
    headers = [(b"Retry-After", b"3"), (b"X-Odd", b"\xe9")]
    transport = MemoryTransport(lambda _: httpx.Response(429, headers=headers, content=b"no"))
    reply = await send(transport)
    assert isinstance(reply, Reply)
    assert (reply.status, reply.body, reply.headers["retry-after"]) == (429, b"no", "3")
    (request,) = transport.requests
    assert (request.method, str(request.url), request.content) == ("POST", URL, b"secret-body")
    assert dict(request.headers) == {
        "host": "host.example", "api-key": "secret-key", "accept": "*/*", "content-length": "11"
    }  # fmt: skip


async def test_a_compressed_reply_is_decompressed() -> None:
    packed = httpx.Response(200, headers={"content-encoding": "gzip"}, content=gzip.compress(b"hello"))
    reply = await send(MemoryTransport(lambda _: packed))
    assert isinstance(reply, Reply)
    assert reply.body == b"hello"


class Endless(httpx.AsyncByteStream):
    """A body that never ends, and says when it was closed."""

    def __init__(self, chunk: bytes, *, wait_s: float = 0.0) -> None:
        self._chunk = chunk
        self._wait_s = wait_s
        self.given = 0
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            await anyio.sleep(self._wait_s)
            self.given += len(self._chunk)
            yield self._chunk

    async def aclose(self) -> None:
        self.closed = True


async def test_a_body_past_the_cap_is_given_up() -> None:
    body = Endless(b"x" * (1 << 20))
    reply = await send(MemoryTransport(lambda _: httpx.Response(200, stream=body)))
    assert isinstance(reply, NoReply)
    assert reply.kind is NoReplyKind.TOO_LARGE
    assert body.given <= REPLY_CAP_BYTES + (1 << 20)
    assert body.closed


async def test_the_cap_counts_after_decompression() -> None:
    bomb = gzip.compress(bytes(REPLY_CAP_BYTES + 1))
    assert len(bomb) < 1 << 20
    reply = await send(
        MemoryTransport(lambda _: httpx.Response(200, headers={"content-encoding": "gzip"}, content=bomb))
    )
    assert isinstance(reply, NoReply)
    assert reply.kind is NoReplyKind.TOO_LARGE


async def test_a_drip_ends_at_the_deadline_though_no_read_times_out() -> None:
    body = Endless(b"x", wait_s=0.005)
    reply = await send(MemoryTransport(lambda _: httpx.Response(200, stream=body)), timeout_s=-wire.BACKSTOP_S + 0.05)
    assert isinstance(reply, NoReply)
    assert reply.kind is NoReplyKind.TIMEOUT
    assert reply.latency_ms < 2000
    assert body.closed


HTTPS = "https://res.openai.azure.com"


@pytest.mark.parametrize(
    ("url", "environ", "proxy"),
    [
        (HTTPS, {}, None),
        (HTTPS, {"HTTPS_PROXY": "http://p:1"}, "http://p:1"),
        (HTTPS, {"https_proxy": "http://p:1", "HTTPS_PROXY": "http://q:2"}, "http://p:1"),
        (HTTPS, {"HTTP_PROXY": "http://p:1"}, None),
        (HTTPS, {"ALL_PROXY": "p:1"}, "http://p:1"),
        (HTTPS, {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, None),
        (HTTPS, {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "x, .azure.com"}, None),
        (HTTPS, {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "azure.com"}, None),
        (HTTPS, {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*.azure.com"}, None),
        (HTTPS, {"HTTPS_PROXY": "http://p:1", "no_proxy": "RES.openai.azure.com"}, None),
        (HTTPS, {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "zure.com"}, "http://p:1"),
        (f"{HTTPS}:8443", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "azure.com:443"}, "http://p:1"),
        (f"{HTTPS}:8443", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "azure.com:8443"}, None),
        ("https://10.1.2.3", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/8"}, None),
        ("https://11.1.2.3", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/8"}, "http://p:1"),
        ("http://127.0.0.1:1", {"HTTP_PROXY": "http://p:1", "ALL_PROXY": "http://p:1"}, None),
        ("http://localhost:1", {"HTTP_PROXY": "http://p:1"}, None),
        ("https://[::1]:1", {"HTTPS_PROXY": "http://p:1"}, None),
        (HTTPS, {"HTTPS_PROXY": ""}, None),
    ],
)
def test_the_usual_proxy_variables_are_honoured_but_never_for_loopback(
    url: str, environ: Mapping[str, str], proxy: str | None
) -> None:
    assert proxy_for(url, environ) == proxy


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_bundle_that_holds_no_certificate_is_refused(tmp_path: Path, content: bytes | None) -> None:
    bundle = tmp_path / "ca.pem"
    if content is not None:
        bundle.write_bytes(content)
    with pytest.raises(RefusedError, match=r"ca\.pem"):
        default_transport(HTTPS, connections=1, ca_bundle=bundle, environ={})
    with pytest.raises(RefusedError, match=r"ca\.pem"):
        default_transport(HTTPS, connections=1, ca_bundle=None, environ={"SSL_CERT_FILE": str(bundle)})


def test_a_proxy_that_cannot_be_used_is_refused_without_its_password() -> None:
    with pytest.raises(RefusedError) as caught:
        default_transport(HTTPS, connections=1, ca_bundle=None, environ={"HTTPS_PROXY": "nonsense://u:secret@[bad"})
    assert "secret" not in str(caught.value)
