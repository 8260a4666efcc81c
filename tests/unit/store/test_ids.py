"""Ids: the first holder keeps its id, whoever asks how often."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.store.ids import IdTable


@pytest.fixture
def table(tmp_path: Path) -> Iterator[IdTable]:
    with IdTable(tmp_path / "ids.sqlite") as table:
        yield table


def test_later_holders_are_named_with_the_first(table: IdTable) -> None:
    assert table.claim([("a", 0), ("b", 1), ("a", 2)]) == {2: 0}
    assert table.claim([("b", 3), ("c", 4), ("a", 5)]) == {3: 1, 5: 0}
    assert (table.find("a"), table.find("c"), table.find("d")) == (0, 4, None)


def test_claiming_again_changes_nothing(table: IdTable) -> None:
    claims = [("a", 0), ("b", 1), ("a", 2)]
    assert table.claim(claims) == table.claim(claims) == table.claim(claims[::-1]) == {2: 0}


@pytest.mark.parametrize("apart", [1, 255, 256, 257, 300])
def test_any_number_of_claims_at_once_keeps_the_first_holders(table: IdTable, apart: int) -> None:
    late = {ordinal: ordinal % apart for ordinal in range(apart, 600)}
    claims = [(ordinal % apart, ordinal) for ordinal in range(600)]
    assert table.claim(claims) == table.claim(claims) == late


def test_claims_outlive_the_table(tmp_path: Path) -> None:
    path = tmp_path / "ids.sqlite"
    with IdTable(path) as table:
        table.claim([("a", 0)])
        table.sync()
    with IdTable(path) as table:
        assert table.claim([("a", 9)]) == {9: 0}
    assert path.stat().st_mode & 0o777 == 0o600


def test_synced_claims_are_in_the_database_itself(tmp_path: Path) -> None:
    path = tmp_path / "ids.sqlite"
    with IdTable(path) as table:
        table.claim([("a", 0)])
        table.sync()
        copy = tmp_path / "copy.sqlite"
        copy.write_bytes(path.read_bytes())  # without its log, as if the log had been lost
    with IdTable(copy) as table:
        assert table.find("a") == 0


def test_values_of_different_types_are_different_ids(table: IdTable) -> None:
    values = [1, "1", 1.0, True, b"1", Decimal(1), date(2026, 1, 1), "2026-01-01", "", "True", "int:1", "\ud800"]
    assert table.claim([(value, ordinal) for ordinal, value in enumerate(values)]) == {}
    assert [table.find(value) for value in values] == list(range(len(values)))


@settings(deadline=None)  # each example opens a database, which takes its time on a busy disk
@given(st.lists(st.lists(st.integers(0, 5), max_size=6), max_size=6))
def test_late_are_exactly_those_whose_id_was_seen(batches: list[list[int]]) -> None:
    folder = TemporaryDirectory()
    table = IdTable(Path(folder.name) / "ids.sqlite")
    try:
        seen: dict[int, int] = {}
        ordinal = 0
        for batch in batches:
            claims = []
            expected = {}
            for value in batch:
                claims.append((value, ordinal))
                holder = seen.setdefault(value, ordinal)
                if holder != ordinal:
                    expected[ordinal] = holder
                ordinal += 1
            assert table.claim(claims) == expected
    finally:
        table.close()
        folder.cleanup()
