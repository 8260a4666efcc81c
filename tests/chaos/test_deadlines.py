"""G15: no attempt outlives its deadline, whatever hangs and wherever."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from chaos.hostile import MISBEHAVIOURS, TIMEOUT, WIRES, Line, Whole, serving

from pipeline.clock import SystemClock
from pipeline.model import NoReply, NoReplyKind
from pipeline.service.wire import BACKSTOP_S, Wire

COUNT = int(os.environ.get("PIPELINE_HANGS", "3"))
DEADLINE_S = 0.6
LATE_S = 5.0
"""Seconds that a busy machine may take to notice that a deadline passed."""
LARGE = b"x" * 60_000_000
WHOLE = Whole(content_type="application/json", body=b'{"answer": "' + b"." * 1_000 + b'"}')

pytestmark = [pytest.mark.chaos, pytest.mark.anyio]


@asynccontextmanager
async def deaf() -> AsyncIterator[int]:
    """A port whose queue of connections is full: the next one is neither taken nor refused."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    port = listener.getsockname()[1]
    waiting = []
    for _ in range(4):
        one = socket.socket()
        one.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            one.connect(("127.0.0.1", port))
        waiting.append(one)
    try:
        yield port
    finally:
        for one in (*waiting, listener):
            one.close()


@asynccontextmanager
async def mute() -> AsyncIterator[int]:
    """A port that takes connections and reads nothing of them."""
    held = []

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()
        held.append(writer)

    listener = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        for writer in held:
            writer.transport.abort()


@asynccontextmanager
async def breaking(kind: str) -> AsyncIterator[int]:
    """A port that answers as one of the misbehaviours has it."""

    async def handle(line: Line) -> None:
        await MISBEHAVIOURS[kind][0](line, WHOLE)

    async with serving(handle) as service:
        yield service.port


HANGS = {
    "the connection": (deaf, "http", b"{}"),
    "the handshake": (mute, "https", b"{}"),
    "the sending of a large body": (mute, "http", LARGE),
    "the sending of a small body": (mute, "http", b"{}"),
} | {
    kind: (lambda kind=kind: breaking(kind), "http", b"{}")
    for kind, (_, allowed) in MISBEHAVIOURS.items()
    if allowed == {TIMEOUT}
}


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("hang", HANGS)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_attempt_ends_at_its_deadline_wherever_it_hangs(wire: str, hang: str, *, stream: bool) -> None:
    place, scheme, body = HANGS[hang]
    async with place() as port, Wire(WIRES[wire](b""), clock=SystemClock()) as sender:
        for _ in range(COUNT):
            began = time.monotonic()
            reply = await sender.send(f"{scheme}://127.0.0.1:{port}/x", {}, body, timeout_s=DEADLINE_S, stream=stream)
            took_s = time.monotonic() - began
            assert isinstance(reply, NoReply)
            assert reply.kind is NoReplyKind.TIMEOUT
            assert DEADLINE_S * 0.4 < took_s < DEADLINE_S + BACKSTOP_S + LATE_S


# httpcore leaves a connection whose handshake is cancelled to the garbage collector, which says so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("hang", HANGS)
async def test_an_attempt_that_is_cancelled_ends_at_once(wire: str, hang: str) -> None:
    """A stop of the run may not wait for deadlines of 300 s."""
    place, scheme, body = HANGS[hang]
    async with place() as port, Wire(WIRES[wire](b""), clock=SystemClock()) as sender:
        sending = asyncio.create_task(sender.send(f"{scheme}://127.0.0.1:{port}/x", {}, body, timeout_s=300))
        await asyncio.sleep(0.2)
        began = time.monotonic()
        sending.cancel()
        await asyncio.wait([sending], timeout=LATE_S)
        assert sending.cancelled()
        assert time.monotonic() - began < LATE_S
    gc.collect()
