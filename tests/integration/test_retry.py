"""Failed rows are sent again into the same output: those and no others, each part whole at every moment."""

from __future__ import annotations

import json
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
from in_memory import Bench, Said, Service, answer_of, refusal

from pipeline.engines.again import Retry
from pipeline.errors import DamageError, InputChangedError, JobChangedError, JobFileError, StoppedEarlyError
from pipeline.job import change
from pipeline.store.checksums import forget_checksums
from pipeline.store.export import Finished, Format, write_export
from pipeline.store.failures import failures
from pipeline.store.generations import generations
from pipeline.store.history import invocations
from pipeline.store.journal import BatchRecord, BatchStep, Journal, JournalReader
from pipeline.store.rebuild import reopen
from pipeline.store.summary import read_summary
from pipeline.store.verify import verify_folder
from pipeline.views.row import row_lines
from pipeline.views.rows import find_row

FILTERED = (3, 11, 12)
LIMITED = (4, 24)
pytestmark = pytest.mark.anyio


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(folder=tmp_path, operation="chat").texts(*(f"text {n}" for n in range(25)))


def number(text: str) -> int:
    return int(text.rpartition(" ")[2])


def refuse(texts: list[str], _: int) -> Said:
    """Some rows are filtered, some are not processable."""
    (text,) = texts
    if number(text) in FILTERED:
        return refusal(400, "content_filter", "filtered")
    if number(text) in LIMITED:
        return refusal(422, "odd", "odd")
    return None


def asked(service: Service) -> list[int]:
    return sorted(number(text) for call in service.calls for text in call)


def whole(bench: Bench, *, failed: AbstractSet[int] = frozenset()) -> list[dict[str, Any]]:
    """Every row once, with its own cells and answer, and nothing for verify to find; returns the rows."""
    bench.assert_rows(range(25))
    assert set(bench.failed()) == set(failed)
    assert verify_folder(bench.layout).findings == ()
    return bench.table()


def retry(*only: str, request: dict[str, Any] | None = None) -> Retry:
    return Retry(only=frozenset(only), request=request)


async def test_failed_rows_are_sent_again_and_no_others(bench: Bench) -> None:
    await bench.run(Service(refuse))
    before = whole(bench, failed={*FILTERED, *LIMITED})
    names = [path.name for path in bench.parts()]
    service = Service()
    summary = await bench.run(service, retry=retry())
    assert asked(service) == sorted([*FILTERED, *LIMITED])
    assert (summary.state, summary.exit_code, summary.rows.ok, summary.rows.failed) == ("complete", 0, 25, 0)
    assert (summary.rows.total, summary.rows.pending, summary.rows.not_in_parts) == (25, 0, 0)
    after = whole(bench)
    assert [path.name for path in bench.parts()] == names
    kept = [n for n in range(25) if n not in {*FILTERED, *LIMITED}]
    assert [after[n] for n in kept] == [before[n] for n in kept]
    assert "rows_asked_again" in [event["event"] for event in bench.events]


async def test_parts_without_failed_rows_are_not_touched(bench: Bench) -> None:
    await bench.run(Service(lambda texts, _: refusal(422) if texts == ["text 11"] else None))
    before = {path.name: path.read_bytes() for path in bench.parts()}
    await bench.run(Service(), retry=retry())
    changed = [path.name for path in bench.parts() if path.read_bytes() != before[path.name]]
    assert changed == ["part-000000000010-000000000019.parquet"]
    with bench.journal() as reader:
        assert [part.generation for part in reader.parts()] == [0, 1, 0]


@pytest.mark.parametrize(
    ("only", "sent"),
    [
        (("content_filter",), FILTERED),
        (("Content_Filter",), FILTERED),
        (("UnprocessableEntityError",), LIMITED),
        (("odd", "BadRequestError"), (*FILTERED, *LIMITED)),
    ],
)
async def test_only_rows_that_failed_with_one_of_these_are_sent(
    bench: Bench, only: tuple[str, ...], sent: tuple[int, ...]
) -> None:
    await bench.run(Service(refuse))
    service = Service()
    summary = await bench.run(service, retry=retry(*only))
    assert asked(service) == sorted(sent)
    whole(bench, failed={*FILTERED, *LIMITED} - {*sent})
    assert summary.exit_code == (0 if len(sent) == 5 else 1)


