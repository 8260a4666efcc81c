"""How SQLite is opened: what a returned commit is worth, and what a failed one leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.store.database import (
    LARGE_PAGE_BYTES,
    PAGE_BYTES,
    IntegrityError,
    open_database,
    open_reader,
    page_bytes_of,
    transaction,
)

FULL = 2  # SQLite's number for synchronous=FULL: the log is flushed at every commit


def test_a_commit_is_flushed_to_the_disk_before_it_returns(tmp_path: Path) -> None:
    connection = open_database(tmp_path / "a.sqlite")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (FULL,)
    assert connection.execute("PRAGMA fullfsync").fetchone() == (1,)
    assert connection.execute("PRAGMA checkpoint_fullfsync").fetchone() == (1,)
    connection.close()


@pytest.mark.parametrize("size", [PAGE_BYTES, LARGE_PAGE_BYTES])
def test_a_new_database_has_the_pages_asked_for_and_an_old_one_its_own(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.sqlite"
    for asked in (size, PAGE_BYTES, LARGE_PAGE_BYTES):
        connection = open_database(path, page_bytes=asked)
        connection.execute("CREATE TABLE IF NOT EXISTS t (n INTEGER)")
        assert page_bytes_of(connection) == size
        (pages,) = connection.execute("PRAGMA wal_autocheckpoint").fetchone()
        assert pages * size == pytest.approx(16 << 20, rel=0.05)
        connection.close()


def test_a_transaction_that_fails_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    connection = open_database(path)
    connection.execute("CREATE TABLE t (n INTEGER CHECK (n > 0))")
    with pytest.raises(IntegrityError), transaction(connection):
        connection.executemany("INSERT INTO t VALUES (?)", [(1,), (-1,)])
    with transaction(connection):
        connection.execute("INSERT INTO t VALUES (2)")
    reader = open_reader(path)
    assert reader.execute("SELECT n FROM t").fetchall() == [(2,)]
    reader.close()
    connection.close()
