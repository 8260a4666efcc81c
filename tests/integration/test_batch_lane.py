"""The batch lane against the simulator: the same rows as online, and nothing asked or paid for twice."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from batch_scene import BatchScene, text_of

from pipeline.clock import SystemClock, Timer
from pipeline.store.journal import BatchLine, BatchStep, Journal
from pipeline.store.verify import verify_folder

pytestmark = pytest.mark.anyio


def scene(tmp_path: Path, rows: int = 100, **settings: Any) -> BatchScene:
    return BatchScene(folder=tmp_path, rows=rows, **settings)


@pytest.mark.parametrize(
    ("operation", "api"),
    [
        ("chat", "azure"),
        ("chat", "azure-v1"),
        ("chat", "openai"),
        ("responses", "azure-v1"),
        ("responses", "openai"),
        ("embeddings", "openai"),
    ],
)
async def test_rows_come_back_as_they_do_online(tmp_path: Path, operation: str, api: str) -> None:
    place = scene(tmp_path, operation=operation, api=api)
    with place.served():
        summary = await place.run()
        assert (summary.state, summary.exit_code, summary.rows.ok) == ("complete", 0, 100)
        place.assert_each_row_once()
        batched = place.table()
        online = {"lane": "online"}
        await place.run(run=online, output={"path": "out-online", "part_rows": 40})
    parts = sorted((tmp_path / "out-online").glob("part-*.parquet"))
    assert len(parts) == 3
    place.layout.root.rename(tmp_path / "out-batch")
    (tmp_path / "out-online").rename(place.layout.root)
    asked_one_by_one = place.table()
    for one, other in zip(batched, asked_one_by_one, strict=True):
        for row in (one, other):
            del row["request"]
            row["usage"].pop("cached_tokens")
            if row.get("response") is not None:
                row["response"] = {**json.loads(row["response"]), "created": 0, "created_at": 0}
        assert one == other


async def test_files_are_cut_by_the_enqueued_tokens_and_never_pass_them(tmp_path: Path) -> None:
    place = scene(
        tmp_path,
        rows=120,
        deployment={"enqueued_tokens": 400},
        simulator={"deployment": {"enqueued_tokens": 400}, "offline": {"in_progress_s": 0.05}},
    )
    with place.served():
        assert (await place.run()).exit_code == 0
    place.assert_each_row_once()
    assert len(place.submitted()) > 6
    assert not [event for event in place.events if event["event"] == "batch_waits"]


@pytest.mark.parametrize("when", ["created", "afterwards"])
async def test_a_batch_without_room_waits_for_it(tmp_path: Path, when: str) -> None:
    offline = {"fail_fast": when == "created", "in_progress_s": 0.2}
    place = scene(tmp_path, rows=60, simulator={"deployment": {"enqueued_tokens": 700}, "offline": offline})
    place.deployment["enqueued_tokens"] = 2_000  # more than the service allows
    with place.served():
        assert (await place.run()).exit_code == 0
    place.assert_each_row_once()


async def test_only_rows_without_a_result_are_sent_again(tmp_path: Path) -> None:
    offline = {"ends": ["expired", "cancelled", "completed"], "done_share": 0.4}
    place = scene(tmp_path, simulator={"offline": offline})
    with place.served():
        assert (await place.run()).exit_code == 0
    place.assert_each_row_once()
    assert len(place.submitted()) == 3
    assert {row["request"]["attempts"] for row in place.table("request")} == {1, 2, 3}


async def test_lines_that_met_a_fault_are_sent_again_and_refused_rows_are_not(tmp_path: Path) -> None:
    offline = {"line_faults": {"rates": {"500": 0.3, "429": 0.1}, "attempts": 1}}
    poison = [{"contains": "Row 7 "}]
    place = scene(tmp_path, simulator={"offline": offline, "poison": poison})
    with place.served():
        summary = await place.run()
    assert (summary.exit_code, summary.rows.ok, summary.rows.failed) == (1, 99, 1)
    (failed,) = [row for row in place.table() if row["status"] == "failed"]
    assert (failed["ordinal"], failed["error"]["code"], failed["error"]["http_status"]) == (7, "content_filter", 400)
    assert all(count == 1 for count in place.answered().values())


async def test_a_row_that_always_meets_a_fault_fails_after_the_attempts_that_it_has(tmp_path: Path) -> None:
    offline = {"line_faults": {"rates": {"500": 1.0}}}
    place = scene(tmp_path, rows=3, simulator={"offline": offline}, run_keys={"max_attempts": 2})
    with place.served():
        summary = await place.run()
    assert summary.rows.failed == 3
    assert {row["error"]["type"] for row in place.table("error")} == {"InternalServerError"}
    assert len(place.submitted()) == 2


async def test_a_batch_that_the_service_refuses_as_a_whole_stops_the_run(tmp_path: Path) -> None:
    place = scene(tmp_path, rows=3, simulator={"deployment": {"batch": "never"}})
    with place.served():
        summary = await place.run()
    assert summary.exit_code == 3
    assert "is none for batches" in (summary.reason or "")
    assert summary.rows.failed == 0
    assert place.under_way() == 0


async def test_a_service_without_a_batch_api_stops_the_run(tmp_path: Path) -> None:
    place = scene(tmp_path, rows=3)
    with place.served():
        async with Refusing("POST", "batches", 403) as transport:
            summary = await place.run(transport=transport)
        assert summary.exit_code == 3
        assert "check that the resource offers files and batches" in (summary.reason or "")
        assert (await place.run()).exit_code == 0
    place.assert_each_row_once()


@pytest.mark.parametrize("attempts", [1, 2])
async def test_a_lost_reply_submits_nothing_twice(tmp_path: Path, attempts: int) -> None:
    """Every kind of call loses its first replies, after it was carried out; lists lag behind."""
    faults = {"rates": {"reset_before": 1.0}, "attempts": attempts}
    place = scene(tmp_path, simulator={"offline": {"faults": faults, "listing_lag_s": 0.3}}, run_keys={"poll": "100ms"})
    with place.served():
        summary = await place.run()
    assert summary.exit_code == 0, summary.reason
    place.assert_each_row_once()
    assert len(place.submitted()) == 1


@pytest.mark.parametrize("fault", ["500", "503", "429", "cut_length", "html", "close_early", "garbage", "empty_object"])
async def test_faults_of_calls_lose_nothing(tmp_path: Path, fault: str) -> None:
    faults = {"rates": {fault: 0.4}, "headers": {"retry-after-ms": "5"}}
    place = scene(tmp_path, rows=60, deployment={"enqueued_tokens": 600}, simulator={"offline": {"faults": faults}})
    with place.served():
        summary = await place.run()
    assert summary.exit_code == 0, summary.reason
    place.assert_each_row_once()


@pytest.mark.parametrize("max_outage", ["30m", "3h"])
async def test_an_hour_without_an_answer_to_any_look_loses_nothing_and_submits_nothing_twice(
    tmp_path: Path, max_outage: str
) -> None:
    """The hour passes in six seconds: the run's clock is six hundred times as fast."""
    place = scene(tmp_path, rows=20, run_keys={"poll": "60s", "max_outage": max_outage})
    with place.served():
        async with Down("batches/", seconds=6.0) as down:
            summary = await place.run(transport=down, clock=FastClock(600))
            if max_outage == "30m":
                assert (summary.state, summary.exit_code, summary.rows.ok) == ("stopped", 4, 0), (
                    summary.reason,
                    down.refused,
                )
                assert "run the same command again" in (summary.reason or "")
                assert down.refused >= 5
                await anyio.sleep(4)
                summary = await place.run(transport=down, clock=FastClock(600))
            else:
                assert down.is_over, (summary.reason, down.refused, summary.seconds)
        assert (summary.state, summary.exit_code, summary.rows.ok) == ("complete", 0, 20), summary.reason
    place.assert_each_row_once()
    assert len(place.submitted()) == 1


