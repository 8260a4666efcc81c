"""The gate that a refusal closes for everybody."""

from __future__ import annotations

import random

import pytest

from pipeline.pace.gate import Gate


@pytest.mark.parametrize("hint_s", [0.001, 0.25, 1, 7, 60, 120, 600])
@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_a_hint_is_a_floor_and_the_jitter_a_tenth_within_fifty_milliseconds_and_a_second(
    hint_s: float, chance: float
) -> None:
    gate = Gate()
    gate.pause(100.0, hint_s, sent_at=99.0, random=lambda: chance)
    assert gate.until == pytest.approx(100 + hint_s + chance * max(0.05, min(1, hint_s / 10)))


def test_pauses_never_shorten_one_another() -> None:
    gate = Gate()
    gate.pause(0.0, 60.0, sent_at=0.0, random=lambda: 0.0)
    gate.pause(1.0, 1.0, sent_at=0.5, random=lambda: 0.0)
    gate.pause(1.0, None, sent_at=0.5, random=lambda: 1.0)
    assert gate.until == 60.0


def test_without_a_hint_pauses_double_from_episode_to_episode_up_to_a_minute() -> None:
    gate, now, pauses = Gate(), 0.0, []
    for _ in range(9):
        gate.pause(now, None, sent_at=now, random=lambda: 1.0)
        pauses.append(gate.until - now)
        now = gate.until
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_many_refusals_together_are_one_episode() -> None:
    gate = Gate()
    for index in range(100):
        gate.pause(0.1 + index / 1000, None, sent_at=0.0 if index else 0.05, random=lambda: 1.0)
    assert gate.until == pytest.approx(1.1)


def test_an_answer_ends_the_series_only_when_it_was_sent_after_the_pause() -> None:
    gate = Gate()
    gate.pause(0.0, None, sent_at=0.0, random=lambda: 1.0)
    gate.answered(0.5)
    gate.pause(1.0, None, sent_at=1.0, random=lambda: 1.0)
    assert gate.until == 3.0
    gate.answered(3.0)
    gate.pause(4.0, None, sent_at=3.5, random=lambda: 1.0)
    assert gate.until == 5.0


def test_the_time_that_it_was_closed_is_added_up_and_what_overlaps_counts_once() -> None:
    gate = Gate()
    assert gate.closed_in_all_s(0.0) == 0.0
    gate.pause(0.0, 10.0, sent_at=0.0, random=lambda: 0.0)
    gate.pause(4.0, 10.0, sent_at=0.0, random=lambda: 0.0)
    gate.pause(5.0, 1.0, sent_at=0.0, random=lambda: 0.0)
    assert gate.closed_in_all_s(3.0) == 3.0
    assert gate.closed_in_all_s(20.0) == 14.0
    gate.pause(30.0, 2.0, sent_at=29.0, random=lambda: 0.0)
    assert gate.closed_in_all_s(31.0) == 15.0


def test_full_jitter_spreads_over_the_whole_pause() -> None:
    rng = random.Random(1)
    waits = []
    for _ in range(1000):
        gate = Gate()
        gate.pause(0.0, None, sent_at=0.0, random=rng.random)
        waits.append(gate.until)
    assert 0.45 < sum(waits) / 1000 < 0.55
    assert min(waits) < 0.05
    assert max(waits) > 0.95


def test_refusals_that_lengthen_no_pause_make_no_pause_forgotten() -> None:
    gate = Gate()
    gate.pause(0.0, 10.0, sent_at=0.0, random=lambda: 0.0)
    for _ in range(100):
        gate.pause(1.0, 1.0, sent_at=0.5, random=lambda: 0.0)
    assert gate.closed_s(10.0, 10.0) == 10.0
    assert [gate.closed_s(now, 10.0) for now in (5.0, 15.0, 30.0)] == [5.0, 5.0, 0.0]


def test_what_another_process_was_told_holds_as_long_and_shortens_nothing() -> None:
    gate = Gate()
    gate.hold(0.0, 10.0)
    gate.hold(1.0, 5.0)
    assert (gate.until, gate.closed_in_all_s(10.0)) == (10.0, 10.0)
    gate.hold(11.0, 11.0)
    assert gate.closed_in_all_s(12.0) == 10.0
