"""The online lane: what each answer does to a row, to a deployment and to the run."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import anyio
import httpx
import pytest
from in_memory import SIZE, Bench, Said, Service, refusal

from pipeline.errors import StoppedEarlyError
from pipeline.run import RunOptions, run_job

TRANSIENT = {
    408: "APIStatusError",
    409: "ConflictError",
    425: "APIStatusError",
    500: "InternalServerError",
    502: "InternalServerError",
    503: "InternalServerError",
    504: "InternalServerError",
    529: "InternalServerError",
}
NO_REPLY: dict[str, tuple[Callable[[], Exception], str]] = {
    "refused": (lambda: httpx.ConnectError("connection refused"), "APIConnectionError"),
    "no time to connect": (lambda: httpx.ConnectTimeout("x"), "APITimeoutError"),
    "no time to read": (lambda: httpx.ReadTimeout("x"), "APITimeoutError"),
    "cut": (lambda: httpx.ReadError("x"), "APIConnectionError"),
    "no HTTP": (lambda: httpx.RemoteProtocolError("x"), "APIConnectionError"),
}
UNUSABLE = {
    "nothing": b"",
    "an empty object": b"{}",
    "a page": b"<html>busy</html>",
    "a cut reply": b'{"choices": [{"index": 0, "message": {"role": "assi',
    "another shape": b'{"choices": "none"}',
    "opening brackets": b"[" * 100_000,
}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(folder=tmp_path, operation="chat", changes={"run": {"workers": 1}}).texts("a", "b", "c")


def on(text: str, said: Callable[[int], Said]) -> Callable[[list[str], int], Said]:
    """Answer a text's calls by how often it came; others as usual."""
    seen = 0

    def judge(texts: list[str], calls: int) -> Said:
        nonlocal seen
        if text not in texts:
            return None
        seen += 1
        return said(seen)

    return judge


FAULTS: dict[str, tuple[Callable[[], Said], str]] = {
    **{name: fault for name, fault in NO_REPLY.items() if name != "refused"},
    **{str(status): (partial(refusal, status, "busy"), type_) for status, type_ in TRANSIENT.items()},
}


@pytest.mark.anyio
@pytest.mark.parametrize("name", FAULTS)
async def test_a_row_fails_at_its_eighth_transient_fault_with_its_type(bench: Bench, name: str) -> None:
    fault, type_ = FAULTS[name]
    bench.texts("fine", name)
    service = Service(lambda texts, _: fault() if texts == [name] else None)
    summary = await bench.run(service)
    assert service.calls.count([name]) == 8
    first, row = bench.table()
    assert first["status"] == "ok"
    assert (row["error"]["type"], row["request"]["attempts"]) == (type_, 8)
    assert row["error"]["http_status"] == (int(name) if name.isdigit() else None)
    assert (summary.rows.ok, summary.rows.failed) == (1, 1)


@pytest.mark.anyio
@pytest.mark.parametrize("fault", [NO_REPLY["refused"][0], partial(refusal, 500), partial(refusal, 429)])
async def test_an_outage_fails_no_row_and_ends_the_run_when_it_is_longer_than_allowed(
    bench: Bench, fault: Callable[[], Said]
) -> None:
    bench.changes["run"] = {"workers": 4, "max_outage": "300ms"}
    bench.texts(*map(str, range(12)))
    summary = await bench.run(Service(lambda _, calls: None if calls <= 2 else fault()))
    assert (summary.state, summary.exit_code) == ("stopped", 4)
    assert (summary.rows.ok, summary.rows.failed) == (2, 0)
    assert "run.max_outage" in (summary.reason or "")
    bench.changes["run"] = {"workers": 4}
    assert (await bench.run(Service())).exit_code == 0
    assert [row["status"] for row in bench.table()] == ["ok"] * 12


@pytest.mark.anyio
async def test_a_row_that_is_answered_in_time_is_ok(bench: Bench) -> None:
    bench.changes["run"] = {"workers": 8}
    bench.texts(*map(str, range(8)))
    seen: dict[str, int] = {}

    def judge(texts: list[str], calls: int) -> Said:
        seen[texts[0]] = seen.get(texts[0], 0) + 1
        return refusal(500) if seen[texts[0]] <= int(texts[0]) else None

    summary = await bench.run(Service(judge))
    bench.assert_rows(range(8))
    assert summary.exit_code == 0
    assert [row["request"]["attempts"] for row in bench.table()] == list(range(1, 9))


