"""How many requests may be under way where no limit is known yet: a slow start, halved where the service refuses."""

from __future__ import annotations

from pipeline.pace.rate import COOL_DOWN_S

START = 4.0
"""Requests that may be under way before anything was answered."""
LEAST = 1.0


class Concurrency:
    """Grows by one with each answer, so that it doubles with each round.

    After a cut, and where the service says that it is nearly full, it grows by one with each round.
    """

    __slots__ = ("_careful", "_cool_until", "_cut_at", "most")

    def __init__(self) -> None:
        self.most = START
        self._careful = False
        self._cut_at = float("-inf")
        self._cool_until = float("-inf")

    def answered(self, *, nearly_full: bool = False) -> None:
        """Let more be under way: the service copes. `nearly_full`: it says that there is not much room left."""
        self.most += 1 / self.most if self._careful or nearly_full else 1.0

    def cut(self, now: float, *, sent_at: float, under_way: int, cool_down_s: float) -> bool:
        """Halve what may be under way, once an episode; say whether this refusal did. `under_way` is how many are."""
        if sent_at < self._cut_at or now < self._cool_until:
            return False
        self.most = max(LEAST, min(self.most, float(under_way)) / 2)
        self._careful = True
        self._cut_at = now
        self._cool_until = now + max(COOL_DOWN_S, cool_down_s)
        return True

    def restart(self) -> None:
        """Begin slowly again, after the service was away."""
        self.most = min(self.most, START)
        self._careful = False
