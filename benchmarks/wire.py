"""What one POST costs on each wire: requests a second and CPU time, over a bare loopback server.

    python benchmarks/wire.py [--requests 10000] [--in-flight 100] [--rounds 3] [--tls] [--json FILE]

The server is another process on another core; each round runs every wire once, and medians are printed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import resource
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import cast

import aiohttp
import httpx
import trustme
import uvloop
from pyreqwest.client import ClientBuilder
from pyreqwest.compatibility.httpx import HttpxTransport as ReqwestOwnBridge

from pipeline.clock import SystemClock
from pipeline.model import Call, Reply
from pipeline.pace.admission import Admission
from pipeline.service.address import address, target
from pipeline.service.auth import Credentials
from pipeline.service.deployment import Deployment
from pipeline.service.wire import HttpxTransport, PyreqwestTransport, Wire

BODY = json.dumps({"messages": [{"role": "user", "content": "x" * 800}]}).encode()
ANSWER = json.dumps({"choices": [{"message": {"role": "assistant", "content": "y" * 500}}]}).encode()
REPLY = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: 12345678-1234-1234-1234-123456789012\r\n"
    b"apim-request-id: 12345678-1234-1234-1234-123456789012\r\nx-ms-region: East US 2\r\n"
    b"x-ratelimit-limit-requests: 100000000\r\nx-ratelimit-remaining-requests: 99999999\r\n"
    b"x-ratelimit-limit-tokens: 10000000000\r\ncontent-length: %d\r\n\r\n" % len(ANSWER)
) + ANSWER
HEADERS = {
    "content-type": "application/json",
    "accept": "application/json",
    "accept-encoding": "gzip",
    "user-agent": "benchmark",
    "api-key": "k" * 32,
    "x-ms-client-request-id": "12345678-1234-4234-8234-123456789012",
}
PATH = "/openai/deployments/d/chat/completions?api-version=2024-10-21"
Post = Callable[[], Awaitable[bytes]]


class Server(asyncio.Protocol):
    """Answers each whole request with a fixed reply."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._buffer = b""
        self._missing = 0

    def data_received(self, data: bytes) -> None:
        if self._missing:
            self._missing -= len(data)
            if self._missing <= 0:
                self._missing = 0
                self._transport.write(REPLY)
            return
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower()
        length = int(head[head.index(b"content-length:") + 15 :].split(b"\r\n", 1)[0])
        missing = length - (len(self._buffer) - end - 4)
        self._buffer = b""
        if missing <= 0:
            self._transport.write(REPLY)
        else:
            self._missing = missing


async def serve(certificate: str | None) -> None:
    context = None
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def request(base: str) -> httpx.Request:
    return httpx.Request("POST", base + PATH, headers=HEADERS, content=BODY)


