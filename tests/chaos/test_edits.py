"""F18: the job or the input is edited between a kill and the next run. Every key of a job file, every kind of edit."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import anyio
import httpx
import pytest
from chaos.report import record
from in_memory import Bench, Service
from unit.job.test_change import OTHER, all_keys

from pipeline import operations
from pipeline.errors import InputChangedError, JobChangedError
from pipeline.job.load import load_job
from pipeline.job.spec import Job
from pipeline.run import run_job
from pipeline.store.earlier import earlier
from pipeline.store.verify import verify_folder

pytestmark = pytest.mark.chaos

ROWS = 35
SEALED = 20
KILLED_AT = 28
ENVIRON = {"AZURE_OPENAI_API_KEY": "k" * 32, "AZURE_OPENAI_AD_TOKEN": "t" * 32, "KEY": "k" * 32}
AT_PLACES = {
    "deployments.0.auth",
    "deployments.0.credential",
    "deployments.0.scope",
    "deployments.0.ca_bundle",
    "deployments.0.token",
}
"""Keys that say who asks and whom to trust: that they may change is judged, but nobody is there to sign in with."""
ELSEWHERE = {"output.path"}
"""Another folder is another run."""
WITH: Mapping[str, dict[str, str]] = {
    "operation": {"request": "{messages: [{role: user, content: '{{ text }}'}]}"},
    "deployments.0.deployment": {"deployments.0.model": "unknown"},
    "deployments.0.token": {"deployments.0.auth": "token"},
    "output.format": {"output.raw": "all"},
    "run.max_cost": {"deployments.0.price": "{input: 1.0, output: 1.0}"},
    "run.processes": {"run.workers": "2"},
}
"""What a value needs beside it to make a job."""
VALUES: Mapping[str, str] = {
    "input.path": "[rows.jsonl, more.jsonl]",
    "input.id": "n",
    "input.columns": "{n: float}",
    "request": "{input: '{{ text }}!', dimensions: 4}",
    "output.columns": "[text]",
    "deployments.0.ca_bundle": "job.json",
    "run.lane": "online",
    "run.max_tokens_total": "100000",
}
"""Values that fit this input better than those of the other test."""


def killed_run(folder: Path) -> Bench:
    """A run that was killed after 28 rows: 20 of them in parts, the others in the journal, and a range open."""
    bench = Bench(folder=folder, max_inputs=1).texts(*(f"text {n}" for n in range(ROWS)))
    bench.changes["run"] = {"workers": 1}
    snapshot = folder / "killed"

    def kill(texts: list[str], calls: int) -> httpx.Response | None:
        if calls == KILLED_AT + 1:
            shutil.copytree(bench.out, snapshot, ignore=shutil.ignore_patterns("*-shm", "lock", "*.tmp"))
        return None

    anyio.run(lambda: bench.run(Service(kill)))
    shutil.rmtree(bench.out)
    snapshot.rename(bench.out)
    known = earlier(bench.layout)
    assert known is not None
    assert known.ok == KILLED_AT
    assert len(bench.table()) <= SEALED
    (folder / "more.jsonl").write_text("")
    (folder / "media").mkdir()
    bench.events.clear()
    return bench


def changed(bench: Bench, key: str) -> Job:
    """The job with another value for a key."""
    bench.job()
    return load_job(
        bench.folder / "job.json",
        environ=ENVIRON,
        operations=operations.names(),
        overrides={key: VALUES.get(key, OTHER[key]), **WITH.get(key, {})},
    )


def contents(bench: Bench) -> dict[Path, bytes]:
    """What the run would rely on; a reader's look at the log of a database changes no row of it."""
    return {path: path.read_bytes() for path in (*bench.parts(), bench.layout.manifest) if path.is_file()}


@pytest.mark.parametrize(("key", "kind"), all_keys())
def test_every_key_of_the_job_that_is_edited_after_a_kill_is_taken_by_its_class(
    tmp_path: Path, key: str, kind: str
) -> None:
    bench = killed_run(tmp_path)
    job = changed(bench, key)
    service = Service()
    before = contents(bench)
    if kind == "semantic":
        with pytest.raises(JobChangedError, match=key.partition(".0.")[0].partition(".")[0]) as refused:
            anyio.run(lambda: run_job(job, transport=service))
        assert " -> " in str(refused.value)
        assert service.calls == []
        assert contents(bench) == before
    elif key in AT_PLACES:
        known = earlier(bench.layout)
        assert known is not None
        known.check(job)
    elif key not in ELSEWHERE:
        summary = anyio.run(lambda: run_job(job, transport=service, dice=lambda: 0.0))
        assert (summary.state, summary.rows.ok) == ("complete", ROWS), summary.reason
        assert sum(map(len, service.calls)) == ROWS - KILLED_AT
        assert [row["ordinal"] for row in bench.table()] == list(range(ROWS))
        assert verify_folder(bench.layout).findings == ()
    record(fault="F18", what=f"a {kind} key of the job edited after a kill", tried=1, resent_max=0)


