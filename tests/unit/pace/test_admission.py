"""Leave to send, judged by a model of the service in virtual time."""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass

import pytest

from pipeline.pace.admission import Admission
from pipeline.pace.verdict import ThrottleKind

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


def test_what_is_given_back_counts_for_nothing() -> None:
    admission = Admission(requests_per_minute=600, tokens_per_minute=60_000)
    admission.take(1.0, 500)
    before = admission.mark(2.0)
    admission.take(2.0, 300)
    admission.give_back(2.0, 300)
    assert admission.mark(2.0) == before
    assert admission.used(61.0) == pytest.approx(500 / 60_000)


def test_the_gate_holds_everything_back() -> None:
    admission = Admission(requests_per_minute=None, tokens_per_minute=None)
    admission.refused(1.0, 10.0, kind=ThrottleKind.UNNAMED, sent_at=0.5, tokens=1, random=lambda: 0.0)
    assert admission.ready_at(1.0, 1) == 11.0


def test_a_step_back_of_time_gives_nothing_away() -> None:
    admission = Admission(requests_per_minute=60, tokens_per_minute=None)
    admission.take(100.0, 1)
    assert admission.ready_at(50.0, 1) > 50.0


def refuse(admission: Admission, now: float, kind: ThrottleKind, *, hint_s: float | None = 1.0) -> bool:
    return admission.refused(now, hint_s, kind=kind, sent_at=now - 0.05, tokens=100, random=lambda: 0.0)


def spend(admission: Admission, begin: float, seconds: float, per_second: float = 10.0) -> float:
    for number in range(int(seconds * per_second)):
        admission.take(begin + number / per_second, 100)
    return begin + seconds


FOUND = [(ThrottleKind.REQUESTS, (588.0, 60_000.0)), (ThrottleKind.TOKENS, (600.0, 15_000.0))]
"""What had passed: 49 requests in five seconds; of a minute's tokens not even a quarter."""
NAMED = [(ThrottleKind.REQUESTS, (594.0, 60_000.0)), (ThrottleKind.TOKENS, (600.0, 48_000.0))]
"""Of a limit that is named, no more than a fifth is taken at once."""


@pytest.mark.parametrize(("kind", "paced"), FOUND)
def test_the_limit_that_a_refusal_names_is_the_one_that_is_cut(kind: ThrottleKind, paced: tuple[float, float]) -> None:
    admission = Admission(requests_per_minute=600, tokens_per_minute=60_000)
    now = spend(admission, 0.0, 5.0)
    assert not refuse(admission, now, kind)
    assert (admission._requests.paced, admission._tokens.paced) == paced
    assert (admission.requests_per_minute, admission.tokens_per_minute) == (600, 60_000), "the limits are as they were"


@pytest.mark.parametrize(("kind", "paced"), NAMED)
def test_where_the_service_says_its_limit_a_third_refusal_within_ten_seconds_cuts(
    kind: ThrottleKind, paced: tuple[float, float]
) -> None:
    admission = Admission(requests_per_minute=600, tokens_per_minute=60_000)
    admission.observe(0.0, limit_requests=600, limit_tokens=60_000)
    now = 0.0
    for _ in range(5):
        now = spend(admission, now, 6.0)
        refuse(admission, now, kind)
    assert (admission._requests.paced, admission._tokens.paced) == (600, 60_000)
    refuse(admission, now, kind)
    assert (admission._requests.paced, admission._tokens.paced) == paced


@pytest.mark.parametrize("kind", [ThrottleKind.UNNAMED, ThrottleKind.UTILIZATION])
@pytest.mark.parametrize(("sent", "refusals", "cut"), [(20, 2, False), (20, 3, True), (100, 9, False), (100, 10, True)])
def test_refusals_that_name_no_limit_cut_from_a_tenth_and_three_on(
    kind: ThrottleKind,
    sent: int,
    refusals: int,
    cut: bool,  # noqa: FBT001 - expected
) -> None:
    admission = Admission(requests_per_minute=6000, tokens_per_minute=None)
    now = spend(admission, 0.0, 5.0, per_second=sent / 5)
    for _ in range(refusals):
        refuse(admission, now, kind, hint_s=None)
    assert admission._requests.paced == (4800 if cut else 6000)


