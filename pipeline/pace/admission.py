"""Leave to send to one deployment: requests and tokens granted together, behind one gate; time is passed in."""

from __future__ import annotations

import math
from collections.abc import Callable

from pipeline.pace.bucket import Bucket, Window
from pipeline.pace.gate import Gate

MINUTE_S = 60.0
SLACK_S = 0.05
"""Seconds' worth of the rate that a late timer may still use; small, to be smooth within the service's slices."""
REQUEST_SPAN_S = 1.0
"""Seconds; Azure judges requests over slices of 1 or 10 s (Azure OpenAI quota documentation)."""
REQUEST_MARGIN_S = 0.008
"""Seconds by which our second is longer than the service's, against unequal ways there; costs 0.8 % of the quota."""
TOKEN_MARGIN_S = 0.25
"""Seconds by which our minute is longer than the service's; costs 0.4 % of the quota."""


class Quota:
    """One limit per minute, smoothed by a bucket and kept to by a window of `span_s` seconds; None is no limit yet.

    What leaves is counted even without a limit, so that one learnt on the way knows what it has already let through.
    """

    __slots__ = ("_bucket", "_least", "_span_s", "_window", "per_minute")

    def __init__(self, *, per_minute: float | None, span_s: float, margin_s: float, least: float) -> None:
        self._least = least
        self._span_s = span_s
        self._window = Window(limit=0.0, span_s=span_s + margin_s)
        self._bucket: Bucket | None = None
        self.per_minute: float | None = None
        if per_minute is not None:
            self.change(per_minute, now=float("-inf"))

    def change(self, per_minute: float, *, now: float) -> None:
        """Keep to another limit from now on."""
        rate = per_minute / MINUTE_S
        self.per_minute = per_minute
        self._window.limit = max(self._least, math.ceil(rate * self._span_s - 1e-9))
        if self._bucket is None:
            self._bucket = Bucket(rate=rate, least=self._least, slack=rate * SLACK_S, now=now)
        else:
            self._bucket.level(now)
            self._bucket.change(rate=rate, least=self._least, slack=rate * SLACK_S)

    def ready_at(self, now: float, cost: float) -> float:
        """Return the moment from which `cost` may leave; `now` when it may at once."""
        if self._bucket is None:
            return now
        return max(self._bucket.ready_at(now, cost), self._window.ready_at(now, cost))

    def take(self, now: float, cost: float) -> None:
        """Take `cost`; a negative cost gives back."""
        self._window.take(now, cost)
        if self._bucket is not None:
            self._bucket.take(now, cost)

    def at_most(self, now: float, left: float) -> None:
        """Take the service's word for what is left."""
        if self._bucket is not None:
            self._bucket.at_most(now, left)


class Admission:
    """The gate and both quotas of one deployment. A limit of None is unknown: nothing is held back until it is learnt.

    The limits given are units a minute from the job file. A limit that replies name lowers a stated one (Azure names a
    lower one while it throttles a deployment) and stands in for a missing one.
    """

    __slots__ = ("_requests", "_stated_requests", "_stated_tokens", "_tokens", "gate")

    def __init__(self, *, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        self.gate = Gate()
        self._stated_requests = requests_per_minute
        self._stated_tokens = tokens_per_minute
        self._requests = Quota(
            per_minute=requests_per_minute, span_s=REQUEST_SPAN_S, margin_s=REQUEST_MARGIN_S, least=1
        )
        self._tokens = Quota(per_minute=tokens_per_minute, span_s=MINUTE_S, margin_s=TOKEN_MARGIN_S, least=0)

    @property
    def requests_per_minute(self) -> float | None:
        """The limit now in force."""
        return self._requests.per_minute

    @property
    def tokens_per_minute(self) -> float | None:
        """The limit now in force."""
        return self._tokens.per_minute

    def ready_at(self, now: float, tokens: float) -> float:
        """Return the moment from which one request of `tokens` may leave; `now` when it may at once."""
        return max(now, self.gate.until, self._requests.ready_at(now, 1), self._tokens.ready_at(now, tokens))

    def take(self, now: float, tokens: float) -> None:
        """Count one request of `tokens` as leaving at `now`."""
        self._requests.take(now, 1)
        self._tokens.take(now, tokens)

    def give_back(self, now: float, tokens: float) -> None:
        """Undo a `take` whose request was never sent."""
        self._requests.take(now, -1)
        self._tokens.take(now, -tokens)

    def pause(self, now: float, hint_s: float | None, *, sent_at: float, random: Callable[[], float]) -> None:
        """Close the gate; see Gate.pause."""
        self.gate.pause(now, hint_s, sent_at=sent_at, random=random)

    def observe(
        self,
        now: float,
        *,
        limit_requests: float | None = None,
        limit_tokens: float | None = None,
        remaining_requests: float | None = None,
        remaining_tokens: float | None = None,
    ) -> None:
        """Follow what a reply says of the limits (units a minute) and of what is left of them; None says nothing."""
        _follow(self._requests, self._stated_requests, limit_requests, remaining_requests, now)
        _follow(self._tokens, self._stated_tokens, limit_tokens, remaining_tokens, now)


def _follow(quota: Quota, stated: float | None, limit: float | None, remaining: float | None, now: float) -> None:
    if limit is not None:
        wanted = limit if stated is None else min(limit, stated)
        if wanted != quota.per_minute:
            quota.change(wanted, now=now)
    if remaining is not None:
        quota.at_most(now, remaining)
