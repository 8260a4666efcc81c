"""How long a job's answers are, so that requests need not reserve more of the quota than answers use."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque

LEARNT_FROM = 20
"""Answers before a bound is given."""
KNOWN_FROM = 100
"""Answers from which on their quantiles are believed."""
KEPT = 2_000
"""The latest answers; rows of an input may change their kind from part to part."""
ROOM = 1.1
"""By how much the bound is longer than the quantile: an answer that is cut is paid for twice."""
MORE_ROOM = 1.5
"""By how much while few answers are known."""
LEAST = 16
"""Tokens; the smallest bound that every API takes."""


class Lengths:
    """The latest answers' lengths in tokens, and the bound that holds a share `quantile` of them, such as 0.99."""

    __slots__ = ("_latest", "_quantile", "_sorted")

    def __init__(self, quantile: float) -> None:
        self._quantile = quantile
        self._latest: deque[int] = deque()
        self._sorted: list[int] = []

    def add(self, tokens: int) -> None:
        """Note the whole length of an answer: never that of one that a bound of ours has cut."""
        self._latest.append(tokens)
        insort(self._sorted, tokens)
        if len(self._latest) > KEPT:
            del self._sorted[bisect_left(self._sorted, self._latest.popleft())]

    @property
    def bound(self) -> int | None:
        """Tokens to ask for at most; None until enough answers are known."""
        if len(self._sorted) < LEARNT_FROM:
            return None
        place = min(len(self._sorted) - 1, math.ceil(self._quantile * len(self._sorted) - 1e-6) - 1)
        room = ROOM if len(self._sorted) >= KNOWN_FROM else MORE_ROOM
        return max(LEAST, math.ceil(self._sorted[place] * room - 1e-6))
