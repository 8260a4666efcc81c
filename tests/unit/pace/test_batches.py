"""How batches are cut, how often they are looked at, and what room there is."""

from __future__ import annotations

import pytest

from pipeline.pace.batches import (
    AZURE_LIMITS,
    OPENAI_LIMITS,
    FileLimits,
    Filled,
    Room,
    come_back_s,
    look_after_s,
    online_s,
    pull_back_at,
    wait_for_room_s,
)

LIMITS = FileLimits(lines=3, bytes=100, inputs=10, tokens=1_000)


@pytest.mark.parametrize(
    ("line", "fits"),
    [
        ({"size": 40, "inputs": 4, "tokens": 400}, True),
        ({"size": 50, "inputs": 5, "tokens": 500}, True),
        ({"size": 51, "inputs": 1, "tokens": 1}, False),
        ({"size": 1, "inputs": 6, "tokens": 1}, False),
        ({"size": 1, "inputs": 1, "tokens": 501}, False),
    ],
)
def test_a_file_takes_lines_up_to_every_limit(line: dict[str, int], fits: bool) -> None:  # noqa: FBT001 - the table's
    filled = Filled()
    filled.add(size=50, inputs=5, tokens=500)
    assert filled.fits(LIMITS, **line) is fits


def test_a_file_takes_so_many_lines_and_no_more() -> None:
    filled = Filled()
    for _ in range(3):
        assert filled.fits(LIMITS, size=1, inputs=1, tokens=1)
        filled.add(size=1, inputs=1, tokens=1)
    assert not filled.fits(LIMITS, size=1, inputs=1, tokens=1)


def test_a_line_that_no_file_could_hold_has_one_to_itself() -> None:
    assert Filled().fits(LIMITS, size=10_000, inputs=100, tokens=10_000)


def test_what_is_not_bounded_is_not_judged() -> None:
    filled = Filled()
    filled.add(size=1, inputs=1, tokens=1)
    assert filled.fits(FileLimits(lines=9, bytes=9), size=1, inputs=10**9, tokens=10**9)


def test_room_is_entered_and_left() -> None:
    room = Room(100)
    assert room.a_file == 50
    room.enter(60)
    assert room.has(40)
    assert not room.has(41)
    room.leave(60)
    assert room.has(1_000)  # alone, a batch may try: the service knows better than our estimate


def test_without_a_limit_there_is_room() -> None:
    room = Room(None)
    room.enter(10**12)
    assert room.has(10**12)
    assert room.a_file is None


@pytest.mark.parametrize(("age_s", "after_s"), [(0, 60), (599, 60), (1_200, 120), (6_000, 600), (86_400, 600)])
def test_a_batch_is_looked_at_after_a_tenth_of_its_age(age_s: float, after_s: float) -> None:
    assert look_after_s(age_s, least_s=60.0, random=lambda: 0.5) == pytest.approx(after_s)
    assert look_after_s(age_s, least_s=60.0, random=lambda: 0.0) == pytest.approx(0.9 * after_s)


def test_waits_for_room_double_up_to_ten_minutes() -> None:
    waits = [wait_for_room_s(refusals, random=lambda: 0.5) for refusals in range(1, 10)]
    assert waits == pytest.approx([5, 10, 20, 40, 80, 160, 320, 600, 600])


@pytest.mark.parametrize(("chance", "factor"), [(0.0, 0.9), (1.0, 1.1)])
def test_waits_and_looks_are_a_tenth_more_or_less_by_lot(chance: float, factor: float) -> None:
    assert wait_for_room_s(3, random=lambda: chance) == pytest.approx(20 * factor)
    assert look_after_s(1_200, least_s=60.0, random=lambda: chance) == pytest.approx(120 * factor)
    assert look_after_s(86_400, least_s=60.0, random=lambda: chance) == pytest.approx(600 * factor)


@pytest.mark.parametrize(
    ("limits", "lines", "size", "inputs"),
    [(AZURE_LIMITS, 100_000, 200_000_000, None), (OPENAI_LIMITS, 50_000, 200_000_000, 50_000)],
)
def test_a_file_holds_what_the_services_say(limits: FileLimits, lines: int, size: int, inputs: int | None) -> None:
    assert limits == FileLimits(lines=lines, bytes=size, inputs=inputs, tokens=None)


@pytest.mark.parametrize(("limit", "a_file"), [(0, 1), (1, 1), (2, 1), (3, 1), (9, 4)])
def test_a_file_is_half_of_the_limit_and_never_nothing(limit: int, a_file: int) -> None:
    assert Room(limit).a_file == a_file


def test_the_time_to_come_back_goes_by_what_is_done() -> None:
    assert come_back_s(100, done=0, total=10) == 1_800
    assert come_back_s(3_600, done=5, total=10) == 3_600
    assert come_back_s(3_600, done=10, total=10) == 60
    assert come_back_s(100, done=1, total=10) == 900
    assert come_back_s(100, done=1, total=0) == 1_800


@pytest.mark.parametrize(
    ("requests_per_minute", "tokens_per_minute", "seconds"),
    [(60, None, 100), (None, 6_000, 1_000), (60, 6_000, 1_000), (6, 6_000, 1_000), (None, None, None)],
)
def test_sending_one_by_one_takes_what_the_tighter_quota_lets(
    requests_per_minute: float | None, tokens_per_minute: float | None, seconds: float | None
) -> None:
    found = online_s(
        requests=100, tokens=100_000, requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute
    )
    assert found == seconds


@pytest.mark.parametrize(
    ("left_s", "at"),
    [
        (1_000, 36_000 - 1_200 - 600),  # a fifth more, and ten minutes for batches to be cancelled
        (0, 36_000 - 600),
        (None, 27_000),  # no quota is known: a quarter of the time
        (10**9, 0),  # there was never time enough
    ],
)
def test_rows_are_pulled_back_in_time(left_s: float | None, at: float) -> None:
    assert pull_back_at(began_at=0.0, deadline_at=36_000.0, online_s=left_s) == pytest.approx(at)


def test_a_short_run_leaves_batches_three_quarters_of_its_time() -> None:
    assert pull_back_at(began_at=100.0, deadline_at=110.0, online_s=0.0) == pytest.approx(107.5)
