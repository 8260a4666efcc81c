"""Where two transcripts meet: their texts are put together, and what both of them heard is said once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

# Scripts without spaces between words: their characters are compared one by one.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])\w)+(?:['\u2019](?:(?![{_UNSPACED}])\w)+)*")
_IS_UNSPACED = re.compile(f"[{_UNSPACED}\u3000-\u303f\uff00-\uffef]")

_LOOKED_AT = 24
"""Words to both sides of a seam: twice what two seconds of quick speech hold."""
_STRAY = 3
"""Words that a cut within speech may leave wrong at an end."""


def glued(left: str, right: str) -> str:
    """Two texts as one: a space between them, none where their script has none."""
    left, right = left.rstrip(), right.lstrip()
    if not left or not right:
        return left or right
    unspaced = _IS_UNSPACED.fullmatch(left[-1]) and _IS_UNSPACED.fullmatch(right[0])
    return f"{left}{right}" if unspaced else f"{left} {right}"


def met(left: Sequence[str], right: Sequence[str]) -> tuple[int, int] | None:
    """Where two lists of words that overlap meet: how many of the left come before, how many of the right to leave out.

    The longest run of equal words counts that lies at the end of one and at the beginning of the other, but for three
    words that the cut may have spoilt. None where there is none.
    """
    skipped = max(0, len(left) - _LOOKED_AT)
    said = [_bare(word) for word in left[skipped:]]
    heard = [_bare(word) for word in right[:_LOOKED_AT]]
    match = SequenceMatcher(None, said, heard, autojunk=False).find_longest_match()
    spare = max(len(said) - match.a - match.size, match.b)
    if match.size == 0 or spare > (_STRAY if match.size > 1 else 0):
        return None
    return skipped + match.a, match.b


def _bare(word: str) -> str:
    """A word as it is compared: without case, spaces and punctuation, whichever apostrophe it has."""
    return "".join(_WORD.findall(word)).casefold().replace("\u2019", "'")


def parted(left: str, right: str) -> tuple[str, str] | None:
    """Two texts that overlap, without what both say: it stays on the right, where its sentence goes on.

    None where they do not meet.
    """
    before, after = list(_WORD.finditer(left)), list(_WORD.finditer(right))
    place = met([match[0] for match in before], [match[0] for match in after])
    if place is None:
        return None
    return left[: before[place[0]].start()].rstrip(), right[after[place[1]].start() :]


def shortened(text: str, *, first: Sequence[str] = (), last: Sequence[str] = ()) -> str:
    """A text without as many words as these have at its beginning and at its end."""
    words = list(_WORD.finditer(text))
    begin, end = _count(first), len(words) - _count(last)
    if begin >= end and (first or last):
        return ""
    start = words[begin].start() if begin else 0
    stop = words[end].start() if end < len(words) else len(text)
    return text[start:stop].rstrip()


def _count(words: Sequence[str]) -> int:
    return sum(len(_WORD.findall(word)) for word in words)