@pytest.mark.parametrize("only", [(), ("content_filter",)])
async def test_where_nothing_failed_nothing_is_sent_and_no_byte_changes(bench: Bench, only: tuple[str, ...]) -> None:
    await bench.run(Service())
    before = {path.name: path.read_bytes() for path in bench.parts()}
    service = Service()
    summary = await bench.run(service, retry=retry(*only))
    assert (summary.state, summary.exit_code, summary.reason) == (
        "complete",
        0,
        "no row failed: there is nothing to send again",
    )
    assert service.calls == []
    assert {path.name: path.read_bytes() for path in bench.parts()} == before
    whole(bench)


async def test_a_kind_that_no_row_failed_with_is_said_beside_those_that_there_are(bench: Bench) -> None:
    await bench.run(Service(refuse))
    summary = await bench.run(Service(), retry=retry("RateLimitError"))
    assert summary.exit_code == 0
    assert summary.reason is not None
    assert "no row failed with RateLimitError" in summary.reason
    assert "3 BadRequestError content_filter" in summary.reason
    whole(bench, failed={*FILTERED, *LIMITED})


async def test_rows_that_fail_again_stay_failed_with_their_new_error(bench: Bench) -> None:
    await bench.run(Service(refuse))
    summary = await bench.run(Service(lambda *_: refusal(422, "worse", "w")), retry=retry("content_filter"))
    assert (summary.rows.ok, summary.rows.failed, summary.exit_code) == (20, 5, 1)
    whole(bench, failed={*FILTERED, *LIMITED})
    assert {bench.failed()[n][1] for n in FILTERED} == {"worse"}
    assert (await bench.run(Service(), retry=retry())).rows.ok == 25
    with bench.journal() as reader:
        assert [one.generation for one in reader.parts()] == [2, 2, 1]
        assert [row.error.code for _, row, _ in reader.replaced(3) if row.error] == ["content_filter", "worse"]


async def test_the_attempts_of_a_row_add_up_and_its_old_error_is_shown(bench: Bench) -> None:
    await bench.run(Service(refuse))
    await bench.run(Service(), retry=retry())
    assert sorted(one["status"] for one in bench.attempts() if one["ordinals"] == [3]) == [200, 400]
    found = find_row(bench.layout, 3)
    assert found is not None
    assert found.values["output_text"] == answer_of("text 3")
    assert [(one["generation"], one["error"]["code"]) for one in found.replaced] == [(1, "content_filter")]
    assert any("content_filter" in line for line in row_lines(found))


async def test_another_wording_goes_to_the_rows_that_are_sent_again_alone(bench: Bench) -> None:
    await bench.run(Service(refuse))
    job = bench.job()
    wording = {**dict(job.request), "max_completion_tokens": 2000}
    bodies: list[dict[str, Any]] = []

    class Listening(Service):
        def _answer(self, request: httpx.Request) -> httpx.Response | Exception:
            bodies.append(json.loads(request.content))
            return super()._answer(request)

    await bench.run(Listening(), retry=retry("content_filter", request=wording))
    assert {body["max_completion_tokens"] for body in bodies} == {2000}
    other = change.variant(job.model_copy(update={"request": wording}))
    after = whole(bench, failed=set(LIMITED))
    assert {row["ordinal"] for row in after if row["request"]["variant"] == other} == set(FILTERED)
    manifest = json.loads(bench.layout.manifest.read_text())
    assert manifest["variants"][other]["max_completion_tokens"] == 2000
    assert [(one["number"], one["rows"], one["only"], one["variant"]) for one in manifest["generations"]] == [
        (1, 3, ["content_filter"], other)
    ]
    service = Service()
    assert (await bench.run(service)).exit_code == 1
    assert service.calls == []


