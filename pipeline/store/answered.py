"""What rows of a folder came to, one by one, wherever they are: in the journal, or in parts, read in their order."""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

from pipeline.errors import DamageError
from pipeline.store.files import sha256_of, storage
from pipeline.store.folder import Layout
from pipeline.store.journal import JournalReader, Part
from pipeline.store.salvage import Done, rows_of_part
from pipeline.store.verify import arrow_errors


class Answered:
    """Results by their ordinals. Memory holds a few hundred rows, whatever they are; rising ordinals are read fast."""

    def __init__(self, layout: Layout, journal: JournalReader, *, advice: str) -> None:
        """`advice` says what to do about a part that is damaged."""
        self._layout = layout
        self._journal = journal
        self._advice = advice
        self._parts = journal.parts()
        self._has_loose = journal.counts() != (0, 0)
        self._whole: set[tuple[str, str]] = set()
        self._part: Part | None = None
        self._rows: Iterator[Done] = iter(())
        self._starts: list[int] = []
        self._at = 0

    def look_again(self) -> None:
        """Look what is in parts by now."""
        self._parts = self._journal.parts()

    def row(self, ordinal: int) -> Done | None:
        """The result of a row; None where it has none. Raises DamageError, StorageError."""
        if self._has_loose:
            for row in self._journal.results(ordinal, ordinal):
                return row
        return self.row_of_part(ordinal)

    def row_of_part(self, ordinal: int) -> Done | None:
        """The result of a row that is in a part; None where it is in none. Raises what `row` raises."""
        index = bisect_right(self._parts, ordinal, key=lambda part: part.first) - 1
        if index < 0 or self._parts[index].last < ordinal:
            return None
        part = self._parts[index]
        try:
            return self._of_part(part, ordinal)
        except arrow_errors() as error:
            raise DamageError(f"{self._layout.part(part.name)} is not what was written, {self._advice}") from error

    def _of_part(self, part: Part, ordinal: int) -> Done:
        if self._part != part or ordinal < self._at or ordinal >= self._near():
            self._seek(part, ordinal)
        for row in self._rows:
            self._at = row[0].ordinal + 1
            if row[0].ordinal == ordinal:
                return row
        raise DamageError(f"{part.name} lacks row {ordinal}")

    def _near(self) -> int:
        """The ordinal from which it is shorter to seek than to read on."""
        index = bisect_right(self._starts, self._at) + 1
        return self._starts[index] if index < len(self._starts) else self._starts[-1] + 2**62

    def _seek(self, part: Part, ordinal: int) -> None:
        path = self._layout.part(part.name)
        if (part.name, part.sha256) not in self._whole:
            with storage(f"reading {path}"):
                if sha256_of(path) != part.sha256:
                    raise DamageError(f"{path} is not what was written, {self._advice}")
            self._whole.add((part.name, part.sha256))
        if self._part != part:
            self._part, self._starts = part, _starts(path)
        # The pieces of a row may begin in the group before.
        group = max(0, bisect_left(self._starts, ordinal) - 1)
        self._rows = rows_of_part(path, range(group, len(self._starts)))
        self._at = self._starts[group]


class Originals:
    """Results of a run's own rows, while it goes on: what is given to rows that ask for the same. Any thread."""

    def __init__(self, layout: Layout) -> None:
        """Raises FileNotFoundError where there is no journal, DamageError, StorageError."""
        self._journal = JournalReader(layout.journal)
        self._lock = threading.Lock()
        self._answered = Answered(
            layout,
            self._journal,
            advice="and rows that ask for the same as its rows are given their results: `pipeline run JOB --repair` "
            "asks again for what is damaged",
        )

    def find(self, ordinals: Iterable[int]) -> dict[int, Done]:
        """What these rows came to, by their ordinals; those that are not done are left out. Blocking.

        Nor is a row done that is asked again, before it is answered. Raises DamageError, StorageError.
        """
        with self._lock:
            while True:
                parts = None
                try:
                    with self._journal.snapshot():
                        parts = self._journal.parts(), self._journal.rewrites()
                        return self._found(ordinals)
                except DamageError:
                    # A part that was replaced while it was read is no damage.
                    if parts is None or parts == (self._journal.parts(), self._journal.rewrites()):
                        raise

    def _found(self, ordinals: Iterable[int]) -> dict[int, Done]:
        """What the rows came to as of one moment."""
        found: dict[int, Done] = {}
        self._answered.look_again()
        asks_again, renews = self._journal.asks_again, bool(self._journal.rewrites())
        wanted = sorted(set(ordinals))
        for done in self._journal.results_of(wanted):
            found[done[0].ordinal] = done
        for ordinal in sorted(set(wanted) - set(found)):
            if asks_again and self._journal.again(ordinal, ordinal):
                continue
            try:
                row = self._answered.row_of_part(ordinal)
            except DamageError:
                if not renews:
                    raise
                continue  # its part is being replaced, and is the old one or the new one
            if row is not None:
                found[ordinal] = row
        return found

    def close(self) -> None:
        """Give the files back."""
        self._journal.close()

    def __enter__(self) -> Self:
        """Use it in a with block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


def _starts(path: Path) -> list[int]:
    """The first ordinal of each row group."""
    import pyarrow.parquet as pq  # noqa: PLC0415 - loaded when a run needs it

    with pq.ParquetFile(path, pre_buffer=False) as file:
        return [
            next(file.iter_batches(1, row_groups=[group], columns=["ordinal"])).column("ordinal")[0].as_py()
            for group in range(file.num_row_groups)
        ]
