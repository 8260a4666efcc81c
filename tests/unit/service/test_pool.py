"""Which deployment is next, and which are set aside."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import httpx
import pytest

from pipeline.errors import NoTokenYetError, RefusedError, StoppedEarlyError
from pipeline.log import Event, Level
from pipeline.model import Call, ErrorInfo, ErrorType, NoReply, NoReplyKind
from pipeline.pace.retry import Reauthorise, Refused, Spent, Throttle, TooLong
from pipeline.pace.verdict import ThrottleKind
from pipeline.service.neighbours import Seat
from pipeline.service.pool import AsideKind, Pool, open_pool
from pipeline.testing import ManualClock, MemoryTransport

if TYPE_CHECKING:
    from pipeline.job.spec import Job

pytestmark = pytest.mark.anyio
ERROR = ErrorInfo(type=ErrorType.PERMISSION_DENIED, code="forbidden", message="no", http_status=403)
CALL = Call(endpoint="embeddings", body=b"{}", tokens=10)


@dataclass(frozen=True, kw_only=True)
class Text:
    text: str

    def reveal(self) -> str:
        return self.text


@dataclass(frozen=True, kw_only=True)
class Spec:
    """The part of a job's deployment that the service reads."""

    name: str
    endpoint: str = "https://h.example"
    deployment: str = "d"
    model: str = "m"
    api: str = "azure"
    api_version: str | None = "v"
    auth: str = "key"
    key: Text | None = Text(text=" the-key \n")
    token: Text | None = None
    headers: Mapping[str, Text] = field(default_factory=dict)
    organization: str | None = None
    project: str | None = None
    ca_bundle: Path | None = None
    scope: str | None = None
    credential: Mapping[str, object] | None = None
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    max_inputs: int | None = None
    priority: int = 0
    lane: str = "online"


@dataclass(frozen=True, kw_only=True)
class Run:
    workers: int = 4
    timeout_s: float = 300.0
    max_outage_s: float = 1800.0
    leave: float = 0.0


@dataclass(frozen=True, kw_only=True)
class FakeJob:
    deployments: tuple[Spec, ...]
    run: Run = Run()


def job(*specs: Spec) -> Job:
    return cast("Job", FakeJob(deployments=specs))


def transport(clock: ManualClock, status: Callable[[], int] = lambda: 200) -> MemoryTransport:
    return MemoryTransport(lambda _: httpx.Response(status()), clock=clock)


def names(pool: Pool, *, count: int, tokens: int = 10) -> list[str]:
    found = []
    for _ in range(count):
        deployment = pool.pick(tokens)
        deployment.try_leave(tokens)
        found.append(deployment.name)
    return found


async def test_a_later_deployment_takes_what_the_earlier_cannot() -> None:
    clock = ManualClock()
    specs = (Spec(name="late", priority=1, requests_per_minute=60), Spec(name="early", requests_per_minute=60))
    async with open_pool(job(*specs), clock=clock, random=lambda: 0.0, transport=transport(clock)) as pool:
        assert names(pool, count=2) == ["early", "late"]
        clock.advance(1.1)
        assert names(pool, count=2) == ["early", "late"]


async def test_the_soonest_is_next_and_a_queue_counts() -> None:
    clock = ManualClock()
    specs = (Spec(name="slow", requests_per_minute=60), Spec(name="fast", requests_per_minute=600))
    async with open_pool(job(*specs), clock=clock, random=lambda: 0.0, transport=transport(clock)) as pool:
        assert sorted(names(pool, count=2)) == ["fast", "slow"]
        assert pool.pick(10).name == "fast"


async def test_among_equals_the_less_busy_is_next() -> None:
    clock = ManualClock()
    async with open_pool(
        job(Spec(name="a"), Spec(name="b")), clock=clock, random=lambda: 0.0, transport=transport(clock)
    ) as pool:
        pool.deployments[0].in_flight = 3
        assert pool.pick(10).name == "b"


