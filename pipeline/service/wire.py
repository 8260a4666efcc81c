"""Sends one request and reads its whole reply; the only module that speaks HTTP."""

from __future__ import annotations

import contextlib
import functools
import io
import ipaddress
import re
import socket
import ssl
import sys
import zlib
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias
from urllib.parse import unquote, urlsplit

import anyio
import httpx

from pipeline.clock import Clock
from pipeline.errors import RefusedError
from pipeline.model import NoReply, NoReplyKind, Reply
from pipeline.service.address import is_loopback

if TYPE_CHECKING:
    from types import TracebackType

    import pyreqwest.client
    import pyreqwest.http
    from pyreqwest.request import RequestBuilder, StreamRequest
    from pyreqwest.response import Response, ResponseBodyReader

Transport: TypeAlias = httpx.AsyncBaseTransport
"""What a wire sends over: any httpx transport."""
REPLY_CAP_BYTES = 64 << 20
"""Bytes of a reply's body, counted after decompression."""
CONNECT_S = 10.0
"""Seconds for name, connection and TLS together."""
UNACKNOWLEDGED_S = 30
"""Seconds that sent bytes may stay unacknowledged before the connection is given up."""
BACKSTOP_S = 0.5
"""Seconds past its deadline at which an attempt is abandoned although its transport did not end it."""
DEADLINE = "deadline_s"
"""The request extension under which a transport finds the attempt's whole time, in seconds."""
ARRIVED = "arrived"
"""The request extension under which a transport that reads whole replies finds whom to tell of bytes as they come."""
SINK = "sink"
"""The request extension under which a transport that reads whole replies finds who takes those of a 2xx instead."""
ARRIVALS_MS = 1.0
"""Bytes that come within this time of others are noted with them."""

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
_UNKNOWN_HOST = ("name or service not known", "nodename nor servname", "no address associated", "no record found")
_TLS = (
    "certificate",
    "received fatal alert",
    "alert_",
    "wrong_version_number",
    "unsupported_protocol",
    "corrupt message",
)
_DEEPEST_CAUSE = 8
_DIGITS = 20
"""Digits of a length that are read; more make it no smaller."""
_REDIRECTED = 300
_UNPACKED_BYTES = 1 << 20
"""Bytes that are decompressed at once."""
_READ_BYTES = 1 << 20
"""Bytes that are read at once: the transport holds them twice while it does, and gives less only at the end."""
_SOCKET_OPTIONS = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)] + (
    [(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_S * 1000)] if sys.platform == "linux" else []
)

_MESSAGES = {
    NoReplyKind.CONNECT: "The connection could not be made.",
    NoReplyKind.UNKNOWN_HOST: "The endpoint's host name does not exist; check the endpoint.",
    NoReplyKind.TLS: (
        "The endpoint's TLS certificate or protocol did not verify; name the issuer's certificates in ca_bundle if it "
        "is a private one."
    ),
    NoReplyKind.READ: "The connection failed before the whole reply had come.",
    NoReplyKind.TIMEOUT: "The whole reply had not come within the attempt's time.",
    NoReplyKind.TOO_LARGE: "The reply is larger than 64 MB.",
}
_REASONS = (
    ("connection refused", "The connection was refused."),
    ("connection reset", "The connection was reset."),
    ("broken pipe", "The connection was closed while the request was being sent."),
    (
        "too many open files",
        "No more files or connections may be opened; raise the limit (ulimit -n) or lower `workers`.",
    ),
    ("temporary failure in name resolution", "The host's name could not be looked up for now."),
    ("network is unreachable", "The network is unreachable."),
    ("no route to host", "There is no route to the host."),
    ("proxy authorization required", "The proxy asks for a user name and password."),
    ("expired", "The endpoint's TLS certificate has expired."),
    ("notvalidforname", "The endpoint's TLS certificate is for another name."),
    ("not valid for", "The endpoint's TLS certificate is for another name."),
    ("not valid yet", "The endpoint's TLS certificate is not valid yet; check this machine's clock."),
    ("not yet valid", "The endpoint's TLS certificate is not valid yet; check this machine's clock."),
)
"""What exceptions of every transport say, and what is said of it here."""


