"""Fetches the pictures that replies name by URL, and nothing that such a URL could be abused for.

A URL comes from the service, and what it says may come from a row. So it may lead to the public internet alone, by
https; its host's name is looked up once and the connection goes to an address that was checked; redirects are not
followed; and no credential goes with it. The one exception is a URL at the deployment's own origin, which the job
names.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import anyio

from pipeline.clock import Clock
from pipeline.errors import MediaError, ReplyError
from pipeline.model import NoReply, NoReplyKind, Reply
from pipeline.service.wire import Wire, fetching_transport, proxy_for

FETCH_S = 60.0
"""Seconds for one URL, all tries together."""
TRIES = 3
"""Asking the service for another picture costs money; asking for the same URL does not."""
FIRST_PAUSE_S = 0.5
"""Seconds before the second try; twice that before the third."""
MAX_URL = 16_384
"""Characters of a URL. Signed ones have some hundreds."""

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Looks a host's name up for a port: its addresses as text. Raises OSError as `socket.getaddrinfo` does."""

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_HEADERS = {"accept": "image/*", "accept-encoding": "identity", "user-agent": "aoai-pipeline"}
_PLAIN = re.compile(r"[!-\[\]-~]+")  # printable ASCII without the backslash, which some read as a slash
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})+")
_NUMBER = re.compile(r"(?:.*\.)?(?:\d+|0x[0-9a-f]*)")  # what some take for an address, such as 2130706433 or 0x7f.1
_INSIDE = ("localhost", "local", "internal", "intranet", "lan", "home", "corp", "private")
_PORTS = {"http": 80, "https": 443}

_GLOBAL_V6 = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Azure's platform answers machines of its own at a public address (Microsoft: What is IP address 168.63.129.16?).
_PLATFORM = ipaddress.ip_address("168.63.129.16")

