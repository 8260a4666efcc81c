"""Leave to send, judged by a model of the service in virtual time."""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass

import pytest

from pipeline.pace.admission import Admission

MINUTES = 5


@dataclass(kw_only=True)
class Service:
    """Judges requests over fixed slices and tokens over a sliding minute, as Azure does."""

    per_slice: float
    slice_s: float
    tokens_per_minute: float
    phase_s: float
    admitted: int = 0
    refused: int = 0
    tokens: float = 0.0

    def __post_init__(self) -> None:
        self._slice = -1
        self._count = 0
        self._minute: deque[tuple[float, float]] = deque()
        self._spent = 0.0

    def judge(self, at: float, tokens: float) -> None:
        number = int((at + self.phase_s) // self.slice_s)
        if number != self._slice:
            self._slice, self._count = number, 0
        while self._minute and self._minute[0][0] <= at - 60:
            self._spent -= self._minute.popleft()[1]
        if self._count + 1 > self.per_slice or self._spent + tokens > self.tokens_per_minute + 1e-6:
            self.refused += 1
            return
        self._count += 1
        self._minute.append((at, tokens))
        self._spent += tokens
        self.admitted += 1
        self.tokens += tokens


def saturate(
    admission: Admission, service: Service, *, costs: list[float], seed: int, minutes: float = MINUTES
) -> None:
    """Ask for leave without end on a jittery machine: late timers, stalls, unequal ways to the service."""
    rng = random.Random(seed)
    now, end, arrivals, index = 0.0, minutes * 60, [], 0
    while now < end:
        cost = costs[index % len(costs)]
        at = admission.ready_at(now, cost)
        if at > now:
            late_s = 0.03 if rng.random() < 0.01 else rng.expovariate(1 / 0.001)
            now = at + late_s
            continue
        admission.take(now, cost)
        arrivals.append((now + 0.02 + rng.expovariate(1 / 0.002), cost))
        index += 1
    for at, cost in sorted(arrivals):
        service.judge(at, cost)


@pytest.mark.parametrize("phase", range(4))
@pytest.mark.parametrize("per_minute", [30, 60, 100, 300, 600, 3000, 6000, 30_000])
def test_requests_bound_uses_the_quota_without_refusals(per_minute: int, phase: int) -> None:
    admission = Admission(requests_per_minute=per_minute, tokens_per_minute=None)
    per_slice = math.ceil(per_minute / 60)
    service = Service(per_slice=per_slice, slice_s=1.0, tokens_per_minute=float("inf"), phase_s=phase / 4)
    saturate(admission, service, costs=[100], seed=phase)
    assert service.admitted >= 0.98 * per_minute * MINUTES
    assert service.refused < 0.005 * service.admitted


@pytest.mark.parametrize("costs", [[16], [500], [200, 900, 1500], [5000], [8000, 100, 3000]], ids=str)
def test_tokens_bound_uses_the_quota_without_refusals(costs: list[float]) -> None:
    per_minute = 50_000
    admission = Admission(requests_per_minute=None, tokens_per_minute=per_minute)
    service = Service(per_slice=float("inf"), slice_s=1.0, tokens_per_minute=per_minute, phase_s=0)
    saturate(admission, service, costs=costs, seed=1)
    assert service.refused < 0.005 * service.admitted
    # What a minute holds of whole requests is what there is to use.
    wasted = max(costs) - 1 if len(costs) > 1 else per_minute % costs[0]
    assert service.tokens >= 0.98 * (per_minute - wasted) * MINUTES


def test_a_cost_above_a_minutes_worth_leaves_when_the_minute_is_empty() -> None:
    admission = Admission(requests_per_minute=None, tokens_per_minute=600)
    admission.take(0.0, 10)
    at = admission.ready_at(1.0, 5000)
    assert 60 < at < 61
    admission.take(at, 5000)
    assert admission.ready_at(at, 1) > at + 60


def test_no_stated_limit_holds_nothing_back_until_a_reply_names_one() -> None:
    admission = Admission(requests_per_minute=None, tokens_per_minute=None)
    for _ in range(10_000):
        assert admission.ready_at(1.0, 10) == 1.0
        admission.take(1.0, 10)
    admission.observe(1.0, limit_requests=60, limit_tokens=1e9)
    assert (admission.requests_per_minute, admission.tokens_per_minute) == (60, 1e9)
    assert admission.ready_at(1.0, 10) == pytest.approx(2.008)
    admission.observe(1.0, limit_tokens=1000)
    assert admission.ready_at(1.0, 10) == pytest.approx(61.25)


def test_a_reply_lowers_a_stated_limit_and_lets_it_back_up_but_never_above() -> None:
    admission = Admission(requests_per_minute=600, tokens_per_minute=1000)
    admission.observe(1.0, limit_requests=300, limit_tokens=500)
    assert (admission.requests_per_minute, admission.tokens_per_minute) == (300, 500)
    admission.observe(2.0, limit_requests=6000, limit_tokens=10_000)
    assert (admission.requests_per_minute, admission.tokens_per_minute) == (600, 1000)
    admission.observe(3.0)
    assert (admission.requests_per_minute, admission.tokens_per_minute) == (600, 1000)


def test_what_left_before_a_limit_changed_still_counts() -> None:
    admission = Admission(requests_per_minute=600, tokens_per_minute=None)
    left = 0
    now = 0.0
    while now < 1.0:
        now = admission.ready_at(now, 1)
        admission.take(now, 1)
        left += 1
    admission.observe(now, limit_requests=60)
    assert admission.ready_at(now, 1) > now + 0.9


def test_nothing_left_at_the_service_holds_the_next_back() -> None:
    admission = Admission(requests_per_minute=60, tokens_per_minute=60_000)
    admission.observe(10.0, remaining_requests=0, remaining_tokens=0)
    assert admission.ready_at(10.0, 1) == pytest.approx(11.0)


def test_what_is_given_back_may_leave_again() -> None:
    admission = Admission(requests_per_minute=60, tokens_per_minute=600)
    admission.take(5.0, 600)
    assert admission.ready_at(5.0, 600) > 60
    admission.give_back(5.0, 600)
    assert admission.ready_at(5.0, 600) == 5.0


def test_the_gate_holds_everything_back() -> None:
    admission = Admission(requests_per_minute=None, tokens_per_minute=None)
    admission.pause(1.0, 10.0, sent_at=0.5, random=lambda: 0.0)
    assert admission.ready_at(1.0, 1) == 11.0


def test_a_step_back_of_time_gives_nothing_away() -> None:
    admission = Admission(requests_per_minute=60, tokens_per_minute=None)
    admission.take(100.0, 1)
    assert admission.ready_at(50.0, 1) > 50.0