class ReplyTooLargeError(Exception):
    """A reply passes the cap; nothing of it is kept."""


class Wire:
    """Sends attempts to one deployment's host, over any httpx transport; closed by `aclose` or as a context manager.

    TLS is always verified, redirects are never followed, and nothing that it says holds a URL, a header or a body.
    """

    __slots__ = ("_clock", "_older", "_own", "_owned", "_transport")

    def __init__(self, transport: Transport, *, clock: Clock, owned: bool = True) -> None:
        self._transport = transport
        self._clock = clock
        self._owned = owned
        self._older: list[Transport] = []
        # A cancel scope costs as much as a third of the whole attempt; who ends attempts by himself needs none. Nor
        # need httpx's requests and replies be built for him, which cost as much again as the sending.
        self._own = transport if isinstance(transport, PyreqwestTransport) else None

    def widen(self, connections: int) -> None:
        """Keep as many connections open as so many attempts at once use; those under way end as they began."""
        if self._own is not None and self._owned and connections > self._own.connections:
            self._older.append(self._own)
            self._transport = self._own = self._own.with_connections(connections)

    async def send(
        self, url: str, headers: Mapping[str, str], body: bytes, *, timeout_s: float, stream: bool = False
    ) -> Reply | NoReply:
        """Make exactly one attempt, which ends within `timeout_s` (plus half a second), connect to last byte.

        `stream` has the reply say when its bytes came; it is read to its end all the same.
        """
        parsed, host, text = _url(url)
        began = self._clock.now()
        arrivals = _Arrivals(self._clock, began) if stream else None
        if self._own is not None:
            sending = self._post(self._own, text, headers, body, began, arrivals, timeout_s)
            return await self._attempt(sending, began, timeout_s)
        extensions = {DEADLINE: timeout_s, "timeout": _timeouts(timeout_s)}
        request = httpx.Request(
            "POST",
            parsed,
            headers=[("host", host), *headers.items(), ("content-length", str(len(body)))],
            stream=Whole(body),
            extensions=extensions if arrivals is None else {**extensions, ARRIVED: arrivals.note},
        )
        return await self._attempt(self._exchange(request, began, arrivals), began, timeout_s)

    async def get(
        self, url: str, headers: Mapping[str, str], *, address: str | None, timeout_s: float
    ) -> Reply | NoReply:
        """Fetch a URL by exactly one attempt, as `send` makes them.

        `address` is the IP address to connect to, whatever the host's name leads to by now; the certificate must still
        be the name's. It needs a transport that heeds httpx's extension `sni_hostname`, and no proxy.
        """
        parsed, host, _ = _url(url)
        extensions: dict[str, Any] = {DEADLINE: timeout_s, "timeout": _timeouts(timeout_s)}
        if address is not None:
            extensions["sni_hostname"] = parsed.host
            parsed = parsed.copy_with(host=address)
        request = httpx.Request("GET", parsed, headers=[("host", host), *headers.items()], extensions=extensions)
        began = self._clock.now()
        return await self._attempt(self._exchange(request, began, None), began, timeout_s)

    async def transfer(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Pieces | None = None,
        *,
        timeout_s: float,
        sink: Callable[[bytes], None] | None = None,
    ) -> Reply | NoReply:
        """Make exactly one attempt, as `send` makes them, with files of any size: nothing is held whole.

        A `sink` takes the bytes of a 2xx reply's body as they come; the reply's own body is then empty. What it raises
        ends the attempt and is raised. The reply should not be encoded.
        """
        parsed, host, _ = _url(url)
        extensions: dict[str, Any] = {DEADLINE: timeout_s, "timeout": _timeouts(timeout_s)}
        if sink is not None:
            extensions[SINK] = sink
        framing = [] if body is None else [("content-length", str(body.length))]
        request = httpx.Request(
            method, parsed, headers=[("host", host), *headers.items(), *framing], stream=body, extensions=extensions
        )
        began = self._clock.now()
        return await self._attempt(self._exchange(request, began, None), began, timeout_s)

    async def _attempt(self, sending: Awaitable[Reply], began: float, timeout_s: float) -> Reply | NoReply:
        """See a sending to its end, and make of its failure what people can read."""
        words = ""
        try:
            if self._own is not None:
                reply = await sending
            else:
                with anyio.fail_after(timeout_s + BACKSTOP_S):
                    reply = await sending
        except ReplyTooLargeError:
            kind = NoReplyKind.TOO_LARGE
        except Exception as error:
            found = kind_of(error)
            if found is None:
                raise
            kind, words = found, _words(error)
        else:
            return reply
        message = next((reason for said, reason in _REASONS if said in words), _MESSAGES[kind])
        return NoReply(kind=kind, message=message, latency_ms=(self._clock.now() - began) * 1000)

    async def _exchange(self, request: httpx.Request, began: float, arrivals: _Arrivals | None) -> Reply:
        """Send, and read the whole reply. Raises ReplyTooLargeError when it passes the cap."""
        response = await self._transport.handle_async_request(request)
        try:
            content = await _read(response, arrivals, request.extensions.get(SINK))
        finally:
            await response.aclose()
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers.raw}
        version: bytes = response.extensions.get("http_version", b"HTTP/1.1")
        return self._reply(response.status_code, headers, version.decode("ascii"), content, began, arrivals)

    async def _post(
        self,
        transport: PyreqwestTransport,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        began: float,
        arrivals: _Arrivals | None,
        timeout_s: float,
    ) -> Reply:
        """What `_exchange` does, for the transport that needs none of httpx's types."""
        status, raw, version, content = await transport.post(
            url, headers, body, timeout_s=timeout_s, arrived=None if arrivals is None else arrivals.note
        )
        lowered = dict(raw)  # names come in lower case
        if "content-encoding" in lowered:  # one that nobody asked for
            content = await _read(httpx.Response(status, headers=raw, stream=Whole(content)), None, None)
        return self._reply(status, lowered, version, content, began, arrivals)

    def _reply(
        self,
        status: int,
        headers: dict[str, str],
        version: str,
        body: bytes,
        began: float,
        arrivals: _Arrivals | None,
    ) -> Reply:
        return Reply(
            status=status,
            headers=headers,
            body=body,
            latency_ms=(self._clock.now() - began) * 1000,
            arrivals=() if arrivals is None else tuple(arrivals.noted),
            framed=_is_framed(version, headers),
        )

    async def aclose(self) -> None:
        """Close every connection of a transport that is this wire's own."""
        if self._owned:
            for transport in (*self._older, self._transport):
                await transport.aclose()

    async def __aenter__(self) -> Self:
        """Return the wire itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close every connection."""
        await self.aclose()


