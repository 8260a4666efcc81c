"""An allowance that is never passed."""

from __future__ import annotations

import random

import pytest

from pipeline.pace.allowance import Allowance


def test_what_is_under_way_counts_at_its_worst_until_it_is_known() -> None:
    allowance = Allowance(most=100, spent=10, lost=5)
    assert allowance.left == 85
    assert allowance.fits(85)
    assert not allowance.fits(86)
    allowance.reserve(80)
    assert (allowance.left, allowance.fits(5), allowance.fits(6)) == (5, True, False)
    allowance.answer(80, 20)
    assert (allowance.used, allowance.left) == (35, 65)
    allowance.commit(20)
    assert (allowance.used, allowance.spent, allowance.left) == (35, 30, 65)


@pytest.mark.parametrize("name", ["reserved", "kept", "answered", "gone"])
def test_what_an_invocation_has_under_way_begins_with_nothing(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        Allowance(**{"most": 100, name: 1})


def test_what_was_not_billed_is_given_back_and_what_may_have_been_is_gone() -> None:
    allowance = Allowance(most=100)
    allowance.reserve(30)
    allowance.release(30)
    assert allowance.left == 100
    allowance.reserve(30)
    allowance.lose(30, 30)
    allowance.reserve(30)
    allowance.lose(30, 7)
    assert (allowance.left, allowance.used, allowance.to_keep) == (63, 37, 37)


def test_nothing_is_left_of_an_allowance_that_was_lowered() -> None:
    allowance = Allowance(most=10, spent=50)
    assert allowance.left == -40
    assert not allowance.fits(0)


def test_what_is_at_risk_is_noted_before_it_can_be_lost() -> None:
    allowance = Allowance(most=1000)
    assert allowance.to_secure() is None
    allowance.reserve(7)
    assert allowance.to_secure() == 10  # a hundredth of it
    allowance.secured = 10
    allowance.reserve(3)
    assert allowance.to_secure() is None
    allowance.lose(7, 7)
    allowance.reserve(8)
    assert allowance.to_secure() == 20
    allowance.secured = 0
    assert allowance.to_secure() == 20


def test_what_its_owner_knows_of_after_a_kill_is_not_at_risk() -> None:
    allowance = Allowance(most=1000)
    allowance.reserve(500)
    allowance.kept = 500
    assert allowance.to_secure() is None
    allowance.reserve(15)
    assert allowance.to_secure() == 20


def test_what_others_have_under_way_is_not_there_to_be_spent() -> None:
    allowance = Allowance(most=100, spent=10, held=70)
    assert (allowance.used, allowance.left, allowance.to_keep) == (80, 20, 0)
    assert not allowance.fits(21)


def test_no_more_is_noted_than_there_is_but_all_of_what_is_at_risk() -> None:
    allowance = Allowance(most=1050, spent=1000)
    allowance.reserve(45)
    assert allowance.to_secure() == 50
    allowance = Allowance(most=3)
    allowance.reserve(2)
    assert allowance.to_secure() == 2


@pytest.mark.parametrize(
    ("most_then", "lost"),
    [(1000, 30 + 20), (1100, 30 + 60), (900, 30), (None, 30 + 60)],
)
def test_a_kill_lost_no_more_than_the_killed_process_might_have_spent(most_then: int | None, lost: int) -> None:
    """Answers that were at risk when it was noted have been committed since: they are not counted twice."""
    after = Allowance.after_kill(most=2000, spent=900, lost=30, at_risk=60, held=50, most_then=most_then)
    assert (after.lost, after.used) == (lost, 900 + lost + 50)


@pytest.mark.parametrize("seed", range(20))
def test_no_order_of_events_and_no_kill_passes_it(seed: int) -> None:
    """Costs are at most what was reserved; a kill leaves committed rows and the last note behind."""
    dice = random.Random(seed)
    most, truly = 10_000, 0
    lost, spent, noted = 0, 0, 0
    for _ in range(dice.randint(1, 5)):
        allowance = Allowance.after_kill(most=most, spent=spent, lost=lost, at_risk=noted, held=0, most_then=most)
        assert truly <= allowance.used <= most
        lost, noted = allowance.lost, 0
        flying: list[int] = []
        unkept: list[int] = []
        for _ in range(200):
            worst = dice.randint(1, 400)
            if allowance.fits(worst) and dice.random() < 0.6:
                allowance.reserve(worst)
                secured = allowance.to_secure()
                if secured is not None:
                    allowance.secured = noted = secured
                flying.append(worst)
            elif flying:
                sent = flying.pop(dice.randrange(len(flying)))
                cost = dice.randint(0, sent)
                truly += cost
                if dice.random() < 0.2:
                    allowance.lose(sent, sent)
                else:
                    allowance.answer(sent, cost)
                    unkept.append(cost)
            elif unkept:
                cost = unkept.pop()
                allowance.commit(cost)
                spent += cost
        truly += sum(flying)  # killed: all of them were billed in full
        assert truly <= most
    assert truly > most * 0.5