async def open_wires(base: str, certificates: bytes, in_flight: int, stack: AsyncExitStack) -> dict[str, Post]:
    clock = SystemClock()
    context = ssl.create_default_context()
    if certificates:
        context.load_verify_locations(cadata=certificates.decode())
    builder = ClientBuilder().no_proxy().follow_redirects(enable=False).pool_max_idle_per_host(in_flight)
    raw = await stack.enter_async_context(
        (builder.add_root_certificate_pem(certificates) if certificates else builder).build()
    )
    session = await stack.enter_async_context(
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=in_flight, ssl=context))
    )
    own = await stack.enter_async_context(ReqwestOwnBridge(raw, close_client=False))
    lean = await stack.enter_async_context(
        PyreqwestTransport(connections=in_flight, proxy=None, certificates=certificates)
    )
    wire = await stack.enter_async_context(
        Wire(PyreqwestTransport(connections=in_flight, proxy=None, certificates=certificates), clock=clock)
    )
    fallback = await stack.enter_async_context(Wire(HttpxTransport(proxy=None, certificates=certificates), clock=clock))
    limits = httpx.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)
    client = await stack.enter_async_context(httpx.AsyncClient(verify=context, limits=limits, timeout=60))
    place = address(endpoint=base, deployment="d", api="azure", api_version=None)
    deployment = Deployment(
        name="d",
        target=target(place, model="m"),
        address=place,
        wire=Wire(PyreqwestTransport(connections=in_flight, proxy=None, certificates=certificates), clock=clock),
        credentials=Credentials({"api-key": "k" * 32}),
        admission=Admission(requests_per_minute=None, tokens_per_minute=None),
        headers={"accept-encoding": "gzip", "user-agent": "benchmark"},
        timeout_s=300.0,
        priority=0,
        max_inputs=None,
        clock=clock,
        random=lambda: 0.5,
    )
    stack.push_async_callback(deployment.aclose)
    call = Call(endpoint="chat/completions", body=BODY, tokens=200)

    async def by_pyreqwest() -> bytes:
        async with raw.post(base + PATH).headers(HEADERS).body_bytes(BODY).build_streamed() as reply:
            return bytes(await reply.body_reader.bytes())

    async def by_transport(transport: httpx.AsyncBaseTransport) -> bytes:
        return await (await transport.handle_async_request(request(base))).aread()

    async def by_wire(sender: Wire) -> bytes:
        reply = await sender.send(base + PATH, HEADERS, BODY, timeout_s=300.0)
        assert isinstance(reply, Reply)  # noqa: S101 - a benchmark of answers
        return reply.body

    async def by_deployment() -> bytes:
        assert deployment.try_leave(call.tokens) or await deployment.leave(call.tokens)  # noqa: S101 - as above
        reply = (await deployment.send(call)).reply
        assert isinstance(reply, Reply)  # noqa: S101 - as above
        return reply.body

    async def by_aiohttp() -> bytes:
        async with session.post(base + PATH, data=BODY, headers=HEADERS) as reply:
            return await reply.read()

    async def by_client() -> bytes:
        return (await client.post(base + PATH, content=BODY, headers=HEADERS)).content

    return {
        "pyreqwest": by_pyreqwest,
        "lean bridge, as a transport": lambda: by_transport(lean),
        "Wire over the lean bridge (the default)": lambda: by_wire(wire),
        "Deployment.leave + send over it": by_deployment,
        "aiohttp": by_aiohttp,
        "pyreqwest's own httpx bridge, as a transport": lambda: by_transport(own),
        "Wire over httpx, one transport a request in flight (the fallback)": lambda: by_wire(fallback),
        "httpx.AsyncClient": by_client,
    }


async def measure(post: Post, requests: int, in_flight: int) -> tuple[float, float]:
    """Return requests a second and CPU microseconds a request."""
    numbers = iter(range(requests))

    async def worker() -> None:
        for _ in numbers:
            assert await post() == ANSWER  # noqa: S101 - a benchmark of right answers

    began, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    await asyncio.gather(*(worker() for _ in range(in_flight)))
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime - used.ru_utime + after.ru_stime - used.ru_stime
    return requests / seconds, cpu_s / requests * 1e6


@contextlib.contextmanager
def serving(certificate: str | None) -> Iterator[int]:
    command = [sys.executable, __file__, "--serve", *([certificate] if certificate else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None  # noqa: S101 - asked for above
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


async def compare(options: argparse.Namespace) -> None:
    figures: dict[str, list[tuple[float, float]]] = {}
    async with AsyncExitStack() as stack:
        certificate, certificates = None, b""
        if options.tls:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            authority = trustme.CA()
            certificate = str(Path(folder) / "server.pem")
            authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
            certificates = authority.cert_pem.bytes()
        port = stack.enter_context(serving(certificate))
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {0})
        base = f"{'https' if options.tls else 'http'}://127.0.0.1:{port}"
        wires = await open_wires(base, certificates, options.in_flight, stack)
        for number in range(options.rounds + 1):
            for name, post in wires.items():
                count = options.requests // 10 if name == "httpx.AsyncClient" else options.requests
                # The first round warms connections and caches up and is not kept.
                measured = await measure(post, count if number else min(count, 500), options.in_flight)
                if number:
                    figures.setdefault(name, []).append(measured)
    rows = {
        name: {
            "requests_per_second": round(statistics.median(rate for rate, _ in found)),
            "cpu_us": round(statistics.median(cpu for _, cpu in found)),
        }
        for name, found in figures.items()
    }
    machine = f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores"
    print(f"{machine}; {options.in_flight} in flight, {'TLS' if options.tls else 'plain'}")
    for name, row in rows.items():
        print(f"{row['requests_per_second']:>8}/s {row['cpu_us']:>6} µs  {name}")
    if options.json:
        Path(options.json).write_text(json.dumps({"machine": machine, "tls": options.tls, "wires": rows}, indent=1))  # noqa: ASYNC240 - at the end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--in-flight", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--json")
    parser.add_argument("--serve", nargs="?", const="", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {(os.cpu_count() or 1) - 1})
        uvloop.run(serve(options.serve or None))
    else:
        uvloop.run(compare(options))


if __name__ == "__main__":
    main()