class _Arrivals:
    """Notes when a reply's bytes came."""

    def __init__(self, clock: Clock, began: float) -> None:
        self.noted: list[tuple[int, float]] = []
        self._clock = clock
        self._began = began
        self._bytes = 0

    def note(self, size: int) -> None:
        """Count bytes that came just now."""
        self._bytes += size
        at = (self._clock.now() - self._began) * 1000
        if self.noted and at - self.noted[-1][1] < ARRIVALS_MS:
            at = self.noted.pop()[1]
        self.noted.append((self._bytes, at))


class Whole(httpx.ByteStream):
    """A body that is all there already, to be had without iterating."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.content = content


class Pieces(httpx.AsyncByteStream):
    """A body of `length` bytes that is made piece by piece; each iteration begins anew."""

    def __init__(self, make: Callable[[], AsyncIterator[bytes]], length: int) -> None:
        self.length = length
        self._make = make

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Begin."""
        return self._make()


class PyreqwestTransport(httpx.AsyncBaseTransport):
    """A lean bridge from httpx's types to pyreqwest: body and reply are whole, and its own clock ends an attempt.

    pyreqwest does not drop a request whose Python task is cancelled; only its own timeout frees the connection.
    """

    def __init__(self, *, connections: int, proxy: str | None, certificates: bytes) -> None:
        from pyreqwest.client import ClientBuilder  # noqa: PLC0415 - not for `pipeline --help` to pay
        from pyreqwest.proxy import ProxyBuilder  # noqa: PLC0415

        self.connections = connections
        self._proxy = proxy
        self._certificates = certificates
        builder = (
            ClientBuilder()
            .follow_redirects(enable=False)
            .referer(enable=False)
            .no_proxy()
            .min_tls_version("TLSv1.2")
            .connect_timeout(timedelta(seconds=CONNECT_S))
            .tcp_keepalive(timedelta(seconds=30))
            .tcp_user_timeout(timedelta(seconds=UNACKNOWLEDGED_S))
            .pool_max_idle_per_host(connections)
            .pool_idle_timeout(timedelta(seconds=60))
            .gzip(enable=False)
            .deflate(enable=False)
            .brotli(enable=False)
            .zstd(enable=False)
        )
        if proxy is not None:
            parts = urlsplit(proxy)
            through = ProxyBuilder.all(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}")
            if parts.username is not None:
                through = through.basic_auth(unquote(parts.username), unquote(parts.password or ""))
            builder = builder.proxy(through)
        for certificate in _PEM.findall(certificates):
            builder = builder.add_root_certificate_pem(certificate)
        self._client: pyreqwest.client.Client = builder.build()

    def with_connections(self, connections: int) -> PyreqwestTransport:
        """One that keeps so many connections open, to the same host by the same way."""
        return PyreqwestTransport(connections=connections, proxy=self._proxy, certificates=self._certificates)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send, and read the whole reply. Raises ReplyTooLargeError where it passes the cap."""
        sending = self._client.request(request.method, str(request.url)).headers(
            [(name.decode("ascii"), value.decode("ascii")) for name, value in request.headers.raw if name != b"host"]
        )
        if isinstance(request.stream, Pieces):
            sending = sending.body_stream(aiter(request.stream))
        else:
            sending = sending.body_bytes(
                request.stream.content if isinstance(request.stream, Whole) else await request.aread()
            )
        if DEADLINE in request.extensions:
            sending = sending.timeout(_span(request.extensions[DEADLINE]))
        arrived: Callable[[int], None] | None = request.extensions.get(ARRIVED)
        async with _streamed(sending, arrived) as reply:
            sink: Callable[[bytes], None] | None = request.extensions.get(SINK)
            if sink is not None and reply.status < _REDIRECTED:
                async for chunk in _chunks(reply.body_reader, _unpacker(reply.headers)):
                    sink(chunk)
                return httpx.Response(reply.status, headers=_readable(reply.headers), stream=Whole(b""))
            stream = Whole(await _read_whole(reply, arrived))
            version = {"http_version": reply.version.encode()}
            return httpx.Response(reply.status, headers=_readable(reply.headers), stream=stream, extensions=version)

    async def post(
        self,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        *,
        timeout_s: float,
        arrived: Callable[[int], None] | None = None,
    ) -> tuple[int, list[tuple[str, str]], str, bytes]:
        """Send, and return status, headers (names in lower case), HTTP version and the whole body of the reply.

        The same as a request of httpx's without building one. Raises ReplyTooLargeError where it passes the cap.
        """
        sending = self._client.post(url).headers(headers).body_bytes(body).timeout(_span(timeout_s))
        async with _streamed(sending, arrived) as reply:
            content = await _read_whole(reply, arrived)
            return reply.status, _readable(reply.headers), reply.version, content

    async def aclose(self) -> None:
        """Close every connection."""
        await self._client.close()


class HttpxTransport(httpx.AsyncBaseTransport):
    """httpx's own transport, one for every request in flight, because its pool's cost grows with what it holds.

    It stands in where pyreqwest does not install.
    """

    def __init__(self, *, proxy: str | None, certificates: bytes) -> None:
        self._context = _tls(certificates)
        self._proxy = proxy
        self._idle: list[httpx.AsyncHTTPTransport] = []
        self._all: list[httpx.AsyncHTTPTransport] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send by an idle transport, or a new one; closing the response gives it back."""
        transport = self._idle.pop() if self._idle else self._new()
        try:
            response = await transport.handle_async_request(request)
        except BaseException:
            self._idle.append(transport)
            raise
        assert isinstance(response.stream, httpx.AsyncByteStream)  # noqa: S101 - an async transport gives nothing else
        stream = _Borrowed(response.stream, lambda: self._give_back(transport))
        return _with_stream(response, stream)

    async def aclose(self) -> None:
        """Close every connection."""
        for transport in self._all:
            await transport.aclose()

    async def _give_back(self, transport: httpx.AsyncHTTPTransport) -> None:
        """Keep a transport for the next request, unless that would read what came beyond this reply as its own."""
        if _holds_more(transport):
            self._all.remove(transport)
            await transport.aclose()
        else:
            self._idle.append(transport)

    def _new(self) -> httpx.AsyncHTTPTransport:
        transport = httpx.AsyncHTTPTransport(
            verify=self._context, proxy=self._proxy, trust_env=False, socket_options=_SOCKET_OPTIONS
        )
        self._all.append(transport)
        return transport


