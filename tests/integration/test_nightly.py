"""An input that changes every night: only what is new or changed is sent, and what was paid for is carried over."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from subprocess import run
from typing import Any

import anyio
import pyarrow.parquet as pq
import pytest

from pipeline.engines.again import Retry
from pipeline.errors import DamageError, FolderHeldError, InputChangedError, JobChangedError
from pipeline.log import Event
from pipeline.store.summary import Summary, read_summary
from pipeline.store.verify import verify_folder
from pipeline.views.closing import closing
from tests.in_memory import Bench, Judge, Service, refusal

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
Rows = list[dict[str, Any]]

# The process of a night that is killed: it writes down every text that it is asked, and ends itself at a call.
KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from tests.in_memory import Bench, Service

def judge(texts, calls):
    with Path(sys.argv[2]).open("a") as ledger:
        ledger.write("".join(text + "\\n" for text in texts))
    if calls == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)

bench = Bench(folder=Path(sys.argv[1]), operation=sys.argv[5])
bench.changes = {"input": {"path": "days", "incremental": sys.argv[3]}}
asyncio.run(bench.run(Service(judge)))
"""


class Nights:
    """A folder of files, one a day, whose rows are edited afterwards, and a ledger of what was asked."""

    def __init__(self, folder: Path, *, by: str = "id", operation: str = "chat", **inputs: Any) -> None:
        self.by = by
        self.days: dict[str, Rows] = {}
        self.bench = Bench(folder=folder, operation=operation)
        self.bench.changes = {"input": {"path": "days", "incremental": by, **inputs}}

    def day(self, name: str, *texts: str) -> None:
        self.days[name] = [{"id": f"{name}-{n}", "text": text, "n": n} for n, text in enumerate(texts)]

    @property
    def input(self) -> Path:
        return self.bench.folder / "days"

    def written(self) -> None:
        self.input.mkdir(exist_ok=True)
        for old in self.input.iterdir():
            if old.stem not in self.days:
                old.unlink()
        for name, rows in self.days.items():
            text = "".join(json.dumps(row) + "\n" for row in rows)
            path = self.input / f"{name}.jsonl"
            if not path.exists() or path.read_text() != text:
                path.write_text(text)
        self.bench.rows = [row for name in sorted(self.days) for row in self.days[name]]

    async def night(self, judge: Judge | None = None, **options: Any) -> tuple[Summary, Counter[str]]:
        """Run over what the days hold now; returns what was asked, too."""
        self.written()
        service = Service(judge)
        summary = await self.bench.run(service, **options)
        return summary, Counter(text for texts in service.calls for text in texts)

    def killed(self, at: int) -> Counter[str]:
        """Run in a process that is killed at a call; returns what was asked."""
        self.written()
        ledger = self.bench.folder / "ledger"
        ledger.write_text("")
        command = [sys.executable, "-c", KILLED, self.bench.folder, ledger, self.by, str(at), self.bench.operation]
        ended = run(command, cwd=ROOT, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120)
        assert ended.returncode == -signal.SIGKILL
        return Counter(ledger.read_text().splitlines())

    def assert_whole(self) -> None:
        """Every row of the input is in the parts, once, in order, with its own answer; nothing is damaged."""
        self.bench.assert_rows(range(len(self.bench.rows)))
        assert verify_folder(self.bench.layout).findings == ()

    @property
    def compared(self) -> list[dict[str, Any]]:
        return [dict(event) for event in self.bench.events if event["event"] == Event.INPUT_COMPARED]


def names(folder: Path, pattern: str) -> list[str]:
    return sorted(path.name for path in folder.glob(pattern))


def texts(rows: Rows) -> Counter[str]:
    return Counter(str(row["text"]) for row in rows)