async def test_a_changed_job_is_refused_for_a_retry_too(bench: Bench) -> None:
    await bench.run(Service(refuse))
    bench.changes["request"] = {"messages": [{"role": "user", "content": "Say: {{ text }}"}]}
    with pytest.raises(JobChangedError):
        await bench.run(Service(), retry=retry())


async def test_a_wording_that_gives_other_columns_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    bench = Bench(folder=tmp_path).texts(*"abc")
    await bench.run(Service(lambda texts, _: refusal(422) if "b" in texts else None))
    service = Service()
    with pytest.raises(JobChangedError, match="embedding"):
        await bench.run(service, retry=retry(request={"input": "{{ text }}", "dimensions": 7}))
    assert service.calls == []
    assert verify_folder(bench.layout).findings == ()


async def test_a_job_that_was_not_run_has_nothing_to_retry(bench: Bench) -> None:
    with pytest.raises(JobFileError, match="begin with pipeline run"):
        await bench.run(Service(), retry=retry())


def until(count: int, then: Callable[[], Said]) -> Callable[[list[str], int], Said]:
    """Refuse as usual, and everything from a call on."""
    return lambda texts, calls: then() if calls > count else refuse(texts, calls)


async def test_failed_rows_of_the_journal_are_sent_again_and_the_rest_of_the_input_is_left(bench: Bench) -> None:
    bench.changes["run"] = {"workers": 1, "grace": "5s"}
    stopped = await bench.run(Service(until(14, lambda: refusal(401))))
    assert stopped.exit_code == 3
    loose = [failure.ordinal for failure in failures(bench.layout)]
    assert loose == [3, 4, 11, 12]
    service = Service()
    summary = await bench.run(service, retry=retry())
    assert asked(service) == [3, 4, 11, 12]
    assert (summary.state, summary.exit_code, summary.rows.ok) == ("stopped", 0, 14)
    assert summary.reason is not None
    assert "pipeline run" in summary.reason
    assert verify_folder(bench.layout).findings == ()
    service = Service()
    assert (await bench.run(service)).exit_code == 0
    assert asked(service) == list(range(14, 25))
    whole(bench)


async def test_rows_of_a_killed_runs_journal_are_sent_again_and_its_pending_rows_are_left(bench: Bench) -> None:
    bench.changes["run"] = {"workers": 1}
    await bench.run(Service(until(25, lambda: None)), limit=7)
    unseal(bench, without={0, 6})
    service = Service()
    summary = await bench.run(service, retry=retry())
    assert asked(service) == [3, 4]
    assert (summary.state, summary.rows.ok, summary.rows.not_in_parts) == ("stopped", 5, 5)
    assert verify_folder(bench.layout).findings == ()
    service = Service()
    assert (await bench.run(service)).exit_code == 0
    assert asked(service) == [0, 6, *range(7, 25)]
    whole(bench)


def unseal(bench: Bench, *, without: AbstractSet[int] = frozenset()) -> None:
    """Have rows of the first part be in the journal, as a kill before its sealing would; some are pending."""
    with bench.journal() as reader:
        part = reader.parts()[0]
    reopen(bench.layout, part, without=frozenset(without))
    bench.layout.part(part.name).unlink()
    forget_checksums(bench.layout.private)


@pytest.mark.parametrize("continued", ["retry", "run"])
@pytest.mark.parametrize("reworded", [False, True])
async def test_a_retry_that_was_stopped_is_continued_by_either_with_its_own_wording(
    bench: Bench, continued: str, *, reworded: bool
) -> None:
    await bench.run(Service(refuse))
    bench.changes["run"] = {"workers": 1}
    wording = {**dict(bench.job().request), "seed": 7} if reworded else None
    stopped = await bench.run(
        Service(lambda _, calls: refusal(401) if calls > 2 else None), retry=retry(request=wording)
    )
    assert (stopped.exit_code, stopped.rows.ok, stopped.rows.failed) == (3, 22, 0)
    assert verify_folder(bench.layout).findings == ()
    service = Service()
    summary = await bench.run(service, retry=retry() if continued == "retry" else None)
    assert (summary.exit_code, summary.rows.pending, len(service.calls)) == (0, 0, 3)
    after = whole(bench)
    variants = {row["request"]["variant"] for row in after if row["ordinal"] in {*FILTERED, *LIMITED}}
    assert len(variants) == 1
    assert (variants == {after[0]["request"]["variant"]}) == (not reworded)


