"""Which row was asked what: a table on disk, so that a later run over a changed input knows what it need not ask."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DamageError
from pipeline.store.database import Opened, database_errors, open_database, open_reader, transaction

_DIGEST_BYTES = 16
NOT_ASKED = b""
"""What a row was asked that could not be asked at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A row by its ordinal, by the digest that names it in any input, and by the digest of what it is asked."""

    ordinal: int
    row: bytes
    asked: bytes


def digest_of(request: bytes) -> bytes:
    """128 bits of what is asked."""
    return hashlib.blake2b(request, digest_size=_DIGEST_BYTES).digest()


class AskedTable(Opened):
    """What the rows of a run are asked. Each is kept, durably, before it can be answered."""

    def __init__(self, path: Path) -> None:
        """Open or create. Raises StorageError, DamageError."""
        try:
            self._connection = open_database(path)
            with database_errors(path.name):
                self._connection.execute(
                    "CREATE TABLE IF NOT EXISTS asked "
                    "(ordinal INTEGER PRIMARY KEY, row BLOB NOT NULL, asked BLOB NOT NULL)"
                )
                self._connection.execute("CREATE INDEX IF NOT EXISTS by_row ON asked (row, asked, ordinal)")
        except DamageError as error:
            raise DamageError(
                f"{path} is damaged, and cannot be made anew; put it back, or start anew with --fresh, which asks "
                "every row again (what is here is moved aside, not deleted)"
            ) from error

    def keep(self, rows: Sequence[Asked]) -> None:
        """Keep what rows are asked; a continued run may repeat them."""
        if rows:
            with database_errors("asked.sqlite"), transaction(self._connection):
                self._connection.executemany(
                    "INSERT OR REPLACE INTO asked VALUES (?, ?, ?)", [(one.ordinal, one.row, one.asked) for one in rows]
                )

    def gone_since(self, older: Path) -> int:
        """How many rows of an older table are not in this one."""
        with database_errors("asked.sqlite"):
            self._connection.execute("ATTACH ? AS older", (str(older),))
            try:
                found: int = self._connection.execute(
                    "SELECT count(DISTINCT row) FROM older.asked AS old "
                    "WHERE NOT EXISTS (SELECT 1 FROM main.asked AS now WHERE now.row = old.row)"
                ).fetchone()[0]
            finally:
                self._connection.execute("DETACH older")
        return found


class AskedReader(Opened):
    """An earlier run's table, which nobody changes any more."""

    def __init__(self, path: Path) -> None:
        """Raises FileNotFoundError where there is none, StorageError, DamageError."""
        self._connection = open_reader(path)

    def find(self, one: Asked) -> int | None:
        """The first ordinal of the row that was asked the same; None where there is none."""
        if one.asked == NOT_ASKED:
            return None
        with database_errors("asked.sqlite"):
            found = self._connection.execute(
                "SELECT min(ordinal) FROM asked WHERE row = ? AND asked = ?", (one.row, one.asked)
            ).fetchone()[0]
        return None if found is None else int(found)

    def count(self) -> int:
        """How many rows could be asked."""
        with database_errors("asked.sqlite"):
            found: int = self._connection.execute(
                "SELECT count(*) FROM asked WHERE asked != ?", (NOT_ASKED,)
            ).fetchone()[0]
        return found
