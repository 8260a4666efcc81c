"""`run.metrics_file`: what a run says to Prometheus, read by the parser of Prometheus' own client."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from in_memory import Bench, Said, Service, refusal
from prometheus_client.parser import text_string_to_metric_families

from pipeline.engines.metrics import EVERY_S, STATES, MetricsFile
from pipeline.errors import FolderHeldError, JobFileError
from pipeline.log import EventLog
from pipeline.rehearsal import simulated
from pipeline.run import RunOptions, run_job
from pipeline.store.folder import hold_folder
from pipeline.store.summary import Summary
from pipeline.testing import ManualClock

pytestmark = pytest.mark.anyio

OWN = {"job_name": "job", "operation": "embeddings"}
PLACE = {**OWN, "deployment": "d", "model": "unknown"}
PRICE = {"input": 1.0, "output": 1.0}
Key = tuple[str, frozenset[tuple[str, str]]]


def bench_of(folder: Path, *, rows: int = 12, **run: Any) -> Bench:
    deployment = {"endpoint": "https://x.openai.azure.com", "deployment": "d", "model": "unknown", "api": "azure"}
    changes = {
        "run": {"metrics_file": "job.prom", **run},
        "deployments": [{**deployment, "max_inputs": 1, "requests_per_minute": 60000, "price": PRICE}],
    }
    return Bench(folder=folder, changes=changes).texts(*(f"text {n}" for n in range(rows)))


def read(path: Path) -> dict[Key, float]:
    """Every sample by its name and labels."""
    return {
        (one.name, frozenset(one.labels.items())): one.value
        for family in text_string_to_metric_families(path.read_text(encoding="utf-8"))
        for one in family.samples
    }


def value(found: Mapping[Key, float], name: str, labels: Mapping[str, str] = OWN, **more: str) -> float | None:
    return found.get((name, frozenset({**labels, **more}.items())))


def state_of(found: Mapping[Key, float]) -> list[str]:
    return [state for state in STATES if value(found, "pipeline_run_state", state=state)]


def first_two_fail(texts: list[str], call: int) -> Said:
    return refusal(503) if call <= 2 else refusal(400) if texts == ["text 7"] else None


async def test_the_file_says_what_the_summary_says(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, fail_on="never", workers=1, max_cost=9.0)
    summary = await bench.run(Service(first_two_fail))
    found = read(tmp_path / "job.prom")
    for status, rows in (("ok", 11), ("failed", 1), ("pending", 0)):
        assert value(found, "pipeline_rows", status=status) == rows
    assert value(found, "pipeline_requests_total") == summary.requests == 12
    assert value(found, "pipeline_attempts_total", PLACE, status_class="2xx") == 11
    assert value(found, "pipeline_attempts_total", PLACE, status_class="4xx") == 1
    assert value(found, "pipeline_attempts_total", PLACE, status_class="5xx") == 2
    assert value(found, "pipeline_verdicts_total", PLACE, verdict="transient") == 2
    assert value(found, "pipeline_retries_total", PLACE) == 2
    assert value(found, "pipeline_attempt_duration_seconds_count", PLACE) == summary.attempts == 14
    assert value(found, "pipeline_attempt_duration_seconds_bucket", PLACE, le="+Inf") == 14
    assert value(found, "pipeline_tokens_total", type="input") == summary.tokens.input > 0
    assert value(found, "pipeline_cost_usd_total") == pytest.approx(summary.cost_usd)
    assert value(found, "pipeline_budget_limit_usd") == 9.0
    assert value(found, "pipeline_quota_requests_per_minute", PLACE) == 60000
    assert 0 < (value(found, "pipeline_quota_used_ratio", PLACE) or 0) < 1
    assert value(found, "pipeline_throttled_seconds_total", PLACE) == 0
    assert value(found, "pipeline_in_flight_requests") == 0
    assert value(found, "pipeline_deployment_set_aside", PLACE) == 0
    assert value(found, "pipeline_eta_seconds") is None
    assert (state_of(found), value(found, "pipeline_run_exit_code")) == (["complete"], 0)
    assert value(found, "pipeline_last_success_timestamp_seconds") == pytest.approx(
        value(found, "pipeline_run_updated_timestamp_seconds"), abs=60
    )


async def test_what_was_throttled_is_counted_with_its_time(tmp_path: Path) -> None:
    def judge(_: list[str], call: int) -> Said:
        return refusal(429, headers={"retry-after-ms": "50"}) if call == 1 else None

    bench = bench_of(tmp_path, workers=1)
    await bench.run(Service(judge))
    found = read(tmp_path / "job.prom")
    assert value(found, "pipeline_throttled_total", PLACE) == 1
    assert (value(found, "pipeline_throttled_seconds_total", PLACE) or 0) >= 0.05


async def test_the_collector_may_read_the_file_whatever_the_umask_and_nothing_else_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "collector"
    folder.mkdir()
    before = os.umask(0o077)
    try:
        await bench_of(tmp_path, metrics_file="collector/job.prom").run(Service())
    finally:
        os.umask(before)
    assert [path.name for path in folder.iterdir()] == ["job.prom"]
    assert stat.S_IMODE((folder / "job.prom").stat().st_mode) == 0o644


async def test_a_failed_run_says_so_and_remembers_when_the_job_last_ended_well(tmp_path: Path) -> None:
    bench, path = bench_of(tmp_path), tmp_path / "job.prom"
    await bench.run(Service())
    well = value(read(path), "pipeline_last_success_timestamp_seconds")
    assert well is not None
    summary = await bench.run(Service(lambda *_: refusal(401)), fresh=True)
    found = read(path)
    assert (state_of(found), value(found, "pipeline_run_exit_code")) == ([summary.state], 3)
    assert value(found, "pipeline_last_success_timestamp_seconds") == well


async def test_a_run_that_has_not_ended_well_claims_no_success(tmp_path: Path) -> None:
    bench, path = bench_of(tmp_path), tmp_path / "job.prom"
    summary = await bench.run(Service(), limit=5)
    assert (summary.state, summary.exit_code) == ("stopped", 0)
    assert value(read(path), "pipeline_last_success_timestamp_seconds") is None
    await bench.run(Service(lambda *_: refusal(400)))
    assert value(read(path), "pipeline_run_exit_code") == 1
    assert value(read(path), "pipeline_last_success_timestamp_seconds") is None


async def test_the_end_of_a_canary_is_not_the_end_of_the_run(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def judge(texts: list[str], _: int) -> Said:
        if texts == ["text 11"]:
            seen.append(state_of(read(tmp_path / "job.prom")))
        return None

    await bench_of(tmp_path, canary=4).run(Service(judge))
    assert seen == [["running"]]
    assert state_of(read(tmp_path / "job.prom")) == ["complete"]


@pytest.mark.parametrize("folder", ["gone", "file"])
async def test_a_folder_that_takes_no_file_is_said_once_and_harms_nothing(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    bench = bench_of(tmp_path, metrics_file=f"{folder}/job.prom")
    summary = await bench.run(Service())
    assert (summary.state, summary.exit_code) == ("complete", 0)
    (said,) = [event for event in bench.events if event["event"] == "metrics_refused"]
    assert said["level"] == "warning"
    assert said["file"] == str(tmp_path / folder / "job.prom")
    assert said["reason"] in {"No such file or directory", "Not a directory"}


async def test_a_disk_that_hangs_holds_nothing_up(tmp_path: Path) -> None:
    fifo = tmp_path / "job.prom"
    os.mkfifo(fifo)  # reading it waits for a writer that never comes
    bench = bench_of(tmp_path)
    try:
        summary = await bench.run(Service())
    finally:
        os.close(os.open(fifo, os.O_RDWR | os.O_NONBLOCK))
        for thread in threading.enumerate():
            if thread.name == "metrics":
                thread.join(10)
    assert (summary.state, summary.exit_code) == ("complete", 0)
    assert [event["event"] for event in bench.events].count("metrics_refused") == 1


async def test_a_run_that_could_not_begin_leaves_the_file_of_the_one_that_holds_the_folder(tmp_path: Path) -> None:
    bench, path = bench_of(tmp_path), tmp_path / "job.prom"
    await bench.run(Service())
    before = path.read_bytes()
    job = bench.job()
    with hold_folder(job.output.path, fresh=False, now=datetime.now(UTC)), pytest.raises(FolderHeldError):
        await run_job(job, options=RunOptions(), transport=Service())
    assert path.read_bytes() == before


async def test_a_run_that_a_defect_ends_is_not_left_running(tmp_path: Path) -> None:
    def judge(_: list[str], call: int) -> Said:
        return KeyError("odd") if call > 3 else None

    bench = bench_of(tmp_path, workers=1)
    with pytest.raises(KeyError):
        await bench.run(Service(judge))
    found = read(tmp_path / "job.prom")
    assert state_of(found) != ["running"]
    assert value(found, "pipeline_run_exit_code") == 70


async def test_names_of_jobs_and_deployments_may_hold_anything(tmp_path: Path) -> None:
    odd = 'a "b" \\n {c="d"} 1'
    bench = bench_of(tmp_path)
    bench.changes["name"] = odd
    bench.changes["deployments"][0]["name"] = odd
    await bench.run(Service())
    labels = {**PLACE, "job_name": odd, "deployment": odd}
    assert value(read(tmp_path / "job.prom"), "pipeline_attempts_total", labels, status_class="2xx") == 12


async def test_the_file_is_written_no_more_often_than_collectors_look(tmp_path: Path) -> None:
    clock, job = ManualClock(), bench_of(tmp_path).job()
    path = tmp_path / "job.prom"
    metrics = MetricsFile(path, job=job, clock=clock, say=EventLog(wall=clock.wall).emit)
    written = set()
    for second in range(int(3 * EVERY_S)):
        metrics.see(Summary(state="running", requests=second))
        deadline = threading.Event()
        deadline.wait(0.02)
        if path.exists():
            written.add(value(read(path), "pipeline_requests_total"))
        clock.advance(1.0)
    metrics.end(Summary(state="complete", exit_code=0, requests=99))
    assert written <= {0, EVERY_S, 2 * EVERY_S}
    assert value(read(path), "pipeline_requests_total") == 99


async def test_a_stage_that_ended_is_not_written_as_the_end(tmp_path: Path) -> None:
    clock, job = ManualClock(), bench_of(tmp_path).job()
    path = tmp_path / "job.prom"
    metrics = MetricsFile(path, job=job, clock=clock, say=EventLog(wall=clock.wall).emit)
    metrics.see(Summary(state="running"))
    clock.advance(EVERY_S)
    metrics.see(Summary(state="stopped", exit_code=0))
    threading.Event().wait(0.3)
    assert not path.exists() or state_of(read(path)) == ["running"]
    metrics.end(None)
    assert state_of(read(path)) == ["stopped"]


async def test_nothing_of_a_row_or_a_secret_is_in_the_file(tmp_path: Path) -> None:
    await bench_of(tmp_path).run(Service(first_two_fail))
    text = (tmp_path / "job.prom").read_text()
    for secret in ("k" * 32, "t" * 32, "text 7", "r7"):
        assert secret not in text


async def test_a_rehearsal_writes_beside_its_own_results(tmp_path: Path) -> None:
    with simulated(bench_of(tmp_path).job()) as job:
        assert job.run.metrics_file == tmp_path / "out.simulated.prom"


@pytest.mark.parametrize("name", ["job.txt", "prom", "job.prom.gz"])
async def test_a_name_that_no_collector_reads_is_a_mistake_in_the_job_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(JobFileError, match=r"run\.metrics_file: must end in \.prom"):
        bench_of(tmp_path, metrics_file=name).job()


async def test_a_file_that_is_read_while_it_is_replaced_is_whole(tmp_path: Path) -> None:
    clock, job = ManualClock(), bench_of(tmp_path).job()
    path = tmp_path / "job.prom"
    metrics = MetricsFile(path, job=job, clock=clock, say=EventLog(wall=clock.wall).emit)
    counts = set()
    for turn in range(200):
        metrics.see(Summary(state="running", requests=turn))
        clock.advance(EVERY_S)
        if path.exists():
            counts.add(len(read(path)))
    metrics.end(None)
    assert len(counts) == 1
    assert state_of(read(path)) == ["interrupted"]
