"""`run.dedupe: content`: rows that ask for the same are asked once, and each is given what came."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import orjson
import pytest
from in_memory import Bench, Judge, Said, Service, answer_of, refusal, vector_of

from pipeline import operations
from pipeline.engines.again import Retry
from pipeline.errors import DamageError, JobFileError
from pipeline.model import Item, Row
from pipeline.plan.same import Same
from pipeline.store.answered import Originals
from pipeline.store.ids import IdTable
from pipeline.store.verify import verify_folder
from pipeline.views.plan import make_plan

pytestmark = pytest.mark.anyio

DEPLOYMENT = {"endpoint": "https://x.openai.azure.com", "deployment": "d", "model": "gpt-4o-mini", "api": "azure"}
TWICE = {"messages": [{"role": "user", "content": "{{ text }}{{ text }}"}]}
# Equal ones lie in one batch, in one range, and in others.
TEXTS = ["a", "b", "a", "a", "c", "b", *(f"t{n}" for n in range(14)), "a", "t3", "z", "c", "z"]


def bench_of(folder: Path, *texts: str, operation: str = "chat", **run: Any) -> Bench:
    request: dict[str, Any] = {"messages": [{"role": "user", "content": "{{ text }}"}]}
    if operation == "embeddings":
        request = {"input": "{{ text }}", "dimensions": 4}
    changes = {
        "deployments": [{**DEPLOYMENT, "max_inputs": 3}],
        "request": request,
        "run": {"dedupe": "content", "workers": 3, **run},
    }
    return Bench(folder=folder, operation=operation, changes=changes).texts(*(texts or TEXTS))


def asked(service: Service) -> Counter[str]:
    return Counter(text for call in service.calls for text in call)


def assert_given(bench: Bench) -> None:
    """Every row has its own cells and the answer to its own text."""
    bench.assert_rows(range(len(bench.rows)))
    assert verify_folder(bench.layout).findings == ()


@pytest.mark.parametrize("operation", ["chat", "embeddings"])
@pytest.mark.parametrize("workers", [1, 3, 16])
async def test_rows_that_ask_for_the_same_are_asked_once_and_all_are_given_the_answer(
    tmp_path: Path, operation: str, workers: int
) -> None:
    bench, service = bench_of(tmp_path, operation=operation, workers=workers), Service(latency_s=0.001)
    summary = await bench.run(service)
    assert (summary.state, summary.exit_code) == ("complete", 0)
    assert asked(service) == Counter(set(TEXTS))
    assert_given(bench)
    assert (summary.rows.ok, summary.copied) == (len(TEXTS), len(TEXTS) - len(set(TEXTS)))


async def test_a_copy_names_the_request_of_its_original_and_cost_nothing(tmp_path: Path) -> None:
    bench = bench_of(tmp_path)
    summary = await bench.run(Service())
    rows = bench.table()
    first, copy, far = rows[0], rows[2], rows[20]
    for other in (copy, far):
        assert other["request"]["client_request_id"] == first["request"]["client_request_id"]
        assert (other["request"]["attempts"], other["usage"]) == (0, None)
        assert (other["response"], other["output_text"]) == (first["response"], answer_of("a"))
    assert (first["request"]["attempts"], first["usage"]["input_tokens"]) == (1, 1)
    assert summary.tokens.input == sum(len(text) for text in set(TEXTS))
    assert summary.requests == summary.attempts == len(set(TEXTS))


async def test_without_it_every_row_is_asked(tmp_path: Path) -> None:
    bench, service = bench_of(tmp_path, dedupe=None), Service()
    summary = await bench.run(service)
    assert asked(service) == Counter(TEXTS)
    assert summary.copied == 0


async def test_what_is_asked_is_what_counts_and_not_the_cells(tmp_path: Path) -> None:
    bench = bench_of(tmp_path)
    bench.changes["request"] = {
        "messages": [{"role": "user", "content": "{{ text }}"}],
        "temperature": "{{ heat }}",
    }
    bench.rows = [
        {"id": "0", "text": "a", "heat": 0.0, "other": 1},
        {"id": "1", "text": "a", "heat": 1.0, "other": 1},
        {"id": "2", "text": "a", "heat": 0.0, "other": 2},
    ]
    service = Service()
    await bench.run(service)
    assert len(service.calls) == 2
    assert [row["other"] for row in bench.table()] == [1, 1, 2]


def fails_a(texts: list[str], _: int) -> Said:
    return refusal(400, "content_filter") if texts[-1] == "a" else None


async def test_rows_fail_with_the_one_that_was_asked_and_a_retry_asks_once_more(tmp_path: Path) -> None:
    bench, service = bench_of(tmp_path, fail_on="never"), Service(fails_a)
    summary = await bench.run(service)
    equal = [n for n, text in enumerate(TEXTS) if text == "a"]
    assert asked(service)["a"] == 1
    assert bench.failed() == dict.fromkeys(equal, ("BadRequestError", "content_filter"))
    assert summary.rows.failed == len(equal)
    again = Service()
    summary = await bench.run(again, retry=Retry())
    assert (summary.state, summary.rows.failed) == ("complete", 0)
    assert asked(again) == {"a": 1}
    assert_given(bench)


class Meanwhile(list[int]):
    """Ordinals; when they are looked at first, something happens."""

    def __init__(self, ordinals: list[int], happens: Callable[[], object]) -> None:
        super().__init__(ordinals)
        self._happens: Callable[[], object] | None = happens

    def __iter__(self) -> Iterator[int]:
        happens, self._happens = self._happens, None
        if happens is not None:
            happens()
        return super().__iter__()


def test_a_part_that_is_replaced_while_it_is_looked_at_is_no_damage(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, fail_on="never")
    anyio.run(bench.run, Service(fails_a))
    with Originals(bench.layout) as originals:
        found = originals.find(Meanwhile([1], lambda: anyio.run(lambda: bench.run(Service(), retry=Retry()))))
        assert (found[1][0].values or {})["output_text"] == answer_of("b")
        part = bench.parts()[0]
        part.write_bytes(part.read_bytes()[:-10] + b"0123456789")
    with Originals(bench.layout) as originals, pytest.raises(DamageError):
        originals.find([1])


async def test_a_retry_in_another_wording_asks_once_and_is_no_answer_to_the_old_one(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, fail_on="never")
    await bench.run(Service(fails_a))
    again = Service()
    await bench.run(again, retry=Retry(request=TWICE))
    assert asked(again) == {"aa": 1}
    bench.texts(*TEXTS, "a", "b")
    more = Service()
    summary = await bench.run(more)
    assert asked(more) == {"a": 1}
    assert [row["output_text"] for row in bench.table()[-2:]] == [answer_of("a"), answer_of("b")]
    assert summary.rows.failed == 0


@pytest.mark.parametrize("operation", ["chat", "embeddings"])
@pytest.mark.parametrize("at", range(1, 20))
async def test_a_run_that_is_cut_at_any_call_goes_on_and_pays_for_none_twice(
    tmp_path: Path, operation: str, at: int
) -> None:
    def cut(_: list[str], call: int) -> Said:
        return KeyError("cut") if call == at else None

    bench, service, more = bench_of(tmp_path, operation=operation), Service(cut), Service()
    try:
        await bench.run(service)
    except KeyError:
        assert len(service.calls) >= at
    summary = await bench.run(more)
    assert (summary.state, summary.rows.ok) == ("complete", len(TEXTS))
    kept = set(TEXTS) - set(asked(more))
    assert all(asked(service)[text] == 1 for text in kept)
    assert max(asked(more).values(), default=1) == 1
    assert_given(bench)


async def test_rows_that_came_after_another_wording_are_asked_once_for_all_of_them(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, fail_on="never")
    await bench.run(Service(fails_a))
    await bench.run(Service(), retry=Retry(request=TWICE))
    # What asks for the same as the other wording did is of this one, and so is what the rows asked at first.
    for more in (["a", "aa", "a", "aa", "b"], ["a", "aa"]):
        bench.texts(*[str(row["text"]) for row in bench.rows], *more)
        service = Service()
        await bench.run(service)
        assert asked(service) == (Counter(["a", "aa"]) if len(more) > 2 else Counter())
        assert [row["output_text"] for row in bench.table()[-len(more) :]] == [answer_of(text) for text in more]


async def test_a_row_that_was_carried_over_in_another_wording_answers_for_no_new_one(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, fail_on="never")
    bench.changes["input"] = {"incremental": "id"}
    await bench.run(Service(fails_a))
    await bench.run(Service(), retry=Retry(request=TWICE))
    new = [{"id": f"new{n}", "text": text, "n": 99} for n, text in enumerate(["a", "b", "a"])]
    bench.rows = [*bench.rows[:3], *new, *bench.rows[3:]]
    service = Service()
    await bench.run(service)
    assert asked(service) == {"a": 1}
    texts = {row["id"]: row["output_text"] for row in bench.table()}
    assert [texts[name] for name in ("new0", "new1", "new2")] == [answer_of("a"), answer_of("b"), answer_of("a")]
    assert texts["r0"] == answer_of("aa")


@pytest.mark.parametrize("operation", ["chat", "embeddings"])
async def test_copies_are_counted_as_they_stand_after_retries_and_repairs(tmp_path: Path, operation: str) -> None:
    copies = len(TEXTS) - len(set(TEXTS))
    bench = bench_of(tmp_path, operation=operation, fail_on="never")
    bench.changes["output"] = {"part_rows": 5}
    assert (await bench.run(Service(fails_a))).copied == copies
    assert (await bench.run(Service(), retry=Retry())).copied == copies
    bench.parts()[-1].unlink()
    assert (await bench.run(Service(), repair=True)).copied == copies
    bench.layout.journal.unlink()
    service = Service()
    assert (await bench.run(service, repair=True)).copied == copies
    assert asked(service) == Counter()
    assert_given(bench)


async def test_an_input_that_grew_is_answered_from_parts_that_were_sealed_long_ago(tmp_path: Path) -> None:
    bench = bench_of(tmp_path)
    await bench.run(Service())
    bench.texts(*TEXTS, *reversed(TEXTS), "new", "new")
    more = Service()
    summary = await bench.run(more)
    assert asked(more) == {"new": 1}
    assert summary.rows.ok == 2 * len(TEXTS) + 2
    assert_given(bench)


async def test_what_a_killed_run_had_read_and_not_noted_is_no_original(tmp_path: Path) -> None:
    bench = bench_of(tmp_path)
    await bench.run(Service(), limit=5)
    operation = operations.get("chat").factory(bench.job())
    (item,) = operation.prepare([Row(ordinal=6, values={"text": "z"})])
    assert isinstance(item, Item)
    with IdTable(bench.layout.requests) as table:
        # As if it had read on, when row 6 was still another.
        Same(operation=operation, table=table, variant="").originals([item])
    service = Service()
    await bench.run(service)
    assert asked(service)["z"] == 1
    assert_given(bench)


async def test_a_table_in_which_bits_flipped_gives_no_row_the_answer_of_another(tmp_path: Path) -> None:
    bench = bench_of(tmp_path)
    await bench.run(Service())
    with IdTable(bench.layout.requests) as table:
        before = table._connection.execute("SELECT ordinal FROM id").fetchall()
        table._connection.execute("UPDATE id SET ordinal = ordinal | 1048576 WHERE NOT ordinal & 1048576")
        after = table._connection.execute("SELECT ordinal FROM id").fetchall()
    assert sorted(before) != sorted(after)
    bench.texts(*TEXTS, *reversed(TEXTS))
    more = Service()
    summary = await bench.run(more)
    assert summary.state == "complete"
    assert len(more.calls) > 0
    assert_given(bench)


async def test_a_table_that_is_damaged_costs_requests_and_no_results(tmp_path: Path) -> None:
    bench = bench_of(tmp_path)
    await bench.run(Service(), limit=12)
    for name in bench.layout.requests.parent.glob("requests.sqlite*"):
        name.unlink()
    bench.layout.requests.write_bytes(b"no database at all" * 100)
    summary = await bench.run(Service())
    assert (summary.state, summary.exit_code) == ("complete", 0)
    assert_given(bench)


async def test_a_part_that_was_changed_gives_no_row_its_answer(tmp_path: Path) -> None:
    bench = bench_of(tmp_path)
    await bench.run(Service())
    part = bench.parts()[0]
    part.write_bytes(part.read_bytes()[:-10] + b"0123456789")
    bench.texts(*TEXTS, "a")
    summary = await bench.run(Service())
    assert (summary.state, summary.exit_code) == ("stopped", 5)
    assert "--repair" in (summary.reason or "")
    service = Service()
    summary = await bench.run(service, repair=True)
    assert summary.state == "complete"
    assert_given(bench)


@pytest.mark.parametrize("incremental", ["id", "content"])
async def test_it_goes_with_an_input_that_changes_between_runs(tmp_path: Path, incremental: str) -> None:
    bench = bench_of(tmp_path)
    bench.changes["input"] = {"incremental": incremental}
    await bench.run(Service())
    bench.rows = [{"id": f"x{n}", "text": text, "n": n} for n, text in enumerate(["a", "n", *reversed(TEXTS), "n"])]
    more = Service()
    summary = await bench.run(more)
    assert summary.state == "complete"
    assert asked(more) == ({"n": 1} if incremental == "content" else Counter({*TEXTS, "n"}))
    assert_given(bench)


async def test_a_canary_that_passes_answers_the_rows_behind_it(tmp_path: Path) -> None:
    bench, service = bench_of(tmp_path, canary=6), Service()
    summary = await bench.run(service)
    assert (summary.state, summary.exit_code) == ("complete", 0)
    assert asked(service) == Counter(set(TEXTS))
    assert_given(bench)


async def test_a_budget_pays_for_each_request_once(tmp_path: Path) -> None:
    texts = ["same"] * 40
    bench = bench_of(tmp_path, *texts, max_tokens_total=60, workers=1)
    bench.changes["request"] = {**bench.changes["request"], "max_tokens": 10}
    summary = await bench.run(Service())
    assert (summary.state, summary.rows.ok, summary.copied) == ("complete", 40, 39)


async def test_equal_rows_that_are_refused_alike_are_held_back_together(tmp_path: Path) -> None:
    """A refusal that may be everybody's waits for an answer; so do those who wait for the row that it was of."""

    def judge(texts: list[str], _: int) -> Said:
        return refusal(400, "odd") if texts[-1].startswith("bad") else None

    texts = ["bad", "bad", "good", "bad", "good", "bad two", "bad two"]
    for workers in (1, 4):
        folder = tmp_path / str(workers)
        folder.mkdir()
        bench, service = bench_of(folder, *texts, workers=workers, fail_on="never"), Service(judge)
        summary = await bench.run(service)
        assert (summary.state, summary.rows.ok, summary.rows.failed) == ("complete", 2, 5)


