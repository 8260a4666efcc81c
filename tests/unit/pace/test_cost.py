"""What a deployment counts for a request, learnt from what it says is left."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from pipeline.pace.bucket import Window
from pipeline.pace.cost import CostFactor, Mark

LIMIT = 100_000.0
LEAST, LOWERED_PER_S, REPLIES = 0.02, 0.9, 10


def feed(
    cost: CostFactor,
    charge: Callable[[float], float],
    *,
    seconds: float,
    begin: float = 0.0,
    per_second: float = 3.0,
    others: float = 0.0,
    fixed: bool = False,
    latency_s: float = 1.0,
    seed: int = 1,
) -> float:
    """Send at a steady rate; replies come late and in another order. Returns the service's greatest sum of a minute."""
    chance = random.Random(seed)
    minute = Window(limit=float("inf"), span_s=60.0)
    since_reset = greatest = 0.0
    replies: list[tuple[float, Mark, float]] = []
    for number in range(int(seconds * per_second)):
        now = begin + number / per_second
        tokens = chance.choice((200.0, 400.0, 900.0))
        cost.sent(now, tokens)
        minute.take(now, charge(tokens))
        if fixed and number and now % 60 < 1 / per_second:
            since_reset = 0.0
        since_reset += charge(tokens)
        gone = (since_reset if fixed else minute.sum(now)) + others
        greatest = max(greatest, gone)
        replies.append((now + latency_s * chance.lognormvariate(0, 0.5), cost.mark(now), gone))
        for at, mark, gone_then in sorted(reply for reply in replies if reply[0] <= now):
            cost.learn(at, mark, limit=LIMIT, remaining=max(0.0, LIMIT - gone_then))
        replies = [reply for reply in replies if reply[0] > now]
    return greatest


@pytest.mark.parametrize("factor", [0.1, 0.5, 0.9, 1.0])
def test_a_cost_below_the_estimate_is_learnt(factor: float) -> None:
    cost = CostFactor()
    feed(cost, lambda tokens: factor * tokens, seconds=90)
    assert cost.factor == pytest.approx(factor, rel=0.01)


@pytest.mark.parametrize("begin", [0.0, 86_400.0])
@pytest.mark.parametrize("factor", [1.5, 4.0, 10.0])
def test_a_cost_above_the_estimate_is_learnt_within_the_first_minute(factor: float, begin: float) -> None:
    cost = CostFactor()
    per_second = 0.95 * LIMIT / 500 / 60 / factor
    feed(cost, lambda tokens: factor * tokens, seconds=60, begin=begin, per_second=per_second)
    assert cost.factor == pytest.approx(factor, rel=0.05)


def test_the_factor_of_small_requests_is_exact() -> None:
    cost = CostFactor()
    for now in range(1, 101):
        cost.sent(now, 1.0)
        cost.learn(now, cost.mark(now), limit=LIMIT, remaining=LIMIT - min(now, 60) / 2)
    assert cost.factor == pytest.approx(0.5, rel=1e-9)


def test_more_left_than_there_is_in_a_minute_means_that_nothing_is_gone() -> None:
    cost = CostFactor()
    for now in range(1, 101):
        cost.sent(now, 1.0)
        cost.learn(now, cost.mark(now), limit=LIMIT, remaining=LIMIT + 1_000)
    assert cost.factor == 0.02


def test_a_cost_is_lowered_by_a_tenth_a_second_and_not_below_the_least() -> None:
    cost = CostFactor()
    feed(cost, lambda _: 0.0, seconds=10)
    assert LOWERED_PER_S**11 <= cost.factor < 0.6
    feed(cost, lambda _: 0.0, seconds=120, begin=10)
    assert cost.factor == LEAST


def test_a_minute_that_begins_anew_does_not_make_requests_seem_cheap() -> None:
    cost = CostFactor()
    feed(cost, lambda tokens: tokens, seconds=300, fixed=True)
    assert 0.95 <= cost.factor <= 1.02


@pytest.mark.parametrize("others", [20_000.0, 80_000.0])
def test_what_others_use_is_no_cost_of_ours(others: float) -> None:
    cost = CostFactor()
    feed(cost, lambda tokens: tokens, seconds=200, per_second=0.5, others=others)
    assert cost.factor == pytest.approx(1.0, rel=0.1)


def test_it_is_lowered_from_the_tenth_reply_on() -> None:
    cost = CostFactor()
    changes = []
    for now in range(12):
        cost.sent(now, 1000)
        changes.append(cost.learn(now, cost.mark(now), limit=LIMIT, remaining=LIMIT))
    assert changes == [False] * 9 + [True] * 3


def test_a_few_replies_lower_nothing() -> None:
    cost = CostFactor()
    for now in range(REPLIES - 1):
        cost.sent(now, 1000)
        assert not cost.learn(now, cost.mark(now), limit=LIMIT, remaining=LIMIT)
    assert cost.factor == 1.0


