"""F22: a storm of deadlines. No connection outlives its attempt, none is short, no descriptor is lost, it ends."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest
from chaos.hostile import WIRES, read_request
from chaos.report import record
from chaos.resources import start_run
from forked import start_simulator
from in_memory import Bench

from pipeline.clock import SystemClock
from pipeline.model import NoReply
from pipeline.service.wire import Wire

CALLS = int(os.environ.get("PIPELINE_STORM", "3000"))
ROWS = int(os.environ.get("PIPELINE_STORM_ROWS", "80"))
SEED = int(os.environ.get("PIPELINE_SEED", "20"))
WORKERS = 32
SHARE = 0.3
DEADLINE_S = 0.05
AMPLE_S = 300.0
SPARE = 2
"""Connections beyond the workers': one may be closing while the next opens."""
SETTLED_S = 10.0
SAMPLED_EVERY_S = 0.1
SLOW, FAST = b"slow", b"fast"

pytestmark = [pytest.mark.chaos, pytest.mark.anyio, pytest.mark.timeout(7200)]


@asynccontextmanager
async def listening(dice: random.Random) -> AsyncIterator[int]:
    """Answer every request with its own body: the slow ones before, at or long after their deadline."""
    writers: set[asyncio.StreamWriter] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        try:
            while True:
                body = (await read_request(reader)).rpartition(b"\r\n\r\n")[2]
                if body.startswith(SLOW):
                    await asyncio.sleep(dice.uniform(0.0, 4 * DEADLINE_S))
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()
        finally:
            writers.discard(writer)

    server = await asyncio.start_server(connected, "127.0.0.1", 0, backlog=1024)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in list(writers):
            writer.transport.abort()
        await asyncio.sleep(0.01)


def connections(process: psutil.Process, port: int) -> int:
    """How many connections to a port a process holds open."""
    return sum(
        bool(one.raddr) and one.raddr.port == port and one.status == psutil.CONN_ESTABLISHED
        for one in process.net_connections("tcp")
    )


def wait_for_descriptors(process: psutil.Process, most: int) -> None:
    """Wait until a process holds no more than so many, or long enough."""
    until = time.monotonic() + SETTLED_S
    while process.num_fds() > most and time.monotonic() < until:
        time.sleep(0.05)


@pytest.mark.parametrize("wire", WIRES)
async def test_a_storm_of_deadlines_holds_no_more_connections_than_workers(wire: str) -> None:
    dice = random.Random(SEED)
    todo = iter([(number, dice.random() < SHARE) for number in range(CALLS)])
    outcomes: Counter[tuple[bool, str]] = Counter()
    process = psutil.Process()
    most = 0
    began = time.monotonic()
    async with listening(dice) as port, Wire(WIRES[wire](b""), clock=SystemClock()) as sender:
        # A transport's own descriptors come with its first request.
        await sender.send(f"http://127.0.0.1:{port}/x", {}, FAST, timeout_s=AMPLE_S)
    await asyncio.sleep(0.2)
    before = process.num_fds()
    async with listening(dice) as port, Wire(WIRES[wire](b""), clock=SystemClock()) as sender:

        async def work() -> None:
            for number, slowly in todo:
                body = b"%b %d" % (SLOW if slowly else FAST, number)
                timeout_s = DEADLINE_S if slowly else AMPLE_S
                reply = await sender.send(f"http://127.0.0.1:{port}/x", {}, body, timeout_s=timeout_s)
                if isinstance(reply, NoReply):
                    outcomes[slowly, reply.kind.value] += 1
                else:
                    assert reply.body == body, "another call's reply"
                    outcomes[slowly, "answered"] += 1

        async def sample() -> None:
            nonlocal most
            while True:
                most = max(most, connections(process, port))
                await asyncio.sleep(SAMPLED_EVERY_S)

        sampling = asyncio.create_task(sample())
        async with asyncio.timeout(3600):
            await asyncio.gather(*(work() for _ in range(WORKERS)))
        sampling.cancel()
        with suppress(asyncio.CancelledError):
            await sampling
        idle = connections(process, port)
    await asyncio.to_thread(wait_for_descriptors, process, before + SPARE)
    assert outcomes.total() == CALLS
    assert set(outcomes) <= {(True, "timeout"), (True, "answered"), (False, "answered")}
    assert outcomes[True, "timeout"] > CALLS * SHARE / 4
    assert process.num_fds() <= before + SPARE
    seconds = time.monotonic() - began
    notes = f"{wire}: {most} connections at most, {idle} at the end, {WORKERS} workers, {seconds:.0f} s"
    print(f"\n{CALLS} calls, {outcomes[True, 'timeout']} ended by their deadline; {notes}")
    record(fault="F22", what="deadlines of 50 ms on 30 % of calls", tried=CALLS, notes=notes)
    assert idle <= most <= WORKERS + SPARE


def test_a_run_whose_service_hangs_at_random_ends_with_every_row_and_no_more_connections(tmp_path: Path) -> None:
    workers = 8
    with start_simulator({"faults": {"rates": {"hang": SHARE}, "attempts": 2}, "seed": SEED}) as simulator:
        made = Bench(folder=tmp_path, operation="chat").texts(*map(str, range(ROWS)))
        deployment = {"endpoint": simulator.url, "api": "azure", "deployment": "d", "model": "gpt-4o"}
        made.changes = {"deployments": [deployment], "run": {"workers": workers, "timeout": "1s"}}
        made.job()
        running = start_run(tmp_path / "job.json", log=tmp_path / "stderr.txt")
        process = psutil.Process(running.pid)
        most = descriptors = 0
        while running.poll() is None:
            with suppress(psutil.Error):
                most = max(most, connections(process, simulator.port))
                descriptors = max(descriptors, process.num_fds())
            time.sleep(SAMPLED_EVERY_S)
    assert running.returncode == 0, (tmp_path / "stderr.txt").read_text()
    assert [row["ordinal"] for row in made.table()] == list(range(ROWS))
    hung = sum(attempt["verdict"] == "transient" for attempt in made.attempts())
    assert hung > ROWS * SHARE / 2
    notes = f"{most} connections at most, {workers} workers, {descriptors} descriptors"
    record(fault="F22", what="a run whose service hangs", tried=hung, notes=notes)
    assert most <= workers + SPARE