async def test_many_equal_rows_behind_a_slow_one_are_read_and_given_its_answer(tmp_path: Path) -> None:
    bench, service = bench_of(tmp_path, *["one"] * 3000, workers=8), Service(latency_s=0.3)
    bench.changes["output"] = {"part_rows": 1000}
    summary = await bench.run(service)
    assert (summary.rows.ok, summary.copied, len(service.calls)) == (3000, 2999, 1)
    assert {row["output_text"] for row in bench.table()} == {answer_of("one")}


async def test_texts_that_are_embedded_in_pieces_are_copied_whole(tmp_path: Path) -> None:
    long = " ".join(f"word{n}" for n in range(9000))
    bench = bench_of(tmp_path, long, "short", long, operation="embeddings")
    bench.changes["deployments"] = [{**DEPLOYMENT, "model": "text-embedding-3-small"}]
    bench.changes["request"] = {"input": "{{ text }}", "dimensions": 4, "on_too_long": "split"}
    await bench.run(Service())
    rows = bench.table()
    pieces = {ordinal: [row["embedding"] for row in rows if row["ordinal"] == ordinal] for ordinal in range(3)}
    assert len(pieces[0]) > 1
    assert pieces[0] == pieces[2]
    assert pieces[1] == [vector_of("short")]


async def test_a_plan_counts_what_is_asked_once_only_once(tmp_path: Path) -> None:
    bench = bench_of(tmp_path)
    with_it = make_plan(bench.job(), root=bench.out, limit=None, exact=False, simulated=False)
    bench.changes["run"]["dedupe"] = None
    without = make_plan(bench.job(), root=bench.out, limit=None, exact=False, simulated=False)
    assert with_it["requests"]["value"] == len(set(TEXTS))
    assert with_it["rows"]["copied"]["value"] == len(TEXTS) - len(set(TEXTS))
    assert (without["requests"]["value"], without["rows"]["copied"]["value"]) == (len(TEXTS), 0)
    assert with_it["tokens"]["input"]["value"] < without["tokens"]["input"]["value"]


