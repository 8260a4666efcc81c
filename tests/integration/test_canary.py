"""`run.canary`: the first rows are asked before all others, which are sent only if those pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from in_memory import Bench, Judge, Said, Service, refusal

from pipeline.run import RunOptions, run_job
from pipeline.store.folder import is_running
from pipeline.store.history import invocations
from pipeline.store.summary import Summary, read_summary

pytestmark = pytest.mark.anyio

CANARY, ROWS = 10, 30
PRICE = {"input": 1.0, "output": 1.0}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def bench_of(folder: Path, *, rows: int = ROWS, request: dict[str, Any] | None = None, **run: Any) -> Bench:
    deployment = {"endpoint": "https://x.openai.azure.com", "deployment": "d", "model": "m", "api": "azure"}
    message = {"messages": [{"role": "user", "content": "{{ text }}"}], "max_tokens": 50}
    changes = {
        "deployments": [{**deployment, "price": PRICE}],
        "run": {"workers": 4, "canary": CANARY, **run},
        "request": {**message, **(request or {})},
    }
    return Bench(folder=folder, operation="chat", changes=changes).texts(*(f"text {n}" for n in range(rows)))


def answer(text: str = "fine", *, finish_reason: str = "stop", output: int = 5) -> httpx.Response:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 9, "completion_tokens": output, "total_tokens": 9 + output}
    return httpx.Response(200, json={"choices": [choice], "usage": usage})


def numbers_of(service: Service) -> list[int]:
    return [int(texts[0].split()[1]) for texts in service.calls]


def some(number: int, said: Said) -> Judge:
    """The first so many rows get this, the others a fine answer."""
    return lambda texts, _: said if int(texts[0].split()[1]) < number else answer()


async def test_a_canary_that_passes_is_asked_first_and_the_rest_follows_in_one_invocation(tmp_path: Path) -> None:
    bench, service = bench_of(tmp_path), Service(some(1, refusal(400)))
    summary = await bench.run(service)
    assert (summary.state, summary.exit_code, summary.rows.ok, summary.rows.failed) == ("complete", 1, ROWS - 1, 1)
    numbers = numbers_of(service)
    assert sorted(numbers[:CANARY]) == list(range(CANARY))
    assert sorted(numbers) == list(range(ROWS))


@pytest.mark.parametrize(
    ("said", "request_", "words"),
    [
        pytest.param(refusal(400, "odd"), None, "failed rows: 2 of 10 (20%), at most 10% may be (2 odd)", id="failed"),
        pytest.param(
            answer(finish_reason="length"),
            None,
            "cut answers (finish_reason length): 2 of 10 (20%), at most 10% may be",
            id="cut",
        ),
        pytest.param(
            answer('{"b": 1}'),
            {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}},
            "answers that do not fit the schema: 10 of 10",
            id="schema",
        ),
        pytest.param(answer(output=5_000), None, "dollars a row: 0.00", id="dear"),
    ],
)
async def test_a_canary_that_does_not_pass_ends_the_run_before_anything_else_is_sent(
    tmp_path: Path, said: httpx.Response, request_: dict[str, Any] | None, words: str
) -> None:
    bench, service = bench_of(tmp_path, request=request_), Service(some(2, said))
    summary = await bench.run(service)
    assert (summary.state, summary.exit_code) == ("stopped", 4)
    assert summary.reason is not None
    assert summary.reason.startswith("the canary of 10 rows did not pass, and nothing else was sent.")
    assert words in summary.reason
    assert "--canary off" in summary.reason
    assert sorted(numbers_of(service)) == list(range(CANARY))
    # Again: it is judged again, and nobody is asked.
    again = Service()
    assert (await bench.run(again)).exit_code == 4
    assert again.calls == []
    # Off: the rest is sent as it is.
    bench.changes["run"] = {"canary": "off"}
    whole = await bench.run(again)
    assert whole.state == "complete"
    assert sorted(numbers_of(again)) == list(range(CANARY, ROWS))


async def test_rows_that_are_all_refused_alike_end_the_run_with_3(tmp_path: Path) -> None:
    bench = bench_of(tmp_path)
    summary = await bench.run(Service(lambda *_: refusal(400, "odd")))
    assert (summary.state, summary.exit_code, summary.rows.failed) == ("refused", 3, CANARY)
    # No row is ok: a mended request is a new start.
    bench.changes["request"]["max_tokens"] = 60
    assert (await bench.run(Service())).exit_code == 0


@pytest.mark.parametrize("request_", [{"input": "{{ text }}"}, {"input": "{{ text }}", "dimensions": 4}])
async def test_failed_rows_that_no_part_can_hold_yet_count(tmp_path: Path, request_: dict[str, Any]) -> None:
    changes = {"run": {"workers": 4, "canary": CANARY}, "request": request_}
    bench = Bench(folder=tmp_path, changes=changes).texts(*[""] * CANARY, *(f"text {n}" for n in range(20)))
    service = Service()
    for _ in range(2):  # and it is judged alike again
        summary = await bench.run(service)
        assert (summary.state, summary.exit_code, summary.rows.failed) == ("refused", 3, CANARY)
        assert summary.reason is not None
        assert f"failed rows: {CANARY} of {CANARY}" in summary.reason
    assert service.calls == []


async def test_vectors_of_a_size_that_the_first_answer_tells_pass_the_canary(tmp_path: Path) -> None:
    changes = {"run": {"workers": 4, "canary": CANARY, "fail_on": "60%"}, "request": {"input": "{{ text }}"}}
    bench = Bench(folder=tmp_path, changes=changes).texts(*[""] * 5, *(f"text {n}" for n in range(25)))
    summary = await bench.run(Service())
    assert (summary.state, summary.exit_code, summary.rows.ok, summary.rows.failed) == ("complete", 0, 25, 5)


@pytest.mark.parametrize(("fail_on", "code"), [("never", 0), ("30%", 0), ("15%", 4)])
async def test_the_jobs_own_share_of_failed_rows_counts(tmp_path: Path, fail_on: str, code: int) -> None:
    summary = await bench_of(tmp_path, fail_on=fail_on).run(Service(some(2, refusal(400))))
    assert summary.exit_code == code


async def test_an_input_of_fewer_rows_is_not_judged(tmp_path: Path) -> None:
    summary = await bench_of(tmp_path, rows=CANARY - 1).run(Service(some(5, refusal(400))))
    assert (summary.state, summary.exit_code) == ("complete", 1)


async def test_a_run_that_is_past_its_canary_goes_on(tmp_path: Path) -> None:
    bench = bench_of(tmp_path)
    bench.changes["run"] = {"workers": 4}
    await bench.run(Service(some(5, refusal(400))), limit=20)
    bench.changes["run"] = {"canary": CANARY}
    summary = await bench.run(Service())
    assert (summary.state, summary.rows.ok) == ("complete", 25)


async def test_a_limit_within_the_canary_is_judged_too(tmp_path: Path) -> None:
    bench = bench_of(tmp_path)
    assert (await bench.run(Service(some(2, refusal(400))), limit=6)).exit_code == 4
    service = Service()
    assert (await bench.run(service, limit=6)).exit_code == 4
    assert service.calls == []


async def test_the_deadline_is_that_of_both_stages_together(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, deadline="1500ms", grace="5m")
    summary = await bench.run(Service(latency_s=0.6))
    assert summary.exit_code == 4
    assert summary.reason is not None
    assert "run.deadline" in summary.reason
    assert summary.rows.ok < ROWS


@pytest.mark.parametrize(
    ("refused", "limit", "told"),
    [
        pytest.param(0, None, ("complete", 0, None), id="passed"),
        pytest.param(1, None, ("complete", 1, None), id="passed with a failed row"),
        pytest.param(2, None, ("stopped", 4, "the canary of 10 rows"), id="not passed"),
        pytest.param(ROWS, None, ("refused", 3, "the canary of 10 rows"), id="refused"),
        pytest.param(0, 6, ("stopped", 0, "--limit 6 reached"), id="within a limit"),
        pytest.param(ROWS, 6, ("refused", 3, "the canary of 6 rows"), id="refused within a limit"),
        pytest.param(0, 20, ("stopped", 0, "--limit 20 reached"), id="before a limit"),
    ],
)
async def test_the_history_tells_one_invocation_and_how_it_ended(
    tmp_path: Path, refused: int, limit: int | None, told: tuple[str, int, str | None]
) -> None:
    bench = bench_of(tmp_path)
    state, code, reason = told
    for number in (1, 2):
        summary = await bench.run(Service(some(refused, refusal(400, "odd"))), limit=limit)
        found = invocations(bench.layout, running=False)
        assert len(found) == number
        last = found[-1]
        assert (last.state, last.exit_code, last.reason is None) == (state, code, reason is None)
        assert (last.reason or "").startswith(reason or "")
        assert (summary.state, summary.exit_code) == (state, code)
        assert (last.ok, last.failed) == (summary.rows.ok, summary.rows.failed)
        assert last.seconds is not None
        assert last.seconds >= summary.seconds
    assert found[0].new_rows == summary.rows.ok + summary.rows.failed


@pytest.mark.parametrize(
    ("refused", "limit", "ended"),
    [
        pytest.param(0, None, "complete", id="passed"),
        pytest.param(2, None, "stopped", id="not passed"),
        pytest.param(0, 6, "stopped", id="within a limit"),
        pytest.param(0, 20, "stopped", id="before a limit"),
    ],
)
async def test_whoever_watches_sees_one_run_that_goes_on_until_its_end(
    tmp_path: Path, refused: int, limit: int | None, ended: str
) -> None:
    bench = bench_of(tmp_path)
    told: list[tuple[str, str, bool]] = []

    def watch(summary: Summary) -> None:
        told.append((summary.state, read_summary(bench.layout.summary).state, is_running(bench.out)))

    await run_job(
        bench.job(),
        options=RunOptions(limit=limit),
        transport=Service(some(refused, refusal(400, "odd"))),
        listener=bench.events.append,
        watcher=watch,
    )
    *before, last = told
    assert set(before) == {("running", "running", True)}, "between the stages, too"
    assert last == (ended, ended, True)
    events = [event["event"] for event in bench.events]
    assert events.count("run_started") == events.count("run_ended") == 1
    assert "run_resumed" not in events
    assert events[-1] == "run_ended"
    assert events.count("canary_passed") == (refused == 0 and (limit is None or limit > CANARY))


async def test_the_history_counts_the_seconds_of_both_stages(tmp_path: Path) -> None:
    bench = bench_of(tmp_path)
    summary = await bench.run(Service(latency_s=0.1))
    (only,) = invocations(bench.layout, running=False)
    assert only.seconds is not None
    assert only.seconds - summary.seconds >= 0.1 * CANARY / 4