class FreshTransport(httpx.AsyncBaseTransport):
    """httpx's own transport, with a connection of its own for each request: for hosts that replies name.

    No connection made under one host's name is used for another's, though both names lead to the same address.
    """

    def __init__(self, *, certificates: bytes, environ: Mapping[str, str]) -> None:
        self._context = _tls(certificates)
        self._environ = environ

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send by a new transport, which is closed with the response."""
        # A request that names the address to connect to must not leave it to a proxy.
        proxy = None if "sni_hostname" in request.extensions else proxy_for(str(request.url), self._environ)
        transport = httpx.AsyncHTTPTransport(
            verify=self._context, proxy=proxy, trust_env=False, socket_options=_SOCKET_OPTIONS
        )
        try:
            response = await transport.handle_async_request(request)
        except BaseException:
            await transport.aclose()
            raise
        assert isinstance(response.stream, httpx.AsyncByteStream)  # noqa: S101 - an async transport gives nothing else
        stream = _Borrowed(response.stream, transport.aclose)
        return _with_stream(response, stream)


class _Borrowed(httpx.AsyncByteStream):
    """A reply's stream that says when it was closed."""

    def __init__(self, stream: httpx.AsyncByteStream, closed: Callable[[], Awaitable[None]]) -> None:
        self._stream = stream
        self._closed = closed

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            yield chunk

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            await self._closed()


