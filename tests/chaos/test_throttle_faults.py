"""F7, F8, F10, F12 and F16: throttling, outages, identity and clocks, in virtual time, by the worker's own code."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from itertools import pairwise
from typing import cast

import httpx
import pytest
from azure.core.credentials import AccessToken
from azure.core.credentials_async import AsyncTokenCredential
from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError
from chaos.report import record
from simulation.azure import Azure, Quota, Ran, Stated, Workers, open_deployment
from simulation.scenarios import Scenario, measure_virtually, virtually

from pipeline.clock import Clock
from pipeline.errors import RefusedError, StoppedEarlyError
from pipeline.pace.retry import RetryRules
from pipeline.service.auth import ASK_S, Credentials, EntraCredentials
from pipeline.service.pool import Pool
from pipeline.testing import ManualClock

pytestmark = pytest.mark.chaos
QUOTA = Quota(requests_per_minute=300)
STATED = Stated(requests_per_minute=300)
WAY_S = 0.3
"""Seconds that a way there and back, and the space between two requests, add to a wait."""
DATE = 1_700_000_000.0
TOO_EARLY = {"error": {"code": "429", "message": "No."}}


@dataclass(kw_only=True)
class Run:
    """Modelled deployments by name, and what came of rows that were sent to them."""

    azures: Mapping[str, Azure]
    ran: Ran
    decisions: list[str]


def run(
    clock: ManualClock,
    make: Callable[[Clock], Mapping[str, Azure]],
    *,
    rows: int,
    rules: RetryRules | None = None,
    credentials: Callable[[], Credentials] | None = None,
) -> Run:
    """Send rows with 64 workers to modelled deployments, each stated rightly."""

    async def work() -> Run:
        azures = make(clock)
        deployments = tuple(
            open_deployment(
                name, azure, STATED, clock=clock, workers=64, credentials=credentials() if credentials else None
            )
            for name, azure in azures.items()
        )
        pool = Pool(deployments, clock=clock, max_outage_s=1800.0)
        workers = Workers(pool=pool, clock=clock, rules=rules or RetryRules())
        ran = await workers.run([100] * rows)
        for deployment in deployments:
            await deployment.aclose()
        return Run(azures=azures, ran=ran, decisions=workers.decisions)

    return virtually(clock, work)


def whole(done: Run) -> None:
    """Every row came to an answer, once."""
    assert (done.ran.failed, done.ran.left, done.ran.ended) == (0, 0, None)
    answers = sum(tokens > 0 for azure in done.azures.values() for _, tokens in azure.counted)
    assert answers == done.ran.rows


@dataclass
class Scripted:
    """Answers one request otherwise, from a moment on; keeps when requests came."""

    refuse: Callable[[], httpx.Response]
    begin: float = 20.0
    came: list[float] = field(default_factory=list)
    refused_at: float | None = None

    def __call__(self, since: float) -> httpx.Response | None:
        self.came.append(since)
        if self.refused_at is None and since >= self.begin:
            self.refused_at = since
            return self.refuse()
        return None


def date_after(seconds: float, skew_s: float) -> dict[str, str]:
    now = DATE + skew_s
    return {"retry-after": formatdate(now + seconds, usegmt=True), "date": formatdate(now, usegmt=True)}


HINTS: dict[str, tuple[dict[str, str], float]] = {
    "milliseconds": ({"retry-after-ms": "1500"}, 1.5),
    "a fraction of a millisecond": ({"retry-after-ms": "0.5"}, 0.0005),
    "milliseconds, as Azure": ({"x-ms-retry-after-ms": "2500"}, 2.5),
    "milliseconds before seconds": ({"retry-after-ms": "700", "retry-after": "30"}, 0.7),
    "milliseconds of both spellings": ({"retry-after-ms": "900", "x-ms-retry-after-ms": "9000"}, 0.9),
    "seconds": ({"retry-after": "7"}, 7.0),
    "a fraction of a second": ({"retry-after": "2.25"}, 2.25),
    "seconds with blanks": ({"retry-after": " 3 "}, 3.0),
    "two minutes": ({"retry-after": "120"}, 120.0),
    "ten minutes": ({"retry-after": "600"}, 600.0),
    "a date": (date_after(40, 0.0), 40.0),
    "a date, an hour ahead": (date_after(40, 3600.0), 40.0),
    "a date, an hour behind": (date_after(40, -3600.0), 40.0),
    "a date in the future without the reply's own": ({"retry-after": formatdate(DATE + 40, usegmt=True)}, 0.0),
    "a date that has passed": (date_after(-40, 0.0), 0.0),
    "when it is reset": ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6s"}, 6.0),
    "when it is reset, in minutes": (
        {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m3s"},
        63.0,
    ),
    "none": ({}, 0.0),
    "zero": ({"retry-after": "0"}, 0.0),
    "zero milliseconds": ({"retry-after-ms": "0"}, 0.0),
    "minus one": ({"retry-after": "-1"}, 0.0),
    "nan": ({"retry-after": "nan"}, 0.0),
    "inf": ({"retry-after": "inf"}, 0.0),
    "too large for a number": ({"retry-after": "1e400"}, 0.0),
    "too large, in milliseconds": ({"retry-after-ms": "1e400"}, 0.0),
    "a word": ({"retry-after": "soon"}, 0.0),
    "nothing": ({"retry-after": ""}, 0.0),
}


@pytest.mark.parametrize("spelling", HINTS)
def test_a_hint_is_waited_for_and_nothing_is_sent_meanwhile(spelling: str) -> None:
    headers, hint_s = HINTS[spelling]
    script = Scripted(lambda: httpx.Response(429, headers=headers, json=TOO_EARLY))
    clock = ManualClock()
    done = run(clock, lambda clock: {"d": Azure(clock=clock, quota=QUOTA, fault=script)}, rows=200)
    whole(done)
    assert script.refused_at is not None
    after = min(at for at in script.came if at > script.refused_at) - script.refused_at
    longest = hint_s * 1.2 if hint_s else 1.0  # our own back-off, where nothing usable was said
    assert hint_s <= after <= longest + WAY_S
    assert done.azures["d"].calls == 201
    record(fault="F7", what=spelling, tried=1, resent_max=1, recover_s_max=round(after, 3))


@pytest.mark.parametrize(
    ("headers", "said"), [({"retry-after": "86400"}, "86400"), ({"retry-after-ms": "601000"}, "601")]
)
def test_a_day_is_not_waited_for_and_the_end_says_when_to_come_back(headers: dict[str, str], said: str) -> None:
    script = Scripted(lambda: httpx.Response(429, headers=headers, json=TOO_EARLY))
    done = run(ManualClock(), lambda clock: {"d": Azure(clock=clock, quota=QUOTA, fault=script)}, rows=200)
    assert isinstance(done.ran.ended, StoppedEarlyError)
    assert done.ran.ended.exit_code == 4
    assert f"a pause of {said} s; run again after 2023-11-1" in str(done.ran.ended)
    assert done.ran.failed == 0
    assert script.refused_at is not None
    assert max(script.came) <= script.refused_at + WAY_S
    record(fault="F7", what=f"{said} s", tried=1, notes="exit 4")


HALVED = Quota(requests_per_minute=150)
WORDS = {
    "requests": "Requests have exceeded call rate limit of your current tier.",
    "tokens": "Requests have exceeded token rate limit of your current tier.",
    "nothing": "No.",
}


@pytest.mark.parametrize("named", [True, False], ids=["limits named", "limits not named"])
@pytest.mark.parametrize("at", [50.0, 123.4, 200.0])
def test_a_quota_that_halves_is_used_without_a_storm(at: float, named: bool) -> None:  # noqa: FBT001 - a case
    measured = measure_virtually(
        Scenario(
            name="halved",
            make=lambda clock: {
                "d": (Azure(clock=clock, quota=QUOTA, changes=[(at, HALVED)], names_limits=named), STATED)
            },
        )
    )
    assert (measured.failed, measured.ran.left, measured.ran.ended) == (0, 0, None)
    assert measured.calls_per_row <= 1.05, str(measured)
    assert measured.time <= 1.15, str(measured)
    record(fault="F8", what=f"halved at {at} s, named: {named}", tried=1, notes=str(measured))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("word", WORDS)
def test_one_refusal_in_a_hundred_that_means_nothing_costs_little(word: str, seed: int) -> None:
    dice = random.Random(seed)
    noise = {"error": {"code": "429", "message": WORDS[word]}}

    def fault(_: float) -> httpx.Response | None:
        return httpx.Response(429, json=noise) if dice.random() < 0.01 else None

    measured = measure_virtually(
        Scenario(name="noisy", make=lambda clock: {"d": (Azure(clock=clock, quota=QUOTA, fault=fault), STATED)})
    )
    assert (measured.failed, measured.ran.left, measured.ran.ended) == (0, 0, None)
    assert measured.calls_per_row <= 1.05, str(measured)
    assert measured.time <= 1.15, str(measured)
    record(fault="F8", what=f"1 % refused that name {word}", tried=1, notes=str(measured))


TOKENS = Quota(requests_per_minute=6_000, tokens_per_minute=150_000)
BOUND = {
    "requests": (QUOTA, STATED),
    "tokens": (TOKENS, Stated(requests_per_minute=6_000, tokens_per_minute=150_000)),
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bound", BOUND)
@pytest.mark.parametrize("word", WORDS)
def test_one_refusal_in_a_hundred_costs_little_where_the_job_file_alone_names_the_limit(
    word: str, bound: str, seed: int
) -> None:
    dice = random.Random(seed)
    noise = {"error": {"code": "429", "message": WORDS[word]}}
    quota, stated = BOUND[bound]

    def fault(_: float) -> httpx.Response | None:
        return httpx.Response(429, json=noise) if dice.random() < 0.01 else None

    measured = measure_virtually(
        Scenario(
            name="noisy, and no headers",
            make=lambda clock: {"d": (Azure(clock=clock, quota=quota, fault=fault, names_limits=False), stated)},
        )
    )
    assert (measured.failed, measured.ran.left, measured.ran.ended) == (0, 0, None)
    assert measured.used >= 0.9, str(measured)
    assert measured.calls_per_row <= 1.05, str(measured)
    assert measured.time <= 1.15, str(measured)
    record(fault="F8", what=f"1 % refused that name {word}, {bound} stated", tried=1, notes=str(measured))


OUTAGES: dict[str, Callable[[], httpx.Response | Exception]] = {
    "500": lambda: httpx.Response(500),
    "502": lambda: httpx.Response(502),
    "503": lambda: httpx.Response(503),
    "529": lambda: httpx.Response(529),
    "refused": lambda: httpx.ConnectError("refused"),
    "no time": lambda: httpx.ReadTimeout("late"),
    "cut": lambda: httpx.RemoteProtocolError("cut"),
}


@pytest.mark.parametrize("fault", OUTAGES)
@pytest.mark.parametrize("deployments", [1, 2])
def test_ten_minutes_without_an_answer_are_probed_once_a_minute_and_over_at_once(fault: str, deployments: int) -> None:
    away: dict[int, list[float]] = {number: [] for number in range(deployments)}

    def judge(number: int) -> Callable[[float], httpx.Response | Exception | None]:
        def said(since: float) -> httpx.Response | Exception | None:
            if not 100 <= since < 700:
                return None
            away[number].append(since)
            return OUTAGES[fault]()

        return said

    done = run(
        ManualClock(),
        lambda clock: {
            f"d{number}": Azure(clock=clock, quota=QUOTA, fault=judge(number), seed=number)
            for number in range(deployments)
        },
        rows=2000 * deployments,
    )
    whole(done)
    for number, azure in enumerate(done.azures.values()):
        probes = [at for at in away[number] if at > 240]
        assert len(probes) >= 5
        assert min(after - before for before, after in pairwise(probes)) >= 59
        taken = sum(tokens > 0 and 790 <= at < 810 for at, tokens in azure.counted)
        assert taken >= 0.95 * 100, "full speed again within 90 s"
    back = min(at for azure in done.azures.values() for at, tokens in azure.counted if tokens and at > 700) - 700
    record(fault="F10", what=f"{fault}, {deployments} deployments", tried=1, recover_s_max=round(back, 1))


@dataclass(kw_only=True)
class Issuer:
    """A token endpoint: numbered tokens, or `failure` from one moment to another. `asked` is when it was."""

    clock: ManualClock
    failure: Callable[[], Exception | None] = lambda: None
    begin: float = float("inf")
    end: float = float("inf")
    life_s: float = 36_000.0
    asked: list[float] = field(default_factory=list)
    issued: int = 0

    def __call__(self) -> AsyncTokenCredential:
        return cast("AsyncTokenCredential", self)

    async def get_token(self, *_: str) -> AccessToken:
        now = self.clock.now()
        self.asked.append(now)
        if self.begin <= now < self.end:
            failure = self.failure()
            if failure is None:
                await self.clock.sleep(ASK_S)
                raise TimeoutError(f"the token endpoint did not answer within {ASK_S:g} s.")
            raise failure
        await self.clock.sleep(0.5)
        self.issued += 1
        return AccessToken(f"t{self.issued}", int(self.clock.wall() + self.life_s))

    async def close(self) -> None: ...


@dataclass(kw_only=True)
class Guarded(Azure):
    """Lets tokens in as `let_in` says, by their number and the moment."""

    let_in: Callable[[int, float], bool] = lambda _number, _since: True

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        number = int(request.headers["authorization"].removeprefix("Bearer t"))
        if not self.let_in(number, self.clock.now() - self.began):
            await self.clock.sleep(0.04)
            return httpx.Response(401, json={"error": {"code": "401", "message": "Access token is invalid."}})
        return await super().handle_async_request(request)


def signed_in(
    issuer: Issuer, *, let_in: Callable[[int, float], bool] = lambda _number, _since: True, rows: int = 600
) -> Run:
    return run(
        issuer.clock,
        lambda clock: {"d": Guarded(clock=clock, quota=QUOTA, let_in=let_in)},
        rows=rows,
        credentials=lambda: EntraCredentials(make=issuer, scope="s", clock=issuer.clock),
    )


def test_a_401_in_the_middle_costs_one_token_for_64_workers() -> None:
    issuer = Issuer(clock=ManualClock())
    done = signed_in(issuer, let_in=lambda number, since: number > 1 or since < 60)
    whole(done)
    assert len(issuer.asked) == 2
    record(fault="F12", what="401 once", tried=1, recover_s_max=0.5)


def test_a_401_for_ever_ends_the_run_with_its_rows_pending() -> None:
    issuer = Issuer(clock=ManualClock())
    done = signed_in(issuer, let_in=lambda _number, since: since < 60)
    assert isinstance(done.ran.ended, RefusedError)
    assert done.ran.ended.exit_code == 3
    assert done.ran.failed == 0
    assert done.ran.left > 0
    assert len(issuer.asked) == 2
    record(fault="F12", what="401 for ever", tried=1, notes="exit 3")


def _answer(status: int) -> Callable[[], Exception]:
    def made() -> Exception:
        error = ClientAuthenticationError(f"Authentication failed: {status}")
        error.status_code = status
        return error

    return made


ENDPOINTS: dict[str, Callable[[], Exception | None]] = {
    "silent": lambda: None,
    "busy": _answer(429),
    "failing": _answer(503),
    "down": lambda: ServiceRequestError("connection refused"),
}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("when", ["at the beginning", "after a 401"])
def test_a_token_endpoint_that_is_away_for_five_minutes_fails_no_row(endpoint: str, when: str) -> None:
    begin = 0.0 if when == "at the beginning" else 60.0
    issuer = Issuer(clock=ManualClock(), failure=ENDPOINTS[endpoint], begin=begin, end=begin + 300.0)
    done = signed_in(issuer, let_in=lambda number, since: number > 1 or since < 60 or begin == 0)
    whole(done)
    assert len([at for at in issuer.asked if at < begin + 300]) <= 16, "64 workers ask once together"
    assert issuer.issued == (1 if begin == 0 else 2)
    (azure,) = done.azures.values()
    back = min(at for at, _ in azure.counted if at > begin + 300) - begin - 300
    assert back <= 90
    record(fault="F12", what=f"token endpoint {endpoint} {when}", tried=1, recover_s_max=round(back, 1))


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_token_endpoint_that_stays_away_ends_the_run_to_be_continued_and_says_why(endpoint: str) -> None:
    issuer = Issuer(clock=ManualClock(), failure=ENDPOINTS[endpoint], begin=0.0)
    done = signed_in(issuer)
    assert isinstance(done.ran.ended, StoppedEarlyError)
    assert done.ran.ended.exit_code == 4
    assert "no Entra token for s could be had: " in str(done.ran.ended)
    assert ("did not answer within 45 s" in str(done.ran.ended)) == (endpoint == "silent")
    assert (done.ran.failed, done.ran.rows) == (0, 0)
    record(fault="F12", what=f"token endpoint {endpoint} for ever", tried=1, notes="exit 4")


@pytest.mark.parametrize("status", [None, 400, 401, 403])
def test_a_token_endpoint_that_refuses_ends_the_run_at_once(status: int | None) -> None:
    def failure() -> Exception:
        return ClientAuthenticationError("no such client") if status is None else _answer(status)()

    issuer = Issuer(clock=ManualClock(), failure=failure, begin=0.0)
    done = signed_in(issuer)
    assert isinstance(done.ran.ended, RefusedError)
    assert (done.ran.ended.exit_code, done.ran.failed, done.ran.rows) == (3, 0, 0)
    assert issuer.asked == [0.0]
    record(fault="F12", what=f"token endpoint refuses with {status}", tried=1, notes="exit 3")


class Frozen(ManualClock):
    """A clock whose wall never moves."""

    def wall(self) -> float:
        return 1_700_000_000.0


def _busy_life(clock: ManualClock) -> Run:
    """Everything that waits: quotas, hints as dates, outages, refusals and retries, at two deployments."""
    dice = random.Random(8)

    def fault(since: float) -> httpx.Response | Exception | None:
        if 200 <= since < 320:
            return httpx.Response(500)
        chance = dice.random()
        if chance < 0.02:
            return httpx.Response(429, headers=date_after(3, 0.0), json=TOO_EARLY)
        return httpx.ReadError("cut") if chance < 0.05 else None

    return run(
        clock,
        lambda clock: {
            "a": Azure(clock=clock, quota=QUOTA, fault=fault),
            "b": Azure(clock=clock, quota=QUOTA, changes=[(100.0, HALVED)], fault=fault, names_limits=False, seed=2),
        },
        rows=2000,
    )


@pytest.mark.parametrize("seconds", [86_400.0, -86_400.0, 3600.0, -3600.0, None], ids=str)
def test_a_jump_of_the_wall_clock_changes_no_decision(seconds: float | None) -> None:
    steady, jumping = ManualClock(), Frozen() if seconds is None else ManualClock()
    if seconds is not None:
        for at in (30.0, 150.0, 250.0):
            jumping.call_at(at, lambda: jumping.jump_wall(seconds))
    expected, found = _busy_life(steady), _busy_life(jumping)
    whole(found)
    assert len(expected.decisions) > 2000
    assert found.decisions == expected.decisions
    assert abs(jumping.wall() - steady.wall()) > 100, "it did jump"
    record(fault="F16", what="frozen" if seconds is None else f"{seconds:+g} s, three times", tried=1)


def test_a_scripted_run_gives_up_nothing_to_chance() -> None:
    first, second = _busy_life(ManualClock()), _busy_life(ManualClock())
    assert first.decisions == second.decisions
