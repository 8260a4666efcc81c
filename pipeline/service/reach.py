"""Says how far an endpoint can be reached: its name, a connection, TLS; each step by itself, nothing is asked."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.clock import Clock
from pipeline.service.wire import CONNECT_S, proxy_for, tls_context

_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """What connecting came to. `host` is whom the connection is with: the endpoint's or, where `proxy`, the proxy's.

    `addresses` is how many the name has, `connect_ms` includes TLS, whose version is None on plain connections.
    """

    host: str
    port: int
    proxy: bool
    addresses: int
    connect_ms: float
    tls: str | None = None


class NotReachedError(Exception):
    """A step that failed: `problem` says which and why, `advice` what to do."""

    def __init__(self, problem: str, advice: str) -> None:
        self.problem = problem
        self.advice = advice
        super().__init__(problem)


async def reach(
    url: str, *, ca_bundle: Path | None, environ: Mapping[str, str], clock: Clock, timeout_s: float = CONNECT_S
) -> Reached:
    """Look the host of an http(s) URL up and connect, or do so with the proxy that the environment names for it.

    What lies behind a proxy shows only when something is asked through it. Raises NotReachedError, and RefusedError
    where a file of certificates cannot be used.
    """
    proxy = proxy_for(url, environ)
    parts = urlsplit(proxy or url)
    host = parts.hostname or ""
    port = parts.port or _PORTS.get(parts.scheme, 80)
    context = tls_context(ca_bundle=ca_bundle, environ=environ) if parts.scheme == "https" else None
    whom = f"the proxy {host}" if proxy else host
    addresses = await _addresses(host, port, whom, timeout_s)
    began = clock.now()
    version = await _connect(host, port, context, whom, timeout_s)
    return Reached(
        host=host,
        port=port,
        proxy=proxy is not None,
        addresses=addresses,
        connect_ms=(clock.now() - began) * 1000,
        tls=version,
    )


async def _addresses(host: str, port: int, whom: str, timeout_s: float) -> int:
    try:
        async with asyncio.timeout(timeout_s):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except TimeoutError:
        raise NotReachedError(
            f"the name of {whom} was not looked up within {timeout_s:g} s", "check the machine's DNS servers"
        ) from None
    except (OSError, UnicodeError) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else "it is no host name"
        raise NotReachedError(
            f"the name of {whom} cannot be looked up: {said}",
            "check `endpoint` for a typing error, and the DNS of private endpoints (privatelink zones)",
        ) from None
    return len({address[4][0] for address in found})


async def _connect(host: str, port: int, context: ssl.SSLContext | None, whom: str, timeout_s: float) -> str | None:
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(host, port, ssl=context)
    except TimeoutError:
        raise NotReachedError(
            f"no connection to {whom} port {port} within {timeout_s:g} s",
            "a firewall drops it: allow the host and port, or set HTTPS_PROXY",
        ) from None
    except ssl.SSLCertVerificationError as error:
        raise NotReachedError(
            f"the certificate of {whom} does not verify: {error.verify_message or error.reason}",
            "name the issuer's certificates in `ca_bundle` if it is a private one or a proxy's that looks inside",
        ) from None
    except ssl.SSLError as error:
        raise NotReachedError(
            f"no TLS with {whom} port {port}: {error.reason or 'handshake failed'}",
            "check that the endpoint speaks HTTPS there, TLS 1.2 or later",
        ) from None
    except OSError as error:
        raise NotReachedError(
            f"no connection to {whom} port {port}: {_strerror(error)}",
            "check the host and port, firewalls, and whether the network allows it",
        ) from None
    tls: ssl.SSLObject | None = writer.get_extra_info("ssl_object")
    version = tls.version() if tls is not None else None
    writer.close()
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(1.0):
            await writer.wait_closed()
    return version


def _strerror(error: OSError) -> str:
    """Why a connection failed, without the addresses that Python names in its own words."""
    return "it was refused" if isinstance(error, ConnectionRefusedError) else (error.strerror or "it failed")