def _holds_more(transport: httpx.AsyncHTTPTransport) -> bool:
    """Whether a connection has read bytes beyond the reply that was asked for.

    httpcore would answer the next request with them. Nothing public shows them; where they cannot be seen they may be
    there.
    """
    for connection in transport._pool.connections:  # noqa: SLF001 - nothing public does
        inner: Any = connection
        while inner is not None and not hasattr(inner, "_h11_state"):
            inner = getattr(inner, "_connection", None)
        if inner is None or inner._h11_state.trailing_data[0]:  # noqa: SLF001 - likewise
            return True
    return False


def _with_stream(response: httpx.Response, stream: httpx.AsyncByteStream) -> httpx.Response:
    extensions = {"http_version": response.extensions.get("http_version", b"HTTP/1.1")}
    return httpx.Response(response.status_code, headers=response.headers.raw, stream=stream, extensions=extensions)


def default_transport(
    base: str, *, connections: int, ca_bundle: Path | None, environ: Mapping[str, str]
) -> httpx.AsyncBaseTransport:
    """Return the fastest transport installed, for one host, with the environment's proxy and certificates.

    `base` is an http(s) URL of the host. Raises RefusedError where a bundle cannot be read or a proxy not used.
    """
    certificates = _certificates(ca_bundle, environ)
    proxy = proxy_for(base, environ)
    try:
        try:
            return PyreqwestTransport(connections=connections, proxy=proxy, certificates=certificates)
        except ImportError:
            return HttpxTransport(proxy=proxy, certificates=certificates)
    except (ValueError, ssl.SSLError) as error:
        # Neither library's words are passed on: they may quote the proxy's password.
        what = "the proxy or the certificates" if proxy else "the certificates"
        raise RefusedError(f"{what} named by ca_bundle, SSL_CERT_FILE or *_PROXY cannot be used; check them") from error


