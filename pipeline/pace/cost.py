"""Learns what a deployment counts for a request, from what it says is left of its minute; time is passed in."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from pipeline.pace.bucket import Window
from pipeline.pace.rate import MINUTE_S

LEAST = 0.02
MOST = 50.0
AT_STAKE = 0.5
"""Share of the minute that must be gone for the factor to rise: with less gone, nothing can be refused for it."""
LOWERED_PER_S = 0.9
"""What a second leaves of the factor at most, while it is being lowered."""
REPLIES = 10
"""Replies that must have come before the factor is lowered."""
REPLIES_TO_RISE = 3
"""Replies that must have come before it is raised."""
REST_S = 60.0
"""Seconds for which the factor is not lowered after a first refusal for tokens; twice as long after each other."""
RAISED = 1.01
"""By how much a refusal for tokens raises a factor that is below one."""
_SLOT_S = 1.0
_SLOTS = 61  # a minute, and the slot that is being filled


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What had been sent when a request left, itself included: ever, and in the last minute; estimated tokens."""

    at: float
    requests: float
    tokens: float
    minute: float


class CostFactor:
    """How many tokens the service counts for one that we estimate: 1 until it is known better.

    What the service says is gone of its minute, over what we have sent in ours, is the factor: exactly where its minute
    slides, at most where it begins anew at full minutes, at least where others use the same quota. So the factor is the
    greatest mean of a second within the last minute. It rises at once, and falls by a tenth a second. In the first
    minute others' requests, or those of an earlier run, may still count: there it rises no further than what is gone
    has grown with what we sent. `lowers` is False where the figures are a bucket's, which a minute's sum cannot be
    compared with.
    """

    __slots__ = (
        "_first", "_lowered_at", "_lowers", "_minute", "_most", "_replies", "_requests", "_rest_s", "_rest_until",
        "_slots", "_tokens", "factor",
    )  # fmt: skip

    def __init__(self, *, lowers: bool = True) -> None:
        self.factor = 1.0
        self._lowers = lowers
        self._minute = Window(limit=float("inf"), span_s=MINUTE_S)
        self._requests = 0.0
        self._tokens = 0.0
        self._first: tuple[float, float, float] | None = None
        self._slots: deque[list[float]] = deque(maxlen=_SLOTS)  # number, tokens gone there, tokens sent here
        self._most = 1.0
        self._replies = 0
        self._lowered_at = float("-inf")
        self._rest_s = REST_S
        self._rest_until = float("-inf")

    def sent(self, now: float, tokens: float) -> None:
        """Count a request that leaves; a negative one was not sent after all."""
        self._requests += 1 if tokens >= 0 else -1
        self._tokens += tokens
        self._minute.take(now, tokens)

    def mark(self, now: float) -> Mark:
        """Return what has been sent by now."""
        return Mark(at=now, requests=self._requests, tokens=self._tokens, minute=self._minute.sum(now))

    def learn(self, now: float, mark: Mark, *, limit: float, remaining: float) -> bool:
        """Learn from a reply to the request of `mark`: tokens a minute, and what was left. True where it changed."""
        if mark.minute <= 0:
            return False
        gone = max(0.0, limit - remaining)
        slot = self._slot(mark.at)
        slot[1] += gone
        slot[2] += mark.minute
        self._replies += 1
        if self._first is None:
            self._first = (mark.at, mark.tokens, gone)
        rising = self._rising(mark, gone, slot[1] / slot[2])
        if gone >= AT_STAKE * limit and rising > self.factor:
            self.factor = min(MOST, rising)
            return True
        return self._lower(now)

    def refused(self, now: float) -> None:
        """Note a refusal for tokens: what was learnt may be too little."""
        if self.factor < 1:
            self._rest_until = now + self._rest_s
            self._rest_s *= 2
        self.factor = max(self.factor, min(1.0, self.factor * RAISED))

    def _rising(self, mark: Mark, gone: float, ratio: float) -> float:
        """Return the factor that a reply gives reason to believe in."""
        assert self._first is not None  # noqa: S101 - set by the first reply
        first_at, first_tokens, first_gone = self._first
        sent = mark.tokens - first_tokens
        if mark.at - first_at < MINUTE_S and sent > 0 and self._replies >= REPLIES_TO_RISE:
            self._most = max(self._most, (gone - first_gone) / sent)
        return min(ratio, self._most)

    def _lower(self, now: float) -> bool:
        if not self._lowers or self._replies < REPLIES or now < self._rest_until:
            return False
        greatest = max(slot[1] / slot[2] for slot in self._slots)
        if greatest >= self.factor:
            self._lowered_at = now
            return False
        gone_s = min(1.0, now - self._lowered_at)
        self._lowered_at = now
        self.factor = max(LEAST, greatest, self.factor * LOWERED_PER_S**gone_s)
        return True

    def _slot(self, at: float) -> list[float]:
        number = at // _SLOT_S
        if not self._slots or number > self._slots[-1][0]:
            self._slots.append([number, 0.0, 0.0])
            while self._slots[0][0] <= number - _SLOTS:
                self._slots.popleft()
        return next((slot for slot in reversed(self._slots) if slot[0] <= number), self._slots[0])