async def test_three_refusals_in_a_row_set_a_deployment_aside_and_the_others_go_on() -> None:
    clock = ManualClock()
    async with open_pool(
        job(Spec(name="a"), Spec(name="b")), clock=clock, random=lambda: 0.0, transport=transport(clock)
    ) as pool:
        first, second = pool.deployments
        exchange = await first.send(CALL)
        notice = Refused(error=ERROR)
        assert await pool.heed(first, notice, exchange) is None
        assert await pool.heed(first, notice, exchange) is None
        pool.answered(first, exchange)
        for _ in range(2):
            assert await pool.heed(first, notice, exchange) is None
        aside = await pool.heed(first, notice, exchange)
        assert aside is not None
        assert (aside.deployment, aside.kind) == ("a", AsideKind.REFUSED)
        assert await pool.heed(first, notice, exchange) is None
        assert names(pool, count=3) == ["b", "b", "b"]
        await pool.heed(second, Spent(error=ERROR), exchange)
        assert isinstance(pool.exhausted, RefusedError)
        assert "forbidden" in str(pool.exhausted)
        with pytest.raises(RefusedError):
            pool.pick(1)
        assert [aside.deployment for aside in pool.asides] == ["a", "b"]


async def test_a_pause_that_is_too_long_stops_early_and_says_when_to_come_back() -> None:
    clock = ManualClock()
    async with open_pool(
        job(Spec(name="a"), Spec(name="b")), clock=clock, random=lambda: 0.0, transport=transport(clock)
    ) as pool:
        first, second = pool.deployments
        exchange = await first.send(CALL)
        await pool.heed(first, Spent(error=ERROR), exchange)
        await pool.heed(second, TooLong(error=ERROR, hint_s=86_400), exchange)
        assert isinstance(pool.exhausted, StoppedEarlyError)
        assert "86400 s" in str(pool.exhausted)


async def test_throttling_closes_the_gate_of_its_deployment_alone() -> None:
    clock = ManualClock()
    async with open_pool(
        job(Spec(name="a"), Spec(name="b")), clock=clock, random=lambda: 0.0, transport=transport(clock)
    ) as pool:
        first, second = pool.deployments
        exchange = await first.send(CALL)
        await pool.heed(first, Throttle(hint_s=5.0, error=ERROR), exchange)
        assert not first.try_leave(1)
        assert second.try_leave(1)
        clock.advance(5.0)
        assert first.try_leave(1)
        assert first.throttled == 1


async def test_a_key_is_forgiven_once_and_then_stops_the_deployment() -> None:
    clock = ManualClock()
    answers = iter([401, 200, 401, 401])
    async with open_pool(
        job(Spec(name="a")), clock=clock, random=lambda: 0.0, transport=transport(clock, lambda: next(answers))
    ) as pool:
        one = pool.deployments[0]
        notice = Reauthorise(error=ERROR)
        assert await pool.heed(one, notice, await one.send(CALL)) is None
        await one.send(CALL)
        assert await pool.heed(one, notice, await one.send(CALL)) is None
        aside = await pool.heed(one, notice, await one.send(CALL))
        assert aside is not None
        assert aside.kind is AsideKind.UNAUTHORIZED
        assert isinstance(pool.exhausted, RefusedError)


@pytest.mark.parametrize(
    ("spec", "sent"),
    [
        (Spec(name="a"), {"api-key": "the-key"}),
        (Spec(name="a", api="azure-v1"), {"api-key": "the-key"}),
        (Spec(name="a", api="openai"), {"authorization": "Bearer the-key"}),
        (Spec(name="a", auth="token", token=Text(text="t")), {"authorization": "Bearer t"}),
        (Spec(name="a", auth="none"), {}),
        (
            Spec(name="a", auth="none", organization="o", project="p", headers={"X-Gate": Text(text="g")}),
            {"openai-organization": "o", "openai-project": "p", "x-gate": "g"},
        ),
    ],
    ids=repr,
)
async def test_each_kind_of_credential_has_its_header(spec: Spec, sent: dict[str, str]) -> None:
    clock = ManualClock()
    asked = transport(clock)
    async with open_pool(job(spec), clock=clock, random=lambda: 0.0, transport=asked) as pool:
        exchange = await pool.deployments[0].send(CALL)
    headers = dict(asked.requests[0].headers)
    assert headers.pop("user-agent").startswith("aoai-pipeline/")
    assert headers == {
        "host": "h.example", "content-type": "application/json", "accept": "application/json",
        "accept-encoding": "gzip", "content-length": "2", "x-ms-client-request-id": exchange.client_request_id, **sent,
    }  # fmt: skip


