"""Jobs that train a model, against the simulator: rows in, a named model out, and nothing trained twice."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
from killer import between, run_to_the_end
from tuning_scene import CHAT, MODEL, PAIRS, TuningScene, row_of

from pipeline.errors import DamageError, InputChangedError, JobChangedError, JobFileError
from pipeline.run import RunOptions
from pipeline.store.failures import failures
from pipeline.store.summary import read_summary
from pipeline.store.verify import verify_folder

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]
NO_WAIT = RunOptions(wait=False)


def scene(tmp_path: Path, **settings: Any) -> TuningScene:
    return TuningScene(folder=tmp_path, **settings)


@pytest.mark.parametrize("api", ["azure", "azure-v1", "openai"])
@pytest.mark.parametrize("request_of", [CHAT, PAIRS], ids=["chat", "pairs"])
async def test_rows_become_a_named_model(tmp_path: Path, api: str, request_of: dict[str, Any]) -> None:
    place = scene(tmp_path, api=api, request={**request_of, "suffix": "quay", "seed": 7})
    with place.served():
        summary = await place.run()
        assert (summary.state, summary.exit_code, summary.rows.ok) == ("complete", 0, 30), summary.reason
        assert summary.training is not None
        (job,) = place.asked("fine_tuning/jobs")["data"]
        assert (summary.fine_tuned_model, summary.training.job) == (job["fine_tuned_model"], job["id"])
        assert (job["model"], job["suffix"], job["seed"]) == (MODEL, "quay", 7)
        assert (summary.training.deploy is None) == (api == "openai")
        assert place.asked("files")["data"] == []
    told = read_summary(place.layout.summary)
    assert (told.fine_tuned_model, told.training) == (summary.fine_tuned_model, summary.training)
    events = place.table("events.parquet")
    assert [row["ordinal"] for row in events] == list(range(len(events)))
    assert [row["created_at"] for row in events] == sorted(row["created_at"] for row in events)
    assert len([row for row in events if row["type"] == "metrics" and row["train_loss"] > 0]) == 30
    assert [row["step"] for row in events if row["type"] == "checkpoint"] == [10, 20, 30]
    assert all(row["checkpoint"] for row in events if row["type"] == "checkpoint")
    assert events[0]["message"].startswith("Created fine-tuning job")
    figures = place.table("metrics.parquet")
    assert [row["step"] for row in figures] == list(range(1, 31))
    assert figures[0]["train_loss"] > figures[-1]["train_loss"] > 0
    assert figures[0]["valid_loss"] is None
    assert not verify_folder(place.layout).findings


def test_two_hundred_rows_become_a_model_although_the_run_is_killed_four_times(tmp_path: Path) -> None:
    points = frozenset(
        {
            ("POST /files", "after"),
            ("POST /fine_tuning/jobs", "before"),
            ("POST /fine_tuning/jobs", "after"),
            ("GET /fine_tuning/jobs/ID/events", "after"),
        }
    )
    place = scene(tmp_path, rows=200)
    with place.served() as simulator, between(simulator.port, kills=4, only=points) as (killer, url):
        place.url = url
        codes = run_to_the_end(killer, place.write_job(), tmp_path / "stderr.txt")
        (job,) = place.asked("fine_tuning/jobs")["data"]
    assert codes == [-signal.SIGKILL] * 4 + [0]
    assert {(kind, moment) for kind, _, moment in killer.points} == points
    assert len(place.created()) == 1
    summary = read_summary(place.layout.summary)
    assert (summary.rows.ok, summary.fine_tuned_model) == (200, job["fine_tuned_model"])
    assert len(place.table("events.parquet")) > 30


async def test_a_run_that_is_complete_does_nothing(tmp_path: Path) -> None:
    place = scene(tmp_path)
    with place.served():
        first = await place.run()
    async with Broken() as nobody:
        again = await place.run(transport=nobody)
    assert (again.state, again.fine_tuned_model) == ("complete", first.fine_tuned_model)


@pytest.mark.parametrize("damage", ["missing", "changed"])
async def test_damaged_events_are_fetched_anew(tmp_path: Path, damage: str) -> None:
    place = scene(tmp_path)
    with place.served():
        await place.run()
        before = {name: (place.layout.root / name).read_bytes() for name in ("events.parquet", "metrics.parquet")}
        for name in before:
            path = place.layout.root / name
            path.unlink() if damage == "missing" else path.write_bytes(b"x")
        assert len(verify_folder(place.layout).findings) == 2
        assert (await place.run()).state == "complete"
        assert {name: (place.layout.root / name).read_bytes() for name in before} == before
    assert not verify_folder(place.layout).findings
    assert len(place.created()) == 1


@pytest.mark.parametrize("attempts", [1, 2])
async def test_a_lost_reply_trains_nothing_twice(tmp_path: Path, attempts: int) -> None:
    """Every kind of call loses its first replies, after it was carried out."""
    faults = {"rates": {"reset_before": 1.0}, "attempts": attempts}
    place = scene(tmp_path, request={**CHAT, "validation": "30%"}, offline={"faults": faults})
    with place.served():
        summary = await place.run()
        assert summary.exit_code == 0, summary.reason
        assert place.asked("files")["data"] == []
    assert len(place.created()) == 1


@pytest.mark.parametrize("fault", ["500", "503", "429", "cut_length", "html", "close_early", "garbage", "empty_object"])
async def test_faults_of_calls_change_nothing(tmp_path: Path, fault: str) -> None:
    faults = {"rates": {fault: 0.4}, "headers": {"retry-after-ms": "5"}}
    place = scene(tmp_path, offline={"faults": faults})
    with place.served():
        summary = await place.run()
    assert summary.exit_code == 0, summary.reason
    assert len(place.created()) == 1
    assert len([row for row in place.table("events.parquet") if row["type"] == "metrics"]) == 30


async def test_a_run_that_does_not_wait_goes_on_from_where_it_was(tmp_path: Path) -> None:
    place = scene(tmp_path, offline={"running_s": 1.5})
    with place.served():
        first = await place.run(options=NO_WAIT)
        assert first.exit_code == 4
        assert "run the same command again after" in (first.reason or "")
        assert (await place.run(options=NO_WAIT)).exit_code == 4
        assert (await place.run()).exit_code == 0
    assert len(place.created()) == 1


async def test_a_training_that_fails_ends_with_the_services_words(tmp_path: Path) -> None:
    place = scene(tmp_path, offline={"training_ends": ["failed"]})
    with place.served():
        summary = await place.run()
        assert (summary.state, summary.exit_code) == ("refused", 3)
        assert "internal_error: The training failed." in (summary.reason or "")
        assert place.asked("files")["data"] == []
        assert place.table("events.parquet")[-1]["level"] == "error"
        again = await place.run()
        assert (again.exit_code, again.reason) == (3, summary.reason)
        assert len(place.created()) == 1
        place.request = {**CHAT, "seed": 3}
        assert (await place.run()).exit_code == 3
    assert len(place.created()) == 2


async def test_a_training_is_cancelled_on_request(tmp_path: Path) -> None:
    place = scene(tmp_path, offline={"running_s": 30})
    with place.served():
        assert (await place.run(options=RunOptions(cancel=True))).exit_code == 4
        assert place.created() == []
        assert (await place.run(options=NO_WAIT)).exit_code == 4
        summary = await place.run(options=RunOptions(cancel=True))
        assert (summary.state, summary.exit_code) == ("stopped", 4)
        assert "was cancelled" in (summary.reason or "")
        (job,) = place.asked("fine_tuning/jobs")["data"]
        assert job["status"] == "cancelled"
        assert place.asked("files")["data"] == []


MISTAKES: dict[str, tuple[Any, str]] = {
    "no JSON": ("{nope", "parse"),
    "no messages": ({"messages": None}, "empty"),
    "messages are no list": ({"messages": "hello"}, "type"),
    "a message is no object": ({"messages": ["hello"]}, "type"),
    "an unknown role": ({"messages": [{"role": "robot", "content": "x"}]}, "role"),
    "no role": ({"messages": [{"content": "x"}]}, "role"),
    "nothing said": ({"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "x"}]}, "empty"),
    "a number said": ({"messages": [{"role": "user", "content": 7}, {"role": "assistant", "content": "x"}]}, "type"),
    "the user has the last word": ({"messages": [{"role": "user", "content": "x"}]}, "last_message"),
    "a weight of two": ({"messages": [{"role": "assistant", "content": "x", "weight": 2}]}, "weight"),
    "a weight that is true": ({"messages": [{"role": "assistant", "content": "x", "weight": True}]}, "weight"),
    "nothing to learn": ({"messages": [{"role": "assistant", "content": "x", "weight": 0}]}, "weight"),
    "a weight of the user's": (
        {"messages": [{"role": "user", "content": "x", "weight": 1}, {"role": "assistant", "content": "x"}]},
        "weight",
    ),
    "a tool without an id": (
        {"messages": [{"role": "tool", "content": "x"}, {"role": "assistant", "content": "x"}]},
        "tool_call_id",
    ),
    "too long": ({"messages": [{"role": "assistant", "content": "tide " * 500}]}, "too_long"),
    "a copy": ({"messages": [{"role": "assistant", "content": "Right 3."}]}, "duplicate"),
    "an id that is taken": ({"id": "r3", "messages": [{"role": "assistant", "content": "Taken."}]}, "duplicate_id"),
}


async def test_every_kind_of_mistake_is_named_and_nothing_is_uploaded(tmp_path: Path) -> None:
    place = scene(tmp_path, request={"messages": "{{ messages }}", "max_example_tokens": 300})
    right = [{"id": f"r{n}", "messages": [{"role": "assistant", "content": f"Right {n}."}]} for n in range(12)]
    wrong = [row if isinstance(row, str) else {"id": f"w{n}", **row} for n, (row, _) in enumerate(MISTAKES.values())]
    with place.served():
        place.write_rows([*right, *wrong])
        summary = await place.run(input={"path": "rows.jsonl", "id": "id", "columns": {"messages": "json"}})
        assert place.asked("files")["data"] == []
        assert (summary.state, summary.exit_code) == ("refused", 2)
        assert (summary.rows.total, summary.rows.ok, summary.rows.failed) == (29, 12, 17)
        found = list(failures(place.layout))
        assert [one.ordinal for one in found] == list(range(12, 29))
        codes = dict(zip(MISTAKES, [one.code for one in found], strict=True))
        assert {name: code for name, code in codes.items() if name != "no JSON"} == {
            name: code for name, (_, code) in MISTAKES.items() if name != "no JSON"
        }
        lines = (summary.reason or "").splitlines()
        for one in found:
            assert any(line.startswith(f"row {one.ordinal}") and one.code in line for line in lines)
        assert "row 13 (w1): empty: request.messages" in (summary.reason or "")
        place.write_rows(right)
        mended = await place.run(input={"path": "rows.jsonl", "id": "id", "columns": {"messages": "json"}})
    assert mended.exit_code == 0, mended.reason
    assert list(failures(place.layout)) == []


PAIR_MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no question": ({"asked": None}, "empty"),
    "the question ends with an answer": ({"asked": [{"role": "assistant", "content": "x"}]}, "last_message"),
    "no answer preferred": ({"good": None}, "empty"),
    "the user prefers": ({"good": [{"role": "user", "content": "x"}]}, "role"),
    "a tool has the last word": ({"good": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "last_message"),
    "both the same": ({"good": [{"role": "assistant", "content": "worse"}]}, "same_outputs"),
}


@pytest.mark.parametrize("name", PAIR_MISTAKES)
async def test_every_mistake_of_a_pair_is_named(tmp_path: Path, name: str) -> None:
    wrong, code = PAIR_MISTAKES[name]
    request = {
        "input": {"messages": "{{ asked }}"},
        "preferred_output": "{{ good }}",
        "non_preferred_output": "{{ bad }}",
        "method": {"type": "dpo"},
    }
    rows = [
        {
            "asked": [{"role": "user", "content": f"{n}?"}],
            "good": [{"role": "assistant", "content": "better"}],
            "bad": [{"role": "assistant", "content": "worse"}],
        }
        for n in range(12)
    ]
    columns = dict.fromkeys(("asked", "good", "bad"), "json")
    place = scene(tmp_path, request=request)
    with place.served():
        place.write_rows([*rows, {**rows[0], **wrong}])
        summary = await place.run(input={"path": "rows.jsonl", "columns": columns})
    assert summary.exit_code == 2
    assert [(one.ordinal, one.code) for one in failures(place.layout)] == [(12, code)]


async def test_only_the_first_mistakes_are_in_the_message_and_all_are_kept(tmp_path: Path) -> None:
    place = scene(tmp_path, rows=0)
    with place.served():
        place.write_rows([{**row_of(n), "answer": ""} for n in range(60)])
        summary = await place.run()
    assert (summary.reason or "").count("row ") == 20
    assert "and 40 more: `pipeline errors` lists all" in (summary.reason or "")
    assert len(list(failures(place.layout))) == 60


@pytest.mark.parametrize(("rows", "code"), [(9, 2), (10, 0)])
async def test_a_training_needs_ten_examples(tmp_path: Path, rows: int, code: int) -> None:
    place = scene(tmp_path, rows=rows)
    with place.served():
        summary = await place.run()
    assert summary.exit_code == code
    if code:
        assert "there are 9 right examples, and a training needs at least 10" in (summary.reason or "")


async def test_copies_are_kept_where_the_job_says_so(tmp_path: Path) -> None:
    place = scene(tmp_path, request={**CHAT, "on_duplicate": "keep"})
    with place.served():
        place.write_rows([{**row_of(0), "id": f"r{n}"} for n in range(12)])
        summary = await place.run()
    assert (summary.exit_code, summary.rows.ok) == (0, 12)


async def test_a_share_for_validation_does_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    place = scene(tmp_path, rows=200, request={**CHAT, "validation": "20%", "seed": 5}, run_keys={"keep_files": True})
    contents = []
    with place.served():
        for turn in range(2):
            rows = [row_of(number) for number in range(200)]
            place.write_rows(rows if turn == 0 else rows[::-1])
            summary = await place.run(output={"path": f"out-{turn}"})
            assert summary.training is not None
            assert summary.training.examples + summary.training.validation_examples == 200
            assert 20 <= summary.training.validation_examples <= 60
            job = place.asked("fine_tuning/jobs")["data"][0]
            contents.append([lines_of(place, job["training_file"]), lines_of(place, job["validation_file"])])
    assert contents[0] == contents[1]
    assert not contents[0][0] & contents[0][1]


async def test_a_second_input_is_for_validation_alone(tmp_path: Path) -> None:
    place = scene(tmp_path, request={**CHAT, "validation": "others.jsonl"})
    with place.served():
        place.write_rows([row_of(1000 + number) for number in range(5)], "others.jsonl")
        summary = await place.run()
        assert summary.training is not None
        assert (summary.training.examples, summary.training.validation_examples) == (30, 5)
        assert {row["valid_loss"] is None for row in place.table("metrics.parquet")} == {False}
        place.write_rows([row_of(7)], "others.jsonl")
        refused = await place.run(output={"path": "other"})
    assert refused.exit_code == 2
    assert "validation row 0 (r7): duplicate: the example is that of row 7" in (refused.reason or "")


async def test_files_are_kept_where_the_job_says_so(tmp_path: Path) -> None:
    place = scene(tmp_path, run_keys={"keep_files": True})
    with place.served():
        await place.run()
        assert {file["purpose"] for file in place.asked("files")["data"]} == {"fine-tune", "fine-tune-results"}


async def test_another_job_or_input_does_not_take_a_trainings_place(tmp_path: Path) -> None:
    place = scene(tmp_path)
    with place.served():
        await place.run()
        with pytest.raises(JobChangedError, match="its training is under way or done"):
            await place.run(request={**CHAT, "seed": 9})
        place.write_rows([row_of(number) for number in range(30)])
        assert (await place.run()).exit_code == 0, "the same rows in a file that was written anew"
        place.write_rows([row_of(number) for number in range(31)])
        with pytest.raises(InputChangedError, match="--fresh"):
            await place.run()
        assert len(place.created()) == 1
        assert (await place.run(options=RunOptions(fresh=True))).rows.ok == 31
    assert len(place.created()) == 2


async def test_a_job_that_the_service_refuses_leaves_nothing_behind_and_can_be_mended(tmp_path: Path) -> None:
    place = scene(tmp_path)
    with place.served():
        async with Refusing("/fine_tuning/jobs", 400) as transport:
            summary = await place.run(transport=transport)
        assert summary.exit_code == 3
        assert "This model cannot be trained." in (summary.reason or "")
        assert place.asked("files")["data"] == []
        assert (await place.run()).exit_code == 0
    assert len(place.created()) == 1


async def test_a_full_queue_is_waited_for(tmp_path: Path) -> None:
    place = scene(tmp_path)
    with place.served():
        async with Refusing("/fine_tuning/jobs", 429) as transport:
            summary = await place.run(transport=transport, options=NO_WAIT)
        assert summary.exit_code == 4
        assert "takes no further training at present" in (summary.reason or "")
        assert (await place.run()).exit_code == 0
    assert len(place.created()) == 1


async def test_oddities_of_azure_change_nothing(tmp_path: Path) -> None:
    place = scene(tmp_path, api="azure", quirks=["capital_states", "iso_dates", "null_counts", "empty_ids"])
    with place.served():
        assert (await place.run()).exit_code == 0
    assert all(row["created_at"] is not None for row in place.table("events.parquet"))


@pytest.mark.parametrize(
    ("options", "said"), [(RunOptions(limit=3), "--limit is not for"), (RunOptions(repair=True), "--repair is not for")]
)
async def test_options_of_other_jobs_are_refused(tmp_path: Path, options: RunOptions, said: str) -> None:
    place = scene(tmp_path, url="http://127.0.0.1:9")
    place.write_rows([row_of(0)])
    with pytest.raises(JobFileError, match=said):
        await place.run(options=options)


async def test_a_training_whose_journal_is_gone_is_not_made_again(tmp_path: Path) -> None:
    place = scene(tmp_path)
    with place.served():
        await place.run()
        place.layout.journal.unlink()
        with pytest.raises(DamageError, match="see at the service"):
            await place.run()
    assert len(place.created()) == 1


def lines_of(place: TuningScene, file: str) -> set[str]:
    request = httpx.get(f"{place.url}/openai/v1/files/{file}/content", headers={"api-key": "k"})
    return {json.dumps(json.loads(line)) for line in request.text.splitlines()}


class Broken(httpx.AsyncBaseTransport):
    """Nobody may be asked."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise AssertionError(f"{request.method} {request.url.path} was asked")


class Refusing(httpx.AsyncBaseTransport):
    """Refuses the POST of one path, and passes on the others."""

    def __init__(self, path: str, status: int) -> None:
        self._path = path
        self._status = status
        self._inner = httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.method == "POST" and request.url.path.endswith(self._path):
            await request.aread()
            error = {"code": "invalidPayload", "message": "This model cannot be trained."}
            return httpx.Response(self._status, json={"error": error}, headers={"retry-after-ms": "5"})
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()
