"""What retries may cost."""

from __future__ import annotations

import random

import pytest

from pipeline.pace.budget import RetryBudget


def test_a_full_budget_pays_for_a_hundred_retries_and_says_once_that_it_is_empty() -> None:
    budget = RetryBudget()
    assert [budget.spend() for _ in range(100)] == [False] * 99 + [True]
    assert budget.empty
    assert not budget.spend()


def test_two_answers_pay_for_one_retry() -> None:
    budget = RetryBudget()
    while not budget.empty:
        budget.spend()
    budget.earn()
    assert budget.empty
    budget.earn()
    assert not budget.empty
    assert not budget.spend(), "the episode has been told"


def test_an_overload_is_told_again_once_half_of_it_was_earned_back() -> None:
    budget = RetryBudget()
    for _ in range(100):
        budget.spend()
    for _ in range(99):
        budget.earn()
    assert not any(budget.spend() for _ in range(100)), "half a retry less than half"
    for _ in range(100):
        budget.earn()
    assert [budget.spend() for _ in range(50)] == [False] * 49 + [True]


def test_no_answer_earns_more_than_a_full_budget() -> None:
    budget = RetryBudget()
    budget.earn()
    assert [budget.spend() for _ in range(100)].index(True) == 99


@pytest.mark.parametrize(("share", "lasts"), [(0.1, True), (0.3, True), (0.5, False), (0.9, False)])
def test_it_lasts_at_three_faults_in_ten_and_not_at_five(share: float, lasts: bool) -> None:  # noqa: FBT001 - expected
    budget, dice = RetryBudget(), random.Random(1)
    for _ in range(5000):
        if dice.random() < share:
            budget.spend()
        else:
            budget.earn()
    assert budget.empty is not lasts or (not lasts and budget._left < 10)