def test_where_no_limit_is_known_a_named_refusal_says_what_a_minute_holds() -> None:
    admission = Admission(requests_per_minute=None, tokens_per_minute=None)
    now = spend(admission, 0.0, 10.2)
    refuse(admission, now, ThrottleKind.TOKENS)
    assert admission.tokens_per_minute == pytest.approx(0.99 * 10_100)
    assert admission.is_known
    slices = Admission(requests_per_minute=None, tokens_per_minute=None)
    now = spend(slices, 0.0, 5.0)
    refuse(slices, now, ThrottleKind.REQUESTS)
    assert slices.requests_per_minute == pytest.approx(0.99 * 49 * 12)


@pytest.mark.parametrize(
    ("kind", "seconds", "let_in", "told"),
    [
        (ThrottleKind.REQUESTS, 0.5, 3, False),
        (ThrottleKind.REQUESTS, 5.0, 0, False),
        (ThrottleKind.REQUESTS, 5.0, 2, False),
        (ThrottleKind.REQUESTS, 5.0, 3, True),
        (ThrottleKind.TOKENS, 5.0, 99, False),
        (ThrottleKind.TOKENS, 5.0, 100, True),
        (ThrottleKind.TOKENS, 60.0, 2, False),
        (ThrottleKind.TOKENS, 60.0, 3, True),
    ],
)
def test_a_refusal_tells_no_rate_where_too_little_was_let_in_to_know_it(
    kind: ThrottleKind, seconds: float, let_in: int, *, told: bool
) -> None:
    admission = Admission(requests_per_minute=None, tokens_per_minute=None)
    admission.take(0.0, 0)
    admission.give_back(0.0, 0)
    for _ in range(let_in + 1):
        admission.take(seconds - 0.1, 100)
    assert refuse(admission, seconds, kind) is not told, "fewer at once, instead"
    assert admission.is_known is told


@pytest.mark.parametrize("kind", [ThrottleKind.UTILIZATION, ThrottleKind.UNNAMED])
def test_refusals_of_all_that_was_sent_tell_no_rate(kind: ThrottleKind) -> None:
    admission = Admission(requests_per_minute=None, tokens_per_minute=None)
    for number in range(12):
        admission.take(0.1 * number, 100)
        refuse(admission, 0.1 * number + 0.05, kind, hint_s=0.005)
    assert not admission.is_known


def test_where_no_limit_is_known_an_unnamed_refusal_asks_for_fewer_at_once() -> None:
    admission = Admission(requests_per_minute=None, tokens_per_minute=None)
    now = spend(admission, 0.0, 1.0)
    assert [refuse(admission, now, ThrottleKind.UNNAMED) for _ in range(3)] == [False, False, True]
    assert not admission.is_known


def test_an_overload_cuts_what_is_known_once() -> None:
    admission = Admission(requests_per_minute=600, tokens_per_minute=60_000)
    admission.overloaded(1.0)
    admission.overloaded(2.0)
    assert (admission._requests.paced, admission._tokens.paced) == (480, 48_000)


@pytest.mark.parametrize("leave", [0.0, 0.2, 0.9])
def test_a_share_of_the_limits_is_left_to_others(leave: float) -> None:
    admission = Admission(requests_per_minute=600, tokens_per_minute=None, leave=leave)
    service = Service(per_slice=10, slice_s=1.0, tokens_per_minute=float("inf"), phase_s=0)
    saturate(admission, service, costs=[100], seed=1)
    assert service.admitted == pytest.approx((1 - leave) * 600 * MINUTES, rel=0.02)
    admission.observe(301.0, limit_requests=300)
    assert admission._requests.paced == pytest.approx((1 - leave) * 300)
    assert admission.requests_per_minute == 300


def test_of_replies_that_overtook_one_another_the_one_sent_last_names_the_limit() -> None:
    admission = Admission(requests_per_minute=None, tokens_per_minute=None)
    early = admission.mark(1.0)
    admission.observe(5.0, limit_requests=300, mark=admission.mark(4.0))
    admission.observe(6.0, limit_requests=600, mark=early)
    assert admission.requests_per_minute == 300


