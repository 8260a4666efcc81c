"""`run.max_cost` and `run.max_tokens_total`: never passed by what the service bills, and used to the last request."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from batch_scene import BatchScene
from billed import LENGTHS, Biller, Spoil, bench_of, dollars_on
from in_memory import Bench, refusal

from pipeline.store.folder import Layout
from pipeline.store.journal import Journal, JournalReader
from pipeline.testing import MemoryTransport

pytestmark = pytest.mark.anyio


async def test_a_dollar_is_never_passed_and_used_within_two_percent(tmp_path: Path) -> None:
    bench, service = bench_of(tmp_path, max_cost=60.0), Biller(latency_s=0.002)
    summary = await bench.run(service)
    assert (summary.state, summary.exit_code) == ("stopped", 4)
    assert 60 * 0.98 <= service.dollars <= 60
    assert summary.cost_usd == pytest.approx(service.dollars)
    assert summary.rows.failed == 0
    assert summary.reason is not None
    assert summary.reason.startswith("run.max_cost of $60.0000 has no room for another request")
    assert "raise run.max_cost and run the same command again" in summary.reason
    calls = service.calls
    assert (await bench.run(service)).exit_code == 4
    assert service.calls - calls <= 1  # the next row is the same
    bench.changes["run"] = {"workers": 8}
    whole = await bench.run(service)
    assert (whole.exit_code, whole.rows.ok) == (0, len(LENGTHS))
    assert service.calls == len(LENGTHS)


async def test_tokens_in_all_are_kept_to_likewise(tmp_path: Path) -> None:
    bench, service = bench_of(tmp_path, max_tokens_total=100_000), Biller()
    summary = await bench.run(service)
    assert (summary.exit_code, summary.tokens.total) == (4, service.input + service.output)
    assert 98_000 <= service.input + service.output <= 100_000
    assert summary.reason is not None
    assert "run.max_tokens_total of 100,000 tokens" in summary.reason


async def test_of_two_budgets_the_first_that_is_used_up_ends_the_run(tmp_path: Path) -> None:
    bench, service = bench_of(tmp_path, max_cost=60.0, max_tokens_total=10_000), Biller()
    summary = await bench.run(service)
    assert summary.reason is not None
    assert summary.reason.startswith("run.max_tokens_total")
    assert 9_000 <= service.input + service.output <= 10_000


async def test_a_budget_that_is_enough_changes_nothing(tmp_path: Path) -> None:
    bench, service = bench_of(tmp_path, max_cost=1_000.0), Biller()
    assert (await bench.run(service)).exit_code == 0
    kept = noted(bench)["run.max_cost"]
    assert (kept["lost"], kept["at_risk"]) == (0, 0)


def lost(calls: int, reply: httpx.Response) -> httpx.Response | Exception:
    return httpx.ReadError("gone") if calls % 5 == 0 else reply


def cut(calls: int, reply: httpx.Response) -> httpx.Response | Exception:
    return httpx.Response(200, content=reply.content[:40]) if calls % 5 == 0 else reply


def mute(_: int, reply: httpx.Response) -> httpx.Response | Exception:
    return httpx.Response(200, json={"choices": json.loads(reply.content)["choices"]})


def throttled(calls: int, reply: httpx.Response) -> httpx.Response | Exception:
    return refusal(429, "429", headers={"retry-after-ms": "1"}) if calls % 5 == 0 else reply


def filtered(calls: int, reply: httpx.Response) -> httpx.Response | Exception:
    if calls % 5:
        return reply
    usage = json.loads(reply.content)["usage"]
    return httpx.Response(400, json={"error": {"code": "content_filter", "message": "no"}, "usage": usage})


def filtered_without_a_word(calls: int, reply: httpx.Response) -> httpx.Response | Exception:
    return refusal(400, "content_filter") if calls % 5 == 0 else reply


def gave_up(calls: int, reply: httpx.Response) -> httpx.Response | Exception:
    return refusal((408, 504)[calls % 2], "timeout") if calls % 5 == 0 else reply


@pytest.mark.parametrize("spoil", [lost, cut, mute, gave_up, throttled, filtered])
async def test_what_may_have_been_billed_counts_whatever_came_back(tmp_path: Path, spoil: Spoil) -> None:
    bench, service = bench_of(tmp_path, max_cost=20.0), Biller(spoil)
    for _ in range(3):
        assert (await bench.run(service)).exit_code == 4
        assert service.dollars <= 20
    if spoil in (throttled, filtered):  # where it is known, all of it is used
        assert service.dollars >= 20 * 0.92


async def test_a_filtered_prompt_is_counted_where_the_service_does_not_say_what_it_billed(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, max_cost=20.0)
    await bench.run(Biller(filtered_without_a_word))
    assert noted(bench)["run.max_cost"]["lost"] > 0


def noted(bench: Bench) -> Any:
    with JournalReader(bench.layout.journal) as reader:
        return reader.noted("allowances")


async def test_a_retry_after_an_answer_that_was_too_short_is_paid_for_as_well(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, max_cost=60.0, right_size="p50")
    cutter = Biller()

    def bounded(request: httpx.Request) -> httpx.Response | Exception:
        most = json.loads(request.content)["max_tokens"]
        before = cutter.output
        reply = cutter.answer(request)
        assert isinstance(reply, httpx.Response)
        body = json.loads(reply.content)
        wanted = body["usage"]["completion_tokens"]
        if wanted > most:
            cutter.output = before + most
            body["usage"] = {"prompt_tokens": body["usage"]["prompt_tokens"], "completion_tokens": most}
            body["choices"][0]["finish_reason"] = "length"
        return httpx.Response(200, json=body)

    summary = await bench.run(MemoryTransport(bounded))
    assert summary.exit_code == 4
    assert 60 * 0.98 <= cutter.dollars <= 60


async def test_raising_the_budget_goes_on_where_it_ended(tmp_path: Path) -> None:
    bench, service = bench_of(tmp_path, max_cost=5.0), Biller()
    for most in (5.0, 10.0, 20.0):
        bench.changes["run"] = {"workers": 8, "max_cost": most}
        assert (await bench.run(service)).exit_code == 4
        assert most - 1.1 <= service.dollars <= most


def test_kills_do_not_let_it_be_passed(tmp_path: Path) -> None:
    """Calls under way at a kill were billed, and nobody knows for how much: they count at their worst."""
    dice = random.Random(11)
    command = [sys.executable, Path(sys.modules["billed"].__file__ or ""), tmp_path, "200"]
    codes = []
    for last in (*(dice.randint(20, 60) for _ in range(5)), 0, 0):
        ended = subprocess.run([*command, str(last)], check=False, env={"PYTHONPATH": os.pathsep.join(sys.path)})
        codes.append(ended.returncode)
        assert dollars_on(tmp_path / "bill") <= 200
    assert codes == [-signal.SIGKILL] * 5 + [4, 4]
    counted = json.loads(Layout(tmp_path / "out").summary.read_text())["budget"]["dollars"]
    assert 0.98 * 200 <= counted["spent"] <= 200
    kill = 8 * 1.02 + 2  # workers at their worst, and a hundredth of the budget
    assert dollars_on(tmp_path / "bill") >= 200 * 0.98 - 5 * kill


BATCHED = {"price": {"input": 100.0, "output": 2_000.0}}


async def test_batches_are_made_no_larger_than_what_is_left(tmp_path: Path) -> None:
    place = BatchScene(folder=tmp_path, rows=400, deployment=BATCHED, run_keys={"max_cost": 5.0})
    with place.served():
        summary = await place.run()
        assert (summary.state, summary.exit_code) == ("stopped", 4)
        assert summary.reason is not None
        assert summary.reason.startswith("run.max_cost of $5.0000 has no room")
        usages = [row["usage"] for row in place.table("usage")]
        spent = sum(one["input_tokens"] * 100 + one["output_tokens"] * 2_000 for one in usages) / 1e6
        assert len(usages) == sum(place.answered().values()) < 400
        assert 4.9 <= spent <= 5.0
        assert summary.cost_usd == pytest.approx(spent)
        assert len(place.submitted()) > 2
        place.run_keys.pop("max_cost")
        assert (await place.run()).exit_code == 0
    place.assert_each_row_once()


async def test_a_batch_under_way_keeps_what_it_may_cost_across_invocations(tmp_path: Path) -> None:
    offline = {"in_progress_s": 3_600.0}
    place = BatchScene(
        folder=tmp_path, rows=400, deployment=BATCHED, run_keys={"max_cost": 5.0}, simulator={"offline": offline}
    )
    with place.served():
        for _ in range(3):
            summary = await place.run(wait=False)
            assert summary.exit_code == 4
            assert len(place.submitted()) == 1
            assert "are under way" in (summary.reason or "")


async def test_batches_under_way_count_in_a_run_that_sends_its_rows_one_by_one(tmp_path: Path) -> None:
    """Nobody follows them there, and they are billed all the same."""
    place = BatchScene(
        folder=tmp_path,
        rows=400,
        deployment=BATCHED,
        run_keys={"max_cost": 20.0},
        simulator={"offline": {"in_progress_s": 1.0}},
    )
    with place.served():
        await place.run(wait=False)
        with JournalReader(place.layout.journal) as reader:
            (record,) = reader.batches()
        worst = (record.most_input * 100 + record.most_output * 2_000) / 1e6
        place.run_keys["max_cost"] = most = round(worst + 1, 2)
        summary = await place.run(run={"lane": "online", "max_cost": most})
        assert summary.exit_code == 4
        assert summary.reason is not None
        assert "set aside for batches under way, which `run.lane: batch` collects" in summary.reason
        assert summary.budget is not None
        assert summary.budget.dollars is not None
        assert summary.budget.dollars.reserved == pytest.approx(worst)
        # The batch's lines of the rows that were answered meanwhile are billed as well.
        last = await place.run()
        assert last.budget is not None
        assert last.budget.dollars is not None
        assert summary.cost_usd is not None
        assert last.cost_usd is not None
        assert 0 < summary.cost_usd <= 1
        assert last.cost_usd + summary.cost_usd <= last.budget.dollars.spent <= most
    ordinals = [row["ordinal"] for row in place.table("ordinal")]
    assert sorted(set(ordinals)) == ordinals


class AtDeletion(httpx.AsyncBaseTransport):
    """Keeps what the journal has noted of budgets, whenever a file is deleted at the service."""

    def __init__(self, place: BatchScene) -> None:
        self.noted: list[dict[str, Any]] = []
        self._place = place
        self._inner = httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.method == "DELETE":
            with self._place.journal() as reader:
                self.noted.append((reader.noted("allowances") or {}).get("run.max_cost", {}))
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


async def test_what_a_batch_was_billed_without_a_row_is_noted_before_it_is_told_off(tmp_path: Path) -> None:
    """A kill after that finds it nowhere else."""
    place = BatchScene(
        folder=tmp_path,
        rows=40,
        deployment=BATCHED,
        run_keys={"max_cost": 1_000.0},
        simulator={"poison": [{"contains": "Row 7 "}]},
    )
    with place.served():
        async with AtDeletion(place) as transport:
            summary = await place.run(transport=transport)
    assert (summary.rows.ok, summary.rows.failed) == (39, 1)
    assert transport.noted
    assert all(noted["at_risk"] > 0 for noted in transport.noted), "the filtered prompt was billed"


async def test_rows_before_those_of_a_batch_under_way_wait_for_what_it_holds(tmp_path: Path) -> None:
    """The batch is met with its rows only once those before them were taken; these must not wait for its money."""
    place = BatchScene(
        folder=tmp_path,
        rows=100,
        deployment={**BATCHED, "enqueued_tokens": 1_200},
        run_keys={"max_cost": 100.0},
        simulator={"offline": {"in_progress_s": 3.0}, "deployment": {"enqueued_tokens": 100_000}},
    )
    with place.served():
        await place.run(wait=False)
        assert len(place.submitted()) > 1
        journal = Journal(place.layout.journal)
        with journal.reader() as reader:
            first = min(reader.batches(), key=lambda record: reader.batch_lines(record.tag)[0].ordinals[0])
        await journal.drop_batch(first.tag)
        await journal.close()
        place.run_keys["max_cost"] = 0.1
        with anyio.fail_after(60):
            summary = await place.run()
    assert summary.exit_code == 4
    assert summary.reason is not None
    assert "run.max_cost of $0.1000" in summary.reason
    assert summary.rows.ok == 100 - first.count
