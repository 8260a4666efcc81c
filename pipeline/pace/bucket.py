"""The two measures of a quota: a bucket that smooths what leaves, and a window that promises what arrives."""

from __future__ import annotations

from collections import deque


class Bucket:
    """Fills at `rate` units a second up to `least + slack`; a cost above `least` leaves at `least` and borrows.

    The slack is credit that a late timer may still use. Time is passed in; a step back counts as no time at all.
    """

    __slots__ = ("_at", "_burst", "_least", "_level", "_rate")

    def __init__(self, *, rate: float, least: float, slack: float, now: float) -> None:
        self._at = now
        self._level = least
        self.change(rate=rate, least=least, slack=slack)

    def change(self, *, rate: float, least: float, slack: float) -> None:
        """Fill at another rate from the last moment seen on; what is owed stays owed."""
        self._rate = rate
        self._least = least
        self._burst = least + slack
        self._level = min(self._burst, self._level)

    def level(self, now: float) -> float:
        """Return what may leave at once; negative while something borrowed is being paid."""
        if now > self._at:
            self._level = min(self._burst, self._level + (now - self._at) * self._rate)
            self._at = now
        return self._level

    def ready_at(self, now: float, cost: float) -> float:
        """Return the moment from which `cost` may leave; `now` when it may at once."""
        missing = min(cost, self._least) - self.level(now)
        return now if missing <= 0 else now + missing / self._rate

    def take(self, now: float, cost: float) -> None:
        """Take `cost`; the level may become negative. A negative cost gives back."""
        self._level = min(self._burst, self.level(now) - cost)

    def at_most(self, now: float, level: float) -> None:
        """Lower the level to what the service says is left."""
        self._level = min(self.level(now), level)

    @property
    def rate(self) -> float:
        """Units a second."""
        return self._rate


class Window:
    """At most `limit` units in any `span_s` seconds; a cost above the limit leaves when the window is empty.

    A bucket alone lets its burst, or one borrowed cost, through on top of a window's worth. Costs are kept by slices
    of a two-thousandth of the span, so the memory does not grow with the traffic.
    """

    __slots__ = ("_opened_at", "_slice_s", "_slices", "_sum", "limit", "span_s")

    def __init__(self, *, limit: float, span_s: float) -> None:
        self.limit = limit
        self.span_s = span_s
        self._slice_s = span_s / 2000
        self._slices: deque[tuple[float, float]] = deque()
        self._opened_at = float("-inf")
        self._sum = 0.0

    def ready_at(self, now: float, cost: float) -> float:
        """Return the moment from which `cost` may leave; `now` when it may at once."""
        slices = self._slices
        excess = self.sum(now) + min(cost, self.limit) - self.limit
        if not slices:
            return now
        # The tolerance keeps a rounding error in a sum of fractions from costing a whole span.
        if excess <= self.limit * 1e-9:
            return now
        for left_at, spent in slices:
            excess -= spent
            if excess <= 0:
                return left_at + self.span_s
        return slices[-1][0] + self.span_s

    def sum(self, now: float) -> float:
        """Return what left within the span."""
        slices = self._slices
        horizon = now - self.span_s
        while slices and slices[0][0] <= horizon:
            self._sum -= slices.popleft()[1]
        if not slices:
            self._sum = 0.0
        return self._sum

    def take(self, now: float, cost: float) -> None:
        """Count `cost` as left at `now`. A negative cost gives back."""
        self._sum += cost
        if self._slices and now - self._opened_at < self._slice_s:
            # A slice is freed by its last moment: by its first, what came later would be freed too early.
            _, spent = self._slices[-1]
            self._slices[-1] = (now, spent + cost)
        else:
            self._opened_at = now
            self._slices.append((now, cost))
