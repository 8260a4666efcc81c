"""The controller against modelled quotas, in virtual time: the bars of docs/decisions/0004-rate-controller.md."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import httpx
import pytest
from simulation.azure import Azure, Quota, Stated
from simulation.scenarios import SCENARIOS, Measured, Scenario, measure_virtually

from pipeline.clock import Clock
from pipeline.errors import StoppedEarlyError


@dataclass(frozen=True, kw_only=True)
class Bar:
    """What a scenario must reach: the least use, the most, and the most calls a row beyond those injected.

    More than the quota is used where a minute's tokens go at the beginning of each minute, and the last is cut off.
    """

    used: float
    calls: float = 1.01
    most: float = 1.01


BARS = {
    "steady, requests bound": Bar(used=0.98),
    "steady, tokens bound": Bar(used=0.98),
    "stated 3 times too high": Bar(used=0.98, calls=1.05),
    "… by tokens": Bar(used=0.98, calls=1.05),
    "… and no headers": Bar(used=0.98),
    "… by tokens, and no headers": Bar(used=0.98),
    "stated 3 times too low": Bar(used=0.33),
    "absent": Bar(used=0.98),
    "absent, tokens bound": Bar(used=0.98),
    "absent, and no headers": Bar(used=0.98),
    "absent, tokens bound, and no headers": Bar(used=0.98),
    "halved at 200 s, restored at 400 s": Bar(used=0.98),
    # For half a minute after it was halved, a sliding minute that is full to the old limit lets nothing in.
    "halved at 200 s, restored at 400 s, by tokens": Bar(used=0.95),
    "halved at 200 s, restored at 400 s, and no headers": Bar(used=0.95),
    "2 % lack of capacity": Bar(used=0.98),
    "counted at a tenth of the estimate": Bar(used=0.98),
    "counted at 4 times the estimate": Bar(used=0.97),
    "counted without the prompt": Bar(used=0.95),
    "others use half": Bar(used=0.85, calls=1.08),
    "a fifth is left to others": Bar(used=0.78),
    "10 % server errors": Bar(used=0.98),
    "30 % server errors": Bar(used=0.98),
    "four deployments": Bar(used=0.97),
    "one of two away for 150 s": Bar(used=0.97, most=1.05),
    "one of two asks for a day": Bar(used=0.98),
    "provisioned, then standard": Bar(used=0.98),
    "… of small rows, for 130 s": Bar(used=0.98),
    # Its rate is found by refusals alone.
    "… whose answers name no utilization": Bar(used=0.97, calls=1.05),
    "1 % refused at random as if by requests, and no headers": Bar(used=0.95),
    "1 % refused at random as if by tokens, and no headers": Bar(used=0.95),
}
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


def test_every_scenario_has_its_bar() -> None:
    assert set(BARS) == set(BY_NAME)


@pytest.mark.parametrize("name", BARS)
def test_a_quota_is_used_without_storms_and_no_row_fails(name: str) -> None:
    bar, measured = BARS[name], measure_virtually(BY_NAME[name])
    assert measured.used >= bar.used, str(measured)
    assert measured.used <= bar.most, str(measured)
    assert measured.calls_per_row <= bar.calls, str(measured)
    assert (measured.failed, measured.ran.left, measured.ran.ended) == (0, 0, None)
    WITNESSES.get(name, _nothing_more)(measured)


def _nothing_more(_: Measured) -> None:
    """The bars say it all."""


def _offered(measured: Measured) -> None:
    """The stated limit is never passed, and the end says what the service offers."""
    (report,) = measured.ran.reports
    assert (report.requests_per_minute, report.offered_requests_per_minute) == (100, 300)
    (azure,) = measured.azures.values()
    counts = [sum(begin <= at < begin + 60 for at, _ in azure.counted) for begin in range(0, 1700, 20)]
    assert max(counts) <= 101


def _provisioned_first(measured: Measured) -> None:
    """What is paid for already is used up before the rest is touched, and never idle once its rate is learnt."""
    azure = measured.azures["provisioned"]
    per_s = azure.quota.tokens_per_minute / 60
    end = min(at for one in measured.azures.values() for at, _ in one.counted[-1:])
    taken = [
        sum(tokens for at, tokens in azure.counted if begin <= at < begin + 10)
        for begin in range(20, int(end) - 10, 10)
    ]
    assert min(taken) >= 0.75 * 10 * per_s, taken
    assert sum(taken) >= 0.97 * 10 * per_s * len(taken), taken


def _probed_once(measured: Measured) -> None:
    """Who asks for a day is asked by those who were under way, and no more."""
    assert measured.azures["paused"].calls <= 4
    assert measured.ran.reports[0].name == "paused"


def _probes_alone(measured: Measured) -> None:
    """An outage is met by those who were under way, then by probes, and ended within their pause."""
    away = measured.azures["comes"]
    assert away.injected <= 64 + 20 * 8
    assert [at for at, tokens in away.counted if tokens and 250 < at < 320]


WITNESSES = {
    "stated 3 times too low": _offered,
    "provisioned, then standard": _provisioned_first,
    "… of small rows, for 130 s": _provisioned_first,
    "one of two asks for a day": _probed_once,
    "one of two away for 150 s": _probes_alone,
}


@pytest.mark.parametrize("fault", [lambda: httpx.Response(500), lambda: httpx.ConnectError("refused")])
def test_a_total_outage_of_ten_minutes_is_probed_fails_no_row_and_is_over_at_once(
    fault: Callable[[], httpx.Response | Exception],
) -> None:
    quota = Quota(requests_per_minute=300)
    away: list[float] = []

    def judge(since: float) -> httpx.Response | Exception | None:
        if 100 <= since < 700:
            away.append(since)
            return fault()
        return None

    scenario = Scenario(
        name="outage",
        make=lambda clock: {"d": (Azure(clock=clock, quota=quota, fault=judge), Stated(requests_per_minute=300))},
    )
    measured = measure_virtually(scenario)
    assert (measured.failed, measured.ran.left, measured.ran.ended) == (0, 0, None)
    settled = [at for at in away if at > 200]
    assert 8 <= len(settled) <= 12
    assert min(after - before for before, after in pairwise([at for at in settled if at > 240])) >= 59
    (azure,) = measured.azures.values()
    assert sum(tokens > 0 and 775 <= at < 795 for at, tokens in azure.counted) >= 0.98 * 100, "full speed again"


def test_an_outage_longer_than_allowed_ends_the_run_and_fails_no_row() -> None:
    def judge(since: float) -> httpx.Response | None:
        return httpx.Response(503) if since >= 100 else None

    quota = Quota(requests_per_minute=300)
    scenario = Scenario(
        name="outage",
        make=lambda clock: {"d": (Azure(clock=clock, quota=quota, fault=judge), Stated(requests_per_minute=300))},
    )
    measured = measure_virtually(scenario)
    assert isinstance(measured.ran.ended, StoppedEarlyError)
    assert measured.failed == 0
    said = re.search(r"nothing for (\d+) s", str(measured.ran.ended))
    assert said is not None
    assert 1800 < int(said[1]) < 1870, "the first probe after half an hour"


CALL, TOKEN, DEMAND = "exceeded call rate limit", "exceeded token rate limit", "high demand"
BUSY = {"azure-openai-deployment-utilization": "101.0%"}


@pytest.mark.parametrize("hint", [{"retry-after-ms": "5"}, {}], ids=["5 ms", "no hint"])
@pytest.mark.parametrize(
    ("said", "headers"),
    [(CALL, {}), (TOKEN, {}), ("No.", {}), ("Too busy.", BUSY), (DEMAND, {})],
    ids=["requests", "tokens", "unnamed", "utilization", "capacity"],
)
@pytest.mark.parametrize("workers", [1, 4, 64])
def test_a_run_whose_first_call_is_refused_is_hardly_later_for_it(
    workers: int, said: str, headers: dict[str, str], hint: dict[str, str]
) -> None:
    refusals = iter(
        [httpx.Response(429, headers={**headers, **hint}, json={"error": {"code": "429", "message": said}})]
    )
    scenario = Scenario(
        name="first refused",
        make=lambda clock: {
            "d": (
                Azure(
                    clock=clock,
                    quota=Quota(requests_per_minute=600),
                    fault=lambda _: next(refusals, None),
                    names_limits=False,
                    latency_s=0.02,
                ),
                Stated(),
            )
        },
        ideal_s=180.0,
        workers=workers,
    )
    measured = measure_virtually(scenario)
    assert (measured.failed, measured.ran.left, measured.ran.ended) == (0, 0, None)
    assert measured.time <= 1.15, f"not at a call a minute: {measured}"


def test_a_minute_that_others_have_filled_is_no_rate_to_keep_to() -> None:
    quota = Quota(requests_per_minute=6_000, tokens_per_minute=150_000)

    def make(clock: Clock) -> dict[str, tuple[Azure, Stated]]:
        azure = Azure(clock=clock, quota=quota, names_limits=False)
        azure.fill(149_000, ago_s=20.0)
        return {"d": (azure, Stated())}

    measured = measure_virtually(Scenario(name="filled", make=make, ideal_s=300.0))
    assert (measured.failed, measured.ran.left, measured.ran.ended) == (0, 0, None)
    assert measured.time <= 1.2, str(measured)
    assert measured.calls_per_row <= 1.02, str(measured)


def test_a_scenario_is_the_same_each_time() -> None:
    short = Scenario(name="short", make=BY_NAME["absent"].make, ideal_s=70.0)
    assert str(measure_virtually(short)) == str(measure_virtually(short))
