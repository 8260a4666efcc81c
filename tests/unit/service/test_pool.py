"""Which deployment is next, and which are set aside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import httpx
import pytest

from pipeline.errors import RefusedError, StoppedEarlyError
from pipeline.model import Call, ErrorInfo, ErrorType
from pipeline.pace.retry import Reauthorise, Refused, Spent, Throttle, TooLong
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


@dataclass(frozen=True, kw_only=True)
class Run:
    workers: int = 4
    timeout_s: float = 300.0


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
        pool.answered(first)
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