def fetching_transport(*, ca_bundle: Path | None, environ: Mapping[str, str]) -> Transport:
    """Return the transport for URLs that replies name, with the environment's proxies and certificates.

    Raises RefusedError where a bundle cannot be read.
    """
    try:
        return FreshTransport(certificates=_certificates(ca_bundle, environ), environ=environ)
    except (ValueError, ssl.SSLError) as error:
        raise RefusedError("the certificates named by ca_bundle or SSL_CERT_FILE cannot be used; check them") from error


def tls_context(*, ca_bundle: Path | None, environ: Mapping[str, str]) -> ssl.SSLContext:
    """Return what verifies certificates as the transports do. Raises RefusedError where a bundle cannot be used."""
    try:
        return _tls(_certificates(ca_bundle, environ))
    except ssl.SSLError as error:
        raise RefusedError("the certificates named by ca_bundle or SSL_CERT_FILE cannot be used; check them") from error


def proxy_for(url: str, environ: Mapping[str, str]) -> str | None:
    """Return the proxy that the usual variables (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY) give for a URL.

    Lower case wins over upper case. None for a host that NO_PROXY names, and always for loopback.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    if is_loopback(host):
        return None
    proxies = {name.lower()[: -len("_proxy")]: value for name, value in _variables(environ, "_proxy") if value}
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or _bypassed(host, parts.port, proxies.get("no", "")):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def kind_of(error: BaseException) -> NoReplyKind | None:
    """Say why a transport gave no whole reply; None for an exception that is no transport's (a defect of ours)."""
    words = _words(error)
    match type(error).__module__.partition(".")[0], error:
        case _, TimeoutError() | httpx.TimeoutException():
            return NoReplyKind.TIMEOUT
        case "pyreqwest", _:
            connecting = "client error (connect)" in words
        case _, httpx.ConnectError() | httpx.ProxyError():
            connecting = True
        case _, httpx.RequestError() | httpx.HTTPStatusError() | OSError() | anyio.BrokenResourceError():
            connecting = False
        case _:
            return None
    if not connecting:
        return NoReplyKind.READ
    if any(said in words for said in _UNKNOWN_HOST):
        return NoReplyKind.UNKNOWN_HOST
    return NoReplyKind.TLS if any(said in words for said in _TLS) else NoReplyKind.CONNECT


def _words(error: BaseException) -> str:
    """Everything that an exception and its causes say, in lower case; for looking into, never for showing."""
    said: list[str] = []
    seen: BaseException | None = error
    while seen is not None and len(said) < _DEEPEST_CAUSE:
        details = getattr(seen, "details", None)
        said.append(f"{seen} {details}")
        seen = seen.__cause__ or seen.__context__
    return " ".join(said).lower()


def _streamed(sending: RequestBuilder, arrived: Callable[[int], None] | None) -> StreamRequest:
    """The request as one whose reply is read as it comes; where somebody is told of its bytes, as soon as they come."""
    if arrived is not None:
        # Its default waits for 64 kB or the end before the first bytes are handed on.
        sending = sending.streamed_read_buffer_limit(1)
    return sending.build_streamed()