def test_what_has_come_back_since_a_reply_was_judged_may_leave() -> None:
    admission = Admission(requests_per_minute=60, tokens_per_minute=None)
    admission.take(10.0, 1)
    mark = admission.mark(10.0)
    admission.observe(10.5, limit_requests=60, remaining_requests=0, mark=mark)
    assert admission.ready_at(10.5, 1) == pytest.approx(11.008, abs=0.01)
    admission.observe(20.0, limit_requests=60, remaining_requests=0, mark=mark)
    assert admission.ready_at(20.0, 1) == 20.0


def test_replies_that_tell_what_is_left_hold_nobody_back_however_long_a_run_is() -> None:
    admission = Admission(requests_per_minute=60, tokens_per_minute=60_000)
    now = 0.0
    for number in range(300):
        now = admission.ready_at(now, 1_000)
        admission.take(now, 1_000)
        left = max(0, 59 - number)
        admission.observe(
            now + 0.2,
            limit_requests=60,
            limit_tokens=60_000,
            remaining_requests=1,
            remaining_tokens=1_000 * left,
            mark=admission.mark(now),
        )
    assert now == pytest.approx(300, rel=0.02)


def test_the_service_s_higher_limit_is_known_but_not_used() -> None:
    admission = Admission(requests_per_minute=100, tokens_per_minute=None)
    admission.observe(1.0, limit_requests=300, limit_tokens=9000)
    assert admission.requests_per_minute == 100
    assert admission.offered == (300, 9000)
    assert (admission.most_tokens(), Admission(requests_per_minute=1, tokens_per_minute=None).most_tokens()) == (
        9000,
        None,
    )


def test_use_is_the_share_of_what_the_limits_allowed_while_they_held() -> None:
    admission = Admission(requests_per_minute=600, tokens_per_minute=None)
    assert admission.used(0.0) is None
    now = spend(admission, 0.0, 60.0)
    assert admission.used(now) == pytest.approx(1.0, rel=0.01)
    admission.observe(now, limit_requests=300)
    assert admission.used(now + 60) == pytest.approx(600 / 900, rel=0.01)


def test_what_a_limit_allowed_before_it_changed_is_counted_though_nobody_asked_by_then() -> None:
    admission = Admission(requests_per_minute=600, tokens_per_minute=None)
    now = spend(admission, 0.0, 60.0)
    admission.observe(now, limit_requests=300)
    assert admission.used(now + 60) == pytest.approx(600 / 900, rel=0.01)


def test_what_is_sent_of_late_is_told_a_minute() -> None:
    admission = Admission(requests_per_minute=None, tokens_per_minute=None)
    assert admission.lately(5.0) == (0.0, 0.0)
    now = spend(admission, 0.0, 5.0)
    assert admission.lately(now) == (600.0, 60_000.0), "of five seconds"
    now = spend(admission, 5.0, 95.0)
    assert admission.lately(now) == pytest.approx((600.0, 60_000.0), rel=0.01)
    assert admission.lately(now + 30.0) == pytest.approx((0.0, 30_000.0), rel=0.01)


def test_a_deployment_that_was_away_begins_slowly() -> None:
    admission = Admission(requests_per_minute=600, tokens_per_minute=60_000)
    admission.reopen(100.0)
    assert admission._requests.paced == 60
    admission.ready_at(105.0, 1)
    assert admission._requests.paced == pytest.approx(330)
    admission.ready_at(111.0, 1)
    assert (admission._requests.paced, admission._tokens.paced) == (600, 60_000)


def test_a_shared_quota_is_cut_in_equal_parts_and_is_whole_again_when_others_leave() -> None:
    admission = Admission(requests_per_minute=600, tokens_per_minute=6_000, leave=0.5)

    def ready_after(seconds: float, *, count: int) -> float:
        at = seconds
        for _ in range(count):
            at = max(at, admission.ready_at(at, 1))
            admission.take(at, 1)
        return at - seconds

    alone = ready_after(0.0, count=50)
    admission.share(2, 100.0)
    assert (admission.requests_per_minute, admission.tokens_per_minute) == (600, 6_000)
    shared = ready_after(100.0, count=50)
    admission.share(1, 200.0)
    again = ready_after(200.0, count=50)
    assert 1.9 < shared / alone < 2.1
    assert 0.9 < again / alone < 1.1


def test_a_limit_that_is_learnt_while_sharing_is_shared_too() -> None:
    admission = Admission(requests_per_minute=None, tokens_per_minute=None)
    admission.share(3, 0.0)
    admission.observe(1.0, limit_requests=600)
    at = 1.0
    for _ in range(30):
        at = max(at, admission.ready_at(at, 1))
        admission.take(at, 1)
    assert 8 < at < 10.5


