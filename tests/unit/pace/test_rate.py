"""The rate: cut once an episode, grown where it is used."""

from __future__ import annotations

import math

import pytest

from pipeline.pace.rate import COOL_DOWN_S, CUT, GROWTH_PER_S, RAMP_FROM, RAMP_S, Rate


def cut(rate: Rate, now: float, *, sent_at: float | None = None, cool_down_s: float = 0.0, passed: float = 1e9) -> bool:
    return rate.cut(now, sent_at=now if sent_at is None else sent_at, cool_down_s=cool_down_s, passed=passed, least=1)


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
    assert rate.per_minute == CUT * 600


@pytest.mark.parametrize(("hint_s", "expected_s"), [(0.0, COOL_DOWN_S), (1.0, COOL_DOWN_S), (30.0, 30.0)])
def test_no_cut_follows_another_within_five_seconds_or_the_hint(hint_s: float, expected_s: float) -> None:
    rate = Rate(ceiling=600)
    assert cut(rate, 10.0, cool_down_s=hint_s)
    assert not cut(rate, 10.0 + expected_s - 0.01)
    assert cut(rate, 10.0 + expected_s)
    assert rate.per_minute == pytest.approx(CUT**2 * 600)


def test_a_refusal_of_what_was_sent_before_the_cut_says_nothing_new() -> None:
    rate = Rate(ceiling=600)
    cut(rate, 10.0)
    assert not cut(rate, 100.0, sent_at=9.9)
    assert cut(rate, 100.0, sent_at=10.1)


def test_what_is_used_grows_by_a_hundredth_a_second_up_to_the_ceiling() -> None:
    rate = Rate(ceiling=6000)
    cut(rate, 0.0)
    now = use(rate, 0.0, 10.0)
    assert rate.per_minute == pytest.approx(4800 * (1 + GROWTH_PER_S) ** now, rel=0.02)
    use(rate, now, 100.0)
    assert rate.per_minute == 6000


def test_near_the_rate_that_was_refused_it_grows_slowly() -> None:
    rate = Rate(ceiling=60_000)
    rate.per_minute = 6000
    cut(rate, 0.0)
    use(rate, 0.0, 40.0)
    assert 0.97 * 6000 < (rate.per_minute or 0) < 6000


@pytest.mark.parametrize("share", [0.1, 0.5, 0.7])
def test_what_is_not_used_does_not_grow(share: float) -> None:
    rate = Rate(ceiling=6000)
    cut(rate, 0.0)
    use(rate, 0.0, 60.0, share)
    assert rate.per_minute == 4800


@pytest.mark.parametrize(("ceiling", "floor"), [(0.5, 0.5), (600.0, 1.0)])
def test_the_floor_is_one_request_a_minute_or_the_limit(ceiling: float, floor: float) -> None:
    rate = Rate(ceiling=ceiling)
    for number in range(100):
        cut(rate, number * 100.0)
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
    cut(rate, 0.0)
    rate.limit_to(600, now=1.0)
    assert rate.per_minute == pytest.approx(480)


def test_without_a_ceiling_the_first_refusal_says_what_passed_and_growth_has_no_end() -> None:
    rate = Rate(ceiling=None)
    assert rate.per_minute is None
    assert not rate.used(1.0, 1)
    cut(rate, 10.0, passed=1000)
    assert rate.per_minute == CUT * 1000
    use(rate, 10.0, 200.0)
    assert rate.per_minute > 2000
    rate.limit_to(500, now=300.0)
    assert rate.per_minute == 500


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


def test_a_cut_leaves_the_window_alone() -> None:
    rate = Rate(ceiling=600)
    cut(rate, 0.0)
    assert rate.per_window == 600
    learnt = Rate(ceiling=None)
    assert learnt.per_window is None
    cut(learnt, 0.0, passed=100)
    assert learnt.per_window == 100
    assert math.isfinite(learnt.per_minute or math.inf)