@pytest.mark.anyio
@pytest.mark.parametrize("most", [1, 2, 5])
async def test_max_attempts_is_how_many_faults_a_row_may_meet(bench: Bench, most: int) -> None:
    bench.changes["run"]["max_attempts"] = most
    service = Service(on("b", lambda _: refusal(500)))
    await bench.run(service)
    assert service.calls.count(["b"]) == most


@pytest.mark.anyio
@pytest.mark.parametrize("body", UNUSABLE)
async def test_a_third_answer_that_cannot_be_used_fails_the_row(bench: Bench, body: str) -> None:
    service = Service(on("b", lambda _: httpx.Response(200, content=UNUSABLE[body])))
    await bench.run(service)
    assert service.calls.count(["b"]) == 3
    assert bench.failed() == {1: ("ReplyError", "bad_reply")}
    assert {one["verdict"] for one in bench.attempts() if one["ordinals"] == [1]} == {"bad_reply"}


@pytest.mark.anyio
async def test_two_answers_that_cannot_be_used_are_forgiven(bench: Bench) -> None:
    service = Service(on("b", lambda seen: httpx.Response(200, json={}) if seen <= 2 else None))
    assert (await bench.run(service)).exit_code == 0
    bench.assert_rows(range(3))


@pytest.mark.anyio
@pytest.mark.parametrize("header", ["retry-after-ms", "x-ms-retry-after-ms"])
async def test_being_throttled_is_never_an_attempt(bench: Bench, header: str) -> None:
    service = Service(on("b", lambda seen: refusal(429, "slow", headers={header: "1"}) if seen <= 20 else None))
    summary = await bench.run(service)
    bench.assert_rows(range(3))
    assert summary.throttled == 20
    assert bench.table()[1]["request"]["attempts"] == 1
    assert service.calls.count(["b"]) == 21


@pytest.mark.anyio
async def test_a_credential_refused_twice_stops_the_run_and_fails_no_row(bench: Bench) -> None:
    bench.changes["run"] = {"workers": 3}
    service = Service(lambda texts, _: None if texts == ["a"] else refusal(401, "401", "Access denied"))
    summary = await bench.run(service)
    assert (summary.state, summary.exit_code) == ("refused", 3)
    assert "Access denied" in (summary.reason or "")
    assert (summary.rows.ok, summary.rows.failed) == (1, 0)
    assert len(service.calls) <= 1 + 2 * 2
    bench.assert_rows([0])
    assert (await bench.run(Service())).exit_code == 0
    bench.assert_rows(range(3))


@pytest.mark.anyio
async def test_a_credential_refused_once_is_renewed_and_costs_no_attempt(bench: Bench) -> None:
    service = Service(on("b", lambda seen: refusal(401) if seen == 1 else None))
    summary = await bench.run(service)
    assert summary.exit_code == 0
    assert bench.table()[1]["request"]["attempts"] == 1


@pytest.mark.anyio
@pytest.mark.parametrize("code", ["insufficient_quota", "billing_hard_limit_reached"])
async def test_an_empty_account_stops_the_run_at_its_first_word(bench: Bench, code: str) -> None:
    service = Service(lambda texts, _: None if texts == ["a"] else refusal(429, code))
    summary = await bench.run(service)
    assert (summary.state, summary.exit_code) == ("refused", 3)
    assert service.calls == [["a"], ["b"]]
    assert summary.rows.failed == 0


@pytest.mark.anyio
@pytest.mark.parametrize("status", [301, 302, 307, 308, 403, 404])
async def test_a_deployment_that_refuses_three_times_in_a_row_stops_the_run(bench: Bench, status: int) -> None:
    service = Service(lambda texts, _: None if texts == ["a"] else refusal(status, "DeploymentNotFound"))
    summary = await bench.run(service)
    assert (summary.state, summary.exit_code) == ("refused", 3)
    assert service.calls == [["a"], ["b"], ["b"], ["b"]]
    assert (summary.rows.ok, summary.rows.failed) == (1, 0)
    assert [one["verdict"] for one in bench.attempts()] == ["answered", *["deployment_refused"] * 3]


