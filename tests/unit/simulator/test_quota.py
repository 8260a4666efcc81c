"""Quota arithmetic, in virtual time."""

from __future__ import annotations

import math

import pytest

from pipeline.simulator.quota import NEVER_S, Limit, Quota


def quota(*, rpm: int | None = None, tpm: int | None = None, window_s: float = 1.0) -> Quota:
    return Quota(requests_per_minute=rpm, tokens_per_minute=tpm, request_window_s=window_s)


def admitted(judge: Quota, times: list[float], tokens: int = 0) -> list[bool]:
    return [judge.judge(time, tokens).exceeded is None for time in times]


def test_a_slice_of_a_second_takes_its_share_of_the_minute() -> None:
    judge = quota(rpm=600)
    assert admitted(judge, [0.1] * 11) == [True] * 10 + [False]
    assert admitted(judge, [0.999, 1.0]) == [False, True]


def test_slices_are_aligned_to_the_clock_and_not_to_the_first_request() -> None:
    judge = quota(rpm=60)
    assert admitted(judge, [0.9, 1.0, 1.9, 2.0]) == [True, True, False, True]


def test_a_ten_second_slice_takes_a_burst_of_ten_seconds() -> None:
    judge = quota(rpm=600, window_s=10)
    assert admitted(judge, [0.0] * 101) == [True] * 100 + [False]


@pytest.mark.parametrize(("rpm", "slice_s"), [(1, 60), (2, 30), (3, 20), (7, 9), (30, 2), (59, 2), (60, 1)])
def test_a_slice_is_as_long_as_one_request_needs(rpm: int, slice_s: int) -> None:
    assert quota(rpm=rpm).judge(0.0, 0).requests_reset_s == slice_s


@pytest.mark.parametrize("rpm", [1, 2, 7, 40, 59, 60, 61, 100, 300, 301, 999, 1000, 6001])
def test_no_calendar_minute_takes_more_than_its_limit_and_a_greedy_client_gets_all_of_it(rpm: int) -> None:
    judge = quota(rpm=rpm)
    per_minute = [0, 0]
    for tick in range(12_000):
        while judge.judge(tick / 100, 0).exceeded is None:
            per_minute[tick // 6000] += 1
    assert per_minute == [rpm, rpm]


def test_a_refused_call_is_told_when_the_slice_ends() -> None:
    judge = quota(rpm=60)
    judge.judge(5.25, 0)
    verdict = judge.judge(5.25, 0)
    assert (verdict.exceeded, verdict.retry_after_s) == (Limit.CALL, 0.75)


def test_tokens_leave_sixty_seconds_after_they_were_charged() -> None:
    judge = quota(tpm=1000)
    assert judge.judge(0.0, 600).exceeded is None
    assert judge.judge(30.0, 400).exceeded is None
    refused = judge.judge(40.0, 1)
    assert (refused.exceeded, refused.retry_after_s, refused.tokens_left) == (Limit.TOKEN, 20.0, 0)
    assert judge.judge(59.99, 1).exceeded is Limit.TOKEN
    assert judge.judge(60.0, 600).exceeded is None


def test_the_wait_reaches_to_the_charge_that_frees_enough() -> None:
    judge = quota(tpm=1000)
    for time in range(10):
        judge.judge(float(time), 100)
    assert judge.judge(10.0, 350).retry_after_s == 60 + 3 - 10.0


def test_a_request_larger_than_the_minute_is_sent_away_for_a_day() -> None:
    verdict = quota(tpm=1000).judge(0.0, 1001)
    assert (verdict.exceeded, verdict.retry_after_s) == (Limit.TOKEN, NEVER_S)


def test_a_refused_request_is_charged_no_tokens() -> None:
    judge = quota(tpm=1000)
    judge.judge(0.0, 999)
    for _ in range(100):
        assert judge.judge(1.0, 500).exceeded is Limit.TOKEN
    assert judge.judge(1.0, 1).exceeded is None


def test_what_a_verdict_says_of_tokens_and_requests_left_is_the_minutes() -> None:
    verdict = quota(rpm=600, tpm=1000).judge(10.0, 16)
    assert (verdict.requests_limit, verdict.requests_left) == (600, 599)
    assert (verdict.tokens_limit, verdict.tokens_left, verdict.tokens_reset_s) == (1000, 984, 60.0)


def test_what_is_given_back_can_be_used_and_the_request_stays_counted() -> None:
    judge = quota(rpm=600, tpm=1000)
    judge.judge(0.0, 300)
    verdict = judge.give_back(judge.judge(0.0, 600), 600)
    assert (verdict.tokens_left, verdict.requests_left, verdict.requests_left_in_slice) == (700, 598, 8)
    assert judge.judge(0.0, 0).tokens_left == 700
    assert judge.judge(0.0, 700).exceeded is None
    assert judge.judge(0.0, 1).exceeded is Limit.TOKEN
    assert judge.judge(60.0, 0).tokens_left == 1000
    assert judge.judge(60.0, 1001).exceeded is Limit.TOKEN
    assert judge.judge(60.0, 1000).exceeded is None
    assert judge.judge(60.0, 1).exceeded is Limit.TOKEN


def test_what_is_left_of_the_slice_is_told_beside_the_minutes() -> None:
    judge = quota(rpm=600, window_s=10)
    assert judge.judge(0.0, 0).requests_left_in_slice == 99
    assert judge.judge(9.9, 0).requests_left_in_slice == 98
    assert judge.judge(10.0, 0).requests_left_in_slice == 99


def test_a_change_counts_what_was_charged_before() -> None:
    judge = quota(rpm=600, tpm=1000)
    judge.judge(0.0, 600)
    judge.change(requests_per_minute=60, tokens_per_minute=500)
    assert judge.judge(0.5, 1).exceeded is not None
    assert judge.judge(60.0, 500).exceeded is None


@pytest.mark.parametrize(("before", "after"), [(600, 300), (300, 600), (600, 60), (60, 600), (600, 600)])
def test_the_rest_of_a_minute_has_the_pace_of_the_new_limit(before: int, after: int) -> None:
    judge = quota(rpm=before)
    halves = [0, 0]
    for tick in range(6_000):
        if tick == 3_000:
            judge.change(requests_per_minute=after, tokens_per_minute=None)
        while judge.judge(tick / 100, 0).exceeded is None:
            halves[tick // 3_000] += 1
    assert halves == [before / 2, after / 2]


def test_without_limits_everything_is_admitted() -> None:
    judge = quota()
    assert all(admitted(judge, [0.0] * 1000, tokens=10**9))


def test_a_client_that_paces_evenly_at_the_limit_is_never_refused() -> None:
    judge = quota(rpm=64 * 60, tpm=64 * 60 * 100)
    assert all(admitted(judge, [tick / 64 for tick in range(64 * 60 * 3)], tokens=100))


def test_a_sliding_minute_never_holds_more_tokens_than_the_limit() -> None:
    judge = quota(tpm=1000)
    charges: list[float] = []
    for tick in range(1_600):
        time = tick / 8
        if judge.judge(time, 37).exceeded is None:
            charges.append(time)
    for end in charges:
        assert 37 * sum(end - 60 < time <= end for time in charges) <= 1000
    assert len(charges) >= math.floor(1000 / 37) * 3
