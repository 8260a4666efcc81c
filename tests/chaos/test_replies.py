"""F11: every way to break a reply, for every operation's reader.

No answer is made of half a reply, nothing but verdicts comes of the rest, and every attempt ends by its deadline.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter

import pytest
from chaos.hostile import ASKS, MISBEHAVIOURS, TIMEOUT, WIRES, Ask, Line, broken_at, make_asks, serving
from chaos.report import record

from pipeline.clock import SystemClock
from pipeline.service.wire import BACKSTOP_S, Wire
from pipeline.simulator.serve import start

COUNT = int(os.environ.get("PIPELINE_BROKEN_REPLIES", "20"))
SEED = int(os.environ.get("PIPELINE_SEED", "20"))
DEADLINE_S = 0.6
AMPLE_S = 60.0
LATE_S = 5.0
"""Seconds that a busy machine may take to notice that a deadline passed."""
AT_ONCE = {"a body of 200 MB": 2, "200 MB in a gzip of 200 kB": 2}

pytestmark = [pytest.mark.chaos, pytest.mark.anyio, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def asks(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ask]:
    with start({"audio": "tones", "vectors": "hash"}) as simulator:
        return await make_asks(simulator, tmp_path_factory.mktemp("media"))


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("kind", MISBEHAVIOURS)
async def test_a_broken_reply_is_judged_for_what_it_is_by_every_operation(
    asks: dict[str, Ask], wire: str, kind: str
) -> None:
    breaks, allowed = MISBEHAVIOURS[kind]
    dice = random.Random(f"{SEED}/{kind}")
    times = -(-COUNT // len(ASKS))
    timeout_s = DEADLINE_S if allowed == {TIMEOUT} else AMPLE_S
    at_once = asyncio.Semaphore(AT_ONCE.get(kind, 16))
    outcomes: Counter[tuple[str, str]] = Counter()
    longest_s = 0.0
    async with Wire(WIRES[wire](b""), clock=SystemClock()) as sender:

        async def attempt(name: str, place: float) -> None:
            nonlocal longest_s
            ask = asks[name]
            whole = broken_at(ask.whole, place)

            async def handle(line: Line) -> None:
                await breaks(line, whole)

            async with at_once, serving(handle) as service:
                began = time.monotonic()
                reply = await ask.send(sender, service.port, timeout_s=timeout_s)
                longest_s = max(longest_s, time.monotonic() - began)
            outcomes[name, ask.outcome(reply)] += 1

        await asyncio.gather(*(attempt(name, dice.random()) for name in ASKS for _ in range(times)))
    assert {outcome for _, outcome in outcomes} <= allowed, outcomes
    assert outcomes.total() == times * len(ASKS)
    if timeout_s == DEADLINE_S:
        assert longest_s < DEADLINE_S + BACKSTOP_S + LATE_S
    else:
        assert longest_s < AMPLE_S / 2, "an attempt waited for its deadline although nothing more could come"
    counted = Counter(outcome for _, outcome in outcomes.elements())
    record(fault="F11", what=kind, tried=outcomes.total(), notes=f"{wire}: {dict(counted)}, {longest_s:.1f} s at most")


@pytest.mark.parametrize("wire", WIRES)
async def test_a_reply_that_nobody_asked_for_is_nobodys_answer(wire: str) -> None:
    """A service that writes two replies to one request must not answer the next row with the second."""
    stray = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nstray"
    own = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nown"

    async def handle(line: Line) -> None:
        await line.write(own + stray)
        await line.wait()

    async with Wire(WIRES[wire](b""), clock=SystemClock()) as sender, serving(handle) as service:
        bodies = Counter()
        for _ in range(COUNT):
            reply = await sender.send(f"http://127.0.0.1:{service.port}/x", {}, b"{}", timeout_s=5)
            bodies[getattr(reply, "body", b"")] += 1
    assert bodies[b"stray"] == 0
    assert bodies[b"own"] > 0
    record(fault="F11", what="a second reply to one request", tried=COUNT, notes=f"{wire}: never taken")