@pytest.mark.parametrize(
    "spec",
    [
        Spec(name="a", deployment="../x"),
        Spec(name="a", endpoint="http://elsewhere.example"),
        Spec(name="a", key=None),
        Spec(name="a", key=Text(text="  ")),
        Spec(name="a", key=Text(text="sésame")),
        Spec(name="a", auth="token"),
        Spec(name="a", auth="entra", credential={"type": "nonsense"}),
        Spec(name="a", headers={"x": Text(text="sésame")}),
        Spec(name="a", headers={"x": Text(text="a\nsésame")}),
    ],
    ids=str,
)
async def test_a_deployment_that_cannot_work_is_refused_before_anything_is_sent(spec: Spec) -> None:
    clock = ManualClock()
    with pytest.raises(RefusedError) as caught:
        async with open_pool(job(spec), clock=clock, random=lambda: 0.0, transport=transport(clock)):
            pass
    assert "same" not in str(caught.value)


async def test_a_credential_goes_to_the_host_it_was_given_for_alone() -> None:
    clock = ManualClock()
    asked = transport(clock)
    specs = [
        Spec(name=name, endpoint=f"https://{name}.example", key=Text(text=f"key-{name}")) for name in ("a", "b", "c")
    ]
    async with open_pool(job(*specs), clock=clock, random=lambda: 0.0, transport=asked) as pool:
        for deployment in pool.deployments:
            await deployment.send(CALL)
    assert [(request.url.host, request.headers["api-key"]) for request in asked.requests] == [
        (f"{name}.example", f"key-{name}") for name in ("a", "b", "c")
    ]


async def test_without_a_transport_the_default_one_is_made_and_closed() -> None:
    clock = ManualClock()
    spec = Spec(name="a", endpoint="http://127.0.0.1:9")
    async with open_pool(job(spec), clock=clock, random=lambda: 0.0) as pool:
        assert pool.exhausted is None


async def test_a_lower_priority_number_is_waited_for_a_second_and_no_longer() -> None:
    clock = ManualClock()
    specs = (Spec(name="paid", requests_per_minute=600), Spec(name="later", priority=1, requests_per_minute=6000))
    async with open_pool(job(*specs), clock=clock, random=lambda: 0.0, transport=transport(clock)) as pool:
        paid, later = pool.deployments
        assert paid.try_leave(1)
        waiting = [asyncio.create_task(paid.leave(1)) for _ in range(9)]
        await asyncio.sleep(0)
        assert pool.pick(1) is paid, "ten in line are served within a second"
        waiting += [asyncio.create_task(paid.leave(1)) for _ in range(2)]
        await asyncio.sleep(0)
        assert pool.pick(1) is later
        paid.dismiss()
        await asyncio.gather(*waiting)


async def test_who_waits_for_a_gate_that_closes_is_sent_elsewhere() -> None:
    clock = ManualClock()
    specs = (Spec(name="a", requests_per_minute=60), Spec(name="b", requests_per_minute=60))
    async with open_pool(job(*specs), clock=clock, random=lambda: 0.0, transport=transport(clock)) as pool:
        first, _ = pool.deployments
        assert first.try_leave(1)
        exchange = await first.send(CALL)
        waiting = asyncio.create_task(first.leave(1))
        await asyncio.sleep(0)
        await pool.heed(first, Throttle(hint_s=30.0, error=ERROR), exchange)
        assert await waiting is False
        assert pool.pick(1).name == "b"


@pytest.mark.parametrize(
    ("notices", "waits_s"),
    [
        ([Refused(error=ERROR)] * 3, [60, 120, 240]),
        ([TooLong(error=ERROR, hint_s=900)], [900, 900]),
        ([Reauthorise(error=ERROR)] * 2, [60, 120, 240]),
    ],
    ids=["refused", "paused", "unauthorized"],
)
async def test_a_deployment_that_was_set_aside_is_tried_again_by_one_request_at_a_time(
    notices: list[Refused | TooLong | Reauthorise], waits_s: list[float]
) -> None:
    clock = ManualClock()
    status = 401 if isinstance(notices[0], Reauthorise) else 200
    asked = transport(clock, lambda: status)
    async with open_pool(job(Spec(name="a"), Spec(name="b")), clock=clock, random=lambda: 0.0, transport=asked) as pool:
        first, _ = pool.deployments
        for notice in notices:
            aside = await pool.heed(first, notice, await first.send(CALL))
        assert aside is not None
        for wait_s in waits_s:
            clock.advance(wait_s - 1)
            assert pool.pick(1).name == "b"
            clock.advance(1)
            assert [pool.pick(1).name for _ in range(3)] == ["a", "b", "b"]
            assert await pool.heed(first, notices[-1], await first.send(CALL)) is None
        assert [one.deployment for one in pool.asides] == ["a"]
        assert first.credentials.generation == (1 + len(waits_s) if status == 401 else 0), "renewed before each try"
        clock.advance(3600)
        assert pool.pick(1) is first
        assert first.try_leave(1)
        pool.answered(first, await first.send(CALL))
        assert pool.asides == ()
        assert {pool.pick(1).name for _ in range(2)} <= {"a", "b"}
        assert not first.closed


