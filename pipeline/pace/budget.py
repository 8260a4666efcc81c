"""How many retries of transient faults a deployment is worth before they only add to its load."""

from __future__ import annotations

FULL = 100.0
A_SUCCESS = 0.5
"""What an answer adds: a run at 30 % faults still earns what it spends, one at half does not."""


class RetryBudget:
    """A retry takes one, an answer gives half of one. Empty means overload, which `spend` says once an episode."""

    __slots__ = ("_left", "_overloaded")

    def __init__(self) -> None:
        self._left = FULL
        self._overloaded = False

    @property
    def empty(self) -> bool:
        """True while no retry can be paid for."""
        return self._left < 1

    def spend(self) -> bool:
        """Take one for a retry; True where that is the last, for the first time since the budget was half full."""
        self._left = max(0.0, self._left - 1)
        if not self.empty or self._overloaded:
            return False
        self._overloaded = True
        return True

    def earn(self) -> None:
        """Note an answer."""
        self._left = min(FULL, self._left + A_SUCCESS)
        if self._left >= FULL / 2:
            self._overloaded = False
