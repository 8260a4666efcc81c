"""The bucket that smooths and the window that promises."""

from __future__ import annotations

import random

import pytest

from pipeline.pace.bucket import Bucket, Window


def test_a_bucket_gives_its_rate_and_no_more() -> None:
    bucket, now, left = Bucket(rate=10, least=1, slack=0.5, now=0.0), 0.0, 0
    while now < 100:
        now = bucket.ready_at(now, 1)
        bucket.take(now, 1)
        left += 1
    assert 1000 <= left <= 1002


def test_a_clock_that_steps_back_gives_no_leave_and_takes_none() -> None:
    bucket = Bucket(rate=10, least=1, slack=0.5, now=100.0)
    bucket.take(100.0, 1)
    assert bucket.level(50.0) == 0.0
    assert bucket.ready_at(50.0, 1) == pytest.approx(50.1)
    assert bucket.level(100.05) == pytest.approx(0.5)


def test_idleness_saves_up_no_more_than_the_burst() -> None:
    bucket = Bucket(rate=10, least=1, slack=0.5, now=0.0)
    assert bucket.level(1000.0) == 1.5


def test_a_large_cost_borrows_and_is_paid_before_the_next() -> None:
    bucket = Bucket(rate=10, least=0, slack=0.5, now=0.0)
    assert bucket.ready_at(0.0, 100) == 0.0
    bucket.take(0.0, 100)
    assert bucket.ready_at(0.0, 1) == pytest.approx(10.0)


def test_lateness_within_the_slack_costs_no_rate() -> None:
    rng = random.Random(1)
    bucket, now, left = Bucket(rate=10, least=1, slack=0.5, now=0.0), 0.0, 0
    while now < 1000:
        at = bucket.ready_at(now, 1)
        now = at if at == now else at + rng.random() * 0.04
        if bucket.ready_at(now, 1) == now:
            bucket.take(now, 1)
            left += 1
    assert left >= 9990


def test_a_window_never_holds_more_than_its_limit_and_frees_what_is_a_span_old() -> None:
    rng = random.Random(2)
    window, now, log = Window(limit=100, span_s=10), 0.0, []
    for _ in range(3000):
        now += rng.random() * 0.05
        cost = rng.choice([1, 2, 30])
        at = window.ready_at(now, cost)
        if at > now:
            # Nothing may leave a moment before it is said to, and it may then.
            assert window.ready_at(at, cost) == at
            now = at
        window.take(now, cost)
        log.append((now, cost))
        assert sum(spent for when, spent in log if when > now - 10 + 1e-9) <= 100
    assert sum(spent for _, spent in log) > 0.9 * 10 * now


def test_a_windows_memory_does_not_grow_with_the_traffic() -> None:
    window = Window(limit=1e9, span_s=60)
    for index in range(200_000):
        now = index / 1000
        window.ready_at(now, 1)
        window.take(now, 1)
    assert len(window._slices) <= 2001


def test_a_cost_above_the_limit_leaves_when_the_window_is_empty() -> None:
    window = Window(limit=10, span_s=1)
    assert window.ready_at(0.0, 50) == 0.0
    window.take(0.0, 1)
    assert window.ready_at(0.5, 50) == 1.0


def test_a_window_frees_room_with_the_first_slices_that_are_enough() -> None:
    window = Window(limit=10, span_s=10)
    for at in (0.0, 1.0):
        window.take(at, 5)
    assert [window.ready_at(2.0, cost) for cost in (5, 6, 10)] == [10.0, 11.0, 11.0]


def test_what_is_given_back_may_leave_again() -> None:
    window, bucket = Window(limit=10, span_s=10), Bucket(rate=1, least=10, slack=0, now=0.0)
    for measure in (window, bucket):
        measure.take(0.0, 10)
        assert measure.ready_at(0.0, 4) > 0
        measure.take(0.0, -4)
        assert measure.ready_at(0.0, 4) == 0


def test_the_level_falls_to_what_is_left_and_rises_with_nothing_but_time() -> None:
    bucket = Bucket(rate=10, least=100, slack=0, now=0.0)
    bucket.at_most(0.0, 30)
    bucket.at_most(0.0, 60)
    assert bucket.level(0.0) == 30
    assert bucket.level(2.0) == 50
    bucket.change(rate=1, least=20, slack=5)
    assert (bucket.level(2.0), bucket.rate) == (25, 1)