async def test_waiting_between_looks_is_no_stall_however_short_an_attempt_may_be(tmp_path: Path) -> None:
    offline = {"in_progress_s": 1.0}
    run_keys = {"poll": "200s", "timeout": "5s"}  # nothing done for 130 s would be a stall
    place = scene(tmp_path, rows=20, simulator={"offline": offline}, run_keys=run_keys)
    with place.served():
        summary = await place.run(clock=FastClock(30))
    assert (summary.state, summary.exit_code) == ("complete", 0), summary.reason
    place.assert_each_row_once()


async def test_a_pause_of_hours_that_a_look_is_answered_with_is_not_slept_through(tmp_path: Path) -> None:
    place = scene(tmp_path, rows=20, run_keys={"poll": "60s", "max_outage": "30m"})
    with place.served():
        async with Down("batches/", seconds=60.0, retry_after="86400") as down:
            summary = await place.run(transport=down, clock=FastClock(600))
        assert (summary.state, summary.exit_code, summary.rows.ok) == ("stopped", 4, 0), summary.reason
        assert (await place.run(clock=FastClock(600))).exit_code == 0
    place.assert_each_row_once()
    assert len(place.submitted()) == 1


@pytest.mark.parametrize("pack", [False, True])
async def test_rows_that_a_later_batch_asks_for_are_not_asked_a_third_time(tmp_path: Path, *, pack: bool) -> None:
    """What a kill leaves between the file of the left-over rows and the telling off of the batch that left them."""
    place = scene(tmp_path, rows=30, simulator={"offline": {"in_progress_s": 1.0}})
    with place.served():
        await place.run(wait=False)
        with place.journal() as reader:
            (live,) = reader.batches()
            lines = reader.batch_lines(live.tag)[:10]
        before = replace(live, tag="0" * 16, step=BatchStep.ENDED, batch="batch_old", file=None, count=len(lines))
        asked = [replace(line, tries=line.tries - 1) for line in lines]
        if pack:
            asked = [BatchLine(tries=-1, ordinals=tuple(one for line in lines for one in line.ordinals))]
        journal = Journal(place.layout.journal)
        await journal.keep_batch(before, asked)
        await journal.close()
        summary = await place.run()
    assert (summary.state, summary.exit_code, summary.rows.ok) == ("complete", 0, 30), summary.reason
    place.assert_each_row_once()
    assert len(place.submitted()) == 1