def test_the_wait_for_many_is_that_for_the_tighter_limit() -> None:
    admission = Admission(requests_per_minute=60, tokens_per_minute=6_000)
    assert [admission.queue_s(30, 1_000), admission.queue_s(1, 4_000)] == [30, 40]
    assert Admission(requests_per_minute=None, tokens_per_minute=600).queue_s(1_000, 10) == 1
    assert Admission(requests_per_minute=60, tokens_per_minute=None).queue_s(1, 10**6) == 1
    assert Admission(requests_per_minute=None, tokens_per_minute=None).queue_s(1_000, 10**6) == 0


def test_a_rate_that_was_cut_and_is_used_lets_more_leave_as_it_grows() -> None:
    admission = Admission(requests_per_minute=600, tokens_per_minute=None)
    admission.overloaded(0.0)
    now, left = 0.0, 0
    while now < 60:
        now = admission.ready_at(now, 1)
        admission.take(now, 1)
        left += 1
    assert 560 < left < 600


def test_a_minute_that_was_hardly_used_says_little_of_the_limit_that_a_refusal_names() -> None:
    admission = Admission(requests_per_minute=None, tokens_per_minute=60_000)
    now = spend(admission, 0.0, 60.0, per_second=1.0)
    refuse(admission, now, ThrottleKind.TOKENS, hint_s=30.0)
    assert admission._tokens.paced == 48_000


def test_what_is_provisioned_is_learnt_from_all_that_passed_since_the_first_request() -> None:
    admission = Admission(requests_per_minute=None, tokens_per_minute=None)
    now = spend(admission, 0.0, 30.0)
    for _ in range(10):
        refuse(admission, now, ThrottleKind.UTILIZATION, hint_s=None)
    assert admission.tokens_per_minute == pytest.approx(0.99 * (30_000 - 1_000) * 2)


def provisioned(*, replies: int = 20) -> tuple[Admission, float]:
    """Provisioned throughput that is half full of 10,000 tokens, 1,000 of which flow away a second; its last moment."""
    admission, level, now = Admission(requests_per_minute=None, tokens_per_minute=None), 4_000.0, 0.0
    for number in range(replies):
        tokens = (300, 900)[number % 2]
        level += tokens
        admission.take(now, tokens)
        admission.utilized(now, level / 10_000, admission.mark(now))
        level -= 600
        now += 0.6
    return admission, now - 0.6


def test_nothing_is_held_back_for_utilization_before_the_first_refusal() -> None:
    admission, now = provisioned()
    assert not admission.is_known
    assert admission.ready_at(now, 10**9) == now


def test_from_the_first_refusal_on_the_rate_keeps_utilization_at_nine_tenths_and_needs_no_reply_for_it() -> None:
    admission, now = provisioned()
    assert not refuse(admission, now, ThrottleKind.UTILIZATION, hint_s=None)
    before = admission._tokens.paced
    assert before is not None
    assert before > 60_000, "more than what flows away, since it is half full"
    admission.ready_at(now + 0.05, 1)
    assert admission._tokens.paced == before, "so soon, nothing is made anew"
    admission.ready_at(now + 2.0, 1)
    assert (admission._tokens.paced or 0) > before, "what flowed away meanwhile made room"


def test_a_rate_by_utilization_that_is_refused_much_gives_way_to_refusals_for_a_minute() -> None:
    admission, now = provisioned()
    refuse(admission, now, ThrottleKind.UTILIZATION, hint_s=None)
    for number in range(30):
        admission.take(now + 12 + number / 10, 300)
    late = now + 15
    for _ in range(5):
        refuse(admission, late, ThrottleKind.UTILIZATION, hint_s=None)
    found = admission._tokens.paced
    admission.utilized(late + 1, 0.1, admission.mark(late + 1))
    admission.ready_at(late + 1, 1)
    assert admission._tokens.paced == found, "replies are not believed"
    admission.utilized(late + 61, 0.1, admission.mark(late + 61))
    admission.ready_at(late + 61, 1)
    assert admission._tokens.paced != found


