"""Rows of one job that ask for the same: which of them asks, and which wait for what it comes to."""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.errors import DamageError, RowProblem
from pipeline.model import Item, RequestInfo, Target
from pipeline.plan.ranges import rows_known
from pipeline.plan.work import Copies
from pipeline.store.asked import digest_of
from pipeline.store.files import storage
from pipeline.store.ids import IdTable, remove_table
from pipeline.store.journal import JournalReader

if TYPE_CHECKING:
    from pipeline.operations.base import Operation
    from pipeline.store.folder import Layout

MOST_WAITING = 1_000_000
"""Rows that wait for another's result before no more are read; 16 bytes each."""
AT_ONCE = 500
"""Rows that are given a result in one piece of work."""

_CHECK_BITS = 20
# Any deployment will do, as long as it is always the same: which one answers says nothing of what is asked.
_TARGET = Target(deployment="", model="", body_model=None)


def _signed(digest: bytes, ordinal: int) -> int:
    """An ordinal with a check of it and of its request: a bit that flips on the disk gives no row an answer."""
    check = zlib.crc32(digest + ordinal.to_bytes(8, "big")) >> (32 - _CHECK_BITS)
    return ordinal << _CHECK_BITS | check


def request_digest(operation: Operation, item: Item) -> bytes | None:
    """128 bits of what an item asks for; None where it cannot be built."""
    try:
        return digest_of(operation.build((item,), _TARGET).body)
    except RowProblem:
        return None


@contextmanager
def open_requests(layout: Layout, *, without_again: bool = False) -> Iterator[IdTable]:
    """Open the table of who asked first, as far as the journal knows of their rows.

    What a run that was killed had read beyond may be read otherwise now. A table that is damaged is made anew: rows
    that ask for what was asked before are then asked once more. Raises StorageError.
    `without_again`: rows that are asked again get another wording, and do not stand for what they asked at first.
    """
    with ExitStack() as opened, JournalReader(layout.journal) as reader:
        known = rows_known(reader)
        try:
            table = opened.enter_context(IdTable(layout.requests))
            table.forget_from(known << _CHECK_BITS)
            if without_again:
                for span in reader.open_ranges():
                    table.forget(reader.again(span.first, span.last), bits=_CHECK_BITS)
        except DamageError:
            opened.close()
            with storage(f"removing {layout.requests.name}"):
                remove_table(layout.requests)
            table = opened.enter_context(IdTable(layout.requests))
        yield table


@dataclass(frozen=True, slots=True, kw_only=True)
class Same:
    """Knows who asked first: `table` holds the digest of each request, on disk.

    `variant` names the wording of the rows that are read; `is_own`: it is the job's own. Rows of another wording share
    answers among themselves, and with no other rows.
    """

    operation: Operation
    table: IdTable
    variant: str
    is_own: bool = True

    def may_give(self, request: RequestInfo) -> bool:
        """Whether what a request came to may be given to rows that ask for the same."""
        return request.variant == self.variant

    def originals(self, items: Iterable[Item]) -> dict[int, int]:
        """Items that ask for what a row before them asks for, by ordinal, with the ordinal of that row. Blocking."""
        asked = {item.ordinal: digest for item in items if (digest := request_digest(self.operation, item)) is not None}
        if not asked:
            return {}
        wording = "" if self.is_own else self.variant
        late = self.table.claim([(wording + digest.hex(), _signed(digest, at)) for at, digest in asked.items()])
        found = {mine >> _CHECK_BITS: holder for mine, holder in late.items()}
        return {
            ordinal: holder >> _CHECK_BITS
            for ordinal, holder in found.items()
            if holder == _signed(asked[ordinal], holder >> _CHECK_BITS)
        }


@dataclass(slots=True)
class Waiting:
    """Rows on their way, and the rows that wait for them; used from one event loop.

    A row is on its way from when it was read to when it is committed. Those that wait are kept as numbers alone.
    """

    rows: int = 0
    _on_the_way: set[int] = field(default_factory=set)
    _waiting: dict[int, array[int]] = field(default_factory=dict)

    def begin(self, ordinals: Iterable[int]) -> None:
        """Note rows that are on their way."""
        self._on_the_way.update(ordinals)

    def take(self, span: int, copies: Sequence[tuple[Item, int]]) -> Iterator[Copies]:
        """Have rows wait for their originals; gives those whose original is on no way, with what to ask them."""
        ready: list[tuple[Item, int]] = []
        for item, original in copies:
            if original in self._on_the_way:
                self._waiting.setdefault(original, array("q")).extend((span, item.ordinal))
                self.rows += 1
            else:
                ready.append((item, original))
        for at in range(0, len(ready), AT_ONCE):
            some = ready[at : at + AT_ONCE]
            rows = tuple((item.ordinal, original) for item, original in some)
            yield Copies(span=span, rows=rows, items=tuple(item for item, _ in some))

    def end(self, ordinals: Iterable[int]) -> list[Copies]:
        """Note rows that are committed; returns who waited for them."""
        found: list[Copies] = []
        for ordinal in ordinals:
            self._on_the_way.discard(ordinal)
            waited = self._waiting.pop(ordinal, None)
            if waited is not None:
                self.rows -= len(waited) // 2
                found += _copies(waited, ordinal)
        return found


def _copies(waited: array[int], original: int) -> Iterator[Copies]:
    """Who waited for a row, by range, so many at once."""
    by_span: dict[int, list[int]] = {}
    for span, ordinal in zip(waited[::2], waited[1::2], strict=True):
        by_span.setdefault(span, []).append(ordinal)
    for span, ordinals in by_span.items():
        for at in range(0, len(ordinals), AT_ONCE):
            yield Copies(span=span, rows=tuple((ordinal, original) for ordinal in ordinals[at : at + AT_ONCE]))