async def test_a_cut_output_file_is_fetched_again(tmp_path: Path) -> None:
    place = scene(tmp_path)
    with place.served():
        async with Cutting(times=2) as cut:
            summary = await place.run(transport=cut)
    assert summary.exit_code == 0, summary.reason
    assert cut.left == 0
    place.assert_each_row_once()


async def test_oddities_of_azure_change_nothing(tmp_path: Path) -> None:
    quirks = ["capital_states", "iso_dates", "null_counts", "empty_ids"]
    place = scene(tmp_path, api="azure", simulator={"quirks": quirks, "offline": {"in_progress_s": 0.1}})
    with place.served():
        assert (await place.run()).exit_code == 0
    place.assert_each_row_once()


async def test_files_are_deleted_once_results_are_safe_unless_they_are_to_be_kept(tmp_path: Path) -> None:
    place = scene(tmp_path, rows=5)
    with place.served():
        await place.run()
        assert files(place) == []
        place.run_keys["keep_files"] = True
        await place.run(output={"path": "out-2"})
        assert len(files(place)) == 3


async def test_a_run_that_does_not_wait_goes_on_from_where_it_was(tmp_path: Path) -> None:
    place = scene(tmp_path, simulator={"offline": {"in_progress_s": 1.5}})
    with place.served():
        first = await place.run(wait=False)
        assert first.exit_code == 4
        assert "1 batches with 100 requests are under way" in (first.reason or "")
        assert "run the same command again after" in (first.reason or "")
        assert (await place.run(wait=False)).exit_code == 4
        assert len(place.submitted()) == 1
        last = await place.run()
        assert last.exit_code == 0
    place.assert_each_row_once()
    assert len(place.submitted()) == 1


async def test_cron_finishes_a_job_that_does_not_fit_at_once(tmp_path: Path) -> None:
    place = scene(
        tmp_path,
        deployment={"enqueued_tokens": 400},
        simulator={"deployment": {"enqueued_tokens": 400}, "offline": {"in_progress_s": 0.8}},
    )
    with place.served():
        codes = []
        while not codes or codes[-1] == 4:
            codes.append((await place.run(wait=False)).exit_code)
            assert len(codes) < 60
            await anyio.sleep(0.3)
    assert codes[-1] == 0
    assert len(codes) > 2
    place.assert_each_row_once()


