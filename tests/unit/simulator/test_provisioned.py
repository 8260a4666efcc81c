"""The arithmetic of provisioned throughput, in virtual time."""

from __future__ import annotations

import pytest

from pipeline.simulator.provisioned import Provisioned


def bucket(tokens_per_minute: int = 6_000, bucket_s: float = 10) -> Provisioned:
    return Provisioned(tokens_per_minute=tokens_per_minute, bucket_s=bucket_s)


def test_utilization_rises_by_the_estimate_and_falls_by_the_rate() -> None:
    judge = bucket()
    assert judge.judge(0.0, 500).share == 0.5
    assert judge.judge(2.0, 100).share == pytest.approx(0.4)
    assert judge.judge(100.0, 0).share == 0


def test_calls_are_admitted_until_it_is_above_100_percent_and_one_may_take_it_beyond() -> None:
    judge = bucket()
    admitted = [judge.judge(0.0, 400) for _ in range(3)]
    assert [found.share for found in admitted] == pytest.approx([0.4, 0.8, 1.2])
    assert not any(found.refused for found in admitted)
    assert judge.judge(0.0, 1).refused


def test_a_refusal_says_when_it_is_back_at_100_percent_and_costs_nothing() -> None:
    judge = bucket()
    judge.judge(0.0, 1_250)
    for _ in range(3):
        refused = judge.judge(0.0, 999)
        assert (refused.share, refused.retry_after_s) == (1.25, 2.5)
    assert judge.judge(2.4, 1).refused
    assert not judge.judge(2.5, 1).refused


def test_a_call_is_set_right_when_it_ends() -> None:
    judge = bucket()
    judge.judge(0.0, 900)
    judge.settle(0.0, estimated=800, taken=200)
    assert judge.judge(0.0, 0).share == pytest.approx(0.3)
    judge.settle(0.0, estimated=0, taken=600)
    assert judge.judge(0.0, 0).share == pytest.approx(0.9)


def test_a_call_that_took_more_fills_what_has_drained_since() -> None:
    judge = bucket()
    judge.judge(0.0, 100)
    judge.settle(5.0, estimated=0, taken=600)
    assert judge.judge(5.0, 0).share == pytest.approx(0.6)


def test_what_is_given_back_after_it_drained_leaves_no_credit() -> None:
    judge = bucket()
    judge.judge(0.0, 900)
    judge.settle(60.0, estimated=900, taken=0)
    assert judge.judge(60.0, 1_000).share == pytest.approx(1.0)


@pytest.mark.parametrize("tokens", [1, 37, 400, 5_000])
def test_a_greedy_client_gets_the_rate_and_no_more(tokens: int) -> None:
    judge = bucket()
    passed = sum(tokens for tick in range(60_000) if not judge.judge(tick / 100, tokens).refused)
    assert passed == pytest.approx(10 * 6_000, abs=1_000 + 2 * tokens)