@pytest.mark.parametrize(("by", "operation"), [("id", "chat"), ("id", "embeddings"), ("content", "chat")])
async def test_ten_nights_ask_what_is_new_or_changed(tmp_path: Path, by: str, operation: str) -> None:
    nights = Nights(tmp_path, by=by, operation=operation)
    for night in range(10):
        # The newest day sorts first, so that every ordinal changes each night.
        name = f"day{99 - night}"
        nights.day(name, *[f"{name} row {n}" for n in range(13)])
        expected = texts(nights.days[name])
        deleted = 0
        if night:
            edited = nights.days[f"day{100 - night}"]
            for n in (2, 7):
                edited[n]["text"] = f"edited in night {night}: {n}"
                expected[edited[n]["text"]] += 1
            deleted = 2 if by == "content" else 0
        if night > 3:
            deleted += len(nights.days.pop(f"day{103 - night}"))
        in_flight = 0
        if night == 6:
            asked = nights.killed(4)
            in_flight = nights.bench.max_inputs * 4
            summary, rest = await nights.night()
            asked += rest
        elif night == 7:
            began, go_on = anyio.Event(), anyio.Event()
            asked, summary = await overlapped(nights, began, go_on)
        else:
            summary, asked = await nights.night()
        assert summary.exit_code == 0, summary.reason
        assert set(asked) == set(expected)
        assert expected.total() <= asked.total() <= expected.total() + in_flight
        nights.assert_whole()
        assert summary.rows.ok == len(nights.bench.rows)
        if night:
            assert summary.deleted == nights.compared[-1]["deleted"] == deleted
    assert names(tmp_path, "*out*") == [".out.lock", "out", "out.before.1"]


async def overlapped(nights: Nights, began: anyio.Event, go_on: anyio.Event) -> tuple[Counter[str], Summary]:
    """A night that begins while another one holds the folder, and ends with 75."""

    class Slow(Service):
        async def handle_async_request(self, request: Any) -> Any:
            began.set()
            await go_on.wait()
            return await super().handle_async_request(request)

    nights.written()
    slow, ended = Slow(), []

    async def first() -> None:
        ended.append(await nights.bench.run(slow))

    async with anyio.create_task_group() as group:
        group.start_soon(first)
        await began.wait()
        with pytest.raises(FolderHeldError, match=r"another run holds .*/out: process") as held:
            await nights.bench.run(Service())
        assert held.value.exit_code == 75
        go_on.set()
    return Counter(text for texts_ in slow.calls for text in texts_), ended[0]


