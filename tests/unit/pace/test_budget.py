"""What retries may cost."""

from __future__ import annotations

import random

import pytest

from pipeline.pace.budget import A_SUCCESS, FULL, RetryBudget


def test_a_full_budget_pays_for_a_hundred_retries_and_says_once_that_it_is_empty() -> None:
    budget = RetryBudget()
    assert [budget.spend() for _ in range(int(FULL))] == [False] * (int(FULL) - 1) + [True]
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
    assert A_SUCCESS * 2 == 1
    assert not budget.spend(), "the episode has been told"


def test_an_overload_is_told_again_once_half_of_it_was_earned_back() -> None:
    budget = RetryBudget()
    for _ in range(int(FULL)):
        budget.spend()
    for _ in range(int(FULL)):
        budget.earn()
    assert [budget.spend() for _ in range(int(FULL / 2))][-1]


@pytest.mark.parametrize(("share", "lasts"), [(0.1, True), (0.3, True), (0.5, False), (0.9, False)])
def test_it_lasts_at_three_faults_in_ten_and_not_at_five(share: float, lasts: bool) -> None:  # noqa: FBT001 - expected
    budget, dice = RetryBudget(), random.Random(1)
    for _ in range(5000):
        if dice.random() < share:
            budget.spend()
        else:
            budget.earn()
    assert budget.empty is not lasts or (not lasts and budget._left < 10)