async def test_an_empty_account_is_not_tried_again() -> None:
    clock = ManualClock()
    async with open_pool(
        job(Spec(name="a"), Spec(name="b")), clock=clock, random=lambda: 0.0, transport=transport(clock)
    ) as pool:
        await pool.heed(pool.deployments[0], Spent(error=ERROR), await pool.deployments[0].send(CALL))
        for _ in range(100):
            clock.advance(3600)
            assert pool.pick(1).name == "b"


async def test_an_answer_to_what_was_sent_before_does_not_bring_a_deployment_back() -> None:
    clock = ManualClock()
    async with open_pool(
        job(Spec(name="a"), Spec(name="b")), clock=clock, random=lambda: 0.0, transport=transport(clock)
    ) as pool:
        first, _ = pool.deployments
        early = await first.send(CALL)
        clock.advance(1)
        await pool.heed(first, TooLong(error=ERROR, hint_s=900), early)
        pool.answered(first, early)
        assert [one.deployment for one in pool.asides] == ["a"]


async def test_one_deployment_without_a_token_leaves_the_others() -> None:
    clock = ManualClock()
    async with open_pool(
        job(Spec(name="a"), Spec(name="b")), clock=clock, random=lambda: 0.0, transport=transport(clock)
    ) as pool:
        first, second = pool.deployments
        aside = pool.without_credential(first, RefusedError("no token"))
        assert aside is not None
        assert (aside.kind, aside.error.code) == (AsideKind.UNAUTHORIZED, "no_credential")
        with pytest.raises(RefusedError, match="no token"):
            pool.without_credential(second, RefusedError("no token"))


async def test_an_outage_sends_the_traffic_to_the_others_but_for_probes() -> None:
    clock = ManualClock()
    async with open_pool(
        job(Spec(name="a"), Spec(name="b")), clock=clock, random=lambda: 0.0, transport=transport(clock)
    ) as pool:
        first, _ = pool.deployments
        exchange = await first.send(CALL)
        pool.answered(first, exchange)
        while not first.outage.on:
            pool.failed(first, exchange, "away", throttled=False)
            clock.advance(2.0)
        assert names(pool, count=2) == ["a", "b"], "a probe is due"
        assert names(pool, count=2) == ["b", "b"]
        pool.answered(first, exchange)
        assert not first.outage.on


@pytest.mark.parametrize("throttled", [True, False])
async def test_the_run_ends_when_every_deployment_is_silent_for_longer_than_allowed(
    throttled: bool,  # noqa: FBT001 - a case
) -> None:
    clock = ManualClock()
    spec = FakeJob(deployments=(Spec(name="a"), Spec(name="b")), run=Run(max_outage_s=60))
    async with open_pool(cast("Job", spec), clock=clock, random=lambda: 0.0, transport=transport(clock)) as pool:
        first, second = pool.deployments
        exchange = await first.send(CALL)
        for deployment in pool.deployments:
            pool.answered(deployment, exchange)
        pool.failed(first, exchange, "busy", throttled=throttled)
        clock.advance(61)
        assert not pool.failed(first, exchange, "busy", throttled=throttled)
        pool.failed(second, exchange, "busy", throttled=throttled)
        clock.advance(60)
        pool.failed(first, exchange, "busy", throttled=throttled)
        clock.advance(1)
        with pytest.raises(StoppedEarlyError, match=r"nothing for 61 s.*run.max_outage.*busy"):
            pool.failed(first, exchange, "busy", throttled=throttled)


