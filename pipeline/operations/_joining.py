"""Pieces of a recording back in one: their texts, and what has times, moved to where it lies in the recording."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import reduce
from typing import Any, NamedTuple

from pipeline.operations import _seams
from pipeline.operations._subtitles import Cue

Timed = dict[str, Any]
"""A segment, word or subtitle: `start_s` and `end_s`, which may be None, and others."""


class Piece(NamedTuple):
    """A piece's place in the recording, in seconds (see AudioPiece), and a digest that names the recording."""

    start_s: float
    end_s: float
    from_s: float
    to_s: float
    identity: str

    @property
    def overlaps_next(self) -> bool:
        """Whether the next piece holds the end of this one, too."""
        return self.to_s < self.end_s


def join_texts(
    pieces: Sequence[Piece], texts: Sequence[str], words: Sequence[Sequence[Timed] | None] | None = None
) -> str:
    """One text, in which what two pieces heard stands once; where they heard it differently, their words' times decide.

    `words` are the pieces' own, where they are known.
    """
    parts = list(texts)
    placed = [part for _, part in _moved(pieces, words or [None] * len(pieces))]
    for seam, piece in enumerate(pieces[:-1]):
        if piece.overlaps_next:
            left, right = parts[seam : seam + 2]
            parts[seam : seam + 2] = _seams.parted(left, right) or (
                _seams.shortened(
                    left, last=[each["word"] for each in placed[seam] if _is_before(each, piece) is False]
                ),
                _seams.shortened(right, first=[each["word"] for each in placed[seam + 1] if _is_before(each, piece)]),
            )
    return reduce(_seams.glued, parts, "")


def join_segments(pieces: Sequence[Piece], parts: Sequence[Sequence[Timed] | None]) -> list[Timed] | None:
    """Segments in the order of time; None where no piece has any.

    At a seam in speech, the segment before it ends and the one after it begins where their texts meet.
    """
    if all(part is None for part in parts):
        return None
    whole: list[Timed] = []
    for before, part in _moved(pieces, parts):
        after = part
        if before is not None and before.overlaps_next:
            whole = [entry for entry in whole if entry["start_s"] is None or entry["start_s"] < before.to_s]
            after = [entry for entry in part if entry["end_s"] is None or entry["end_s"] > before.to_s]
            if whole and after:
                whole, after = _parted(whole, after)
        whole += after
    return _in_order(whole)


def _parted(whole: list[Timed], after: list[Timed]) -> tuple[list[Timed], list[Timed]]:
    last, first = whole[-1], after[0]
    left, right = _seams.parted(last["text"], first["text"]) or (last["text"], first["text"])
    if not left.strip():
        return whole[:-1], [{**first, "text": right}, *after[1:]]
    if last["end_s"] is not None and first["start_s"] is not None:
        last = {**last, "end_s": min(last["end_s"], max(first["start_s"], last["start_s"] or 0.0))}
    return [*whole[:-1], {**last, "text": left}], [{**first, "text": right}, *after[1:]]


def join_words(pieces: Sequence[Piece], parts: Sequence[Sequence[Timed] | None]) -> list[Timed] | None:
    """Words in the order of time; None where no piece has any. At a seam in speech by their run of equal words.

    Where there is no such run, a word is of the piece that speaks for its middle.
    """
    if all(part is None for part in parts):
        return None
    whole: list[Timed] = []
    for before, part in _moved(pieces, parts):
        after = part
        if before is not None and before.overlaps_next:
            place = _seams.met([entry["word"] for entry in whole], [entry["word"] for entry in part])
            if place is not None:
                whole, after = whole[: place[0]], part[place[1] :]
            else:
                whole = [entry for entry in whole if _is_before(entry, before) is not False]
                after = [entry for entry in part if not _is_before(entry, before)]
        whole += after
    return _in_order(whole)


def join_cues(pieces: Sequence[Piece], parts: Sequence[Sequence[Cue]]) -> list[Cue]:
    """Subtitles, as segments are joined."""
    joined = join_segments(pieces, [[asdict(cue) for cue in part] for part in parts]) or []
    return [Cue(**entry) for entry in joined]


def _moved(
    pieces: Sequence[Piece], parts: Sequence[Sequence[Timed] | None]
) -> Iterator[tuple[Piece | None, list[Timed]]]:
    """Every piece's entries with times in the recording, never outside of the piece, and the piece before it."""
    before: Piece | None = None
    for piece, part in zip(pieces, parts, strict=True):
        yield before, [{**entry, **_times(entry, piece)} for entry in part or ()]
        before = piece


def _times(entry: Timed, piece: Piece) -> Timed:
    return {
        name: None if entry[name] is None else min(piece.start_s + entry[name], piece.end_s)
        for name in ("start_s", "end_s")
    }


def _is_before(word: Timed, piece: Piece) -> bool | None:
    """Whether the middle of a word lies before the piece's end; None for a word without times."""
    if word["start_s"] is None or word["end_s"] is None:
        return None
    middle_s: float = (word["start_s"] + word["end_s"]) / 2
    return middle_s < piece.to_s


def _in_order(entries: list[Timed]) -> list[Timed]:
    """The same entries, none beginning before the one in front of it: two pieces may place a sound a little apart."""
    ordered = []
    latest = 0.0
    for entry in entries:
        start, end = entry["start_s"], entry["end_s"]
        if start is not None:
            latest = start = max(start, latest)
            end = None if end is None else max(end, start)
        ordered.append({**entry, "start_s": start, "end_s": end})
    return ordered
