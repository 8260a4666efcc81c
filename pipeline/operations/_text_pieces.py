"""Cuts a text that is too long for a model into pieces, where a reader would."""

from __future__ import annotations

import re
import unicodedata

from pipeline.job.tokens import count, cut

# A piece gives up at most this share of its length for a better place to end.
_TAIL = 4
_WINDOW_CHARACTERS = 8  # of a token: more than prose has, so that one window nearly always holds a piece

_PLACES = (
    re.compile(r"\n\s*\n\s*"),
    re.compile(r"[.!?…][\"'’”»)\]]*\s+|[。！？][」』）]*|\n"),  # noqa: RUF001 - full-width marks end sentences
    re.compile(r"\s+"),
)
_MARKS = frozenset({"Mn", "Mc", "Me"})
_JOINER = "\u200d"
_SKIN_TONES = range(0x1F3FB, 0x1F400)


def split_text(text: str, most: int, model: str) -> list[str]:
    """Pieces of at most `most` tokens that joined give the text back.

    A piece ends after a paragraph, else a sentence, else a word, where one ends in its last quarter; else between any
    two characters. Tokens are counted as `pipeline.job.tokens` counts them; `most` is a model's limit, thousands.
    """
    pieces: list[str] = []
    start = 0
    while start < len(text):
        piece = _piece(text, start, most, model)
        pieces.append(piece)
        start += len(piece)
    return pieces


def _piece(text: str, start: int, most: int, model: str) -> str:
    longest = _longest(text, start, most, model)
    if start + len(longest) == len(text):
        return longest
    piece = longest[: _good_end(longest, text[start + len(longest)])]
    # The beginning of a word may have more tokens than the word.
    return piece if count([piece], model)[0] <= most else longest


def _longest(text: str, start: int, most: int, model: str) -> str:
    """The most that fits from `start` on; only as much of the text is looked at as that takes."""
    reach = most * _WINDOW_CHARACTERS
    while True:
        window = text[start : start + reach]
        longest = cut(window, most, model)
        if len(longest) < len(window) or start + reach >= len(text):
            return longest
        reach *= 2


def _good_end(longest: str, following: str) -> int:
    """Where to end a piece that may be as long as `longest`, before the character `following`."""
    tail = len(longest) - len(longest) // _TAIL
    for place in _PLACES:
        ends = [found.end() for found in place.finditer(longest, tail)]
        if ends:
            return ends[-1]
    end = len(longest)
    while end > tail:
        if not _belongs(longest[end - 1], following):
            return end
        end -= 1
        following = longest[end]
    return len(longest)


def _belongs(before: str, character: str) -> bool:
    """Whether a character is read as a part of the one before it: accents, vowel signs, joined pictures."""
    return _JOINER in (before, character) or unicodedata.category(character) in _MARKS or ord(character) in _SKIN_TONES