async def cut_retry(bench: Bench) -> None:
    """Twenty rows that failed, then a retry with another wording that ends at once; five rows were not yet sent."""
    bench.changes["run"] = {"workers": 1, "grace": "0s"}
    await bench.run(Service(lambda *_: refusal(400, "odd")), limit=20)
    wording = {**dict(bench.job().request), "seed": 7}
    stopped = await bench.run(Service(lambda *_: refusal(401)), retry=retry(request=wording))
    assert (stopped.exit_code, stopped.rows.ok + stopped.rows.failed) == (3, 0)


async def test_the_deadline_is_that_of_a_cut_retry_and_the_run_behind_it_together(bench: Bench) -> None:
    bench.texts(*(f"text {n}" for n in range(100)))
    await cut_retry(bench)
    bench.changes["run"]["deadline"] = "3s"
    service = Service(latency_s=0.1)
    summary = await bench.run(service)
    assert (summary.state, summary.exit_code) == ("stopped", 4)
    # Of the 30 calls that the deadline leaves time for, 20 are those of the retry.
    assert len(service.calls) <= 32


async def test_a_cut_retry_and_the_run_behind_it_are_one_invocation_that_repairs_once(bench: Bench) -> None:
    await cut_retry(bench)
    before = len(invocations(bench.layout, running=False))
    bench.events.clear()
    summary = await bench.run(Service(), repair=True)
    assert (summary.state, summary.exit_code) == ("complete", 0)
    assert [event["event"] for event in bench.events].count("repair_ended") == 1
    found = invocations(bench.layout, running=False)
    assert len(found) == before + 1
    assert (found[-1].state, found[-1].exit_code, found[-1].ok) == ("complete", 0, 25)


async def test_a_part_that_is_damaged_is_not_made_into_a_new_one(bench: Bench) -> None:
    bench.changes["output"] = {"compression": "none"}
    await bench.run(Service(refuse))
    path = bench.parts()[1]
    content = path.read_bytes().replace(b"answer to text 15", b"answer to text 16")
    path.write_bytes(content)
    summary = await bench.run(Service(), retry=retry())
    assert summary.exit_code == DamageError.exit_code
    assert path.read_bytes() == content
    assert (await bench.run(Service(), repair=True)).exit_code == 0
    whole(bench)


@pytest.mark.parametrize("answered", [0, 1, 3])
@pytest.mark.parametrize("damage", ["parts are gone", "a part is opened"])
async def test_a_repair_in_the_middle_of_a_retry_loses_and_doubles_nothing(
    bench: Bench, answered: int, damage: str
) -> None:
    await bench.run(Service(refuse))
    bench.changes["run"] = {"workers": 1}
    await bench.run(Service(lambda _, calls: refusal(401) if calls > answered else None), retry=retry())
    if damage == "parts are gone":
        for path in bench.parts()[:2]:
            path.unlink()
    else:
        unseal(bench)
    summary = await bench.run(Service(), repair=True)
    assert summary.exit_code == 0
    whole(bench)


@pytest.mark.parametrize("lost", ["journal", "journal and manifest"])
async def test_a_journal_that_is_lost_after_a_retry_is_made_anew(bench: Bench, lost: str) -> None:
    await bench.run(Service(refuse))
    old = bench.layout.manifest.read_bytes()
    await bench.run(Service(), retry=retry())
    for path in bench.layout.journal.parent.glob("00.sqlite*"):
        path.unlink()
    # As if the retry had been killed before it could write the manifest.
    if lost == "journal":
        bench.layout.manifest.write_bytes(old)
    else:
        bench.layout.manifest.unlink()
    service = Service()
    assert (await bench.run(service, repair=True)).exit_code == 0
    assert service.calls == []
    whole(bench)
    with bench.journal() as reader:
        assert [part.generation for part in reader.parts()] == [1, 1, 1]