async def _read_whole(reply: Response, arrived: Callable[[int], None] | None) -> bytes:
    """Read a body to its end. Raises ReplyTooLargeError where it passes the cap."""
    _refuse_long(reply.headers.get("content-length"))
    unpacker = _unpacker(reply.headers)
    if arrived is not None or unpacker is not None:
        return await _read_chunks(_chunks(reply.body_reader, unpacker), arrived)
    first = await reply.body_reader.read(_READ_BYTES)
    if first is None or len(first) < _READ_BYTES:
        return b"" if first is None else bytes(first)
    return await _read_on(bytes(first), reply.body_reader)


async def _read_on(first: bytes, reader: ResponseBodyReader) -> bytes:
    """Read a body on behind its first piece. Raises ReplyTooLargeError where it passes the cap."""
    kept = io.BytesIO(first)
    kept.seek(len(first))
    while (piece := await reader.read(_READ_BYTES)) is not None:
        _refuse_large(kept.tell() + len(piece))
        kept.write(piece)
    return kept.getvalue()


def _chunks(reader: ResponseBodyReader, unpacker: _Unpacker | None) -> AsyncIterator[bytes]:
    """A body as it comes, decompressed where there is an unpacker."""
    chunks = _raw_chunks(reader)
    return chunks if unpacker is None else _unpacked(chunks, unpacker)


async def _raw_chunks(reader: ResponseBodyReader) -> AsyncIterator[bytes]:
    while (chunk := await reader.read_chunk()) is not None:
        yield bytes(chunk)


async def _read_chunks(chunks: AsyncIterable[bytes], arrived: Callable[[int], None] | None) -> bytes:
    """Read a body as it comes. Raises ReplyTooLargeError where it passes the cap."""
    kept = io.BytesIO()
    async for chunk in chunks:
        if arrived is not None:
            arrived(len(chunk))
        _refuse_large(kept.tell() + len(chunk))
        kept.write(chunk)
    return kept.getvalue()


def _refuse_large(size: int) -> None:
    if size > REPLY_CAP_BYTES:
        raise ReplyTooLargeError


def _refuse_long(length: str | None) -> None:
    """Refuse a body by the length that its reply states, before any of it is read."""
    if length is not None and length.isascii() and length.isdecimal():
        _refuse_large(int(length[:_DIGITS]))


async def _read(response: httpx.Response, arrivals: _Arrivals | None, sink: Callable[[bytes], None] | None) -> bytes:
    """Read a body to its end. Raises ReplyTooLargeError when it passes the cap, unless a sink takes a 2xx reply's."""
    if isinstance(response.stream, Whole) and "content-encoding" not in response.headers:
        _refuse_large(len(response.stream.content))
        return response.stream.content
    pieces = response.aiter_bytes()
    if (unpacker := _unpacker(response.headers)) is not None:
        assert isinstance(response.stream, httpx.AsyncByteStream)  # noqa: S101 - an async transport gives nothing else
        pieces = _unpacked(response.stream, unpacker)
    if sink is not None and response.status_code < _REDIRECTED:
        async for chunk in pieces:
            sink(chunk)
        return b""
    _refuse_long(response.headers.get("content-length"))
    chunks: list[bytes] = []
    size = 0
    async for chunk in pieces:
        size += len(chunk)
        _refuse_large(size)
        if arrivals is not None:
            arrivals.note(len(chunk))
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


class _Unpacker:
    """Decompresses a body of gzip, which is one member, to its last byte.

    Both libraries would give the first of several members, and httpx what came of a cut one, as if that were all.
    """

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 16)
        self._came = False

    def pieces(self, packed: bytes) -> Iterator[bytes]:
        """Give what some more bytes stand for, in pieces of bounded size. Raises httpx.DecodingError."""
        self._came = self._came or bool(packed)
        try:
            piece = self._inflate.decompress(packed, _UNPACKED_BYTES)
            while piece:
                yield piece
                piece = self._inflate.decompress(self._inflate.unconsumed_tail, _UNPACKED_BYTES)
        except zlib.error as error:
            raise httpx.DecodingError("the body is no gzip") from error

    def end(self) -> None:
        """Say that no more comes. Raises httpx.DecodingError where that is too early, or too late."""
        if self._inflate.unused_data or (self._came and not self._inflate.eof):
            raise httpx.DecodingError("the body is not one whole gzip member")


