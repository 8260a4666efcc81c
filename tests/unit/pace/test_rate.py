"""The rate: cut once an episode, grown where it is used."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from pipeline.pace.rate import Rate

AT_ONCE, BACK, RISEN, HELD_COSTS = 0.25, 0.99, 1.1, 100
DOUBT_S, HOLD_S, HOPE_S, LONGEST_HOLD_S = 10.0, 15.0, 60.0, 300.0
CUT, COOL_DOWN_S, GROWTH_PER_S, RAMP_FROM, RAMP_S = 0.8, 5.0, 0.01, 0.1, 10.0


def cut(
    rate: Rate,
    now: float,
    *,
    sent_at: float | None = None,
    cool_down_s: float = 0.0,
    passed: float = 1e9,
    admitted: float | None = None,
    certain: bool = False,
    unhinted: bool = False,
    lately: float = 0.0,
) -> bool:
    return rate.cut(
        now,
        sent_at=now if sent_at is None else sent_at,
        cool_down_s=cool_down_s,
        passed=passed,
        admitted=passed if admitted is None else admitted,
        least=1,
        certain=certain,
        unhinted=unhinted,
        lately=lately,
    )


def use(rate: Rate, begin: float, seconds: float, share: float = 1.0) -> float:
    """Use a share of the leave, and return the moment after it."""
    now, end = begin, begin + seconds
    while now < end:
        assert rate.per_minute is not None
        now += 60 / rate.per_minute / share
        rate.used(now, 1)
    return now


def test_a_hundred_refusals_together_are_one_cut() -> None:
    rate = Rate(ceiling=600)
    assert [cut(rate, 10 + number / 100, sent_at=9.0) for number in range(100)].count(True) == 1
    assert rate.per_minute == BACK * 600


@pytest.mark.parametrize(("hint_s", "expected_s"), [(0.0, COOL_DOWN_S), (1.0, COOL_DOWN_S), (30.0, 30.0)])
def test_no_cut_follows_another_within_five_seconds_or_the_hint(hint_s: float, expected_s: float) -> None:
    rate = Rate(ceiling=600)
    assert cut(rate, 10.0, cool_down_s=hint_s)
    assert not cut(rate, 10.0 + expected_s - 0.01)
    assert cut(rate, 10.0 + expected_s, certain=True)
    assert rate.per_minute == pytest.approx(CUT * BACK * 600)


def test_a_refusal_of_what_was_sent_before_the_cut_says_nothing_new() -> None:
    rate = Rate(ceiling=600)
    cut(rate, 10.0)
    assert not cut(rate, 100.0, sent_at=9.9)
    assert cut(rate, 100.0, sent_at=10.1, certain=True)


@pytest.mark.parametrize(
    ("passed", "kept"),
    [(600, BACK * 600), (500, 500), (200, 200), (50, AT_ONCE * 600)],
    ids=["as much", "a little less", "a third", "next to nothing"],
)
def test_a_refusal_leads_to_what_had_passed(passed: float, kept: float) -> None:
    rate = Rate(ceiling=600)
    cut(rate, 10.0, passed=passed)
    assert rate.per_minute == kept


def test_where_what_had_passed_is_refused_at_once_it_is_cut_by_a_fifth_or_to_what_was_admitted() -> None:
    for admitted, kept in ((590, CUT * BACK * 600), (300, 300)):
        rate = Rate(ceiling=600)
        cut(rate, 10.0, passed=600)
        cut(rate, 10.0 + COOL_DOWN_S + 1, passed=590, admitted=admitted)
        assert rate.per_minute == pytest.approx(kept)


@pytest.mark.parametrize(("sent", "told"), [(600, 100), (500, 100), (400, CUT * 600)])
def test_what_passed_says_nothing_of_the_limit_where_the_rate_was_not_used(sent: float, told: float) -> None:
    assert Rate(ceiling=600).at_ease(100, sent) == told
    assert Rate(ceiling=None).at_ease(100, sent) == 100


def test_what_leaves_at_the_full_rate_or_during_a_ramp_is_no_growth() -> None:
    rate = Rate(ceiling=600)
    assert not any(rate.used(number / 10, 1) for number in range(100))
    rate.ramp(10.0)
    assert not any(rate.used(10 + number, 1) for number in range(9))
    assert rate.per_minute == 60


def test_what_is_used_grows_by_a_hundredth_a_second_up_to_the_ceiling() -> None:
    rate = Rate(ceiling=6000)
    rate.ease(0.0)
    assert rate.per_minute == 4800
    now = use(rate, 0.0, 10.0)
    assert rate.per_minute == pytest.approx(4800 * (1 + GROWTH_PER_S) ** now, rel=0.02)
    use(rate, now, 100.0)
    assert rate.per_minute == 6000


def found(*, ceiling: float | None = None, span_s: float = 1.0) -> Rate:
    """A rate that was refused at 6060 a minute and is held at 6000."""
    rate = Rate(ceiling=ceiling, span_s=span_s)
    rate.per_minute = 6060
    rate.used(0.0, 1)
    cut(rate, 0.0, passed=6000)
    assert rate.per_minute == pytest.approx(BACK * 6060)
    rate.per_minute = rate._held = 6000
    return rate


def test_what_was_found_is_held_and_then_a_little_more_is_tried() -> None:
    rate = found()
    now = use(rate, 0.0, HOLD_S - 1.5)
    assert rate.per_minute == 6000
    use(rate, now, 4.0)
    assert 6000 < rate.per_minute < 6300


def test_where_a_minute_is_judged_the_try_takes_a_minute() -> None:
    rate = found(span_s=60.0)
    now = use(rate, 0.0, 59.0)
    assert rate.per_minute == 6000
    use(rate, now, 50.0)
    assert 6000 < rate.per_minute < 1.03 * 6000


def tries(rate: Rate, seconds: float) -> list[float]:
    """The moments at which a service that allows 6000 a minute refuses."""
    now, refused = 0.0, []
    while now < seconds:
        now = use(rate, now, 1.0)
        if (rate.per_minute or 0) > 6060:
            cut(rate, now, passed=5990)
            refused.append(now)
            assert rate.per_minute == 6000, "what was held is still good"
    return refused


def test_tries_in_vain_become_rare() -> None:
    refused = tries(found(), 2000.0)
    gaps = [after - before for before, after in pairwise(refused)]
    assert gaps[:4] == [pytest.approx(hold, abs=6) for hold in (30, 60, 120, 240)]
    assert all(gap == pytest.approx(LONGEST_HOLD_S, abs=6) for gap in gaps[4:])


def test_where_more_was_once_used_it_is_hoped_for_each_minute_and_less_as_time_goes() -> None:
    rate = Rate(ceiling=12_000)
    use(rate, -100.0, 100.0)
    cut(rate, 0.0, passed=12_000, certain=True)
    rate.per_minute = rate._held = 6000
    refused = tries(rate, 4000.0)
    gaps = [after - before for before, after in pairwise(refused)]
    assert max(gaps[:5]) <= HOPE_S + 8
    assert gaps[-1] == pytest.approx(LONGEST_HOLD_S, abs=6)


def test_a_limit_that_rose_is_followed_faster_and_faster() -> None:
    rate = found()
    now = use(rate, 0.0, HOLD_S + 1)
    use(rate, now, 25.0)
    assert (rate.per_minute or 0) > 2.2 * 6000
    cut(rate, 100.0, passed=9000)
    assert rate.per_minute == 9000, "what passed, for it is far from what was held"


def test_the_slower_the_rate_the_longer_it_is_held() -> None:
    slow = Rate(ceiling=None)
    cut(slow, 0.0, passed=60)
    use(slow, 0.0, HELD_COSTS - 5)
    assert slow.per_minute == BACK * 60


def test_one_refusal_of_a_rate_that_did_well_is_chance_and_a_second_is_not() -> None:
    rate = Rate(ceiling=6000)
    now = use(rate, 0.0, DOUBT_S + 1)
    assert not cut(rate, now)
    assert cut(rate, now + DOUBT_S)
    early = Rate(ceiling=6000)
    assert cut(early, use(early, 0.0, DOUBT_S - 1)), "it had not done well for long"


def test_a_refusal_that_is_certain_or_asks_for_a_long_pause_is_no_chance() -> None:
    rate = Rate(ceiling=6000)
    assert cut(rate, use(rate, 0.0, DOUBT_S + 1), certain=True)
    rate = Rate(ceiling=6000)
    assert cut(rate, use(rate, 0.0, DOUBT_S + 1), cool_down_s=COOL_DOWN_S + 1)


def test_a_refusal_that_says_not_when_to_return_is_chance_until_it_comes_again() -> None:
    rate = Rate(ceiling=6000)
    assert not cut(rate, 1.0, unhinted=True), "whatever the rate did before"
    assert cut(rate, 2.0, unhinted=True)
    trying = Rate(ceiling=None)
    cut(trying, 0.0, passed=6000)
    now = use(trying, 0.0, HOLD_S + DOUBT_S + 1)
    assert (trying.per_minute or 0) > BACK * 6000
    for _ in range(3):
        assert not cut(trying, now, unhinted=True, lately=100)
    assert cut(trying, now, unhinted=True, lately=100), "four of a hundred are no chance"


@pytest.mark.parametrize("unhinted", [False, True])
def test_a_rate_that_nobody_knows_is_cut_by_the_first_refusal(unhinted: bool) -> None:  # noqa: FBT001 - a case
    assert cut(Rate(ceiling=None), 1.0, passed=600, unhinted=unhinted)


def test_after_a_pause_what_is_used_grows_again() -> None:
    rate = Rate(ceiling=6000)
    rate.ease(0.0)
    use(rate, 100.0, 10.0)
    assert (rate.per_minute or 0) > 5_000


@pytest.mark.parametrize("share", [0.1, 0.5, 0.7])
def test_what_is_not_used_does_not_grow(share: float) -> None:
    rate = Rate(ceiling=6000)
    rate.ease(0.0)
    use(rate, 0.0, 60.0, share)
    assert rate.per_minute == 4800


@pytest.mark.parametrize(("ceiling", "floor"), [(0.5, 0.5), (600.0, 1.0)])
def test_the_floor_is_one_request_a_minute_or_the_limit(ceiling: float, floor: float) -> None:
    rate = Rate(ceiling=ceiling)
    for number in range(100):
        cut(rate, number * 100.0, passed=0.0)
    assert rate.per_minute == floor


def test_a_lower_ceiling_holds_at_once_and_explains_what_was_refused_before() -> None:
    rate = Rate(ceiling=600)
    rate.limit_to(300, now=10.0)
    assert rate.per_minute == 300
    assert not cut(rate, 11.0, sent_at=9.0)
    rate.limit_to(600, now=20.0)
    assert rate.per_minute == 600


def test_a_higher_ceiling_raises_a_rate_that_was_cut_by_as_much() -> None:
    rate = Rate(ceiling=300)
    rate.ease(0.0)
    rate.limit_to(600, now=1.0)
    assert rate.per_minute == pytest.approx(480)


def test_without_a_ceiling_the_first_refusal_says_what_passed_and_growth_has_no_end() -> None:
    rate = Rate(ceiling=None)
    assert rate.per_minute is None
    assert not rate.used(1.0, 1)
    cut(rate, 10.0, passed=1000)
    assert rate.per_minute == BACK * 1000
    use(rate, 10.0, 200.0)
    assert rate.per_minute > RISEN * 2000
    rate.limit_to(500, now=300.0)
    assert rate.per_minute == 500


def test_a_ceiling_that_falls_to_above_what_is_held_leaves_it_held() -> None:
    rate = found(ceiling=12_000)
    rate.limit_to(10_000, now=1.0)
    use(rate, 1.0, HOLD_S + 3)
    rate.per_minute = 6060
    cut(rate, 30.0, passed=5990)
    assert rate.per_minute == 6000


def test_a_ceiling_that_falls_to_above_what_is_sent_leaves_the_rate_alone() -> None:
    rate = Rate(ceiling=600)
    rate.ease(0.0)
    rate.limit_to(500, now=1.0)
    assert rate.per_minute == 480


def test_a_ceiling_that_falls_during_a_ramp_is_where_that_ends() -> None:
    rate = Rate(ceiling=600)
    rate.ramp(100.0)
    rate.limit_to(300, now=101.0)
    assert rate.tick(100.0 + RAMP_S)
    assert rate.per_minute == 300


def test_growth_comes_to_rest_just_below_the_rate_that_was_too_much() -> None:
    rate = Rate(ceiling=None)
    rate.per_minute = 6000
    rate.ease(0.0)
    use(rate, 0.0, 30.0)
    assert 0.95 * 6000 < (rate.per_minute or 0) <= 6000, "growth alone would have passed it within 23 s"


def test_where_a_minute_is_judged_refusals_are_weighed_over_one_and_a_half() -> None:
    rate = Rate(ceiling=6000, span_s=60.0)
    now = use(rate, 0.0, DOUBT_S + 1)
    assert not cut(rate, now)
    assert cut(rate, now + 85)


def test_one_request_of_a_slow_rate_says_not_that_it_is_used() -> None:
    rate = Rate(ceiling=7.5)
    rate.ease(0.0)
    assert rate.per_minute == 6
    assert not rate.used(2.0, 1)
    assert rate.per_minute == 6


def test_a_ramp_reaches_the_full_rate_in_ten_seconds() -> None:
    rate = Rate(ceiling=600)
    rate.ramp(100.0)
    assert rate.per_minute == pytest.approx(RAMP_FROM * 600)
    rate.tick(100.0 + RAMP_S / 2)
    assert rate.per_minute == pytest.approx(600 * (RAMP_FROM + 1) / 2)
    rate.ramp(100.0 + RAMP_S / 2)
    assert rate.tick(100.0 + 2 * RAMP_S)
    assert rate.per_minute == 600
    assert not rate.tick(200.0)


def test_what_was_found_is_what_a_window_holds_and_a_cut_of_it_leaves_the_window_alone() -> None:
    rate = Rate(ceiling=600)
    rate.ease(0.0)
    assert rate.per_window == 600
    learnt = Rate(ceiling=None)
    assert learnt.per_window is None
    cut(learnt, 0.0, passed=100)
    assert learnt.per_window == BACK * 100
    learnt.ease(10.0)
    assert learnt.per_window == BACK * 100
    assert math.isfinite(learnt.per_minute or math.inf)
