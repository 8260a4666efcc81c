"""Results of the runs before, found by what was asked, read in the order of their parts."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from pipeline.errors import DamageError
from pipeline.store.asked import Asked, AskedReader
from pipeline.store.files import sha256_of, storage
from pipeline.store.folder import Layout
from pipeline.store.journal import JournalReader, Part
from pipeline.store.salvage import Done, rows_of_part
from pipeline.store.verify import arrow_errors


class Predecessors:
    """The results of earlier runs, the latest first. Memory holds a few hundred rows, whatever they are."""

    def __init__(self, roots: Sequence[Path]) -> None:
        """Raises DamageError where one of the folders is gone, StorageError."""
        self._open = ExitStack()
        try:
            self._each = [self._open.enter_context(_Predecessor(root)) for root in roots]
        except FileNotFoundError as error:
            self._open.close()
            raise DamageError(
                f"{error.args[0]} is missing, whose results this run takes over; put it back, or start anew with "
                "--fresh, which asks every row again"
            ) from error
        except BaseException:
            self._open.close()
            raise

    def find(self, wanted: Sequence[Asked]) -> dict[int, Done]:
        """What rows that were asked the same came to, by the ordinals of those that are wanted. Raises DamageError."""
        found: dict[int, Done] = {}
        for each in self._each:
            left = [one for one in wanted if one.ordinal not in found]
            found |= each.find(left)
        return found

    def close(self) -> None:
        """Give the files back."""
        self._open.close()

    def __enter__(self) -> Self:
        """Use it in a with block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


class _Predecessor:
    """The results of one run."""

    def __init__(self, root: Path) -> None:
        self._layout = Layout(root)
        self._open = ExitStack()
        with ExitStack() as opening:
            self._journal = opening.enter_context(JournalReader(self._layout.journal))
            self._asked = opening.enter_context(AskedReader(self._layout.asked))
            self._parts = self._journal.parts()
            self._has_loose = self._journal.counts() != (0, 0)
            self._open = opening.pop_all()
        self._whole: set[str] = set()
        self._part: Part | None = None
        self._rows: Iterator[Done] = iter(())
        self._starts: list[int] = []
        self._at = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def find(self, wanted: Sequence[Asked]) -> dict[int, Done]:
        places = [(place, one.ordinal) for one in wanted if (place := self._asked.find(one)) is not None]
        found: dict[int, Done] = {}
        last: tuple[int, Done | None] = (-1, None)
        for place, ordinal in sorted(places):
            if last[0] != place:
                last = place, self._row(place)
            if last[1] is not None:
                found[ordinal] = last[1]
        return found

    def _row(self, ordinal: int) -> Done | None:
        """The result of a row; None where it had none."""
        if self._has_loose:
            for row in self._journal.results(ordinal, ordinal):
                return row
        index = bisect_right(self._parts, ordinal, key=lambda part: part.first) - 1
        if index < 0 or self._parts[index].last < ordinal:
            return None
        part = self._parts[index]
        try:
            return self._of_part(part, ordinal)
        except arrow_errors() as error:
            raise DamageError(
                f"{self._layout.part(part.name)} is not what was written, and this run takes its results over; put it "
                "back, or start anew with --fresh, which asks every row again"
            ) from error

    def _of_part(self, part: Part, ordinal: int) -> Done:
        if self._part is not part or ordinal < self._at or ordinal >= self._near():
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
        if part.name not in self._whole:
            with storage(f"reading {path}"):
                if sha256_of(path) != part.sha256:
                    raise DamageError(f"{path} is not what was written")
            self._whole.add(part.name)
        if self._part is not part:
            self._part, self._starts = part, _starts(path)
        # The pieces of a row may begin in the group before.
        group = max(0, bisect_left(self._starts, ordinal) - 1)
        self._rows = rows_of_part(path, range(group, len(self._starts)))
        self._at = self._starts[group]


def _starts(path: Path) -> list[int]:
    """The first ordinal of each row group."""
    import pyarrow.parquet as pq  # noqa: PLC0415 - loaded when a run needs it

    with pq.ParquetFile(path, pre_buffer=False) as file:
        return [
            next(file.iter_batches(1, row_groups=[group], columns=["ordinal"])).column("ordinal")[0].as_py()
            for group in range(file.num_row_groups)
        ]