@pytest.mark.anyio
@pytest.mark.parametrize("status", [403, 404])
async def test_refusals_with_successes_between_them_stop_nothing(bench: Bench, status: int) -> None:
    seen: dict[str, int] = {}

    def judge(texts: list[str], calls: int) -> Said:
        seen[texts[0]] = seen.get(texts[0], 0) + 1
        return refusal(status) if seen[texts[0]] <= 2 else None

    assert (await bench.run(Service(judge))).exit_code == 0
    bench.assert_rows(range(3))


@pytest.mark.anyio
@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_pause_longer_than_allowed_ends_the_run_and_says_when_to_come_back(bench: Bench, status: int) -> None:
    service = Service(on("b", lambda _: refusal(status, "later", headers={"retry-after": "86400"})))
    summary = await bench.run(service)
    assert (summary.state, summary.exit_code) == ("stopped", StoppedEarlyError.exit_code)
    assert "86400 s" in (summary.reason or "")
    assert summary.rows.failed == 0
    assert (await bench.run(Service())).rows.ok == 3


@pytest.mark.anyio
@pytest.mark.parametrize(
    "answer",
    [
        lambda: refusal(401),
        lambda: refusal(404),
        lambda: refusal(429, "insufficient_quota"),
        lambda: refusal(429, headers={"retry-after": "86400"}),
        lambda: httpx.ConnectError("[Errno -2] Name or service not known"),
    ],
    ids=["unauthorized", "not found", "spent", "paused", "unknown host"],
)
async def test_one_deployment_that_is_set_aside_leaves_the_work_to_the_other(
    bench: Bench, answer: Callable[[], Said]
) -> None:
    bench.changes["deployments"] = [
        {"endpoint": f"https://{name}.openai.azure.com", "deployment": name, "api": "azure", "model": "m"}
        for name in ("bad", "good")
    ]
    bench.texts(*"abcdefgh")

    class Two(Service):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if request.url.host.startswith("good"):
                return await super().handle_async_request(request)
            said = answer()
            if isinstance(said, Exception):
                raise said
            assert said is not None
            return said

    summary = await bench.run(Two())
    assert summary.exit_code == 0
    bench.assert_rows(range(8))
    assert {row["request"]["deployment"] for row in bench.table()} == {"good"}
    assert [use.set_aside is not None for use in summary.deployments] == [True, False]
    assert [event["deployment"] for event in bench.events if event["event"] == "deployment_set_aside"] == ["bad"]


@pytest.mark.anyio
async def test_a_row_that_no_quota_can_hold_fails_at_once_and_says_the_numbers(bench: Bench) -> None:
    bench.changes["deployments"] = [
        {"endpoint": "https://x.openai.azure.com", "deployment": name, "api": "azure", "tokens_per_minute": limit}
        for name, limit in (("a", 1000), ("b", 2000))
    ]
    bench.texts("short", "long " * 2000)
    service = Service()
    summary = await bench.run(service)
    assert service.calls == [["short"]]
    assert bench.failed() == {1: ("RowError", "quota_too_small")}
    error = bench.table()[1]["error"]["message"]
    assert "2,000 a minute" in error
    assert "2,5" in error
    assert bench.table()[1]["request"]["attempts"] == 0
    assert summary.exit_code == 1


@pytest.mark.anyio
async def test_a_pack_that_a_learnt_quota_cannot_hold_is_cut(tmp_path: Path) -> None:
    bench = Bench(folder=tmp_path, max_inputs=4, changes={"run": {"workers": 1}}).texts(
        *"abcd", *("x" * 400 + n for n in "efgh")
    )
    named = {"x-ratelimit-limit-tokens": "250"}

    class Small(Service):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            answer = await super().handle_async_request(request)
            answer.headers.update(named)
            return answer

    service = Small()
    bench.changes["run"]["deadline"] = "400ms"
    summary = await bench.run(service)
    assert [len(texts) for texts in service.calls] == [4, 2], "the first reply names the limit"
    assert (summary.rows.ok, summary.rows.failed) == (6, 0)