async def test_rows_added_at_the_end_are_asked_in_the_same_folder(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    nights.day("day1", "a", "b")
    await nights.night()
    nights.day("day2", "c")
    summary, asked = await nights.night()
    assert (asked, summary.carried) == (Counter("c"), 0)
    assert names(tmp_path, "out.before.*") == []
    nights.assert_whole()


async def test_a_night_without_a_change_asks_nothing_and_keeps_the_figures(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    nights.day("day1", "a", "b", "c")
    await nights.night()
    nights.day("day1", "a", "c")
    first, _ = await nights.night()
    again, asked = await nights.night()
    assert not asked
    # The id of c is now that of the row that was b.
    assert (first.carried, first.deleted) == (again.carried, again.deleted) == (1, 1)
    said = "\n".join(closing(again, reader="job"))
    assert "1 row from the earlier results; 1 of theirs not in the input any more" in said


async def test_a_night_that_only_carries_rows_over_cost_nothing(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    place = {"endpoint": "https://x.openai.azure.com", "deployment": "d", "model": "unknown", "api": "azure"}
    nights.bench.changes["deployments"] = [{**place, "price": {"input": 3, "output": 7}}]
    nights.day("a", "one", "two")
    nights.day("b", "three")
    assert (await nights.night())[0].cost_usd

    del nights.days["b"]
    summary, asked = await nights.night()

    assert (summary.carried, summary.cost_usd, asked) == (2, 0, Counter())


async def test_a_carried_row_is_what_it_was(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    nights.day("day2", "a", "b")
    await nights.night()
    before = {row["id"]: row for row in nights.bench.table()}
    nights.day("day1", "c")
    summary, _ = await nights.night()
    after = {row["id"]: row for row in nights.bench.table()}
    for name, row in before.items():
        assert {**row, "ordinal": None} == {**after[name], "ordinal": None}
    # Only what this night sent is counted as its own.
    assert (summary.requests, summary.tokens.input, summary.carried) == (1, 1, 2)


@pytest.mark.parametrize("operation", ["chat", "embeddings"])
async def test_a_row_whose_carried_columns_changed_has_the_new_ones(tmp_path: Path, operation: str) -> None:
    nights = Nights(tmp_path, operation=operation)
    nights.day("day1", "a", "b")
    await nights.night()
    nights.days["day1"][0]["n"] = 7
    summary, asked = await nights.night()
    assert not asked
    assert summary.carried == 2
    nights.assert_whole()


async def test_failed_rows_are_carried_over_and_sent_again_by_a_retry(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    nights.day("day2", "bad", "b")
    first, _ = await nights.night(lambda texts, _: refusal(400) if texts == ["bad"] else None)
    nights.day("day1", "c")
    second, asked = await nights.night()
    assert (first.rows.failed, second.rows.failed, asked) == (1, 1, Counter("c"))
    third, asked = await nights.night(retry=Retry(only=frozenset()))
    assert (third.rows.failed, asked) == (0, Counter(["bad"]))
    nights.assert_whole()
    nights.day("day0", "d")
    _, asked = await nights.night()
    assert asked == Counter("d")


async def test_rows_that_nobody_can_be_asked_are_told_each_night(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    nights.day("day1", "a", "b")
    nights.days["day1"][1]["id"] = "day1-0"
    await nights.night()
    nights.day("day0", "c", "d")
    nights.days["day0"][0]["id"] = None
    summary, asked = await nights.night()
    assert asked == Counter("d")
    assert sorted(code for _, code in nights.bench.failed().values()) == ["duplicate_id", "id_missing"]
    assert summary.deleted == 0


@pytest.mark.parametrize("kills", [(2,), (3, 2), (1, 1, 5)])
async def test_nights_that_are_killed_one_after_another_lose_no_answer(tmp_path: Path, kills: tuple[int, ...]) -> None:
    nights = Nights(tmp_path)
    nights.day("day9", *[f"old {n}" for n in range(12)])
    _, asked = await nights.night()
    for turn, kill in enumerate(kills):
        nights.day(f"day{8 - turn}", *[f"turn {turn}: {n}" for n in range(12)])
        asked += nights.killed(kill)
    summary, rest = await nights.night()
    asked += rest
    assert summary.exit_code == 0, summary.reason
    assert set(asked) == set(texts(nights.bench.rows))
    assert asked.total() <= len(nights.bench.rows) + 4 * len(kills)
    assert not any(asked[f"old {n}"] > 1 for n in range(12))
    nights.assert_whole()
    assert summary.deleted == 0
    nights.day("day0", "last")
    _, asked = await nights.night()
    assert asked == Counter(["last"])
    assert names(tmp_path, "out.before.*") == ["out.before.1"]


def put_back(folder: Path) -> None:
    (folder / "out").rename(folder / ".out.next")


def half_removed(folder: Path) -> None:
    (folder / ".out.gone" / "part").mkdir(parents=True)


def half_made(folder: Path) -> None:
    (folder / ".out.next" / "_pipeline").mkdir(parents=True)


@pytest.mark.parametrize("cut", [put_back, half_removed, half_made])
async def test_a_handover_that_was_cut_is_gone_on_with(tmp_path: Path, cut: Callable[[Path], None]) -> None:
    nights = Nights(tmp_path)
    nights.day("day9", "a", "b", "c")
    await nights.night()
    nights.day("day8", "d")
    await interrupted(nights)
    cut(tmp_path)
    summary, asked = await nights.night()
    assert (summary.exit_code, asked["a"]) == (0, 0)
    nights.assert_whole()
    nights.day("day7", "e")
    _, asked = await nights.night()
    assert asked == Counter("e")
    assert names(tmp_path, "*out*") == [".out.lock", "out", "out.before.1"]


async def interrupted(nights: Nights) -> None:
    """A night that ends before its first answer."""
    summary, _ = await nights.night(lambda *_: refusal(401))
    assert summary.exit_code == 3


async def test_a_fresh_start_carries_nothing_over(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    nights.day("day9", "a", "b")
    await nights.night()
    nights.day("day8", "c")
    await nights.night()
    summary, asked = await nights.night(fresh=True)
    assert (asked, summary.carried) == (Counter("abc"), 0)


async def test_another_prompt_is_refused_with_what_it_would_redo(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    nights.day("day9", "a", "b")
    await nights.night()
    nights.day("day8", "c")
    nights.bench.changes["request"] = {"messages": [{"role": "user", "content": "say {{ text }}"}]}
    with pytest.raises(JobChangedError, match="2 rows are answered already"):
        await nights.night()
    summary, asked = await nights.night(fresh=True)
    assert asked.total() == 3
    assert summary.exit_code == 0


async def test_another_prompt_is_refused_before_the_first_answer_of_a_night(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    nights.day("day9", "a", "b")
    await nights.night()
    nights.day("day8", "c")
    nights.written()
    await interrupted(nights)
    nights.bench.changes["request"] = {"messages": [{"role": "user", "content": "say {{ text }}"}]}
    with pytest.raises(JobChangedError):
        await nights.night()


@pytest.mark.parametrize("harm", ["gone", "emptied"])
async def test_what_nobody_knows_the_question_of_is_not_asked_again_unbidden(tmp_path: Path, harm: str) -> None:
    nights = Nights(tmp_path)
    nights.day("day9", "a", "b")
    await nights.night()
    nights.bench.layout.asked.unlink()
    if harm == "emptied":
        nights.bench.layout.asked.write_bytes(b"")
    nights.day("day8", "c")
    with pytest.raises(DamageError):
        await nights.night()
    assert nights.bench.out.is_dir()
    assert names(tmp_path, "out.before.*") == []


@pytest.mark.parametrize("harm", ["part", "rewritten", "folder", "list", "no list"])
async def test_damaged_results_are_not_carried_over(tmp_path: Path, harm: str) -> None:
    nights = Nights(tmp_path)
    nights.day("day9", *[f"text {n}" for n in range(8)])
    await nights.night()
    part = nights.bench.parts()[0]
    nights.day("day8", "c")
    await interrupted_before_carrying(nights)
    before = tmp_path / "out.before.1"
    match harm:
        case "part":
            place = before / part.name
            place.write_bytes(place.read_bytes()[:-9] + b"\0" * 9)
        case "rewritten":
            pq.write_table(pq.read_table(before / part.name), before / part.name)
        case "folder":
            before.rename(tmp_path / "elsewhere")
        case "no list":
            nights.bench.layout.carries.unlink()
        case _:
            nights.bench.layout.carries.write_text('["../x"]')
    service = Service()
    try:
        code, said = _end(await nights.bench.run(service))
    except DamageError as error:
        code, said = error.exit_code, str(error)
    assert code == 5
    assert "--fresh" in said
    assert service.calls in ([], [["c"]])


def _end(summary: Summary) -> tuple[int | None, str]:
    return summary.exit_code, str(summary.reason)


async def interrupted_before_carrying(nights: Nights) -> None:
    """A handover whose run did not read a row."""
    summary, _ = await nights.night(limit=0)
    assert summary.state == "stopped"


async def test_a_job_that_is_not_incremental_refuses_a_changed_input(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    nights.bench.changes = {"input": {"path": "days"}}
    nights.day("day9", "a")
    await nights.night()
    assert not nights.bench.layout.asked.exists()
    nights.day("day9", "b")
    summary, asked = await _refused(nights)
    assert (summary, asked) == (2, 0)


async def _refused(nights: Nights) -> tuple[int, int]:
    try:
        summary, asked = await nights.night()
    except InputChangedError as error:
        return error.exit_code, 0
    return summary.exit_code or 0, asked.total()


async def test_the_summary_on_disk_tells_what_was_carried(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    nights.day("day9", "a", "b")
    await nights.night()
    nights.day("day8", "c")
    summary, _ = await nights.night()
    assert read_summary(nights.bench.layout.summary).carried == summary.carried == 2
