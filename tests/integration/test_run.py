"""A run from job file to parts: what it leaves, how it goes on, and what it refuses to go on with."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import pytest
from forked import start_simulator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from in_memory import Bench, Said, Service, refusal

from pipeline.errors import FolderHeldError, InputChangedError, JobChangedError, PipelineError, StorageError
from pipeline.run import run_job
from pipeline.simulator.ledger import Arrived, read_ledger
from pipeline.store.database import LARGE_PAGE_BYTES, PAGE_BYTES, open_reader, page_bytes_of
from pipeline.store.lock import hold
from pipeline.store.summary import read_summary


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(folder=tmp_path).texts(*(f"text {n}" for n in range(25)))


def texts_asked(service: Service) -> list[str]:
    return [text for call in service.calls for text in call]


@pytest.mark.anyio
@pytest.mark.parametrize("rows", [1, 9, 10, 20])
async def test_a_finished_run_leaves_no_spool_wherever_its_input_ends(bench: Bench, rows: int) -> None:
    bench.texts(*map(str, range(rows)))
    assert (await bench.run(Service())).exit_code == 0
    assert list(bench.layout.spool.iterdir()) == []


@pytest.mark.anyio
@pytest.mark.parametrize("operation", ["embeddings", "chat"])
async def test_a_run_leaves_every_row_in_parts_and_says_so(bench: Bench, operation: str) -> None:
    bench.operation = operation
    service = Service()
    summary = await bench.run(service)
    bench.assert_rows(range(25))
    assert [path.name for path in bench.parts()] == [
        "part-000000000000-000000000009.parquet",
        "part-000000000010-000000000019.parquet",
        "part-000000000020-000000000024.parquet",
    ]
    assert (summary.state, summary.exit_code) == ("complete", 0)
    rows = summary.rows
    assert (rows.total, rows.ok, rows.failed, rows.pending, rows.not_in_parts) == (25, 25, 0, 0, 0)
    assert summary.attempts == summary.requests == len(service.calls) == len(bench.attempts())
    assert summary.tokens.input == sum(map(len, texts_asked(service)))
    assert read_summary(bench.layout.summary) == summary
    assert list(bench.layout.spool.iterdir()) == []
    events = [event["event"] for event in bench.events]
    assert events[0] == "run_started"
    assert events[-1] == "run_ended"
    logged = [json.loads(line)["event"] for line in bench.layout.log.read_text().splitlines()]
    assert logged == events


@pytest.mark.anyio
async def test_the_manifest_lists_the_parts_of_the_journal(bench: Bench) -> None:
    await bench.run(Service())
    manifest = json.loads(bench.layout.manifest.read_text())
    with bench.journal() as journal:
        parts = journal.parts()
    assert [(part["name"], part["sha256"], part["ok"]) for part in manifest["parts"]] == [
        (part.name, part.sha256, part.ok) for part in parts
    ]
    assert manifest["columns"] == bench.schemas()[0].names


@pytest.mark.anyio
@pytest.mark.parametrize(("operation", "page_bytes"), [("embeddings", LARGE_PAGE_BYTES), ("chat", PAGE_BYTES)])
async def test_the_journal_has_large_pages_where_answers_are_large(
    bench: Bench, operation: str, page_bytes: int
) -> None:
    bench.operation = operation
    await bench.run(Service())
    connection = open_reader(bench.layout.journal)
    assert page_bytes_of(connection) == page_bytes
    connection.close()


@pytest.mark.anyio
async def test_a_finished_run_asks_nobody_again_and_changes_no_part(bench: Bench) -> None:
    await bench.run(Service())
    before = {path: path.read_bytes() for path in bench.parts()}
    service = Service()
    summary = await bench.run(service)
    assert service.calls == []
    assert (summary.state, summary.rows.ok) == ("complete", 25)
    assert {path: path.read_bytes() for path in bench.parts()} == before


@pytest.mark.anyio
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("operation", ["embeddings", "chat"])
async def test_no_worker_sends_again_before_its_last_answer_is_on_disk(
    bench: Bench, operation: str, workers: int
) -> None:
    bench.operation = operation
    bench.changes["run"] = {"workers": workers}

    def count(texts: list[str], calls: int) -> Said:
        with bench.journal() as committed:
            assert calls - committed.totals().requests <= workers
        return None

    assert (await bench.run(Service(count))).exit_code == 0
    bench.assert_rows(range(25))


@pytest.mark.anyio
async def test_the_same_answers_give_the_same_cells_whoever_answered_first(bench: Bench) -> None:
    await bench.run(Service())
    names = ["ordinal", "id", "text", "n", "status", "embedding", "error", "usage"]
    first = [{name: row[name] for name in names} for row in bench.table()]
    assert [row["ordinal"] for row in first] == list(range(25))
    await bench.run(Service(latency_s=0.001), fresh=True)
    assert [{name: row[name] for name in names} for row in bench.table()] == first


@pytest.mark.anyio
async def test_an_input_without_rows_is_complete(bench: Bench) -> None:
    bench.rows = []
    bench.changes["input"] = {"id": None, "columns": {"text": "string"}}
    summary = await bench.run(Service())
    assert (summary.state, summary.exit_code, summary.rows.total) == ("complete", 0, 0)
    assert bench.parts() == []


@pytest.mark.anyio
async def test_rows_added_at_the_end_are_asked_and_the_others_are_not(bench: Bench) -> None:
    await bench.run(Service())
    bench.rows += [{"id": f"new {n}", "text": f"new {n}", "n": n} for n in range(7)]
    service = Service()
    assert (await bench.run(service)).rows.total == 32
    assert texts_asked(service) == [f"new {n}" for n in range(7)]
    bench.assert_rows(range(32))
    assert "input_grew" in [event["event"] for event in bench.events]


def first_row(rows: list[dict[str, Any]]) -> None:
    rows[0]["text"] = "changed"


def a_cell_that_is_only_carried(rows: list[dict[str, Any]]) -> None:
    rows[12]["n"] = 99


def order(rows: list[dict[str, Any]]) -> None:
    rows.reverse()


def one_row_less(rows: list[dict[str, Any]]) -> None:
    rows.pop()


def a_row_at_the_front(rows: list[dict[str, Any]]) -> None:
    rows.insert(0, {"id": "new", "text": "new", "n": 0})


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("change", "first"),
    [(first_row, 0), (a_cell_that_is_only_carried, 10), (order, 0), (one_row_less, 20), (a_row_at_the_front, 0)],
)
async def test_an_input_that_changed_is_refused_and_nothing_is_touched(
    bench: Bench, change: Callable[[list[dict[str, Any]]], None], first: int
) -> None:
    await bench.run(Service())
    before = {path: path.read_bytes() for path in bench.parts()}
    change(bench.rows)
    service = Service()
    with pytest.raises(InputChangedError, match=f"rows {first} to "):
        await bench.run(service)
    assert service.calls == []
    assert {path: path.read_bytes() for path in bench.parts()} == before
    assert (await bench.run(service, fresh=True)).exit_code == 0
    bench.assert_rows(range(len(bench.rows)))


@pytest.mark.anyio
async def test_an_input_that_was_only_written_again_is_the_same(bench: Bench) -> None:
    await bench.run(Service(), limit=12)
    file = bench.folder / "rows.jsonl"
    os.utime(file, ns=(1, 1))
    assert (await bench.run(Service())).exit_code == 0
    bench.assert_rows(range(25))


@pytest.mark.anyio
async def test_a_file_of_the_input_that_is_gone_is_an_input_that_changed(tmp_path: Path) -> None:
    bench = Bench(folder=tmp_path, changes={"input": {"path": "in"}}).texts(*"abcd")
    (tmp_path / "in").mkdir()
    for name in "01":
        rows = bench.rows[int(name) * 2 : int(name) * 2 + 2]
        (tmp_path / "in" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    await bench.run(Service())
    bench.assert_rows(range(4))
    (tmp_path / "in" / "1.jsonl").unlink()
    with pytest.raises(PipelineError, match=r"rows 0 to 3"):
        await bench.run(Service())


@pytest.mark.anyio
async def test_a_compressed_input_goes_on_in_the_middle(tmp_path: Path) -> None:
    bench = Bench(folder=tmp_path, changes={"input": {"path": "rows.jsonl.gz"}}).texts(*"abcdefghijklmnopqrstuvwxyz")
    lines = "".join(json.dumps(row) + "\n" for row in bench.rows)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for limit in (13, 14, 22, None):
        await bench.run(Service(), limit=limit)
        bench.assert_rows(range(limit or 26))


@pytest.mark.anyio
async def test_a_job_that_changed_is_refused_while_a_row_is_ok_and_a_new_start_while_none_is(bench: Bench) -> None:
    refused = await bench.run(Service(lambda texts, _: refusal(404)))
    assert (refused.exit_code, refused.rows.ok) == (3, 0)
    bench.changes["request"] = {"input": "{{ text }}!", "dimensions": 4}
    service = Service()
    await bench.run(service, limit=3)
    assert texts_asked(service) == ["text 0!", "text 1!", "text 2!"]
    bench.changes["request"] = {"input": "{{ text }}?", "dimensions": 4}
    with pytest.raises(JobChangedError, match=r"request\.input: .*!.* -> .*\?"):
        await bench.run(service)
    assert len(bench.table()) == 3


@pytest.mark.anyio
async def test_a_folder_that_another_run_holds_is_left_alone(bench: Bench) -> None:
    await bench.run(Service(), limit=5)
    service = Service()
    with hold(bench.layout.lock, started="now"):
        before = {path: path.stat().st_mtime_ns for path in bench.out.rglob("*") if path.is_file()}
        with pytest.raises(FolderHeldError):
            await bench.run(service)
        assert {path: path.stat().st_mtime_ns for path in bench.out.rglob("*") if path.is_file()} == before
    assert service.calls == []


@pytest.mark.anyio
async def test_a_part_that_cannot_be_written_stops_the_run_and_loses_nothing(bench: Bench) -> None:
    obstacle = bench.out / "part-000000000000-000000000009.parquet.tmp"

    def plant(texts: list[str], calls: int) -> Said:
        obstacle.mkdir(exist_ok=True)
        return None

    with anyio.fail_after(10):
        summary = await bench.run(Service(plant))
    assert (summary.state, summary.exit_code) == ("stopped", StorageError.exit_code)
    assert "part-000000000000" in (summary.reason or "")
    assert not bench.parts() or bench.parts()[0].name > obstacle.name
    obstacle.rmdir()
    service = Service()
    assert (await bench.run(service)).exit_code == 0
    bench.assert_rows(range(25))
    assert len(texts_asked(service)) == 25 - summary.rows.ok


@pytest.mark.anyio
async def test_a_duplicate_id_is_a_duplicate_in_whatever_invocation_it_comes(bench: Bench) -> None:
    for n in (3, 11, 24):
        bench.rows[n]["id"] = "r1"
    for limit in (2, 5, 11, 12, None):
        await bench.run(Service(), limit=limit)
    assert bench.failed() == dict.fromkeys((3, 11, 24), ("RowError", "duplicate_id"))
    bench.assert_rows(range(25))


@pytest.mark.anyio
@pytest.mark.parametrize(("fail_on", "code"), [("any", 1), ("never", 0), ("50%", 0), ("4%", 1)])
async def test_failed_rows_make_the_exit_code_that_the_job_wants(bench: Bench, fail_on: str, code: int) -> None:
    bench.changes["run"] = {"fail_on": fail_on}
    summary = await bench.run(Service(lambda texts, _: refusal(400) if "text 7" in texts else None))
    assert (summary.state, summary.rows.failed, summary.exit_code) == ("complete", 1, code)


CUT = st.sampled_from(["pause", "kill", "limit", "bug", "none"])


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(
    operation=st.sampled_from(["embeddings", "chat"]),
    rows=st.lists(st.sampled_from(["a", "a", "b", "poison", ""]), min_size=1, max_size=30),
    cuts=st.lists(st.tuples(CUT, st.integers(1, 12), st.sampled_from([3, 10, 1000]), st.integers(1, 5)), max_size=4),
    repeats=st.booleans(),
)
def test_whatever_cuts_a_run_short_every_row_is_answered_once_and_keeps_its_cells(
    operation: str, rows: list[str], cuts: list[tuple[str, int, int, int]], repeats: bool  # noqa: FBT001
) -> None:  # fmt: skip
    with TemporaryDirectory() as folder:
        bench = Bench(folder=Path(folder), operation=operation)
        bench.texts(*(text if repeats or not text else f"{text} {n}" for n, text in enumerate(rows)))
        expected = {n for n, text in enumerate(rows) if text in {"poison", ""}}

        async def invoke(cut: str, after: int) -> None:
            scope = anyio.CancelScope()

            def judge(texts: list[str], calls: int) -> Said:
                if calls >= after:
                    if cut == "pause":
                        return refusal(429, headers={"retry-after": "86400"})
                    if cut == "kill":
                        scope.cancel()
                    if cut == "bug":
                        raise ZeroDivisionError
                return refusal(400) if any("poison" in text for text in texts) else None

            with scope:
                try:
                    summary = await bench.run(Service(judge), limit=after * 2 if cut == "limit" else None)
                except ZeroDivisionError:
                    return
                assert summary.exit_code in {0, 1, 4}, summary.reason

        for cut, after, part_rows, workers in [*cuts, ("none", 0, 10, 4)]:
            bench.changes = {"output": {"part_rows": part_rows}, "run": {"workers": workers, "grace": "0s"}}
            anyio.run(invoke, cut, after)
            bench.assert_rows(sorted({row["ordinal"] for row in bench.table()}))
        bench.assert_rows(range(len(rows)))
        assert set(bench.failed()) == expected


@pytest.mark.anyio
async def test_journal_parts_and_the_simulators_ledger_tell_the_same(bench: Bench, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    config = {"vectors": "hash", "faults": {"rates": {"500": 0.2}}, "seed": 7}
    with start_simulator(config, ledger=ledger) as simulator:
        endpoint = {"endpoint": simulator.url, "deployment": "d", "api": "azure", "model": "m", "max_inputs": 4}
        bench.changes["deployments"] = [endpoint]
        summary = await run_job(bench.job(), dice=lambda: 0.0)
    table = bench.table()
    arrived = [entry for entry in read_ledger(ledger) if isinstance(entry, Arrived)]
    assert [row["ordinal"] for row in table] == list(range(25))
    assert {row["status"] for row in table} == {"ok"}
    assert len({tuple(row["embedding"]) for row in table}) == 25
    assert len(arrived) == summary.attempts == len(bench.attempts())
    assert {one["client_request_id"] for one in bench.attempts()} >= {
        row["request"]["client_request_id"] for row in table
    }
