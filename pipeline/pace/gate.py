"""A gate that a refusal closes for a while, for everybody at once; time and chance are passed in."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

FIRST_S = 1.0
"""Seconds; the longest first pause where the service gives no hint."""
CAP_S = 60.0
"""Seconds; the longest pause that is ours, not the service's."""
LEAST_JITTER_S = 0.05
"""Seconds; a hint is lengthened by at most this or a tenth of it, whichever is more ..."""
MOST_JITTER_S = 1.0
"""... up to this: a second spreads those who come back over a whole slice; more of a long hint is quota left unused."""
_REMEMBERED = 32


class Gate:
    """Closed until a moment. Hints are floors; without one, pauses double from episode to episode.

    An episode is a pause and every refusal of requests sent before it ended: a hundred requests in flight that
    are refused together are one episode.
    """

    __slots__ = ("_closed", "_closed_s", "_episodes", "until")

    def __init__(self) -> None:
        self.until = float("-inf")
        self._closed: deque[tuple[float, float]] = deque(maxlen=_REMEMBERED)
        self._closed_s = 0.0
        self._episodes = 0

    def pause(self, now: float, hint_s: float | None, *, sent_at: float, random: Callable[[], float]) -> None:
        """Close until `now + hint_s` and a little more, or by full jitter over 1, 2, 4 ... 60 s where there is no hint.

        Never opens earlier than it would have. `sent_at` is when the refused request left.
        """
        before = self.until
        if hint_s is not None:
            jitter_s = random() * max(LEAST_JITTER_S, min(MOST_JITTER_S, hint_s / 10))
            self.until = max(self.until, now + hint_s + jitter_s)
        elif sent_at >= self.until:
            self.until = now + random() * min(CAP_S, FIRST_S * 2.0 ** min(self._episodes, 16))
            self._episodes += 1
        if self.until > max(before, now):
            self._closed.append((max(before, now), self.until))
            self._closed_s += self.until - max(before, now)

    def hold(self, now: float, until: float) -> None:
        """Stay closed until a moment that another process was told of."""
        if until > max(self.until, now):
            self._closed.append((max(self.until, now), until))
            self._closed_s += until - max(self.until, now)
            self.until = until

    def closed_in_all_s(self, now: float) -> float:
        """Return for how many seconds it was closed so far."""
        return self._closed_s - max(0.0, self.until - now) if self._closed_s else 0.0

    def closed_s(self, now: float, span_s: float) -> float:
        """Return for how many of the last `span_s` seconds it was closed."""
        return sum(max(0.0, min(now, end) - max(now - span_s, begin)) for begin, end in self._closed)

    def answered(self, sent_at: float) -> None:
        """Note an answer to a request that left at `sent_at`; one sent after the pause ends the series of episodes."""
        if self._episodes and sent_at >= self.until:
            self._episodes = 0
