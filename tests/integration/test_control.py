"""A run that goes on is paused, gone on with, drained and changed, and loses nothing by it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from batch_scene import BatchScene
from in_memory import Bench, Said, Service, refusal
from integration.test_stall import FastClock
from live_run import Gauge, LiveRun, going
from tuning_scene import TuningScene

from pipeline.cli.asking import NotAskedError
from pipeline.engines.again import Retry
from pipeline.run import RunOptions, run_job
from pipeline.store.summary import Summary

pytestmark = pytest.mark.anyio

WORKERS, ROWS = 4, 60
LATENCY_S = 0.03
QUIET_S = 0.4
"""Seconds in which a run that is not paused would send again, many times over."""

Watcher = Callable[[Summary], None]


def bench_of(folder: Path, *, rows: int = ROWS, **run: Any) -> Bench:
    # Every third call fails, and a row that is sent again may come to be every third: the limit is not what is tried.
    changes = {"run": {"workers": WORKERS, "grace": "5m", "max_attempts": 1000, **run}}
    return Bench(folder=folder, operation="chat", changes=changes).texts(*(f"text {n}" for n in range(rows)))


@asynccontextmanager
async def run_of(bench: Bench, gauge: Gauge, **options: Any) -> AsyncIterator[LiveRun]:
    job = bench.job()

    def run(watcher: Watcher) -> Awaitable[Summary]:
        return run_job(
            job,
            options=RunOptions(**options),
            transport=gauge,
            listener=bench.events.append,
            watcher=watcher,
            dice=lambda: 0.5,
        )

    async with going(bench.out, run) as live:
        yield live


def event(bench: Bench, name: str) -> list[dict[str, Any]]:
    return [dict(event) for event in bench.events if event["event"] == name]


def faulty(fault: Said, share: int = 3) -> Callable[[list[str], int], Said]:
    """Every third call meets a fault."""
    return lambda _, calls: fault if calls % share == 0 else None


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(None, id="answered"),
        pytest.param(refusal(429, "slow", headers={"retry-after-ms": "20"}), id="throttled"),
        pytest.param(refusal(500, "busy", headers={"retry-after-ms": "20"}), id="faulty"),
    ],
)
async def test_a_paused_run_sends_nothing_keeps_what_is_in_flight_and_goes_on_where_it_was(
    tmp_path: Path, fault: Said
) -> None:
    bench, gauge = bench_of(tmp_path), Gauge(Service(faulty(fault), latency_s=LATENCY_S))
    async with run_of(bench, gauge) as live:
        await live.until(lambda: gauge.sent > 2 * WORKERS)
        answer = await live.ask("pause")
        sent = gauge.sent
        assert (answer["changed"], answer["state"]) == (True, "paused")
        assert answer["in_flight"] <= WORKERS
        await live.until(lambda: not gauge.now)
        await anyio.sleep(QUIET_S)
        assert gauge.sent == sent < ROWS
        paused = live.written
        assert (paused.state, paused.paused_since) == ("running", answer["paused_since"])
        assert paused.eta_seconds is None
        assert paused.rows_expected is not None
        assert not (await live.ask("pause"))["changed"]
        await live.until(lambda: live.written.updated_at != paused.updated_at)
        assert live.written.in_flight == 0
        assert live.written.rows.ok == live.shown[-1].rows.ok > 0
        assert (await live.ask("resume"))["state"] == "running"
        assert live.written.paused_since is None
        summary = await live.end()
    assert (summary.state, summary.exit_code, summary.paused_since) == ("complete", 0, None)
    assert summary.paused_seconds >= QUIET_S
    bench.assert_rows(range(ROWS))
    if fault is None:
        assert gauge.sent == ROWS
    (paused_event,), (unpaused,) = event(bench, "run_paused"), event(bench, "run_unpaused")
    assert paused_event["uid"] is not None
    assert unpaused["paused_seconds"] >= QUIET_S


async def test_time_that_was_paused_counts_for_no_rate(tmp_path: Path) -> None:
    bench, gauge = bench_of(tmp_path), Gauge(Service(latency_s=LATENCY_S))
    async with run_of(bench, gauge) as live:
        await live.until(lambda: gauge.sent > WORKERS)
        await live.ask("pause")
        await anyio.sleep(3 * QUIET_S)
        await live.ask("resume")
        summary = await live.end()
    active_s = summary.seconds - summary.paused_seconds
    assert summary.rows_per_second == pytest.approx(ROWS / active_s, rel=0.05)


async def test_a_run_that_waits_for_its_quota_sends_nothing_more_once_it_is_paused(tmp_path: Path) -> None:
    bench, gauge = bench_of(tmp_path, workers=16), Gauge(Service())
    deployment = {"endpoint": "https://x.openai.azure.com", "deployment": "d", "model": "m", "api": "azure"}
    bench.changes["deployments"] = [{**deployment, "requests_per_minute": 600}]
    async with run_of(bench, gauge) as live:
        await live.until(lambda: gauge.sent > 4)
        await live.ask("pause")
        sent = gauge.sent
        await anyio.sleep(3 * QUIET_S)
        assert gauge.sent == sent
        await live.ask("drain")
    assert live.summary is not None
    assert live.summary.rows.ok == sent


async def test_a_drained_run_lets_calls_in_flight_take_their_time_and_is_continued(tmp_path: Path) -> None:
    bench, gauge = bench_of(tmp_path, grace="0s"), Gauge(Service(latency_s=1.0))
    async with run_of(bench, gauge) as live:
        await live.until(lambda: gauge.now == WORKERS)
        answer = await live.ask("drain")
        assert (answer["changed"], answer["state"], answer["in_flight"]) == (True, "draining", WORKERS)
        summary = await live.end()
    assert (summary.state, summary.exit_code) == ("stopped", 4)
    assert summary.reason == "drained by `pipeline drain`; run the same command again to continue"
    assert summary.rows.ok == gauge.sent == WORKERS
    assert summary.rows.not_in_parts == 0
    (drained,) = event(bench, "draining")
    assert drained["in_flight"] == WORKERS
    assert (await bench.run(Service())).exit_code == 0
    bench.assert_rows(range(ROWS))


async def test_a_deadline_presses_a_run_that_is_drained(tmp_path: Path) -> None:
    bench, gauge = bench_of(tmp_path, grace="0s", deadline="1s"), Gauge(Service(latency_s=600))
    async with run_of(bench, gauge) as live:
        await live.until(lambda: gauge.now == WORKERS)
        await live.ask("drain")
        summary = await live.end()
    assert (summary.exit_code, summary.rows.ok) == (4, 0)
    assert "drained" in (summary.reason or "")


async def test_a_paused_run_is_drained_at_once(tmp_path: Path) -> None:
    bench, gauge = bench_of(tmp_path), Gauge(Service(latency_s=LATENCY_S))
    async with run_of(bench, gauge) as live:
        await live.ask("pause")
        await live.until(lambda: not gauge.now)
        sent = gauge.sent
        await live.ask("drain")
        with pytest.raises(NotAskedError, match=r"is ending already|no run goes on|is not reached"):
            await live.ask("resume")
        summary = await live.end()
    assert (summary.state, summary.exit_code, gauge.sent) == ("stopped", 4, sent)
    assert summary.rows.ok == sent


async def test_a_deadline_goes_on_while_a_run_is_paused(tmp_path: Path) -> None:
    bench, gauge = bench_of(tmp_path, deadline="1s"), Gauge(Service(latency_s=LATENCY_S))
    async with run_of(bench, gauge) as live:
        await live.ask("pause")
        summary = await live.end()
    assert (summary.state, summary.exit_code) == ("stopped", 4)
    assert "run.deadline" in (summary.reason or "")


async def test_a_pause_far_longer_than_the_limit_is_no_stall_and_no_outage(tmp_path: Path) -> None:
    bench = bench_of(tmp_path)
    gauge = Gauge(Service(lambda _, calls: refusal(500, headers={"retry-after-ms": "1"}) if calls > 8 else None))
    fast, job = FastClock(), bench.job()

    def run(watcher: Watcher) -> Awaitable[Summary]:
        return run_job(job, clock=fast, transport=gauge, listener=bench.events.append, watcher=watcher)

    async with going(bench.out, run) as live:
        await live.until(lambda: gauge.sent > 8)
        await live.ask("pause")
        began = fast.now()
        await live.until(lambda: fast.now() - began > 2 * 1800)
        gauge.service = Service()
        await live.ask("resume")
        summary = await live.end()
    assert (summary.state, summary.exit_code) == ("complete", 0)
    bench.assert_rows(range(ROWS))


@pytest.mark.parametrize("quota", [None, 60_000])
async def test_workers_are_set_down_and_up_while_a_run_goes_on(tmp_path: Path, quota: int | None) -> None:
    bench, gauge = bench_of(tmp_path, rows=400, workers=8), Gauge(Service(latency_s=LATENCY_S))
    deployment = {"endpoint": "https://x.openai.azure.com", "deployment": "d", "model": "m", "api": "azure"}
    bench.changes["deployments"] = [{**deployment, **({} if quota is None else {"requests_per_minute": quota})}]
    async with run_of(bench, gauge) as live:
        await live.until(lambda: gauge.most == 8)
        answer = await live.ask("set", workers="2")
        assert (answer["changed"], answer["workers"], answer["leave"]) == (True, 2, 0.0)
        assert live.written.workers == 2
        await live.until(lambda: gauge.now <= 2)
        gauge.forget()
        sent = gauge.sent
        await live.until(lambda: gauge.sent > sent + 20)
        assert gauge.most == 2
        await live.ask("set", **{"run.workers": "24"})
        await live.until(lambda: gauge.most > 8)
        assert not (await live.ask("set", workers="24"))["changed"]
        summary = await live.end()
    assert 8 < gauge.most <= 24
    assert (summary.exit_code, summary.workers) == (0, 24)
    bench.assert_rows(range(400))
    first, second = event(bench, "run_changed")
    assert (first["workers"], first["before"]) == (2, {"workers": 8, "leave": 0.0})
    assert second["workers"] == 24
    assert (await bench.run(Service())).workers == 8, "the next run goes by the job file again"


async def test_a_share_of_the_quota_is_left_to_others_from_now_on(tmp_path: Path) -> None:
    bench, gauge = bench_of(tmp_path, rows=200), Gauge(Service())
    deployment = {"endpoint": "https://x.openai.azure.com", "deployment": "d", "model": "m", "api": "azure"}
    bench.changes["deployments"] = [{**deployment, "requests_per_minute": 1200}]
    async with run_of(bench, gauge) as live:
        await live.until(lambda: gauge.sent > 20)
        answer = await live.ask("set", leave="80%")
        assert answer["leave"] == live.written.leave == 0.8
        sent, began = gauge.sent, time.monotonic()
        await anyio.sleep(2)
        # A fifth of 20 a second, and the one that a late timer may still send.
        assert 1 <= gauge.sent - sent <= 4 * (time.monotonic() - began) + 1
        await live.ask("set", leave="0%")
        summary = await live.end()
    assert (summary.exit_code, summary.leave) == (0, 0.0)
    assert (await bench.run(Service())).leave == 0.0


async def test_a_pause_and_a_change_outlast_the_canary(tmp_path: Path) -> None:
    bench, gauge = bench_of(tmp_path, canary=20), Gauge(Service(latency_s=LATENCY_S))
    async with run_of(bench, gauge) as live:
        await live.until(lambda: gauge.sent > WORKERS)
        await live.ask("set", workers="7")
        await live.ask("pause")
        await live.until(lambda: not gauge.now)
        sent = gauge.sent
        await anyio.sleep(QUIET_S)
        assert gauge.sent == sent < 20
        await live.ask("resume")
        await live.until(lambda: gauge.sent > 20)
        gauge.forget()
        assert (await live.ask("pause"))["workers"] == 7
        await live.ask("resume")
        summary = await live.end()
    assert (summary.exit_code, summary.workers, gauge.most) == (0, 7, 7)
    assert summary.paused_seconds >= QUIET_S, "of the whole invocation"
    bench.assert_rows(range(ROWS))


async def test_a_retry_is_paused_too(tmp_path: Path) -> None:
    bench = bench_of(tmp_path)
    await bench.run(Service(lambda *_: refusal(400, "odd") if _[1] % 2 else None))
    failed = len(bench.failed())
    gauge = Gauge(Service(latency_s=0.2))
    async with run_of(bench, gauge, retry=Retry()) as live:
        await live.ask("pause")
        await live.until(lambda: not gauge.now)
        sent = gauge.sent
        await anyio.sleep(QUIET_S)
        assert gauge.sent == sent < failed
        await live.ask("resume")
    assert live.summary is not None
    assert (live.summary.exit_code, gauge.sent) == (0, failed)
    bench.assert_rows(range(ROWS))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"workers": "0"}, "run.workers: must be greater than or equal to 1"),
        ({"workers": "many"}, "run.workers: must be a whole number"),
        ({"workers": ""}, "run.workers: has no value"),
        ({"leave": "120%"}, "run.leave: must be a share below 100%, such as 20%"),
        ({"wrokers": "4"}, "run.wrokers: unknown key (did you mean `workers`?)"),
        ({"timeout": "3s"}, "run.timeout is read when a run begins"),
        ({"output.path": "x"}, "output.path is read when a run begins"),
        ({"workers": "3", "deployments.0.priority": "1"}, "again with --set deployments.0.priority=…"),
        ({"workers": "3", "leave": "x"}, "run.leave: must be"),
    ],
)
async def test_what_cannot_be_set_is_refused_in_the_job_files_words_and_changes_nothing(
    tmp_path: Path, values: dict[str, str], words: str
) -> None:
    bench, gauge = bench_of(tmp_path), Gauge(Service(latency_s=LATENCY_S))
    async with run_of(bench, gauge) as live:
        await live.ask("pause")
        with pytest.raises(NotAskedError) as refused:
            await live.ask("set", **values)
        assert str(refused.value).startswith(words) or words.startswith("again")
        assert words in str(refused.value)
        assert refused.value.exit_code == 2
        state = await live.ask("state")
        assert (state["workers"], state["leave"]) == (WORKERS, 0.0)
        await live.ask("resume")
    assert not event(bench, "run_changed")


async def test_a_paused_batch_lane_submits_nothing_and_still_collects(tmp_path: Path) -> None:
    place = BatchScene(folder=tmp_path, rows=120, deployment={"enqueued_tokens": 400})
    place.simulator = {"deployment": {"enqueued_tokens": 400}, "offline": {"in_progress_s": 0.3}}
    with place.served():

        def run(watcher: Watcher) -> Awaitable[Summary]:
            return place.run(watcher=watcher)

        async with going(place.layout.root, run) as live:
            await live.until(lambda: len(place.submitted()) > 1)
            await live.ask("pause")
            submitted = len(place.submitted())
            await anyio.sleep(2 * QUIET_S)
            await live.until(lambda: live.written.rows.ok > 0)
            assert len(place.submitted()) <= submitted + 1, "but for one that was on its way"
            with pytest.raises(NotAskedError, match="has no workers"):
                await live.ask("set", workers="3")
            await live.ask("resume")
            summary = await live.end()
    assert (summary.exit_code, summary.workers, summary.leave) == (0, None, None)
    place.assert_each_row_once()
    assert len(place.submitted()) > submitted + 1


async def test_a_drained_batch_lane_leaves_its_batches_to_the_next_run(tmp_path: Path) -> None:
    place = BatchScene(folder=tmp_path, rows=40, simulator={"offline": {"in_progress_s": 2.0}})
    with place.served():

        def run(watcher: Watcher) -> Awaitable[Summary]:
            return place.run(watcher=watcher)

        async with going(place.layout.root, run) as live:
            await live.until(lambda: bool(place.submitted()))
            await live.ask("drain")
            summary = await live.end()
        assert (summary.state, summary.exit_code, summary.rows.ok) == ("stopped", 4, 0)
        assert (await place.run()).exit_code == 0
    place.assert_each_row_once()
    assert len(place.submitted()) == 1


async def test_a_training_cannot_be_paused_and_is_drained(tmp_path: Path) -> None:
    scene = TuningScene(folder=tmp_path, offline={"in_progress_s": 600})
    with scene.served():

        def run(watcher: Watcher) -> Awaitable[Summary]:
            return scene.run(watcher=watcher)

        async with going(scene.layout.root, run) as live:
            for do, values in (("pause", {}), ("set", {"workers": "3"})):
                with pytest.raises(NotAskedError, match="a training"):
                    await live.ask(do, **values)
            await live.until(lambda: bool(scene.created()))
            assert (await live.ask("drain"))["state"] == "draining"
            summary = await live.end()
    assert (summary.state, summary.exit_code) == ("stopped", 4)
    assert len(scene.created()) == 1