async def test_what_is_answered_and_not_yet_in_its_part_is_seen_by_readers(bench: Bench) -> None:
    await bench.run(Service(refuse))
    bench.changes["run"] = {"workers": 1}
    await bench.run(Service(lambda _, calls: refusal(401) if calls > 1 else None), retry=retry())
    assert bench.failed().keys() == {*FILTERED, *LIMITED}
    assert list(failures(bench.layout)) == []
    answered, pending = find_row(bench.layout, 3), find_row(bench.layout, 4)
    assert answered is not None
    assert (answered.where, answered.values["text"], answered.values["output_text"]) == (
        "journal",
        "text 3",
        "answer to text 3",
    )
    assert pending is not None
    assert (pending.where, pending.values["text"]) == ("pending", "text 4")
    path = bench.folder / "all.jsonl"
    schema = pq.read_schema(bench.parts()[0]).remove_metadata()
    write_export(path, Finished(layout=bench.layout, schema=schema), Format.JSONL, replace=False)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    finished = [n for n in range(25) if n == 3 or n not in {*FILTERED, *LIMITED}]
    assert [row["ordinal"] for row in rows] == finished
    assert [row["text"] for row in rows] == [f"text {n}" for n in finished]
    assert rows[3]["output_text"] == "answer to text 3"


async def test_texts_in_pieces_are_sent_again_and_their_neighbours_keep_all_of_theirs(tmp_path: Path) -> None:
    long = " ".join(["word"] * 9_000)
    bench = Bench(folder=tmp_path, max_inputs=1).texts("short", f"{long} a", "bad", f"{long} b")
    bench.changes["request"] = {"input": "{{ text }}", "dimensions": 4, "on_too_long": "split"}
    await bench.run(Service(lambda texts, _: refusal(422) if "bad" in texts else None))
    before = bench.table()
    service = Service()
    await bench.run(service, retry=retry())
    assert service.calls == [["bad"]]
    after = bench.table()
    assert [row["ordinal"] for row in after] == [row["ordinal"] for row in before]
    assert [row for row in after if row["ordinal"] != 2] == [row for row in before if row["ordinal"] != 2]
    assert verify_folder(bench.layout).findings == ()


async def test_batches_under_way_are_collected_before_a_retry_with_another_wording(bench: Bench) -> None:
    await bench.run(Service(refuse))
    journal = Journal(bench.layout.journal)
    record = BatchRecord(
        tag="t", deployment="d", step=BatchStep.SUBMITTED, since=0.0, endpoint="e", count=1, bytes=1, tokens=1
    )
    await journal.keep_batch(record, [])
    await journal.close()
    with pytest.raises(StoppedEarlyError, match="collect them first"):
        await bench.run(Service(), retry=retry())


async def test_an_input_that_changed_is_refused_and_leaves_the_folder_as_it_was(bench: Bench) -> None:
    before = await bench.run(Service(refuse))
    row = dict(bench.rows[3])
    bench.rows[3]["text"] = "text 99"
    service = Service()
    with pytest.raises(InputChangedError, match="input changed"):
        await bench.run(service, retry=retry())
    assert service.calls == []
    told = read_summary(bench.layout.summary)
    assert (told.state, told.rows) == ("complete", before.rows)
    with JournalReader(bench.layout.journal) as reader:
        assert not reader.again(0, 24)
    bench.rows[3] = row
    assert (await bench.run(service, retry=retry())).rows.ok == 25
    whole(bench)


async def test_generations_are_told_with_what_was_asked_for(bench: Bench) -> None:
    await bench.run(Service(refuse))
    await bench.run(Service(), retry=retry("odd"))
    await bench.run(Service(), retry=retry())
    with JournalReader(bench.layout.journal) as reader:
        told = [asdict(one) for one in generations(reader)]
    assert [(one["number"], one["rows"], one["only"]) for one in told] == [(1, 2, ("odd",)), (2, 3, ())]
