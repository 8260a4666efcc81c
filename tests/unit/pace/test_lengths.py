"""The bound that answers need: a quantile of the latest, with a little room."""

from __future__ import annotations

import random

import pytest

from pipeline.pace.lengths import Lengths

LEARNT_FROM, KNOWN_FROM, KEPT, LEAST = 20, 100, 2_000, 16


def learnt(lengths: list[int], quantile: float = 0.99) -> Lengths:
    known = Lengths(quantile)
    for length in lengths:
        known.add(length)
    return known


def test_nothing_is_said_before_enough_is_known() -> None:
    assert learnt([150] * (LEARNT_FROM - 1)).bound is None
    assert learnt([150] * LEARNT_FROM).bound == 225
    assert learnt([150] * KNOWN_FROM).bound == 165


@pytest.mark.parametrize(("quantile", "bound"), [(0.5, 55), (0.9, 99), (0.99, 109), (1.0, 110)])
def test_the_bound_is_the_quantile_and_a_tenth(quantile: float, bound: int) -> None:
    lengths = list(range(1, 101))
    random.Random(1).shuffle(lengths)
    assert learnt(lengths, quantile).bound == bound


def test_only_the_latest_count() -> None:
    assert learnt([4_000] * KEPT + [100] * KEPT).bound == 110
    assert learnt([4_000] * KEPT + [100] * (KEPT - 100)).bound == 4_400


def test_the_bound_is_one_that_every_api_takes() -> None:
    assert learnt([1] * KNOWN_FROM).bound == LEAST


def test_a_share_of_answers_as_wanted_fits_the_bound() -> None:
    dice = random.Random(2)
    lengths = [round(dice.lognormvariate(5, 0.4)) for _ in range(KEPT)]
    bound = learnt(lengths).bound
    assert bound is not None
    fresh = [round(dice.lognormvariate(5, 0.4)) for _ in range(10_000)]
    assert sum(length > bound for length in fresh) / len(fresh) < 0.015