@pytest.mark.parametrize("kind", NoReplyKind)
async def test_that_nobody_can_connect_is_never_a_rows_fault(kind: NoReplyKind) -> None:
    clock = ManualClock()
    async with open_pool(job(Spec(name="a")), clock=clock, random=lambda: 0.0, transport=transport(clock)) as pool:
        one = pool.deployments[0]
        exchange = await one.send(CALL)
        pool.answered(one, exchange)
        lost = replace(exchange, reply=NoReply(kind=kind, message="m", latency_ms=1))
        assert pool.failed(one, lost, "m", throttled=False) is (kind is NoReplyKind.CONNECT)


@pytest.mark.parametrize(
    ("limits", "tokens", "most"),
    [((100, 200), 200, None), ((100, 200), 201, 200), ((100, None), 10_000, None), ((None,), 10_000, None)],
)
async def test_what_fits_no_quota_is_known_before_it_is_sent(
    limits: tuple[float | None, ...], tokens: int, most: float | None
) -> None:
    clock = ManualClock()
    specs = [Spec(name=str(number), tokens_per_minute=limit) for number, limit in enumerate(limits)]
    async with open_pool(job(*specs), clock=clock, random=lambda: 0.0, transport=transport(clock)) as pool:
        assert pool.too_small_for(tokens) == most
        if most is None and None not in limits:
            assert pool.pick(tokens).name == "1", "the only one that it fits"


class Heard:
    """Keeps the events that a pool says."""

    def __init__(self, pool: Pool) -> None:
        self.events: list[tuple[Event, Level, dict[str, object]]] = []
        pool.listen(self._hear)

    def _hear(self, event: Event, level: Level, **fields: object) -> None:
        self.events.append((event, level, fields))


async def test_an_outage_is_said_when_it_begins_and_when_it_ends() -> None:
    clock = ManualClock()
    spec = job(Spec(name="a", requests_per_minute=1e6))
    async with open_pool(spec, clock=clock, random=lambda: 0.0, transport=transport(clock)) as pool:
        heard, (deployment,) = Heard(pool), pool.deployments
        assert deployment.try_leave(10)
        exchange = await deployment.send(CALL)
        for _ in range(25):
            pool.failed(deployment, exchange, "busy", throttled=False)
            clock.advance(2.0)
        assert [(event, level) for event, level, _ in heard.events] == [(Event.OUTAGE_BEGAN, Level.WARNING)]
        assert heard.events[0][2] == {"deployment": "a", "seconds": 38.0, "next_probe_s": 1.0, "reason": "busy"}
        pool.answered(deployment, exchange)
        pool.answered(deployment, exchange)
        assert heard.events[1:] == [(Event.OUTAGE_ENDED, Level.INFO, {"deployment": "a", "seconds": 50.0})]


async def test_a_deployment_that_takes_requests_again_is_said_to_be_back() -> None:
    clock = ManualClock()
    spec = job(*(Spec(name=name, requests_per_minute=1e6) for name in "ab"))
    async with open_pool(spec, clock=clock, random=lambda: 0.0, transport=transport(clock)) as pool:
        heard, (first, _) = Heard(pool), pool.deployments
        assert first.try_leave(10)
        exchange = await first.send(CALL)
        asides = [await pool.heed(first, Refused(error=ERROR), exchange) for _ in range(3)]
        assert asides[2] is not None
        assert (asides[2].next_try_s, asides[2].come_back_s) == (60.0, None)
        clock.advance(61.0)
        assert pool.pick(10) is first
        assert first.try_leave(10)
        pool.answered(first, await first.send(CALL))
        assert heard.events == [
            (Event.DEPLOYMENT_BACK, Level.INFO, {"deployment": "a", "kind": "refused", "seconds": 61.0})
        ]


async def test_an_account_that_is_spent_has_no_next_try() -> None:
    clock = ManualClock()
    async with open_pool(
        job(Spec(name="a"), Spec(name="b")), clock=clock, random=lambda: 0.0, transport=transport(clock)
    ) as pool:
        first, _ = pool.deployments
        assert first.try_leave(10)
        aside = await pool.heed(first, Spent(error=ERROR), await first.send(CALL))
        assert aside is not None
        assert aside.next_try_s is None