def ten_tokens(_: list[str], __: int) -> Said:
    message = {"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 10}
    return httpx.Response(200, content=orjson.dumps({"choices": [message], "usage": usage}))


async def test_a_plan_takes_answers_to_be_as_long_as_those_that_were_billed(tmp_path: Path) -> None:
    bench = bench_of(tmp_path)
    bench.changes["input"] = {"incremental": "id"}
    for new in ("first", "second"):
        await bench.run(Service(ten_tokens))
        bench.rows = [{"id": new, "text": new, "n": 0}, *bench.rows]
    await bench.run(Service(ten_tokens))  # but for one row, all are carried over, and some of these are copies
    bench.rows += [{"id": f"more{n}", "text": f"more {n}", "n": 0} for n in range(3)]
    planned = make_plan(bench.job(), root=bench.out, limit=None, exact=False, simulated=False)
    assert (planned["requests"]["value"], planned["tokens"]["output_likely"]) == (3, 30)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"run": {"dedupe": "content", "lane": "batch"}}, "run.dedupe: is for the online lane"),
        ({"run": {"dedupe": "content", "lane": "auto", "deadline": "20h"}}, "run.dedupe: is for the online lane"),
        ({"operation": "speech", "request": {"input": "{{ text }}", "voice": "alloy"}}, "run.dedupe: is for chat"),
        ({"input": {"media_root": "."}}, "run.dedupe: is not for rows that name files"),
        ({"run": {"dedupe": "content", "processes": 2, "workers": 4}}, "run.dedupe: is for one process"),
        ({"run": {"dedupe": "id"}}, "run.dedupe"),
    ],
)
async def test_what_it_is_not_for_is_said_before_anything_is_sent(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    bench = bench_of(tmp_path)
    bench.changes.update(change if "run" in change else {**change})
    with pytest.raises(JobFileError, match=words.replace(".", r"\.")):
        bench.job()


def choice(text: str) -> httpx.Response:
    message = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return httpx.Response(200, content=orjson.dumps({"choices": [message], "usage": {"prompt_tokens": 1}}))


async def test_an_answer_that_chance_made_is_given_to_all_who_asked(tmp_path: Path) -> None:
    def judge() -> Judge:
        return lambda _, call: choice(f"answer {call}")

    bench = bench_of(tmp_path, "a", "a", "b", "a")
    await bench.run(Service(judge()))
    rows = [row["output_text"] for row in bench.table()]
    assert rows[0] == rows[1] == rows[3] != rows[2]
