"""The line of pieces: every piece once, helpers as long as any may come, one refusal ends its row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest

from pipeline.errors import ReplyError
from pipeline.lanes.pieces import Cut, Piece, PieceLine
from pipeline.model import ErrorInfo, ErrorType, Item, Outcome, RequestInfo, RowResult, Usage
from pipeline.operations.base import Cutting

ERROR = ErrorInfo(type=ErrorType.BAD_REQUEST, code="no", message="no", http_status=400)


def cut_of(size: int, *, ordinal: int = 7, done: Sequence[int] = ()) -> Cut:
    pieces = tuple(Item(ordinal=ordinal, content=place, tokens=0) for place in range(size))
    return Cut(
        item=Item(ordinal=ordinal, content="whole", tokens=0),
        pieces=pieces,
        outcomes=[ok(ordinal, place) if place in done else None for place in range(size)],
    )


def ok(ordinal: int, place: int) -> Outcome:
    row = RowResult(ordinal=ordinal, values={"text": str(place)}, usage=Usage(seconds=1.0))
    return Outcome(rows=(row,), request=RequestInfo(attempts=2, request_id=f"id {place}"))


def failed(ordinal: int) -> Outcome:
    return Outcome(rows=(RowResult(ordinal=ordinal, error=ERROR),), request=RequestInfo(attempts=1, request_id="bad"))


@dataclass
class Joins:
    """The one method that a cut calls."""

    refuses: bool = False

    def cut(self, item: Item, folder: Path) -> Sequence[Item] | None:
        raise NotImplementedError

    def piece_key(self, piece: Item) -> str:
        raise NotImplementedError

    def join(self, item: Item, pieces: Sequence[Item], results: Sequence[RowResult]) -> RowResult:
        if self.refuses:
            raise ReplyError(code="bad_reply", message="they do not fit")
        words = [
            str(piece.content) + ":" + str((result.values or {})["text"])
            for piece, result in zip(pieces, results, strict=True)
        ]
        return RowResult(ordinal=item.ordinal, values={"text": " ".join(words)})


def joined(cut: Cut, **given: Any) -> Outcome:
    return cut.joined(cast("Cutting", Joins(**given)))


@pytest.mark.anyio
async def test_every_piece_is_taken_once_whoever_asks() -> None:
    line, cuts = PieceLine(), [cut_of(9, ordinal=1), cut_of(4, ordinal=2)]
    taken: list[tuple[int, int]] = []

    async def help_out() -> None:
        while (piece := await line.wait()) is not None:
            taken.append((piece.item.ordinal, piece.place))
            await anyio.lowlevel.checkpoint()
            line.settle(piece, ok(piece.item.ordinal, piece.place))

    async def own(cut: Cut) -> None:
        line.begin()
        await anyio.lowlevel.checkpoint()
        line.put(cut)
        while (piece := await line.wait(until=cut)) is not None:
            taken.append((piece.item.ordinal, piece.place))
            await anyio.lowlevel.checkpoint()
            line.settle(piece, ok(piece.item.ordinal, piece.place))
        line.end()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as workers:
            for cut in cuts:
                workers.start_soon(own, cut)
            for _ in range(3):
                workers.start_soon(help_out)
    assert sorted(taken) == [(1, place) for place in range(9)] + [(2, place) for place in range(4)]
    assert all(cut.ended for cut in cuts)


@pytest.mark.anyio
async def test_nobody_waits_where_no_row_is_open() -> None:
    line = PieceLine()
    with anyio.fail_after(1):
        assert await line.wait() is None


@pytest.mark.anyio
async def test_pieces_answered_by_an_earlier_invocation_are_not_sent_again() -> None:
    line, cut = PieceLine(), cut_of(4, done=[0, 2])
    line.put(cut)
    places = []
    while (piece := line.take()) is not None:
        places.append(piece.place)
    assert places == [1, 3]
    whole = cut_of(2, done=[0, 1])
    line.put(whole)
    assert await line.wait(until=whole) is None
    assert joined(whole).rows[0].values == {"text": "0:0 1:1"}


@pytest.mark.anyio
async def test_a_refused_piece_ends_its_row_and_the_others_of_it_are_not_sent() -> None:
    line, cut, other = PieceLine(), cut_of(4), cut_of(1, ordinal=8)
    line.put(cut)
    line.put(other)
    first = line.take()
    assert isinstance(first, Piece)
    line.settle(first, failed(7))
    assert cut.ended
    left = line.take()
    assert isinstance(left, Piece)
    assert left.cut is other
    outcome = joined(cut)
    assert outcome.rows == (RowResult(ordinal=7, error=ERROR),)
    assert (outcome.request.request_id, outcome.request.attempts) == ("bad", 1)


def test_a_row_has_the_attempts_of_all_its_pieces_and_the_ids_of_the_last() -> None:
    outcome = joined(cut_of(3, done=[0, 1, 2]))
    assert outcome.rows[0].values == {"text": "0:0 1:1 2:2"}
    assert (outcome.request.attempts, outcome.request.request_id, outcome.attempts) == (6, "id 2", ())


def test_pieces_that_cannot_be_joined_fail_their_row() -> None:
    row = joined(cut_of(1, done=[0]), refuses=True).rows[0]
    assert row.error is not None
    assert (row.error.type, row.error.code) == (ErrorType.REPLY, "bad_reply")