def test_a_bucket_s_level_is_not_taken_for_a_minutes_rest() -> None:
    cost = CostFactor(lowers=False)
    feed(cost, lambda _: 0.0, seconds=120)
    assert cost.factor == 1.0


def test_a_refusal_raises_the_factor_and_ends_the_lowering_for_a_while() -> None:
    cost = CostFactor()
    feed(cost, lambda tokens: tokens / 2, seconds=90)
    learnt = cost.factor
    cost.refused(90.0)
    raised = cost.factor
    assert raised == pytest.approx(1.01 * learnt)
    feed(cost, lambda tokens: tokens / 4, seconds=55, begin=90)
    assert cost.factor == raised
    feed(cost, lambda tokens: tokens / 4, seconds=15, begin=145)
    assert cost.factor < raised, "a minute after a first refusal"
    cost.refused(160.0)
    raised = cost.factor
    feed(cost, lambda tokens: tokens / 8, seconds=115, begin=160)
    assert cost.factor == raised, "two minutes after a second one"
    feed(cost, lambda tokens: tokens / 8, seconds=15, begin=275)
    assert cost.factor < raised


def test_the_factor_is_lowered_again_from_the_sixtieth_second_after_a_refusal_on() -> None:
    cost = CostFactor()
    for now in range(161):
        cost.sent(now, 1.0)
        if now == 100:
            assert cost.factor == pytest.approx(0.5)
            cost.refused(now)
            raised = cost.factor
        lowered = cost.learn(now, cost.mark(now), limit=LIMIT, remaining=LIMIT - min(now + 1, 60) / 2)
        if now >= 100:
            assert (cost.factor < raised, lowered) == (now >= 160, now == 160)


def test_a_refusal_never_raises_the_factor_above_one_nor_lowers_one_that_is() -> None:
    cost = CostFactor()
    feed(cost, lambda tokens: 0.995 * tokens, seconds=90)
    cost.refused(90.0)
    assert cost.factor == 1.0
    feed(dear := CostFactor(), lambda tokens: 4 * tokens, seconds=60, per_second=0.95 * LIMIT / 500 / 60 / 4)
    learnt = dear.factor
    dear.refused(60.0)
    assert dear.factor == learnt > 1


def test_with_less_than_half_of_a_minute_gone_the_factor_does_not_rise() -> None:
    cost = CostFactor()
    feed(cost, lambda tokens: 4 * tokens, seconds=60, per_second=0.45 * LIMIT / 500 / 60 / 4)
    assert cost.factor == 1.0


def test_the_factor_rises_from_the_third_reply_on_and_to_fifty_at_most() -> None:
    cost = CostFactor()
    factors = []
    for number in range(4):
        cost.sent(number, 1.0)
        cost.learn(number, cost.mark(number), limit=LIMIT, remaining=LIMIT * (1 - (number + 4) / 8))
        factors.append(cost.factor)
    assert factors == [1.0, 1.0, 50.0, 50.0]


def test_what_was_not_sent_after_all_is_taken_back() -> None:
    cost = CostFactor()
    for tokens in (100.0, 300.0, -300.0):
        cost.sent(1.0, tokens)
    assert cost.mark(2.0) == Mark(at=2.0, requests=1.0, tokens=100.0, minute=100.0)
    for tokens in (1.0, -1.0, 0.0):
        cost.sent(2.0, tokens)
    assert cost.mark(2.0) == Mark(at=2.0, requests=2.0, tokens=100.0, minute=100.0)


def test_a_cost_that_was_lowered_rises_again_as_far_as_the_estimate_at_once() -> None:
    cost, per_second = CostFactor(), 0.7 * LIMIT / 500 / 60
    feed(cost, lambda tokens: 0.3 * tokens, seconds=120, per_second=per_second)
    assert cost.factor == pytest.approx(0.3, rel=0.01)
    feed(cost, lambda tokens: 0.9 * tokens, seconds=90, begin=120, per_second=per_second)
    assert cost.factor == pytest.approx(0.9, rel=0.02)


def test_replies_between_which_nothing_was_sent_raise_nothing() -> None:
    cost = CostFactor()
    cost.sent(0.0, 1_000)
    mark = cost.mark(0.0)
    for remaining in (LIMIT, LIMIT / 2, 0.0, 0.0):
        assert not cost.learn(1.0, mark, limit=LIMIT, remaining=remaining)
    assert cost.factor == 1.0


@pytest.mark.parametrize("remaining", [0.0, LIMIT, 10 * LIMIT])
def test_figures_that_make_no_sense_do_no_harm(remaining: float) -> None:
    cost = CostFactor()
    assert not cost.learn(0.0, cost.mark(0.0), limit=LIMIT, remaining=remaining)
    cost.sent(0.0, -5)
    assert not cost.learn(0.0, cost.mark(0.0), limit=LIMIT, remaining=remaining)
    assert cost.factor == 1.0
