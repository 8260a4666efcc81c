"""Which ordinal holds which id: a table on disk, so that ten million ids need no memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.store.database import Opened, database_errors, open_database, transaction
from pipeline.store.files import TEMPORARY_SUFFIX, publish, storage

_HASH_BYTES = 16
_CLAIMS_AT_ONCE = 256
"""Claims a statement; SQLite takes 999 parameters of one everywhere."""


class IdTable(Opened):
    """Ids, or what else names a row, as 128-bit hashes. Claims are idempotent, so a resumed run may repeat them."""

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._connection = open_database(path)
        with database_errors(path.name):
            # A lost claim is claimed again when its rows are read again, so only `sync` waits for the disk.
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS id (hash BLOB PRIMARY KEY, ordinal INTEGER NOT NULL) WITHOUT ROWID"
            )

    def claim(self, ids: Sequence[tuple[Any, int]]) -> dict[int, int]:
        """Claim (id, ordinal) pairs, in order. Returns the ordinals that came too late, with the first holder's."""
        hashed = [(hash_of(value), ordinal) for value, ordinal in ids]
        late: dict[int, int] = {}
        with database_errors(self._name), transaction(self._connection):
            for begin in range(0, len(hashed), _CLAIMS_AT_ONCE):
                some = hashed[begin : begin + _CLAIMS_AT_ONCE]
                if self._insert(some) < len(some):
                    holders = ((ordinal, self._holder(digest)) for digest, ordinal in some)
                    late |= {ordinal: holder for ordinal, holder in holders if holder not in (None, ordinal)}
        return late

    def _insert(self, hashed: Sequence[tuple[bytes, int]]) -> int:
        """Add those that nobody holds, in order; returns how many."""
        rows = ", ".join(["(?, ?)"] * len(hashed))
        sql = f"INSERT OR IGNORE INTO id VALUES {rows}"  # noqa: S608 - marks
        return self._connection.execute(sql, [value for pair in hashed for value in pair]).rowcount

    def _holder(self, digest: bytes) -> int | None:
        row = self._connection.execute("SELECT ordinal FROM id WHERE hash = ?", (digest,)).fetchone()
        return None if row is None else int(row[0])

    def find(self, value: object) -> int | None:
        """The ordinal that holds an id, None when nobody does."""
        with database_errors(self._name):
            return self._holder(hash_of(value))

    def forget_from(self, ordinal: int) -> None:
        """Forget the claims of this row and of those behind it: what they hold is read anew."""
        with database_errors(self._name), transaction(self._connection):
            self._connection.execute("DELETE FROM id WHERE ordinal >= ?", (ordinal,))

    def forget(self, ordinals: Iterable[int], *, bits: int) -> None:
        """Forget the claims of these rows, whose ordinals stand above so many lower bits. Reads the whole table."""
        with database_errors(self._name), transaction(self._connection):
            execute = self._connection.execute
            execute("CREATE TEMP TABLE gone (ordinal INTEGER PRIMARY KEY)")
            self._connection.executemany("INSERT INTO gone VALUES (?)", ((ordinal,) for ordinal in ordinals))
            execute("DELETE FROM id WHERE ordinal >> ? IN (SELECT ordinal FROM gone)", (bits,))
            execute("DROP TABLE gone")

    def sync(self) -> None:
        """Have every claim survive a power loss. Needed before a range becomes a part: it is not read again."""
        with database_errors(self._name):
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")


@contextmanager
def rebuilt_ids(path: Path) -> Iterator[IdTable]:
    """A new table that takes its place when the block ends without an error, durably; one in its place is replaced."""
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    with storage(f"writing {path.name}"):
        remove_table(temporary)
        with IdTable(temporary) as ids:
            yield ids
        publish(temporary, path)


def remove_table(path: Path) -> None:
    """Remove a table with its log, where there is one. Raises OSError."""
    for suffix in ("-wal", "-shm", ""):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def hash_of(value: object) -> bytes:
    """128 bits of an id; 1 and "1" are different ids."""
    text = f"{type(value).__name__}:{value}"
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_HASH_BYTES).digest()
