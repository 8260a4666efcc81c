"""SQLite, opened the one way that the store relies on. The only importer of sqlite3."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from pipeline.errors import DamageError, DiskFullError, StorageError
from pipeline.store.files import FREE_SPACE

Connection = sqlite3.Connection
IntegrityError = sqlite3.IntegrityError
PAGE_BYTES = 4096
LARGE_PAGE_BYTES = 32 * 1024
"""Pages for blobs of tens of kilobytes: each page that is written is two calls of the system.

A commit of little would write more by them.
"""
_LOG_BYTES = 16_384_000
"""Bytes of the write-ahead log from which on it is moved into the database."""
_PRIMARY = 0xFF
"""The bits of an error code that say its kind; the others say more of the place."""


def open_database(path: Path, *, page_bytes: int = PAGE_BYTES) -> Connection:
    """Open or create for writing: WAL, synchronous=FULL, so that a returned commit survives a power loss.

    A new one gets pages of `page_bytes`; one that is there keeps its own.

    The connection may be handed to another thread, as long as one at a time uses it. Its file is private (0600).
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    with database_errors(path.name):
        connection = _connected(
            str(path),
            f"page_size={page_bytes}",
            "journal_mode=WAL",
            "synchronous=FULL",
            "fullfsync=ON",
            "checkpoint_fullfsync=ON",
            "temp_store=MEMORY",
            "cache_size=-2048",
            "journal_size_limit=67108864",
        )
        pages = _LOG_BYTES // page_bytes_of(connection)
        connection.execute(f"PRAGMA wal_autocheckpoint={pages}")
        return connection


def page_bytes_of(connection: Connection) -> int:
    """The bytes of a page."""
    return int(connection.execute("PRAGMA page_size").fetchone()[0])


def open_reader(path: Path) -> Connection:
    """Open an existing database for reading beside its writer. Raises FileNotFoundError where there is none."""
    if not path.is_file():
        raise FileNotFoundError(path)
    place = str(path)
    if not os.access(path.parent, os.W_OK) and not _has_log(path):
        # Readers keep marks in files beside the database. Where none can be made, nobody can be writing either, and
        # a database that was closed cleanly can be read as it is.
        place = f"{path.absolute().as_uri()}?immutable=1"
    with database_errors(path.name):
        return _connected(place, "query_only=ON", "cache_size=-1024")


def _has_log(path: Path) -> bool:
    """Whether a write-ahead log holds changes that are not in the database's file yet."""
    log = path.with_name(f"{path.name}-wal")
    return log.is_file() and log.stat().st_size > 0


def _connected(place: str, *settings: str) -> Connection:
    """Connect to a path, or to a `file:` URI."""
    connection = sqlite3.connect(
        place, isolation_level=None, check_same_thread=False, timeout=30, uri=place.startswith("file:///")
    )
    try:
        for setting in settings:
            connection.execute(f"PRAGMA {setting}")
    except BaseException:
        connection.close()
        raise
    return connection


class Opened:
    """Something that reads or writes a database, and holds its connection until it is closed."""

    _connection: Connection

    def close(self) -> None:
        """Give the file back."""
        self._connection.close()

    def __enter__(self) -> Self:
        """Use it in a with block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


@contextmanager
def transaction(connection: Connection) -> Iterator[None]:
    """All or nothing; rolled back when the block raises."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # A commit that a full disk refused leaves the transaction open.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def database_errors(name: str) -> Iterator[None]:
    """Turn SQLite's errors into ours. IntegrityError passes: it means a defect, not a storage failure."""
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except sqlite3.DatabaseError as error:
        text = str(error)
        if "malformed" in text or "not a database" in text:
            raise DamageError(
                f"{name} is damaged ({text}); the finished parts are not touched by this: `pipeline run JOB --repair` "
                "rebuilds it from them"
            ) from error
        if error.sqlite_errorcode & _PRIMARY == sqlite3.SQLITE_FULL:
            raise DiskFullError(f"no space is left on the disk for {name} ({text}); {FREE_SPACE}") from error
        raise StorageError(
            f"{name}: {text}; free some space or check the disk, then run the same command again: "
            "what was committed is safe"
        ) from error


def integrity_problems(connection: Connection) -> list[str]:
    """What SQLite's own check finds wrong; empty when nothing."""
    with database_errors("journal"):
        rows = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(20)")]
    return [] if rows == ["ok"] else rows
