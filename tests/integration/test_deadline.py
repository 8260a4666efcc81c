"""`run.deadline`: how long one invocation may take, calls in flight and their grace included."""

from __future__ import annotations

from pathlib import Path

import pytest
from in_memory import Bench, Service

pytestmark = pytest.mark.anyio

WORKERS = 4
DEADLINE_S = 0.8
LATENCY_S = 2.0
TEXTS = [f"text {number}" for number in range(3 * WORKERS)]


def bench_of(folder: Path, *, grace: str) -> Bench:
    run = {"workers": WORKERS, "deadline": f"{DEADLINE_S}s", "grace": grace}
    return Bench(folder=folder, max_inputs=1, changes={"run": run}).texts(*TEXTS)


async def test_calls_in_flight_at_the_deadline_are_given_the_grace_and_none_is_sent_after_it(tmp_path: Path) -> None:
    bench, service = bench_of(tmp_path, grace="5m"), Service(latency_s=LATENCY_S)
    summary = await bench.run(service)
    assert (summary.state, summary.exit_code) == ("stopped", 4)
    assert summary.reason == "run.deadline of 0.8 s passed; run the same command again to continue"
    assert summary.rows.ok == len(service.requests) == WORKERS
    assert summary.rows.not_in_parts == 0
    assert summary.seconds < LATENCY_S + 30


async def test_calls_that_outlast_the_grace_stay_pending_and_come_with_the_next_invocation(tmp_path: Path) -> None:
    bench, slow = bench_of(tmp_path, grace="0.1s"), Service(latency_s=600)
    summary = await bench.run(slow)
    assert (summary.state, summary.exit_code, summary.rows.ok) == ("stopped", 4, 0)
    assert len(slow.requests) == WORKERS
    bench.changes["run"] = {"workers": WORKERS}
    whole = await bench.run(Service())
    assert (whole.exit_code, whole.rows.ok) == (0, len(TEXTS))


async def test_each_invocation_has_the_whole_deadline(tmp_path: Path) -> None:
    bench, service = bench_of(tmp_path, grace="5m"), Service(latency_s=LATENCY_S)
    done = [(await bench.run(service)).rows.ok for _ in range(2)]
    assert done == [WORKERS, 2 * WORKERS]


async def test_a_run_that_ends_before_its_deadline_is_complete(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, grace="0s")
    bench.changes["run"] |= {"deadline": "10m"}
    assert (await bench.run(Service())).exit_code == 0