async def test_a_token_that_may_be_had_later_is_an_outage_of_its_deployment() -> None:
    clock = ManualClock()
    spec = job(*(Spec(name=name, requests_per_minute=1e6) for name in "ab"))
    async with open_pool(spec, clock=clock, random=lambda: 0.0, transport=transport(clock)) as pool:
        heard, (first, second) = Heard(pool), pool.deployments
        for _ in range(3):
            pool.without_token_yet(first, NoTokenYetError("the token endpoint did not answer"))
        (said,) = heard.events
        assert (said[0], said[2]["reason"]) == (Event.OUTAGE_BEGAN, "the token endpoint did not answer")
        assert names(pool, count=3) == ["b", "b", "b"]
        clock.advance(10_000)
        pool.without_token_yet(first, NoTokenYetError("no"))
        pool.without_token_yet(second, NoTokenYetError("no"))
        clock.advance(1801)
        with pytest.raises(StoppedEarlyError, match=r"run.max_outage \(no"):
            pool.without_token_yet(second, NoTokenYetError("no"))


async def test_a_quota_that_was_lowered_may_hold_a_row_later_for_half_an_hour() -> None:
    clock = ManualClock()
    named = ["1000"]
    service = MemoryTransport(lambda _: httpx.Response(200, headers={"x-ratelimit-limit-tokens": named[0]}))
    async with open_pool(job(Spec(name="a")), clock=clock, random=lambda: 0.0, transport=service) as pool:
        (deployment,) = pool.deployments
        for limit, fits, later in (("1000", True, True), ("500", False, True), ("400", False, True)):
            named[0] = limit
            assert deployment.try_leave(10)
            await deployment.send(CALL)
            clock.advance(60.0)
            assert (pool.too_small_for(800) is None, pool.may_fit_later(800)) == (fits, later)
            assert not pool.may_fit_later(1001)
        clock.advance(1800.0)
        assert not pool.may_fit_later(800)
        named[0] = "1000"
        assert deployment.try_leave(10)
        await deployment.send(CALL)
        assert pool.too_small_for(800) is None


async def test_provisioned_throughput_that_is_busy_sends_requests_on_now_and_has_them_back_after_its_hint() -> None:
    clock = ManualClock()
    spec = job(
        Spec(name="provisioned", priority=0),
        Spec(name="standard", priority=1, requests_per_minute=1e6),
    )
    busy = Throttle(hint_s=2.5, error=ERROR, kind=ThrottleKind.UTILIZATION)
    async with open_pool(spec, clock=clock, random=lambda: 0.0, transport=transport(clock)) as pool:
        first, second = pool.deployments
        assert pool.pick(10) is first
        assert first.try_leave(10)
        exchange = await first.send(CALL)
        waiting = asyncio.create_task(first.leave(10))
        assert await pool.heed(first, busy, exchange) is None
        assert pool.pick(10) is second, "at once, rather than wait for the hint"
        clock.advance(2.6)
        assert pool.pick(10) is first
        waiting.cancel()


async def test_a_pause_sends_away_who_waits_leaves_the_seats_to_others_and_is_no_outage(tmp_path: Path) -> None:
    clock = ManualClock()
    async with open_pool(
        job(Spec(name="a", requests_per_minute=60)), clock=clock, random=lambda: 0.0, transport=transport(clock)
    ) as opened:
        (deployment,) = opened.deployments
        exchange = await deployment.send(CALL)
        place = {"origin": "https://h.example", "deployment": "d"}
        with Seat(tmp_path, **place) as mine, Seat(tmp_path, **place) as theirs:
            pool = Pool(opened.deployments, clock=clock, max_outage_s=100.0, seats={deployment: mine})
            pool.failed(deployment, exchange, "busy", throttled=False)
            clock.advance(60)
            assert deployment.try_leave(10)
            waiting = asyncio.create_task(deployment.leave(10))
            await asyncio.sleep(0)
            pool.steer(paused=True, leave=0.0, workers=1)
            assert not await waiting
            assert theirs.others() == 0
            for _ in range(2):
                clock.advance(1_000)
                pool.steer(paused=True, leave=0.5, workers=2)
                pool.failed(deployment, exchange, "busy", throttled=False)
            pool.steer(paused=False, leave=0.5, workers=2)
            assert theirs.others() == 1
            clock.advance(39)
            pool.failed(deployment, exchange, "busy", throttled=False)
            clock.advance(2)
            with pytest.raises(StoppedEarlyError, match="for 101 s"):
                pool.failed(deployment, exchange, "busy", throttled=False)