def _unpacker(headers: Mapping[str, str]) -> _Unpacker | None:
    return _Unpacker() if headers.get("content-encoding", "").strip().lower() in ("gzip", "x-gzip") else None


async def _unpacked(packed: AsyncIterable[bytes], unpacker: _Unpacker) -> AsyncIterator[bytes]:
    async for chunk in packed:
        for piece in unpacker.pieces(chunk):
            yield piece
    unpacker.end()


def _is_framed(version: str, headers: Mapping[str, str]) -> bool:
    """Whether the reply said where its body ends."""
    return not version.startswith("HTTP/1") or "content-length" in headers or "transfer-encoding" in headers


def _readable(headers: pyreqwest.http.HeaderMap) -> list[tuple[str, str]]:
    """Return the headers as text, without those that are none, and without what was decompressed already."""
    try:
        readable = list(headers.items())
    except ValueError:
        readable = []
        for name in headers:
            with contextlib.suppress(ValueError):
                readable.append((name, headers[name]))
    if "content-encoding" in headers and _unpacker(headers) is not None:
        return [(name, value) for name, value in readable if name.lower() != "content-encoding"]
    return readable


@functools.lru_cache(maxsize=256)
def _url(url: str) -> tuple[httpx.URL, str, str]:
    """Return a URL parsed, its host and port, and the whole of it as it is sent."""
    parsed = httpx.URL(url)
    return parsed, parsed.netloc.decode("ascii"), str(parsed)


@functools.lru_cache(maxsize=16)
def _span(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)


@functools.lru_cache(maxsize=16)
def _timeouts(timeout_s: float) -> dict[str, float]:
    """Return the limits as httpx's transport reads them; only the whole attempt ends a silence: models may think.

    httpx takes the limit of connecting twice, for the connection and for TLS. A handshake that is cancelled instead
    would leave its connection to the garbage collector.
    """
    return {
        "connect": min(CONNECT_S, timeout_s) / 2,
        "write": min(60.0, timeout_s),
        "read": timeout_s,
        "pool": timeout_s,
    }


def _tls(certificates: bytes) -> ssl.SSLContext:
    """Return what verifies every certificate, by the system's issuers and those given."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if certificates:
        context.load_verify_locations(cadata=certificates.decode("ascii", "replace"))
    return context


def _certificates(ca_bundle: Path | None, environ: Mapping[str, str]) -> bytes:
    named = ca_bundle or (Path(environ["SSL_CERT_FILE"]) if environ.get("SSL_CERT_FILE") else None)
    if named is None:
        return b""
    try:
        certificates = named.read_bytes()
    except OSError as error:
        raise RefusedError(f"the certificates in {named} cannot be read: {error.strerror}") from error
    if not _PEM.search(certificates):
        raise RefusedError(f"{named} holds no PEM certificate; ca_bundle names a file of them")
    return certificates


def _variables(environ: Mapping[str, str], suffix: str) -> list[tuple[str, str]]:
    """Return the variables that end so in either case, lower case last, so that it wins."""
    found = [(name, value) for name, value in environ.items() if name.lower().endswith(suffix)]
    return sorted(found, key=lambda variable: variable[0].islower())


def _bypassed(host: str, port: int | None, no_proxy: str) -> bool:
    for entry in (part.strip().lower() for part in no_proxy.split(",")):
        name, _, entry_port = entry.partition(":") if entry.count(":") == 1 else (entry, "", "")
        name = name.removeprefix("*").removeprefix(".")
        if entry == "*" or (name and (not entry_port or entry_port == str(port)) and _within(host, name)):
            return True
    return False


def _within(host: str, name: str) -> bool:
    if host == name or host.endswith(f".{name}"):
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host) in ipaddress.ip_network(name, strict=False)
    return False