async def test_a_packed_operation_goes_in_packs(tmp_path: Path) -> None:
    place = scene(tmp_path, operation="embeddings", api="openai", deployment={"max_inputs": 16})
    with place.served():
        assert (await place.run()).exit_code == 0
    place.assert_each_row_once()
    assert len({row["request"]["request_id"] for row in place.table("request")}) == 8


async def test_a_refused_pack_is_cut_down_to_the_row_that_is_to_blame(tmp_path: Path) -> None:
    place = scene(tmp_path, operation="embeddings", api="openai", simulator={"poison": [{"contains": "Row 42 "}]})
    with place.served():
        summary = await place.run()
    assert (summary.rows.ok, summary.rows.failed) == (99, 1)
    assert [row["ordinal"] for row in place.table() if row["status"] == "failed"] == [42]


async def test_a_changed_input_is_noticed_before_anything_rests_on_it(tmp_path: Path) -> None:
    place = scene(tmp_path, rows=50, simulator={"offline": {"in_progress_s": 0.5}})
    with place.served():
        assert (await place.run(wait=False)).exit_code == 4
        rows = tmp_path / "rows.jsonl"
        rows.write_text(rows.read_text().replace(text_of(3), "Something else."))
        from pipeline.errors import InputChangedError  # noqa: PLC0415

        with pytest.raises(InputChangedError):
            await place.run()


async def test_the_folder_verifies(tmp_path: Path) -> None:
    place = scene(tmp_path, simulator={"offline": {"ends": ["expired", "completed"]}})
    with place.served():
        summary = await place.run()
    assert summary.cost_usd is not None
    assert summary.cost_usd > 0
    assert not verify_folder(place.layout).findings


def files(place: BatchScene) -> list[Any]:
    request = urllib.request.Request(f"{place.url}/openai/v1/files", headers={"api-key": "k"})
    with urllib.request.urlopen(request) as reply:
        found: list[Any] = json.load(reply)["data"]
    return found


class Refusing(httpx.AsyncBaseTransport):
    """Refuses one kind of call, and passes on the others."""

    def __init__(self, method: str, path: str, status: int) -> None:
        self._wanted = (method, path)
        self._status = status
        self._inner = httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.method == self._wanted[0] and request.url.path.endswith(self._wanted[1]):
            await request.aread()
            return httpx.Response(self._status, json={"error": {"code": "forbidden", "message": "Not here."}})
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


class FastClock(SystemClock):
    """The machine's clock, so many times as fast."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._began = super().now(), super().wall()

    def now(self) -> float:
        return super().now() * self._speed

    def wall(self) -> float:
        began, wall = self._began
        return wall + (super().now() - began) * self._speed

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds / self._speed)

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        loop = asyncio.get_running_loop()
        return loop.call_later(max(0.0, when - self.now()) / self._speed, callback)


class Down(httpx.AsyncBaseTransport):
    """Answers 503 to every look at a part of the service, for so many seconds from the first."""

    def __init__(self, path: str, *, seconds: float, retry_after: str | None = None) -> None:
        self._headers = {} if retry_after is None else {"retry-after": retry_after}
        self._path = path
        self._seconds = seconds
        self._since: float | None = None
        self._inner = httpx.AsyncHTTPTransport()
        self.refused = 0

    @property
    def is_over(self) -> bool:
        return self._since is not None and time.monotonic() - self._since >= self._seconds

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET" and self._path in request.url.path:
            self._since = self._since or time.monotonic()
            if not self.is_over:
                self.refused += 1
                return httpx.Response(503, headers=self._headers, json={"error": {"code": "503", "message": "Down."}})
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


class Cutting(httpx.AsyncBaseTransport):
    """Cuts the first contents of files short, without a length that would say so."""

    def __init__(self, times: int) -> None:
        self.left = times
        self._inner = httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._inner.handle_async_request(request)
        if not request.url.path.endswith("/content") or not self.left:
            return response
        self.left -= 1
        content = await response.aread()
        await response.aclose()
        return httpx.Response(200, stream=httpx.ByteStream(content[: len(content) // 2]))

    async def aclose(self) -> None:
        await self._inner.aclose()