def test_what_flows_away_is_told_by_what_was_let_in_between_two_refusals() -> None:
    admission = Admission(requests_per_minute=None, tokens_per_minute=None)
    now = spend(admission, 0.0, 10.0, per_second=20.0)
    for _ in range(20):
        refuse(admission, now, ThrottleKind.UTILIZATION, hint_s=None)
    first = admission._tokens.paced
    assert first == pytest.approx(0.99 * (20_000 - 2_000) * 6, rel=0.05), "of the first ten seconds"
    for number in range(960):
        admission.take(now + number / 16, 100)
    later = now + 60
    for _ in range(16):
        refuse(admission, later, ThrottleKind.UTILIZATION, hint_s=None)
    assert admission._tokens.paced == pytest.approx(0.99 * (96_000 - 1_600), rel=0.02)


def flowed(moments: list[tuple[float, float]]) -> float | None:
    """What is paced after refusals at the ends of spans: seconds, and requests a second let in meanwhile."""
    admission, now = Admission(requests_per_minute=None, tokens_per_minute=None), 0.0
    for seconds, per_second in moments:
        now = spend(admission, now, seconds, per_second=per_second)
        for _ in range(math.ceil(per_second)):
            refuse(admission, now, ThrottleKind.UTILIZATION, hint_s=None)
    return admission._tokens.paced


def test_five_seconds_between_two_refusals_tell_what_flows_away() -> None:
    first = flowed([(30.0, 20.0)])
    assert first == pytest.approx(0.99 * (60_000 - 2_000) * 2, rel=0.05)
    assert flowed([(30.0, 20.0), (12.0, 17.0)]) == pytest.approx(0.99 * (20_400 - 1_700) * 5, rel=0.05)


def test_what_flows_away_is_told_by_the_last_minute_of_refusals() -> None:
    # Forty seconds after the first, and seventy: the last tells by all of them, the minute was not over.
    paced = flowed([(30.0, 20.0), (40.0, 18.0), (30.0, 15.0)])
    assert paced == pytest.approx(0.99 * (72_000 + 45_000 - 3_300) * 60 / 70, rel=0.05)


@pytest.mark.parametrize(("tokens", "tighter"), [(50, "requests"), (200, "tokens")])
def test_a_refusal_that_names_no_limit_cuts_the_one_that_such_requests_meet_first(tokens: int, tighter: str) -> None:
    admission = Admission(requests_per_minute=600, tokens_per_minute=60_000)
    for number in range(50):
        admission.take(number / 10, tokens)
    for _ in range(5):
        admission.refused(5.0, None, kind=ThrottleKind.UNNAMED, sent_at=4.9, tokens=tokens, random=lambda: 0.0)
    cut = (admission._requests.paced or 0) < 600, (admission._tokens.paced or 0) < 60_000
    assert cut == (tighter == "requests", tighter == "tokens")


def test_what_passed_in_less_than_a_second_is_what_a_second_lets_in() -> None:
    admission = Admission(requests_per_minute=600, tokens_per_minute=None)
    now = spend(admission, 0.0, 0.5, per_second=20.0)
    refuse(admission, now, ThrottleKind.REQUESTS)
    assert admission._requests.paced == 9 * 60
    assert admission.lately(now)[0] == 10 * 60


def test_what_is_left_says_nothing_of_the_cost_where_no_limit_is_named() -> None:
    admission = Admission(requests_per_minute=None, tokens_per_minute=60_000)
    now = spend(admission, 0.0, 1.0)
    admission.observe(now, remaining_tokens=59_900)
    assert admission.cost_factor == 1.0


def test_without_a_limit_a_minute_of_provisioned_throughput_is_not_bounded() -> None:
    admission, now = provisioned()
    refuse(admission, now, ThrottleKind.UTILIZATION, hint_s=None)
    assert math.isinf(admission._tokens._window.limit)
    admission.observe(now, limit_tokens=60_000)
    assert admission._tokens._window.limit == 60_000


def test_a_limit_that_fell_may_come_back_for_half_an_hour() -> None:
    admission = Admission(requests_per_minute=None, tokens_per_minute=60_000)
    admission.observe(10.0, limit_tokens=30_000)
    assert admission.most_tokens() == 30_000
    assert admission.most_tokens(1_000.0) == 60_000
    assert admission.most_tokens(10.0 + 1_799.0) == 60_000
    assert admission.most_tokens(10.0 + 1_800.0) == 30_000
    admission.observe(1_900.0, limit_tokens=60_000)
    admission.observe(2_000.0, limit_tokens=20_000)
    assert admission.most_tokens(2_100.0) == 60_000, "it fell anew"


