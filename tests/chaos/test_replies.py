"""F11: every way to break a reply, for every operation's reader.

No answer is made of half a reply, nothing but verdicts comes of the rest, and every attempt ends by its deadline.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos.hostile import ASKS, MISBEHAVIOURS, TIMEOUT, WIRES, Ask, Line, broken_at, make_asks, serving
from chaos.report import record
from chaos.resources import peak_memory, start_run
from forked import start_simulator
from in_memory import Bench

from pipeline.clock import SystemClock
from pipeline.run import run_job
from pipeline.service.wire import BACKSTOP_S, REPLY_CAP_BYTES, Wire
from pipeline.simulator.config import FaultKind
from pipeline.simulator.serve import SimulatorProcess
from pipeline.simulator.sounds import write_sound

COUNT = int(os.environ.get("PIPELINE_BROKEN_REPLIES", "20"))
SEED = int(os.environ.get("PIPELINE_SEED", "20"))
DEADLINE_S = 0.6
AMPLE_S = 60.0
LATE_S = 5.0
"""Seconds that a busy machine may take to notice that a deadline passed."""
AT_ONCE = {"a body of 200 MB": 2, "200 MB in a gzip of 200 kB": 2}

RUN_ROWS = int(os.environ.get("PIPELINE_BROKEN_ROWS", "24"))
RATES = {kind.value: 0.04 for kind in FaultKind} | {"huge_body": 0.02, "drip": 0.02, "hang": 0.02}
PLAYED = {"audio": "tones", "vectors": "hash"}
MEMORY_WORKERS = 4
_WHEN = ("request", "response", "time_to_first_token_ms")
"""Columns that differ between runs."""

pytestmark = [pytest.mark.chaos, pytest.mark.anyio, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def asks(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ask]:
    with start_simulator(PLAYED) as simulator:
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


def bench(folder: Path, simulator: SimulatorProcess, name: str) -> Bench:
    """A job that asks what `name` says, of a few rows."""
    operation, model, request = ASKS[name]
    made = Bench(folder=folder, operation=operation).texts(*(f"What does quay {n} ship?" for n in range(RUN_ROWS)))
    deployment = {"endpoint": simulator.url, "api": "azure", "api_version": "2025-04-01-preview"}
    made.changes = {
        "deployments": [{**deployment, "deployment": model, "model": model, "max_inputs": 1}],
        "request": request,
        "input": {"media_root": "."},
        "run": {"workers": 8, "timeout": "3s"},
    }
    for row in made.rows:
        (folder / f"{row['n']}.wav").write_bytes(write_sound([f"quay{row['n']}", "is", "open"], "wav"))
        row["file"] = f"{row['n']}.wav"
    return made


async def rows_of(made: Bench) -> list[dict[str, Any]]:
    summary = await run_job(made.job())
    assert (summary.exit_code, summary.rows.ok) == (0, RUN_ROWS), summary
    return [{name: value for name, value in row.items() if name not in _WHEN} for row in made.table()]


@pytest.fixture(scope="module")
def clean() -> Iterator[SimulatorProcess]:
    with start_simulator(PLAYED) as simulator:
        yield simulator


@pytest.fixture(scope="module")
def breaking() -> Iterator[SimulatorProcess]:
    with start_simulator({**PLAYED, "faults": {"rates": RATES, "attempts": 2}, "seed": SEED}) as simulator:
        yield simulator


@pytest.mark.parametrize("name", ASKS)
async def test_a_run_through_every_broken_reply_ends_with_the_answers_of_one_without(
    tmp_path: Path, clean: SimulatorProcess, breaking: SimulatorProcess, name: str
) -> None:
    for folder in ("clean", "broken"):
        (tmp_path / folder).mkdir()
    expected = await rows_of(bench(tmp_path / "clean", clean, name))
    broken = bench(tmp_path / "broken", breaking, name)
    assert await rows_of(broken) == expected
    met = Counter(attempt["code"] for attempt in broken.attempts() if attempt["verdict"] != "answered")
    assert met.total() > RUN_ROWS / 6
    record(fault="F11", what=f"a run of {name}", tried=met.total(), notes=f"{RUN_ROWS} rows, {dict(met)}")


@pytest.mark.parametrize("kind", ["a body of 200 MB", "200 MB in a gzip of 200 kB", "100,000 opening brackets"])
@pytest.mark.parametrize("stream", [False, True])
async def test_memory_is_bounded_by_the_cap_of_a_reply(
    asks: dict[str, Ask], tmp_path: Path, kind: str, *, stream: bool
) -> None:
    """250 MB and the cap of a reply for every worker, whatever services send."""
    whole = broken_at(asks["chat, streamed" if stream else "chat"].whole, 0.1)
    asked: Counter[bytes] = Counter()

    async def handle(line: Line) -> None:
        """Misbehave twice to each of the first rows: a third time would fail one, which on a busy machine asks more."""
        row = service.requests[-1].partition(b"\r\n\r\n")[2]
        asked[row] += 1
        if row in list(asked)[:MEMORY_WORKERS] and asked[row] <= 2:
            await MISBEHAVIOURS[kind][0](line, whole)
        else:
            await line.write(whole.head(b"content-length: %d\r\n" % len(whole.body)) + whole.body)

    async with serving(handle, keep=True) as service:
        made = Bench(folder=tmp_path, operation="chat").texts(*map(str, range(3 * MEMORY_WORKERS)))
        endpoint = f"http://127.0.0.1:{service.port}"
        made.changes = {
            "deployments": [{"endpoint": endpoint, "api": "azure", "deployment": "d", "model": "gpt-4o"}],
            "request": {"messages": [{"role": "user", "content": "{{ text }}"}], "stream": stream},
            "run": {"workers": MEMORY_WORKERS, "timeout": "60s"},
        }
        made.job()
        process = start_run(tmp_path / "job.json")
        peak = await asyncio.to_thread(peak_memory, process)
    assert process.returncode == 0
    assert asked.total() >= 5 * MEMORY_WORKERS
    notes = f"peak {peak / 1e6:.0f} MB with {MEMORY_WORKERS} workers{', streamed' if stream else ''}"
    record(fault="F11", what=f"memory: {kind}", tried=2 * MEMORY_WORKERS, notes=notes)
    assert peak < 250e6 + MEMORY_WORKERS * REPLY_CAP_BYTES