@pytest.mark.anyio
async def test_rows_whose_pictures_are_gone_by_then_hold_no_leave_that_others_wait_for(bench: Bench) -> None:
    content = [
        {"type": "text", "text": "{{ text }}"},
        {"type": "image_file", "image_file": {"path": "{{ text }}.png"}},
    ]
    bench.changes |= {
        "request": {"messages": [{"role": "user", "content": content}]},
        "input": {"path": "rows.jsonl", "media_root": "pictures"},
    }
    bench.texts(*"abcdefghijklmnop")
    pictures = bench.folder / "pictures"
    pictures.mkdir()
    for row in bench.rows:
        (pictures / f"{row['text']}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))

    def take_away(_: list[str], __: int) -> Said:
        for name in "bcdefghijklmno":
            (pictures / f"{name}.png").unlink(missing_ok=True)
        return None

    with anyio.fail_after(20):
        summary = await bench.run(Service(take_away))
    assert (summary.rows.ok, summary.rows.failed) == (2, 14)
    assert {type_ for type_, _ in bench.failed().values()} == {"MediaError"}


@pytest.mark.anyio
async def test_an_outage_that_nobody_answered_before_fails_no_row_however_few_there_are(bench: Bench) -> None:
    bench.changes["run"] = {"workers": 1, "max_outage": "2s"}
    bench.texts("only")
    service = Service(lambda _, __: refusal(500))
    summary = await bench.run(service)
    assert (summary.state, summary.exit_code, summary.rows.failed) == ("stopped", 4, 0)
    assert len(service.calls) >= 8
    assert (await bench.run(Service())).exit_code == 0


WIDE = refusal(400, "unsupported_parameter", "No such parameter.")


@pytest.mark.anyio
@pytest.mark.parametrize("operation", ["chat", "embeddings"])
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("window", ["1B", "1GiB"])
async def test_the_same_refusal_of_everybody_stops_a_run_that_had_answers_and_fails_no_row(
    bench: Bench, operation: str, workers: int, window: str
) -> None:
    bench.operation, bench.max_inputs = operation, 2
    bench.changes["run"] = {"workers": workers, "window": window}
    bench.texts(*map(str, range(240)))
    service = Service(lambda _, calls: None if calls <= 10 else WIDE)
    summary = await bench.run(service)
    assert (summary.state, summary.exit_code) == ("refused", 3)
    assert "100 requests in a row" in (summary.reason or "")
    assert (summary.rows.ok, summary.rows.failed) == (10 if operation == "chat" else 20, 0)
    assert len(service.calls) <= 10 + 100 + workers - 1
    assert summary.attempts == len(service.calls)
    assert (await bench.run(Service())).exit_code == 0
    bench.assert_rows(range(240))


@pytest.mark.anyio
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("window", ["1B", "1GiB"])
@pytest.mark.parametrize("max_inputs", [1, 4])
async def test_a_refusal_that_looks_like_everybodys_fails_its_row_once_an_answer_shows_that_it_is_not(
    bench: Bench, workers: int, window: str, max_inputs: int
) -> None:
    bench.operation, bench.max_inputs = "embeddings", max_inputs
    bench.changes["run"] = {"workers": workers, "window": window}
    bench.texts(*(f"bad {n}" if n % 7 == 5 else f"text {n}" for n in range(60)))
    with anyio.fail_after(20):
        summary = await bench.run(Service(lambda texts, _: WIDE if any("bad" in text for text in texts) else None))
    assert summary.exit_code == 1
    assert sorted(bench.failed()) == [n for n in range(60) if n % 7 == 5]
    assert summary.rows.ok == 60 - summary.rows.failed
    assert summary.attempts == len(bench.attempts())


@pytest.mark.anyio
async def test_refusals_that_the_input_ends_with_fail_their_rows(bench: Bench) -> None:
    bench.texts(*map(str, range(60)))
    summary = await bench.run(Service(lambda _, calls: None if calls <= 10 else WIDE))
    assert (summary.state, summary.exit_code) == ("complete", 1)
    assert (summary.rows.ok, summary.rows.failed) == (10, 50)
    assert summary.attempts == 60


@pytest.mark.anyio
async def test_a_stop_leaves_what_is_held_back_pending_and_keeps_its_attempts(bench: Bench) -> None:
    bench.changes["run"] = {"workers": 1}
    bench.texts(*map(str, range(60)))

    def answer(_: list[str], calls: int) -> Said:
        if calls == 12:
            signal.raise_signal(signal.SIGTERM)
        return None if calls <= 2 else WIDE

    service = Service(answer)
    summary = await run_job(bench.job(), options=RunOptions(signals=True), transport=service)
    assert (summary.exit_code, summary.reason) == (143, "stopped by SIGTERM")
    assert (summary.rows.ok, summary.rows.failed) == (2, 0)
    assert summary.attempts == len(bench.attempts()) == len(service.calls) >= 12


@pytest.mark.anyio
async def test_refusals_that_look_like_everybodys_are_in_no_journal_until_they_are_settled(bench: Bench) -> None:
    bench.texts(*map(str, range(150)))
    service = Service(lambda _, calls: None if calls <= 10 else WIDE)
    summary = await bench.run(service)
    assert (summary.exit_code, summary.rows.ok, summary.rows.failed) == (3, 10, 0)
    assert len(service.calls) == 10 + 100, "ninety-nine are held back, and the hundredth ends the run"
    again = Service()
    assert (await bench.run(again)).exit_code == 0
    assert sorted(again.calls) == sorted([str(number)] for number in range(10, 150))
    bench.assert_rows(range(150))


@pytest.fixture
def embeddings(tmp_path: Path) -> Bench:
    changes = {"run": {"workers": 1}, "request": {"input": "{{ text }}"}}
    return Bench(folder=tmp_path, max_inputs=2, changes=changes).texts(*"abcdef")


@pytest.mark.anyio
async def test_a_vector_size_that_nobody_knows_is_learnt_from_the_first_reply_and_kept(embeddings: Bench) -> None:
    summary = await embeddings.run(Service(), limit=2)
    with embeddings.journal() as journal:
        assert journal.noted("facts") == {"vector_size": SIZE}
    assert summary.rows.ok == 2
    assert (await embeddings.run(Service())).exit_code == 0
    embeddings.assert_rows(range(6))
    assert len({str(schema) for schema in embeddings.schemas()}) == 1


@pytest.mark.anyio
async def test_vectors_of_another_size_than_the_first_fail_their_rows(embeddings: Bench) -> None:
    service = Service(size=lambda calls: SIZE if calls == 1 else SIZE + 1)
    await embeddings.run(service)
    assert embeddings.failed() == dict.fromkeys(range(2, 6), ("ReplyError", "bad_reply"))
    embeddings.assert_rows(range(6))
    assert len(service.calls) == 1 + 2 * 3


@pytest.mark.anyio
async def test_first_replies_of_two_sizes_at_once_agree_on_one(embeddings: Bench) -> None:
    embeddings.changes["run"] = {"workers": 3}
    await embeddings.run(Service(size=lambda calls: SIZE + calls % 2, latency_s=0.02))
    with embeddings.journal() as journal:
        size = journal.noted("facts")["vector_size"]
    table = embeddings.table()
    assert [row["ordinal"] for row in table] == list(range(6))
    assert {len(row["embedding"]) for row in table if row["status"] == "ok"} == {size}


@pytest.mark.anyio
async def test_ranges_of_failed_rows_wait_for_the_size_and_are_sealed_with_it(embeddings: Bench) -> None:
    embeddings.changes["output"] = {"part_rows": 2}
    embeddings.changes["run"]["window"] = "1B"
    with anyio.fail_after(20):
        await embeddings.run(Service(lambda texts, _: refusal(400) if set(texts) & set("abcd") else None))
    assert set(embeddings.failed()) == {0, 1, 2, 3}
    embeddings.assert_rows(range(6))
    assert len(embeddings.parts()) == 3


@pytest.mark.anyio
async def test_rows_without_any_answer_wait_in_the_journal_for_a_size(embeddings: Bench) -> None:
    summary = await embeddings.run(Service(lambda texts, _: refusal(400)))
    assert (summary.rows.failed, summary.rows.not_in_parts) == (6, 6)
    embeddings.rows.append({"id": "new", "text": "new", "n": 6})
    service = Service()
    await embeddings.run(service)
    assert service.calls == [["new"]]
    embeddings.assert_rows(range(7))
    assert set(embeddings.failed()) == set(range(6))


@pytest.mark.anyio
@pytest.mark.parametrize(("raw", "kept"), [("all", [True, True]), ("failed", [False, True]), ("none", [False, False])])
async def test_replies_are_kept_as_far_as_the_job_wants(bench: Bench, raw: str, kept: list[bool]) -> None:
    bench.changes["output"] = {"raw": raw}
    await bench.run(Service(on("b", lambda _: refusal(400))))
    assert [row["response"] is not None for row in bench.table()[:2]] == kept


@pytest.mark.anyio
async def test_an_error_body_beyond_a_megabyte_is_not_kept(bench: Bench) -> None:
    await bench.run(Service(on("b", lambda _: httpx.Response(400, content=b"x" * (1024 * 1024 + 1)))))
    assert bench.table()[1]["response"] is None
    assert len(bench.table()[1]["error"]["message"]) <= 500


@pytest.mark.anyio
@pytest.mark.parametrize("status", [429, 500])
async def test_a_wait_ends_at_once_when_the_run_stops(bench: Bench, status: int) -> None:
    bench.changes["run"] = {"workers": 3, "deadline": "200ms"}
    service = Service(on("b", lambda _: refusal(status, headers={"retry-after": "60"})))
    with anyio.fail_after(30):
        summary = await bench.run(service)
    assert (summary.state, summary.exit_code) == ("stopped", 4)
    assert summary.rows.failed == 0
    assert service.calls.count(["b"]) == 1
    assert [one["ordinals"] for one in bench.attempts()].count([1]) == 1, "the call that was made is on file"


class Outlasting(Service):
    """Refuses `c`, which ends the run, once `a` and `b` are in flight; answers these `late_s` after the run stops."""

    def __init__(self, bench: Bench, *, late_s: float = 0.5) -> None:
        super().__init__(lambda texts, _: refusal(401) if texts == ["c"] else None)
        self._bench = bench
        self._late_s = late_s
        self._held = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if json.loads(await request.aread())["messages"][-1]["content"] == "c":
            await self._until(lambda: self._held == 2)
        else:
            self._held += 1
            await self._until(lambda: any(event["event"] == "deployment_set_aside" for event in self._bench.events))
            for _ in range(50):  # so that the run has its turns, however long one of them takes
                await anyio.sleep(self._late_s / 50)
        return await super().handle_async_request(request)

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():  # noqa: ASYNC110 - events of the run come as values
            await anyio.sleep(0.001)


@pytest.mark.anyio
async def test_calls_in_flight_that_end_within_the_grace_are_kept(bench: Bench) -> None:
    bench.changes["run"] = {"workers": 3, "grace": "60s"}
    with anyio.fail_after(30):
        summary = await bench.run(Outlasting(bench))
    assert (summary.exit_code, summary.rows.ok, summary.rows.failed) == (3, 2, 0)
    bench.changes["run"] = {"workers": 3}
    service = Service()
    assert (await bench.run(service)).exit_code == 0
    assert service.calls == [["c"]], "what was answered within the grace is not asked again"
    bench.assert_rows(range(3))


@pytest.mark.anyio
async def test_calls_in_flight_beyond_the_grace_are_abandoned_and_their_rows_pending(bench: Bench) -> None:
    bench.changes["run"] = {"workers": 3, "grace": "50ms"}
    with anyio.fail_after(30):
        summary = await bench.run(Outlasting(bench, late_s=60))
    assert (summary.exit_code, summary.rows.ok, summary.rows.failed) == (3, 0, 0)
    bench.changes["run"] = {"workers": 3}
    assert (await bench.run(Service())).rows.ok == 3


@pytest.mark.anyio
async def test_a_run_that_waits_for_the_window_stops_too(bench: Bench) -> None:
    bench.changes |= {
        "run": {"workers": 3, "window": "1B", "deadline": "100ms", "grace": "50ms"},
        "output": {"part_rows": 2},
    }
    with anyio.fail_after(30):
        summary = await bench.run(Service(latency_s=60))
    assert summary.exit_code == 4
    bench.changes["run"] = {"workers": 3, "window": "1B"}
    assert (await bench.run(Service())).rows.ok == 3
    bench.assert_rows(range(3))


@pytest.mark.anyio
async def test_a_bug_in_a_worker_ends_the_run_and_is_not_swallowed(bench: Bench) -> None:
    def broken(texts: list[str], calls: int) -> Said:
        if texts == ["b"]:
            raise ZeroDivisionError
        return None

    with anyio.fail_after(30), pytest.raises(ZeroDivisionError):
        await bench.run(Service(broken))
    assert (await bench.run(Service())).rows.ok == 3
    bench.assert_rows(range(3))


@pytest.mark.anyio
async def test_a_service_that_quotes_the_key_and_the_prompt_does_not_get_them_into_logs_or_last_words(
    bench: Bench,
) -> None:
    prompt = "the quarterly figures of a company that nobody may know of yet"
    bench.texts(prompt)
    words = f"Key {'k' * 32} was refused"
    summary = await bench.run(Service(lambda _, __: refusal(401, "denied", words)))
    assert (summary.exit_code, summary.rows.failed) == (3, 0)
    assert "Key *** was refused" in (summary.reason or "")
    summary = await bench.run(Service(lambda _, __: refusal(403, "denied", f"We do not like: {prompt}")))
    assert "the service's words are left out" in (summary.reason or "")
    written = b"".join(path.read_bytes() for path in bench.layout.private.rglob("*.json*"))
    assert b"k" * 32 not in written
    assert prompt.encode() not in written
    assert all(prompt not in str(event) and "k" * 32 not in str(event) for event in bench.events)


def named(model: str | None) -> httpx.Response:
    choice = {"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}
    return httpx.Response(200, json={"choices": [choice], **({"model": model} if model else {})})


@pytest.mark.anyio
async def test_a_row_says_which_model_answered_it_and_another_one_is_said_once(bench: Bench) -> None:
    models = ["m-2024", "m-2024", "m-2025", None, "m-2024", "m-2025", "bad name", "m-2026"]
    bench.texts(*map(str, range(len(models))))
    await bench.run(Service(lambda texts, _: named(models[int(texts[0])])), limit=7)
    said = [(event["model"], event["before"]) for event in bench.events if event["event"] == "another_model"]
    assert said == [("m-2025", "m-2024")]
    await bench.run(Service(lambda texts, _: named(models[int(texts[0])])))
    said = [(event["model"], event["before"]) for event in bench.events if event["event"] == "another_model"]
    assert said[1:] == [("m-2026", "m-2024, m-2025")]
    expected = ["m-2024", "m-2024", "m-2025", "unknown", "m-2024", "m-2025", "unknown", "m-2026"]
    assert [row["request"]["model"] for row in bench.table()] == expected


KINDS: dict[str, tuple[str, str, dict[str, str]]] = {
    "quota of requests": ("429", "Requests have exceeded call rate limit of your current tier.", {}),
    "quota of tokens": ("429", "Requests have exceeded token rate limit of your current tier.", {}),
    "want of capacity": ("429", "The system is currently experiencing high demand.", {}),
    "provisioned throughput": ("429", "Too busy.", {"azure-openai-deployment-utilization": "101.2%"}),
    "flex": ("resource_unavailable", "Flex processing has no resources.", {}),
}


@pytest.mark.anyio
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [1, 4])
async def test_a_429_of_any_kind_is_waited_out_and_no_attempt_though_it_comes_first_and_often(
    bench: Bench, kind: str, workers: int
) -> None:
    code, message, headers = KINDS[kind]
    refused = refusal(429, code, message, {"retry-after-ms": "5", **headers})
    bench.changes["run"] = {"workers": workers}
    service = Service(lambda _, calls: refused if calls <= 6 else None)
    with anyio.fail_after(30):
        summary = await bench.run(service)
    assert (summary.state, summary.rows.ok, summary.throttled) == ("complete", 3, 6)
    bench.assert_rows(range(3))
    assert {row["request"]["attempts"] for row in bench.table()} == {1}


@pytest.mark.anyio
@pytest.mark.parametrize("kind", KINDS)
async def test_a_429_of_any_kind_that_asks_for_a_day_ends_the_run_and_says_when_to_come_back(
    bench: Bench, kind: str
) -> None:
    code, message, headers = KINDS[kind]
    refused = refusal(429, code, message, {"retry-after": "86400", **headers})
    summary = await bench.run(Service(on("b", lambda _: refused)))
    assert (summary.state, summary.exit_code, summary.rows.failed) == ("stopped", 4, 0)
    assert "asks for a pause of 86400 s; run again after" in (summary.reason or "")
    assert message in (summary.reason or "")


@pytest.mark.anyio
async def test_money_that_is_spent_is_said_in_the_services_words_and_not_waited_for(bench: Bench) -> None:
    message = "You exceeded your current quota, please check your plan and billing details."
    refused = refusal(429, "insufficient_quota", message, {"retry-after-ms": "5"})
    service = Service(on("b", lambda _: refused))
    summary = await bench.run(service)
    assert (summary.state, summary.exit_code, summary.rows.failed) == ("refused", 3, 0)
    assert summary.throttled == 0
    assert service.calls.count(["b"]) == 1
    assert "no deployment is left to send to" in (summary.reason or "")
    assert f"insufficient_quota: {message}" in (summary.reason or "")