def touched(bench: Bench, file: Path) -> None:
    os.utime(file, ns=(1, 1))


def written_again(bench: Bench, file: Path) -> None:
    copy = file.with_name("copy")
    shutil.copy(file, copy)
    copy.replace(file)


def appended(bench: Bench, file: Path) -> None:
    bench.rows += [{"id": f"new {n}", "text": f"new {n}", "n": n} for n in range(3)]


def changed_row(ordinal: int) -> Callable[[Bench, Path], None]:
    def edit(bench: Bench, file: Path) -> None:
        bench.rows[ordinal] = {**bench.rows[ordinal], "text": "changed"}

    return edit


def carried_cell(bench: Bench, file: Path) -> None:
    bench.rows[3] = {**bench.rows[3], "n": -1}


def removed(ordinal: int) -> Callable[[Bench, Path], None]:
    return lambda bench, file: bench.rows.pop(ordinal) and None


def another_order(bench: Bench, file: Path) -> None:
    bench.rows[0], bench.rows[1] = bench.rows[1], bench.rows[0]


def row_in_front(bench: Bench, file: Path) -> None:
    bench.rows.insert(0, {"id": "front", "text": "front", "n": 0})


def another_file(bench: Bench, file: Path) -> None:
    bench.rows = [{"id": f"o{n}", "text": f"other {n}", "n": n} for n in range(ROWS)]


def emptied(bench: Bench, file: Path) -> None:
    bench.rows = []


SAME: dict[str, Callable[[Bench, Path], None]] = {
    "another modification time": touched,
    "another inode": written_again,
}
GROWN: dict[str, Callable[[Bench, Path], None]] = {"rows at the end": appended}
REFUSED: dict[str, tuple[Callable[[Bench, Path], None], str]] = {
    "a row of a sealed range": (changed_row(12), "rows 10 to 19"),
    "a cell that is only carried": (carried_cell, "rows 0 to 9"),
    "a row of the open range that is done": (changed_row(22), "rows 20 to "),
    "a row of the open range that was only read": (changed_row(29), "rows 20 to "),
    "a row of a sealed range is gone": (removed(5), "rows 0 to 9"),
    "a row of the open range is gone": (removed(21), "rows 20 to "),
    "two rows have changed places": (another_order, "rows 0 to 9"),
    "a row in front": (row_in_front, "rows 0 to 9"),
    "another file": (another_file, "rows 0 to 9"),
    "no rows any more": (emptied, "rows 0 to 9"),
}


def apply(bench: Bench, edit: Callable[[Bench, Path], None]) -> Job:
    """Edit rows and file; the job is loaded over what lies there."""
    file = bench.folder / "rows.jsonl"
    bench.job()
    before = file.read_bytes()
    edit(bench, file)
    at_hand = file.read_bytes(), file.stat()
    job = bench.job()
    if at_hand[0] != before or at_hand[1].st_mtime_ns == 1:
        file.write_bytes(at_hand[0])
        os.utime(file, ns=(at_hand[1].st_atime_ns, at_hand[1].st_mtime_ns))
    return job


@pytest.mark.parametrize("edit", [*SAME, *GROWN])
def test_an_input_with_the_same_rows_goes_on_with_what_is_not_done(tmp_path: Path, edit: str) -> None:
    bench = killed_run(tmp_path)
    job = apply(bench, {**SAME, **GROWN}[edit])
    service = Service()
    summary = anyio.run(lambda: run_job(job, transport=service, dice=lambda: 0.0))
    assert (summary.state, summary.rows.ok) == ("complete", len(bench.rows))
    assert sum(map(len, service.calls)) == len(bench.rows) - KILLED_AT
    bench.assert_rows(range(len(bench.rows)))
    record(fault="F18", what="an input edited after a kill, the same rows", tried=1, resent_max=0)


@pytest.mark.parametrize("edit", REFUSED)
def test_an_input_with_other_rows_is_refused_by_the_first_range_that_differs(tmp_path: Path, edit: str) -> None:
    bench = killed_run(tmp_path)
    act, named = REFUSED[edit]
    job = apply(bench, act)
    before = contents(bench)
    service = Service()
    with pytest.raises(InputChangedError, match=named) as refused:
        anyio.run(lambda: run_job(job, transport=service))
    assert "--fresh" in str(refused.value)
    assert service.calls == []
    assert contents(bench) == before
    record(fault="F18", what="an input edited after a kill, other rows", tried=1)