_TRANSIENT_STATUSES = frozenset({408, 425, 429})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a URL leads. `host` is in lower case and without brackets."""

    scheme: str
    host: str
    port: int


class Fetcher:
    """Fetches URLs over a wire, at most 64 MB each (the wire's own cap)."""

    def __init__(
        self,
        wire: Wire,
        *,
        clock: Clock,
        environ: Mapping[str, str],
        resolve: Resolve | None = None,
        timeout_s: float = FETCH_S,
    ) -> None:
        self._wire = wire
        self._clock = clock
        self._environ = environ
        self._resolve = resolve or _resolve
        self._timeout_s = timeout_s

    async def fetch(self, url: str, *, allowed_origin: str | None) -> bytes:
        """Return what a URL holds. `allowed_origin` is the URL of the deployment that named it, or another at its host.

        Raises MediaError where no try can help: `address` for a URL that is not to be fetched, `too_large` for more
        than 64 MB, `fetch` for a refusal, a redirect, or what is no picture. Raises ReplyError, code `fetch`, where a
        later try may: after three, or when the time is up.
        """
        place = _place(url)
        ends_at = self._clock.now() + self._timeout_s
        addresses = await self._addresses(url, place, allowed_origin)
        pause_s = FIRST_PAUSE_S
        problem: str | None = "the time was up"
        for number in range(TRIES):
            if number:
                await self._clock.sleep(pause_s)
                pause_s *= 2
            left_s = ends_at - self._clock.now()
            if left_s <= 0:
                break
            address = addresses[number % len(addresses)]
            reply = await self._wire.get(url, _HEADERS, address=address, timeout_s=left_s)
            content, problem = _read(reply)
            if problem is None:
                return content
        raise ReplyError(code="fetch", message=f"the picture's URL could not be fetched: {problem}")

    async def _addresses(self, url: str, place: _Place, allowed_origin: str | None) -> Sequence[str | None]:
        """Return the addresses that may be connected to; None is for the name itself, in somebody else's hands.

        Raises MediaError where a single one of them is not public.
        """
        if allowed_origin is not None and place == _place(allowed_origin):
            return (None,)
        if place.scheme != "https":
            raise _refused(place, "is not https")
        proxied = proxy_for(url, self._environ) is not None
        if _is_address(place.host):
            addresses: Sequence[str] = (place.host,)
        elif not _NAME.fullmatch(place.host) or _NUMBER.fullmatch(place.host):
            raise _refused(place, "names no host of the internet")
        elif place.host.rpartition(".")[2] in _INSIDE:
            raise _refused(place, "names a host of a private network")
        elif proxied:
            # Behind a proxy names are the proxy's to look up, and often nobody else can.
            return (None,)
        else:
            addresses = await self._looked_up(place)
        if not addresses or not all(is_public(address) for address in addresses):
            raise _refused(place, "leads to an address that is not public")
        return (None,) if proxied else addresses

    async def _looked_up(self, place: _Place) -> Sequence[str]:
        try:
            with anyio.fail_after(self._timeout_s):
                return await self._resolve(place.host, place.port)
        except socket.gaierror as error:
            if error.errno != socket.EAI_AGAIN:
                raise MediaError(code="fetch", message=f"the picture's host {place.host} does not exist") from None
        except OSError:
            pass
        raise ReplyError(code="fetch", message=f"the picture's host {place.host} could not be looked up for now")


@asynccontextmanager
async def open_fetcher(
    *, clock: Clock, environ: Mapping[str, str], ca_bundle: Path | None = None
) -> AsyncIterator[Fetcher]:
    """Open a fetcher with connections of its own. Raises RefusedError where `ca_bundle` cannot be read."""
    transport = fetching_transport(ca_bundle=ca_bundle, environ=environ)
    async with Wire(transport, clock=clock) as wire:
        yield Fetcher(wire, clock=clock, environ=environ)


def is_public(address: str) -> bool:
    """Say whether an IP address is one of the public internet; IPv4 in IPv6's clothes is judged as what it is."""
    try:
        ip: _Address = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        worn = ip.ipv4_mapped or (ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None)
        if worn is None:
            return ip in _GLOBAL_V6 and ip.is_global and ip.sixtofour is None
        ip = worn
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and ip != _PLATFORM


async def _resolve(host: str, port: int) -> Sequence[str]:
    """Look a name up by the system's resolver, IPv4 first: where IPv6 is broken, it fails slowly."""
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return sorted(dict.fromkeys(str(entry[4][0]) for entry in found), key=lambda address: ":" in address)


def _place(url: str) -> _Place:
    """Read a URL. Raises MediaError, code `address`, for what is none, is no http(s), or holds user info."""
    try:
        parts = urlsplit(url) if len(url) <= MAX_URL and _PLAIN.fullmatch(url) else None
        port = None if parts is None else parts.port
    except ValueError:
        parts = None
    if parts is None or parts.scheme not in _PORTS or not parts.hostname or "@" in parts.netloc:
        raise MediaError(code="address", message="the picture's URL is no plain https URL; it is not fetched")
    host = parts.hostname.lower()
    return _Place(scheme=parts.scheme, host=host, port=port if port is not None else _PORTS[parts.scheme])


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _refused(place: _Place, reason: str) -> MediaError:
    host = place.host[:253]
    return MediaError(code="address", message=f"the picture's URL, at {host}, {reason}; it is not fetched")


def _read(reply: Reply | NoReply) -> tuple[bytes, str | None]:
    """Return what came, or why another try may help. Raises MediaError where none can."""
    if isinstance(reply, NoReply):
        return b"", _unanswered(reply)
    status = reply.status
    if status in _TRANSIENT_STATUSES or status >= 500:  # noqa: PLR2004 - server errors, by RFC 9110
        return b"", f"it answered with status {status}"
    if 300 <= status < 400:  # noqa: PLR2004 - redirection, by RFC 9110
        raise MediaError(code="fetch", message="the picture's URL leads on to another one, which is not followed")
    if status != 200:  # noqa: PLR2004 - a whole answer, by RFC 9110
        raise MediaError(
            code="fetch",
            message=f"the picture's URL answered with status {status}; such URLs expire, b64_json does not",
        )
    kind = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind and not kind.startswith("image/") and not kind.endswith("/octet-stream"):
        raise MediaError(code="fetch", message="the picture's URL holds something that is not of a picture's type")
    if not reply.framed:
        return b"", "it said neither its length nor where it ends, so it may have been cut"
    return reply.body, None


def _unanswered(reply: NoReply) -> str:
    match reply.kind:
        case NoReplyKind.TOO_LARGE:
            raise MediaError(code="too_large", message="the picture's URL holds more than 64 MB")
        case NoReplyKind.TLS | NoReplyKind.UNKNOWN_HOST:
            raise MediaError(code="fetch", message=f"the picture's URL could not be fetched. {reply.message}")
        case _:
            return reply.message
