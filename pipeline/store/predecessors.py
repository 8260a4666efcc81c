"""Results of the runs before, found by what was asked, read in the order of their parts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from pipeline.errors import DamageError
from pipeline.store.answered import Answered
from pipeline.store.asked import Asked, AskedReader
from pipeline.store.folder import Layout
from pipeline.store.journal import JournalReader
from pipeline.store.salvage import Done


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
        self._open = ExitStack()
        with ExitStack() as opening:
            layout = Layout(root)
            journal = opening.enter_context(JournalReader(layout.journal))
            self._asked = opening.enter_context(AskedReader(layout.asked))
            self._answered = Answered(
                layout,
                journal,
                advice="and this run takes its results over; put it back, or start anew with --fresh, which asks every "
                "row again",
            )
            self._open = opening.pop_all()

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
                last = place, self._answered.row(place)
            if last[1] is not None:
                found[ordinal] = last[1]
        return found
