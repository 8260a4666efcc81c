"""Who waits for whose answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.model import Item
from pipeline.plan.same import AT_ONCE, Waiting
from pipeline.plan.work import Copies
from pipeline.store.ids import IdTable


def item(ordinal: int) -> Item:
    return Item(ordinal=ordinal, content=None, tokens=1)


def take(waiting: Waiting, span: int, *copies: tuple[int, int]) -> list[Copies]:
    return list(waiting.take(span, [(item(ordinal), original) for ordinal, original in copies]))


def test_who_asks_for_what_is_on_its_way_waits_until_it_is_there() -> None:
    waiting = Waiting()
    waiting.begin([0, 1])
    assert take(waiting, 0, (2, 0), (3, 1), (4, 0)) == []
    assert waiting.rows == 3
    assert waiting.end([0]) == [Copies(span=0, rows=((2, 0), (4, 0)))]
    assert waiting.rows == 1
    assert waiting.end([0]) == []


def test_who_asks_for_what_is_there_gets_it_at_once_and_may_have_to_ask() -> None:
    waiting = Waiting()
    waiting.begin([0])
    waiting.end([0])
    assert take(waiting, 10, (12, 0), (13, 7)) == [Copies(span=10, rows=((12, 0), (13, 7)), items=(item(12), item(13)))]


def test_who_waited_is_freed_by_range_and_so_many_at_once() -> None:
    waiting = Waiting()
    waiting.begin([0])
    take(waiting, 0, *((n, 0) for n in range(1, AT_ONCE + 2)))
    take(waiting, 5000, (5000, 0))
    freed = waiting.end([0])
    assert [(one.span, one.size, one.items) for one in freed] == [(0, AT_ONCE, ()), (0, 1, ()), (5000, 1, ())]
    assert freed[1].rows == ((AT_ONCE + 1, 0),)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=60))
def test_each_row_is_freed_once_whatever_the_order(moves: list[tuple[int, bool]]) -> None:
    waiting = Waiting()
    waiting.begin(range(6))
    given_, sent, ended = [], 0, set()
    for ordinal, (original, ends) in enumerate(moves, 100):
        if ends:
            ended.add(original)
            given_ += [one for work in waiting.end([original]) for one in work.rows]
        else:
            sent += 1
            work = take(waiting, 0, (ordinal, original))
            assert bool(work) is (original in ended)
            given_ += [one for each in work for one in each.rows]
    given_ += [one for work in waiting.end(range(6)) for one in work.rows]
    assert len(given_) == len({ordinal for ordinal, _ in given_}) == sent
    assert waiting.rows == 0


@pytest.mark.parametrize(("known", "late"), [(0, {}), (3, {7: 2}), (6, {7: 2, 8: 5})])
def test_claims_of_rows_that_the_journal_does_not_know_are_forgotten(
    tmp_path: Path, known: int, late: dict[int, Any]
) -> None:
    with IdTable(tmp_path / "requests.sqlite") as table:
        table.claim([("a", 2), ("b", 5)])
        table.forget_from(known)
        assert table.claim([("a", 7), ("b", 8)]) == late