def test_after_an_overload_the_next_leaves_later_at_once() -> None:
    admission = Admission(requests_per_minute=600, tokens_per_minute=None)
    admission.overloaded(0.0)
    admission.take(0.0, 1)
    assert admission.ready_at(0.0, 1) == pytest.approx(60 / 480 - 0.05), "fifty milliseconds are saved up"


def test_the_use_of_the_smallest_limit_is_exact() -> None:
    admission = Admission(requests_per_minute=1, tokens_per_minute=None)
    admission.take(0.0, 1)
    assert admission.used(60.0) == 1.0


# What takes longest comes last: what is wrong shows before.
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


@pytest.mark.parametrize("senders", [2, 3, 7])
@pytest.mark.parametrize("per_minute", [600 * 7, 4_321, 5_000, 60_000, 3_600_000])
def test_portions_of_a_quota_let_through_together_what_one_process_would(senders: int, per_minute: int) -> None:
    def most_in_a_second(portions: list[tuple[int, int]]) -> int:
        left = []
        for portion in portions:
            admission = Admission(requests_per_minute=per_minute, tokens_per_minute=None)
            admission.share(1, 0.0, portion)
            now = 0.0
            while (now := admission.ready_at(now, 1)) < 5:
                admission.take(now, 1)
                left.append(now)
        left.sort()
        latest, most = deque[float](), 0
        for at in left:
            latest.append(at)
            while latest[0] <= at - 1:
                latest.popleft()
            most = max(most, len(latest))
        return most

    if per_minute > 100_000:
        per_minute //= 20  # so many take too long to try one by one
    alone = math.ceil(per_minute / 60)
    together = most_in_a_second([(index, senders) for index in range(senders)])
    assert together <= alone
    assert together >= 0.95 * alone - senders


def test_portions_of_a_quota_of_tokens_hold_no_more_than_the_whole() -> None:
    sent = 0.0
    for index in range(3):
        admission = Admission(requests_per_minute=None, tokens_per_minute=100_000)
        admission.share(2, 0.0, (index, 3))
        now = 0.0
        while (now := admission.ready_at(now, 100)) < 59:
            admission.take(now, 100)
            sent += 100
    assert 0.9 * 50_000 <= sent <= 50_000


@pytest.mark.parametrize("learnt", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.9])
def test_another_share_left_to_others_holds_at_once(share: float, learnt: bool) -> None:  # noqa: FBT001 - a parameter
    admission = Admission(requests_per_minute=None if learnt else 600, tokens_per_minute=None, leave=0.5)
    if learnt:
        mark = admission.mark(0.0)
        admission.observe(
            0.0, limit_requests=600, limit_tokens=None, remaining_requests=None, remaining_tokens=None, mark=mark
        )
    admission.leave(share, 1.0)
    now, sent = 1.0, 0
    while (now := admission.ready_at(now, 1)) < 61.0:
        admission.take(now, 1)
        sent += 1
    assert sent == pytest.approx(600 * (1 - share), rel=0.05)
    assert admission.requests_per_minute == 600, "what is known of the service stays"


def test_another_share_of_the_tokens_left_to_others_holds_at_once() -> None:
    admission = Admission(requests_per_minute=None, tokens_per_minute=60_000, leave=0.5)
    admission.leave(0.25, 1.0)
    now, sent = 1.0, 0
    while (now := admission.ready_at(now, 100)) < 61.0:
        admission.take(now, 100)
        sent += 100
    assert sent == pytest.approx(45_000, rel=0.05)


@pytest.mark.parametrize(
    ("requests", "tokens", "share"), [(300, None, 1 / 5), (None, 6_000, 100 / 6_000), (60, 60_000, 1.0)]
)
def test_the_share_used_is_never_that_of_less_than_a_span(
    requests: float | None, tokens: float | None, share: float
) -> None:
    admission = Admission(requests_per_minute=requests, tokens_per_minute=tokens)
    admission.take(0.0, 100)
    assert admission.used(0.01) == pytest.approx(share, rel=0.01)
