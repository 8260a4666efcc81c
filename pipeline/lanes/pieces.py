"""Rows that one request cannot carry: their pieces, in one line from which every worker may take."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import anyio

from pipeline.errors import ReplyError
from pipeline.model import Item, Outcome, RowResult
from pipeline.operations.base import Cutting


@dataclass(slots=True, kw_only=True, eq=False)
class Cut:
    """One row in pieces, and what has come of each so far, in the order of the pieces.

    `refused` is the outcome of the first piece that failed for good; the others are then not sent any more.
    """

    item: Item
    pieces: tuple[Item, ...]
    outcomes: list[Outcome | None]
    refused: Outcome | None = None

    @property
    def ended(self) -> bool:
        """Whether the row's own end is known."""
        return self.refused is not None or all(self.outcomes)

    def joined(self, operation: Cutting) -> Outcome:
        """The row's own outcome, once it has ended. Its attempts were kept with the pieces."""
        done = [outcome for outcome in self.outcomes if outcome is not None]
        if self.refused is not None:
            row = replace(self.refused.rows[0], ordinal=self.item.ordinal, usage=None)
        else:
            try:
                row = operation.join(self.item, self.pieces, [outcome.rows[0] for outcome in done])
            except ReplyError as error:
                row = RowResult(ordinal=self.item.ordinal, error=error.info)
        request = (self.refused or done[-1]).request
        return Outcome(rows=(row,), request=replace(request, attempts=sum(one.request.attempts for one in done)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Piece:
    """One piece of a row that was cut, to be asked alone."""

    cut: Cut
    place: int

    @property
    def item(self) -> Item:
        """What is asked."""
        return self.cut.pieces[self.place]


class PieceLine:
    """Pieces to be sent. Workers without a task of their own help, as long as any row is being cut or asked."""

    def __init__(self) -> None:
        self._ready: deque[Piece] = deque()
        self._open = 0
        self._changed = anyio.Event()

    def begin(self) -> None:
        """Say that a row is about to be cut."""
        self._open += 1

    def end(self) -> None:
        """Say that a row that was begun has ended, or is given up."""
        self._open -= 1
        self._wake()

    def put(self, cut: Cut) -> None:
        """Put those of a row's pieces into the line that have no outcome yet."""
        for place, outcome in enumerate(cut.outcomes):
            if outcome is None:
                self._ready.append(Piece(cut=cut, place=place))
        self._wake()

    def settle(self, piece: Piece, outcome: Outcome) -> None:
        """Note what a piece came to."""
        piece.cut.outcomes[piece.place] = outcome
        if not outcome.rows[0].ok and piece.cut.refused is None:
            piece.cut.refused = outcome
        self._wake()

    def take(self) -> Piece | None:
        """Take the next piece that is still wanted; None where there is none just now."""
        while self._ready:
            piece = self._ready.popleft()
            if piece.cut.refused is None:
                return piece
        return None

    async def wait(self, *, until: Cut | None = None) -> Piece | None:
        """Take the next piece of any row. None once the row `until` has ended, or, without one, no row is open."""
        while True:
            if until.ended if until is not None else not self._open:
                return None
            piece = self.take()
            if piece is not None:
                return piece
            await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
