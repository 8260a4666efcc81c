"""What counted rows come to."""

from __future__ import annotations

import math
import random

import pytest

from pipeline.job.prices import Rate
from pipeline.plan.forecast import Bunch, Figure, Sums, likely_output, minutes, money, summed_quota

RATE = Rate(deployment="d", model="m", input=1.0, output=10.0, listed=True)


def test_what_was_looked_at_is_exact() -> None:
    sums = Sums()
    for size in (500, 500, 20):
        sums.add(Bunch(rows=size, requests=size, input_tokens=3 * size, failing=1), every=1)
    assert sums.figure("input_tokens") == Figure(value=3060.0)
    assert sums.figure("failing") == Figure(value=3.0)
    assert (sums.rows, sums.seen) == (1020, 1020)


def test_what_was_passed_over_is_put_at_the_mean_of_its_stretch() -> None:
    sums = Sums()
    sums.add(Bunch(rows=100, input_tokens=100), every=1)
    sums.add(Bunch(rows=100, input_tokens=900), every=2)
    sums.unseen(50, every=2)
    assert sums.figure("input_tokens").value == 100 + 900 * 1.5
    assert (sums.rows, sums.seen) == (250, 200)


def test_a_stretch_that_was_only_passed_over_is_put_at_the_mean_of_the_one_before() -> None:
    sums = Sums()
    sums.add(Bunch(rows=100, input_tokens=300), every=1)
    sums.unseen(10, every=2)
    assert sums.figure("input_tokens").value == 330


def test_equal_rows_leave_no_doubt() -> None:
    sums = Sums()
    for size in (10, 500, 70):
        sums.add(Bunch(rows=size, input_tokens=7 * size), every=4)
        sums.unseen(3 * size, every=4)
    assert sums.figure("input_tokens") == Figure(value=7.0 * 4 * 580)


@pytest.mark.parametrize("seed", range(5))
def test_the_interval_holds_the_truth_nineteen_times_in_twenty(seed: int) -> None:
    dice = random.Random(seed)
    held = 0
    for _ in range(200):
        sums, truth = Sums(), 0.0
        for index in range(400):
            tokens = 500 * dice.lognormvariate(5, 0.5)
            truth += tokens
            if index % 8 == 4:
                sums.add(Bunch(rows=500, input_tokens=tokens), every=8)
            else:
                sums.unseen(500, every=8)
        found = sums.figure("input_tokens")
        held += abs(found.value - truth) <= found.within
        assert found.within < 0.5 * truth
    assert 0.88 <= held / 200 <= 1.0


def test_dollars_are_of_input_of_likely_and_of_longest_answers() -> None:
    found = money([RATE], input_tokens=1_000_000, likely_output=100_000, most_output=200_000)
    assert (found.input, found.likely, found.most) == (1.0, 2.0, 3.0)


def test_what_is_not_known_is_none_and_never_zero() -> None:
    found = money([RATE], input_tokens=1_000_000, likely_output=None, most_output=None)
    assert (found.input, found.likely, found.most) == (1.0, None, None)
    unpriced = Rate(deployment="d", model="m", input=None, output=None, listed=True)
    found = money([RATE, unpriced], input_tokens=1, likely_output=1, most_output=1)
    assert (found.input, found.likely, found.most) == (None, None, None)
    assert money([RATE], input_tokens=None, likely_output=1, most_output=1).most is None


@pytest.mark.parametrize(
    ("known_rows", "known_output", "most", "expected"),
    [(0, 0, 100, None), (10, 50, None, 500.0), (10, 50, 400, 400), (10, 0, 400, 0.0)],
)
def test_answers_are_expected_to_be_as_long_as_those_so_far(
    known_rows: int, known_output: int, most: float | None, expected: float | None
) -> None:
    assert likely_output(rows=100, known_rows=known_rows, known_output=known_output, most=most) == expected


@pytest.mark.parametrize(
    ("rpm", "tpm", "latency_s", "binds", "longest"),
    [
        (60, 1000, None, "tokens", 10.0),
        (6, 10_000, 1.0, "requests", 10.0),
        (600, 100_000, 30.0, "workers", 7.5),
        (None, None, 2.0, "workers", 0.5),
        (None, 1000, None, "tokens", 10.0),
        (None, None, None, None, None),
    ],
)
def test_the_limit_that_takes_longest_binds(
    rpm: float | None, tpm: float | None, latency_s: float | None, binds: str | None, longest: float | None
) -> None:
    found = minutes(
        requests=60,
        tokens=10_000,
        requests_per_minute=rpm,
        tokens_per_minute=tpm,
        workers=4,
        latency_s=latency_s,
    )
    assert (found.binds, found.longest) == (binds, longest)


def test_quotas_add_up_less_what_is_left_to_others() -> None:
    assert math.isclose(summed_quota([100.0, 300.0], leave=0.25) or 0, 300.0)
    assert summed_quota([100.0, None], leave=0) is None
    assert summed_quota([], leave=0) is None
