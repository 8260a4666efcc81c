"""How fast a deployment is asked: its ceiling, cut where it refuses, and grown again; time is passed in."""

from __future__ import annotations

MINUTE_S = 60.0
CUT = 0.8
"""What a cut leaves of the rate."""
COOL_DOWN_S = 5.0
"""Seconds after a cut in which no other follows."""
GROWTH_PER_S = 0.01
"""Share by which a rate that is used grows each second."""
NEAR = 0.03
"""Within this share of a rate that was refused ..."""
NEAR_GROWTH_PER_S = 0.001
"""... it grows by this, not to be refused again soon: without it, a twelfth of the quota is lost to cuts."""
SATURATED = 0.8
"""Share of the leave that must have been used for the rate to grow."""
RAMP_S = 10.0
"""Seconds that a deployment which was away takes to its full rate."""
RAMP_FROM = 0.1
"""Share of the rate at which a ramp begins."""
_RAMP_STEP_S = 0.1
_COSTS_A_SPAN = 3


class Rate:
    """Units a minute that may leave; `per_minute` is None while neither a ceiling nor a refusal was seen.

    A refusal cuts it once an episode; requests that were sent before the cut say nothing new. While what it allows is
    used, it grows back to its ceiling, slowly where it was refused before; without a ceiling it grows on, since nobody
    knows where the limit is.
    """

    __slots__ = (
        "_ceiling", "_cool_until", "_cut_at", "_ramp_at", "_ramp_to", "_span_from", "_span_used", "_too_much",
        "per_minute",
    )  # fmt: skip

    def __init__(self, *, ceiling: float | None) -> None:
        self.per_minute = ceiling
        self._ceiling = ceiling
        self._cut_at = float("-inf")
        self._cool_until = float("-inf")
        self._span_from = float("-inf")
        self._span_used = 0.0
        self._ramp_at: float | None = None
        self._ramp_to = 0.0
        self._too_much = float("inf")

    @property
    def per_window(self) -> float | None:
        """Units that a minute may hold: a cut slows down what leaves, but says nothing against what has left."""
        if self._ceiling is not None or self.per_minute is None:
            return self._ceiling
        return max(self.per_minute, self._too_much)

    def limit_to(self, ceiling: float, *, now: float) -> None:
        """Take another ceiling: a lower one holds at once, and a rate that was at the old one follows it up.

        What was refused before a ceiling fell is explained by that, and cuts nothing.
        """
        old, self._ceiling = self._ceiling, ceiling
        if old is not None and ceiling < old:
            self._cut_at = now
        if self._ramp_at is not None:
            self._ramp_to = ceiling
        elif self.per_minute is None or old is None:
            self.per_minute = ceiling
        else:
            self.per_minute = min(ceiling, self.per_minute * max(1.0, ceiling / old))

    def cut(self, now: float, *, sent_at: float, cool_down_s: float, passed: float, least: float) -> bool:
        """Cut the rate for a refusal of a request sent at `sent_at`, unless a cut has answered it; say whether.

        `passed` is what was let in of late, units a minute: all that is known of the limit where there is no ceiling.
        Never below `least` units a minute, or the ceiling where that is less.
        """
        if sent_at < self._cut_at or now < self._cool_until:
            return False
        known = passed if self.per_minute is None else self.per_minute
        if self._ceiling is None:
            known = min(known, passed)
        self._too_much = known
        self.per_minute = max(CUT * known, min(least, self._ceiling or least))
        self._ramp_at = None
        self._cut_at = now
        self._cool_until = now + max(COOL_DOWN_S, cool_down_s)
        self._begin_span(now)
        return True

    def ramp(self, now: float) -> None:
        """Begin again slowly, at full rate ten seconds from now."""
        if self.per_minute is not None:
            self._ramp_at, self._ramp_to = now, self.per_minute if self._ramp_at is None else self._ramp_to
            self.per_minute = RAMP_FROM * self._ramp_to

    def tick(self, now: float) -> bool:
        """Go on with a ramp; True where the rate changed."""
        if self._ramp_at is None:
            return False
        gone = (now - self._ramp_at) / RAMP_S
        wanted = self._ramp_to * min(1.0, RAMP_FROM + (1 - RAMP_FROM) * gone)
        if gone >= 1:
            self._ramp_at = None
        elif wanted - (self.per_minute or 0.0) < self._ramp_to * _RAMP_STEP_S / RAMP_S:
            return False
        self.per_minute = wanted
        return True

    def used(self, now: float, units: float) -> bool:
        """Count what leaves; True where the rate grew because what it allows is used."""
        rate = self.per_minute
        if rate is None or rate == self._ceiling or self._ramp_at is not None:
            return False
        self._span_used += units
        gone_s = now - self._span_from
        # A span holds a few requests: whether one an hour uses its leave cannot be told within a second.
        if gone_s < max(1.0, _COSTS_A_SPAN * units * MINUTE_S / rate):
            return False
        saturated = self._span_used >= SATURATED * rate * gone_s / MINUTE_S
        self._begin_span(now)
        if not saturated:
            return False
        near = abs(rate / self._too_much - 1) <= NEAR
        grown = rate * (1 + (NEAR_GROWTH_PER_S if near else GROWTH_PER_S) * gone_s)
        self.per_minute = grown if self._ceiling is None else min(self._ceiling, grown)
        return True

    def _begin_span(self, now: float) -> None:
        self._span_from, self._span_used = now, 0.0
