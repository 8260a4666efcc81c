"""How many may be under way while no limit is known."""

from __future__ import annotations

import pytest

from pipeline.pace.concurrency import Concurrency

START = 4.0


def test_it_doubles_with_each_round_of_answers() -> None:
    slow_start = Concurrency()
    for rounds in range(1, 6):
        for _ in range(int(slow_start.most)):
            slow_start.answered()
        assert slow_start.most == START * 2**rounds


def test_refusals_together_halve_it_once_and_it_grows_by_one_a_round_after_that() -> None:
    slow_start = Concurrency()
    for _ in range(60):
        slow_start.answered()
    cuts = [slow_start.cut(10.0, sent_at=9.0, under_way=40, cool_down_s=0.0) for _ in range(40)]
    assert cuts.count(True) == 1
    assert slow_start.most == 20
    for _ in range(20):
        slow_start.answered()
    assert 20.9 < slow_start.most <= 21


def test_a_refusal_of_what_was_sent_before_the_cut_says_nothing_new() -> None:
    slow_start = Concurrency()
    assert slow_start.cut(10.0, sent_at=9.0, under_way=4, cool_down_s=0.0)
    assert not slow_start.cut(100.0, sent_at=9.9, under_way=4, cool_down_s=0.0)
    assert slow_start.cut(100.0, sent_at=10.0, under_way=4, cool_down_s=0.0)


@pytest.mark.parametrize(("cool_down_s", "again_s"), [(0.0, 5.0), (4.0, 5.0), (30.0, 30.0)])
def test_after_a_cut_none_follows_for_five_seconds_or_as_long_as_was_asked_for(
    cool_down_s: float, again_s: float
) -> None:
    slow_start = Concurrency()
    assert slow_start.cut(10.0, sent_at=9.0, under_way=4, cool_down_s=cool_down_s)
    early, late = (
        slow_start.cut(10.0 + again_s + off_s, sent_at=10.0 + again_s, under_way=4, cool_down_s=0.0)
        for off_s in (-0.001, 0.0)
    )
    assert (early, late) == (False, True)


def test_one_may_always_be_under_way() -> None:
    slow_start = Concurrency()
    for number in range(50):
        slow_start.cut(10.0 * number, sent_at=10.0 * number, under_way=1, cool_down_s=0.0)
    assert slow_start.most == 1


def test_after_an_outage_it_begins_slowly_again() -> None:
    slow_start = Concurrency()
    for _ in range(60):
        slow_start.answered()
    slow_start.restart()
    assert slow_start.most == START
