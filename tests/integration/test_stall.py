"""A run that is stuck ends with 70 and can be continued; one that waits for a long pause does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import httpx
import pytest
from in_memory import Bench, Service, refusal

from pipeline.clock import SystemClock, Timer
from pipeline.run import run_job


class FastClock(SystemClock):
    """Time that passes five hundred times as fast; threads and sockets keep their own."""

    SPEED = 500.0

    def now(self) -> float:
        return time.monotonic() * self.SPEED

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(max(0.0, seconds) / self.SPEED)

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        return super().call_at(super().now() + (when - self.now()) / self.SPEED, callback)


class Stuck(Service):
    """Answers some calls, and then neither answers nor ends."""

    def __init__(self, *, after: int) -> None:
        super().__init__()
        self._left = after

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if not self._left:
            await anyio.sleep_forever()
        self._left -= 1
        return await super().handle_async_request(request)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(folder=tmp_path, operation="chat", changes={"run": {"workers": 3}}).texts(*map(str, range(20)))


@pytest.mark.anyio
async def test_a_stuck_operation_ends_the_run_with_70_and_says_where_it_was_stuck(bench: Bench) -> None:
    with anyio.fail_after(60):
        summary = await run_job(bench.job(), clock=FastClock(), transport=Stuck(after=5), listener=bench.events.append)
    assert (summary.state, summary.exit_code) == ("stopped", 70)
    assert (summary.rows.ok, summary.rows.failed) == (5, 0)
    assert "nothing happened for 720 s" in (summary.reason or "")
    assert str(bench.layout.stall) in (summary.reason or "")
    states = bench.layout.stall.read_text()
    assert "task worker 0:" in states
    assert "OnlineLane._send" in states
    assert bench.layout.stall.stat().st_mode & 0o777 == 0o600
    assert "stalled" in {event["event"] for event in bench.events}
    assert (await bench.run(Service())).exit_code == 0
    bench.assert_rows(range(20))


@pytest.mark.anyio
async def test_a_pause_far_longer_than_the_limit_is_no_stall(bench: Bench) -> None:
    bench.changes["run"] = {"workers": 3, "max_pause": "2h"}
    service = Service(lambda _, calls: refusal(429, "slow", headers={"retry-after": "3600"}) if calls == 3 else None)
    with anyio.fail_after(60):
        summary = await run_job(bench.job(), clock=FastClock(), transport=service, listener=bench.events.append)
    assert (summary.state, summary.exit_code) == ("complete", 0)
    assert summary.seconds > 3600


SCRIPT = """
import sys, threading, time
sys.path[:0] = [{tests!r}]
import anyio
from pathlib import Path
from in_memory import Bench, Service
from integration.test_stall import FastClock
from pipeline.run import RunOptions, run_job

def blocks(texts, calls):
    return None if calls < 5 else time.sleep(600)

class Endless(Service):
    async def handle_async_request(self, request):
        await anyio.to_thread.run_sync(threading.Event().wait)

service = {service}
job = Bench(folder=Path({folder!r}), operation="chat").texts(*map(str, range(20))).job()
job = job.model_copy(update={{"run": job.run.model_copy(update={{"timeout_s": {timeout_s}}})}})
anyio.run(lambda: run_job(job, options=RunOptions(signals=True), clock=FastClock(), transport=service))
"""


def run_alone(folder: Path, *, service: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run a job in a process of its own."""
    script = SCRIPT.format(
        tests=str(Path(__file__).parents[1]), folder=str(folder), service=service, timeout_s=timeout_s
    )
    return subprocess.run(
        [sys.executable, "-c", script], env=dict(os.environ), capture_output=True, text=True, check=False, timeout=100
    )


def ended_with_70(folder: Path) -> bool:
    """Whether the summary says so."""
    summary = json.loads((folder / "out" / "_pipeline" / "summary.json").read_text())
    return (summary["state"], summary["exit_code"]) == ("stopped", 70)


def test_a_thread_that_never_ends_cannot_keep_a_process_of_its_own(tmp_path: Path) -> None:
    done = run_alone(tmp_path, service="Endless()", timeout_s=300.0)
    assert done.returncode == 70, done.stderr
    assert ended_with_70(tmp_path)
    assert "Endless.handle_async_request" in (tmp_path / "out" / "_pipeline" / "stalled.txt").read_text()


def test_a_blocked_event_loop_ends_the_process_with_70_and_says_what_blocked_it(tmp_path: Path) -> None:
    # The monitor goes by real time; with this for a deadline its limit is half a second.
    done = run_alone(tmp_path, service="Service(blocks)", timeout_s=-59.75)
    assert done.returncode == 70, done.stderr
    assert "the event loop was blocked" in done.stderr
    assert ended_with_70(tmp_path)
    states = (tmp_path / "out" / "_pipeline" / "stalled.txt").read_text()
    assert "thread MainThread:" in states
    assert " in blocks" in states
