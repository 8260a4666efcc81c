"""Learns what provisioned throughput takes from the utilization that replies name; time is passed in."""

from __future__ import annotations

import math
from collections import deque

KEPT_S = 30.0
"""Seconds for which what a reply said is learnt from."""
KEPT = 256
"""The most replies that are."""
EMPTY = 0.02
"""Utilization up to which the bucket may have run empty: then what was sent says nothing of what flows away."""
NEARING = 0.5
"""Utilization, with what is under way, from which more is tried with care."""
TARGET = 0.9
"""Utilization that is aimed at: it is not refused, and there is always something left to flow away."""
TAKEN_UP_S = 10.0
"""Seconds within which the way to the target is made up, or three times as long as replies take."""
SLOWEST_S = 60.0
"""Seconds that a full bucket is taken to need to flow away before that is known: a careful guess."""
USUAL_S = 10.0
"""A likely one, where it is asked whether there is much room left."""
TELLING = 0.02
"""Deviation of the utilization from a steady one, as a share, from which it tells the size of the bucket."""
FEWEST = 4
"""Replies from which a plane is drawn."""
FEW = 16
"""Up to so many replies, it is drawn anew with each; else each FIT_S seconds."""
FIT_S = 0.2
LESS = 0.9
"""What a refusal leaves of the most that ever flowed away ..."""
AT_LEAST = 0.75
"""... of which this share is sent whatever replies say: they may name something else."""
RAISE_S = 1.0
RAISED = 1.25
"""Where it is empty, more flows away than was known: by so much each RAISE_S seconds, or each way there and back."""
STEEPEST = 2.0
"""What was learnt changes by at most this factor with one reply."""


class Provisioned:
    """A leaky bucket that is not ours: its size in tokens of our estimate, how fast it drains, how full it is.

    Utilization rises by `tokens / size` with each request and falls by `drain / size` a second. So it is a plane over
    what was sent and the time; the plane is fitted to the replies of the last half minute, whatever their order.
    """

    __slots__ = (
        "_away", "_away_sum", "_fitted_at", "_last", "_most_s", "_raised_at", "_raised_from", "_replies",
        "_way_s", "drain_s", "size",
    )  # fmt: skip

    def __init__(self) -> None:
        self.size: float | None = None
        self.drain_s: float | None = None
        self._replies: deque[tuple[float, float, float]] = deque(maxlen=KEPT)
        self._last: tuple[float, float, float] | None = None
        self._way_s = 0.0
        self._most_s = 0.0
        self._away: deque[tuple[float, float]] = deque(maxlen=KEPT)
        self._away_sum = 0.0
        self._fitted_at = float("-inf")
        self._raised_at = float("-inf")
        self._raised_from = 0.0

    def refused(self, sent_at: float, tokens: float) -> None:
        """Note that what left at `sent_at` was not taken in."""
        self._away.append((sent_at, tokens))
        self._away_sum += tokens
        self._most_s *= LESS

    def taken_in(self, sent: float) -> float:
        """What of all tokens that have left was not refused."""
        return sent - self._away_sum

    def learn(self, now: float, *, sent_at: float, sent: float, share: float) -> None:
        """Take a reply to what left at `sent_at`, when `sent` tokens had left in all: it was full to `share`."""
        sent -= self._away_sum - sum(tokens for at, tokens in self._away if at > sent_at)
        self._way_s = max(now - sent_at, 0.9 * self._way_s)
        if self._last is None or sent_at >= self._last[0]:
            self._last = sent_at, sent, share
        if share <= EMPTY:
            self._replies.clear()
            self._raise(now, sent)
            return
        self._replies.append((sent_at, sent, share))
        while now - self._replies[0][0] > KEPT_S + self._way_s:
            self._replies.popleft()
        if len(self._replies) <= FEW or now - self._fitted_at >= FIT_S:
            self._fitted_at = now
            self._fit()

    def _raise(self, now: float, sent: float) -> None:
        """What left did not fill it: as much flows away, and perhaps more."""
        gone_s = now - self._raised_at
        if self.size is None or gone_s < max(RAISE_S, self._way_s):
            return
        if math.isfinite(gone_s):
            drain_s = self.size / SLOWEST_S if self.drain_s is None else self.drain_s
            let_in_s = (sent - self._raised_from) / gone_s
            self.drain_s = max(drain_s, min(RAISED * drain_s, RAISED * let_in_s))
        self._raised_at, self._raised_from = now, sent

    def fullness(self, now: float, sent: float) -> float | None:
        """How full it is by now, when `sent` tokens have left in all; None while that is not known."""
        if self._last is None or self.size is None:
            return None
        at, before, share = self._last
        drain_s = self.size / USUAL_S if self.drain_s is None else self.drain_s
        if now - at > TAKEN_UP_S + self._way_s:
            drain_s = max(drain_s, self.size / USUAL_S)  # nothing came of late: better find out than leave it idle
        gone = before + drain_s * (now - at)
        return max(0.0, share + (self.taken_in(sent) - gone) / self.size)

    def per_minute(self, now: float, sent: float) -> float | None:
        """Tokens a minute that lead it to the target; None while its size is not known."""
        full = self.fullness(now, sent)
        if full is None or self.size is None:
            return None
        drain_s = self.size / SLOWEST_S if self.drain_s is None else self.drain_s
        missing = (TARGET - full) * self.size / max(TAKEN_UP_S, 3 * self._way_s)
        return 60.0 * max(drain_s / 10, AT_LEAST * self._most_s, drain_s + missing)

    def _fit(self) -> None:
        """Draw the plane. Where it is too thin to tell the size, that stays, and the drain is learnt alone."""
        count = len(self._replies)
        if count < FEWEST:
            if self.size is None:
                _, sent, share = self._replies[-1]
                self.size = sent / share
            return
        mid_at, mid_sent, mid_share = (math.fsum(column) / count for column in zip(*self._replies, strict=True))
        times = both = sents = sent_shares = sent_times = 0.0
        for at, sent, share in self._replies:
            t, s, u = at - mid_at, sent - mid_sent, share - mid_share
            times += t * t
            sents += s * s
            both += t * u
            sent_times += t * s
            sent_shares += s * u
        if times <= 0:
            return
        rest = sents - sent_times * sent_times / times
        size = self.size or mid_sent / mid_share
        if rest / count > (TELLING * size) ** 2:
            slope = (sent_shares - sent_times * both / times) / rest
            if slope > 0:
                size = self._towards(self.size, 1 / slope)
        self.size = size
        drain_s = (sent_times - both * size) / times
        spanned_s = self._replies[-1][0] - self._replies[0][0]
        if drain_s > 0 and spanned_s >= 1.0:
            self.drain_s = self._towards(self.drain_s, drain_s)
            if spanned_s < TAKEN_UP_S:
                # So short a time may tell next to nothing; if too little left by it, no reply would set it right.
                self.drain_s = max(self.drain_s, size / SLOWEST_S)
            else:
                self._most_s = max(self._most_s, self.drain_s)

    @staticmethod
    def _towards(known: float | None, found: float) -> float:
        return found if known is None else min(STEEPEST * known, max(known / STEEPEST, found))
