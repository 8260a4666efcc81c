"""Leave to send to one deployment: requests and tokens granted together, behind one gate; time is passed in."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

from pipeline.pace.bucket import Bucket, Window
from pipeline.pace.cost import CostFactor, Mark
from pipeline.pace.gate import Gate
from pipeline.pace.provisioned import NEARING, Provisioned
from pipeline.pace.rate import MINUTE_S, Rate
from pipeline.pace.verdict import ThrottleKind

SLACK_S = 0.05
"""Seconds' worth of the rate that a late timer may still use; small, to be smooth within the service's slices."""
REQUEST_SPAN_S = 1.0
"""Seconds; Azure judges requests over slices of 1 or 10 s (Azure OpenAI quota documentation)."""
REQUEST_MARGIN_S = 0.008
"""Seconds by which our second is longer than the service's, against unequal ways there; costs 0.8 % of the quota."""
TOKEN_MARGIN_S = 0.25
"""Seconds by which our minute is longer than the service's; costs 0.4 % of the quota."""
LOWERED_S = 1800.0
"""Seconds for which a limit that fell may rise again, as one does that Azure lowers while it throttles a deployment."""
RECENT_S = 10.0
"""Seconds over which refusals that name no limit are weighed against what was sent."""
FLOWED_S = 5.0
"""Seconds from which on what was taken in by provisioned throughput, once full, says what flows away."""
STEER_S = 0.1
"""Seconds after which the rate of provisioned throughput is made anew, be it that no reply came."""
TELLING = 3
"""Requests that must have been let in before a refusal tells a rate that nobody knows ..."""
TELLING_EARLY = 100
"""... and before it does within the first minute: who begins in a minute that others filled finds little room, and a
rate of so few is held for long."""
_LEAST_S = 0.1
_LATELY_LEAST_S = 1.0
REFUSED_SHARE = 0.1
REFUSED_LEAST = 3
"""Refusals that name no limit cut the rate from this share, and this many, of what was sent of late on."""


Portion: TypeAlias = tuple[int, int]
"""Which of how many processes of one run that share its quota; counted from 0."""
WHOLE: Portion = (0, 1)


class Quota:
    """One limit per minute, smoothed by a bucket and kept to by a window of `span_s` seconds; None is no limit yet.

    `limit` is the service's or the job's, whichever is lower; `rate` what may leave, which spares the share `leave` of
    the limit and is less after refusals; `offered` what the service names. All are the service's units: one that we
    count is worth `scale` of them. What leaves is counted even without a limit, so that one learnt on the way knows
    what it has already let through. `flows`: what was let in flows away steadily, so that a rate which was learnt says
    nothing of what a span holds.
    """

    __slots__ = (
        "_allowed", "_allowed_to", "_bucket", "_highest", "_least", "_leave", "_lowered_at", "_parts", "_portion",
        "_span_s", "_stated", "_window", "flows", "limit", "offered", "rate", "scale",
    )  # fmt: skip

    def __init__(self, *, stated: float | None, leave: float, span_s: float, margin_s: float, least: float) -> None:
        self._stated = stated
        self._leave = leave
        self._parts = 1
        self._portion = WHOLE
        self._least = least
        self._span_s = span_s
        self._window = Window(limit=0.0, span_s=span_s + margin_s)
        self._bucket: Bucket | None = None
        self._allowed = 0.0
        self._allowed_to: float | None = None
        self.limit = stated
        self._highest = stated
        self._lowered_at: float | None = None
        self.offered: float | None = None
        self.flows = False
        self.scale = 1.0
        self.rate = Rate(ceiling=None if stated is None else stated * (1 - leave), span_s=span_s)
        self.apply(float("-inf"))

    @property
    def paced(self) -> float | None:
        """Units of ours a minute that may leave, None while nothing holds them back."""
        return None if self.rate.per_minute is None else self.rate.per_minute / self.scale

    @property
    def known(self) -> float | None:
        """The limit; without one, the rate that refusals have led to."""
        return self.rate.per_minute if self.limit is None else self.limit

    def follow(self, named: float, now: float) -> None:
        """Keep to the limit that the service names, where it is not above the stated one."""
        self.offered = named
        limit = named if self._stated is None else min(named, self._stated)
        if limit != self.limit:
            self._count_allowed(now)
            self.limit = limit
            if self._highest is None or limit >= self._highest:
                self._highest, self._lowered_at = limit, None
            elif self._lowered_at is None:
                self._lowered_at = now
            self._take_share(limit, now)

    def to_come(self, now: float) -> float | None:
        """The limit, or the highest that was known where it fell not long ago; None without any."""
        lowered = self._lowered_at is not None and now - self._lowered_at < LOWERED_S
        return self._highest if lowered else self.limit

    def share(self, parts: int, now: float, portion: Portion = WHOLE) -> None:
        """Keep to one of so many equal parts of the limit, and of that to our portion; the limit stays known."""
        if (parts, portion) != (self._parts, self._portion):
            self._parts, self._portion = parts, portion
            if self.limit is not None:
                self._take_share(self.limit, now)

    def leave(self, share: float, now: float) -> None:
        """Leave another share of the limit to others."""
        if share != self._leave:
            self._leave = share
            if self.limit is not None:
                self._take_share(self.limit, now)

    def _take_share(self, limit: float, now: float) -> None:
        paced = limit * (1 - self._leave) / self._parts
        index, of = self._portion
        if of > 1:
            # A window holds whole requests: what the windows of all hold is no more than one window would.
            whole = max(1, math.ceil(paced * self._span_s / MINUTE_S - 1e-9))
            paced *= max(1, (whole + index) // of) / whole
        self.rate.limit_to(paced, now=now)
        self.apply(now)

    def apply(self, now: float) -> None:
        """Keep to the rate and the scale as they are now."""
        paced, held = self.paced, self.rate.per_window
        if paced is None or held is None:
            return
        rate = paced / MINUTE_S
        self._window.limit = (
            math.inf
            if self.flows and self.limit is None
            else max(self._least, math.ceil(held / self.scale * self._span_s / MINUTE_S - 1e-9))
        )
        if self._bucket is None:
            self._bucket = Bucket(rate=rate, least=self._least, slack=rate * SLACK_S, now=now)
        else:
            self._bucket.level(now)
            self._bucket.change(rate=rate, least=self._least, slack=rate * SLACK_S)

    def ready_at(self, now: float, cost: float) -> float:
        """Return the moment from which `cost` may leave; `now` when it may at once."""
        if self.rate.tick(now):
            self.apply(now)
        if self._bucket is None:
            return now
        return max(self._bucket.ready_at(now, cost), self._window.ready_at(now, cost))

    def take(self, now: float, cost: float) -> None:
        """Take `cost`; a negative cost gives back."""
        self._window.take(now, cost)
        if self._allowed_to is None:
            self._allowed_to = now
        if self._bucket is not None:
            self._bucket.take(now, cost)
            if self.rate.used(now, cost * self.scale):
                self.apply(now)
        else:
            self._window.sum(now)

    def at_most(self, now: float, left: float, *, since_s: float, taken: float) -> None:
        """Take the service's word for what was left `since_s` seconds ago; `taken`, in our units, has left since."""
        if self._bucket is not None:
            self._bucket.at_most(now, left / self.scale + self._bucket.rate * since_s - taken)

    def allowed(self, now: float) -> float | None:
        """Return what the limits allowed since the first request, at least that of a span; None without any."""
        self._count_allowed(now)
        if not self._allowed:
            return None
        return max(self._allowed, (self.known or 0.0) * self._span_s / MINUTE_S)

    def _count_allowed(self, now: float) -> None:
        if self._allowed_to is not None:
            self._allowed += (self.known or 0.0) * (now - self._allowed_to) / MINUTE_S
            self._allowed_to = now


class Admission:
    """The gate and both quotas of one deployment. A limit of None is unknown: nothing is held back until it is learnt.

    The limits given are units a minute from the job file, of which the share `leave` is left to others. A limit that
    replies name lowers a stated one (Azure names a lower one while it throttles a deployment) and stands in for a
    missing one. `sliding` says that what replies name as remaining is of a minute, as on Azure, and no bucket's level.
    """

    __slots__ = (
        "_cost", "_first_at", "_followed_at", "_full", "_lately", "_provisioned", "_recent", "_refused",
        "_refused_tokens", "_requests", "_steered_at", "_steered_last", "_tokens", "gate",
    )  # fmt: skip

    def __init__(
        self,
        *,
        requests_per_minute: float | None,
        tokens_per_minute: float | None,
        leave: float = 0.0,
        sliding: bool = True,
    ) -> None:
        self.gate = Gate()
        self._requests = Quota(
            stated=requests_per_minute, leave=leave, span_s=REQUEST_SPAN_S, margin_s=REQUEST_MARGIN_S, least=1
        )
        self._tokens = Quota(stated=tokens_per_minute, leave=leave, span_s=MINUTE_S, margin_s=TOKEN_MARGIN_S, least=0)
        self._cost = CostFactor(lowers=sliding)
        self._recent = Window(limit=math.inf, span_s=RECENT_S)
        self._refused = Window(limit=math.inf, span_s=RECENT_S)
        self._refused_tokens = Window(limit=math.inf, span_s=MINUTE_S)
        self._lately = Window(limit=math.inf, span_s=self._tokens.rate.doubt_s)
        self._provisioned = Provisioned()
        self._steered_at = math.inf
        self._steered_last = float("-inf")
        self._full: tuple[float, float] | None = None
        self._first_at: float | None = None
        self._followed_at = float("-inf")

    def share(self, parts: int, now: float, portion: Portion = WHOLE) -> None:
        """Keep to one of so many equal parts of both limits: others on this machine take the rest.

        Of that part, `portion` says what is this process's, where several of one run share it.
        """
        self._requests.share(parts, now, portion)
        self._tokens.share(parts, now, portion)

    def leave(self, share: float, now: float) -> None:
        """Leave another share of both limits to others."""
        self._requests.leave(share, now)
        self._tokens.leave(share, now)

    @property
    def requests_per_minute(self) -> float | None:
        """The limit now in force, None while unknown."""
        return self._requests.known

    @property
    def tokens_per_minute(self) -> float | None:
        """The limit now in force, None while unknown."""
        return self._tokens.known

    @property
    def offered(self) -> tuple[float | None, float | None]:
        """Requests and tokens a minute that the service last named; None where it named none."""
        return self._requests.offered, self._tokens.offered

    @property
    def is_known(self) -> bool:
        """True once a limit is stated, named or learnt from refusals."""
        return self._requests.paced is not None or self._tokens.paced is not None

    @property
    def cost_factor(self) -> float:
        """Tokens that the service counts for one of the estimates."""
        return self._cost.factor

    def ready_at(self, now: float, tokens: float) -> float:
        """Return the moment from which one request of `tokens` may leave; `now` when it may at once."""
        if self._tokens.flows and now - self._steered_last >= STEER_S:
            self._steer(now)  # what flows away makes room, whether replies come or not
        return max(now, self.gate.until, self._requests.ready_at(now, 1), self._tokens.ready_at(now, tokens))

    def queue_s(self, requests: int, tokens: float) -> float:
        """Estimate the seconds that so many requests, and so many tokens together, take to leave."""
        per_minute, tokens_per_minute = self._requests.paced, self._tokens.paced
        return max(
            requests * MINUTE_S / per_minute if per_minute else 0.0,
            tokens * MINUTE_S / tokens_per_minute if tokens_per_minute else 0.0,
        )

    def most_tokens(self, now: float | None = None) -> float | None:
        """Return the largest estimate that a minute can hold, None while that is not known.

        With `now`, a limit that fell not long ago counts as before: it may be lowered for a while.
        """
        limit = self._tokens.limit if now is None else self._tokens.to_come(now)
        return None if limit is None else limit / min(1.0, self._cost.factor)

    def take(self, now: float, tokens: float) -> None:
        """Count one request of `tokens` as leaving at `now`."""
        if self._first_at is None:
            self._first_at = now
        self._requests.take(now, 1)
        self._tokens.take(now, tokens)
        self._cost.sent(now, tokens)
        for window in (self._recent, self._lately):
            window.take(now, 1)
            window.sum(now)

    def give_back(self, now: float, tokens: float) -> None:
        """Undo a `take` whose request was never sent."""
        self._requests.take(now, -1)
        self._tokens.take(now, -tokens)
        self._cost.sent(now, -tokens)
        self._recent.take(now, -1)
        self._lately.take(now, -1)

    def mark(self, now: float) -> Mark:
        """Return what has left by now, to be handed to `observe` with the reply to what leaves now."""
        return self._cost.mark(now)

    def lately(self, now: float) -> tuple[float, float]:
        """Return requests a minute by the last ten seconds, and tokens a minute by the last one, as counted there."""
        requests = self._recent.sum(now) * MINUTE_S / max(_LATELY_LEAST_S, self._spent_s(now, RECENT_S))
        tokens = self._cost.mark(now).minute * self._cost.factor
        return requests, tokens * MINUTE_S / max(_LATELY_LEAST_S, self._spent_s(now, MINUTE_S))

    def used(self, now: float) -> float | None:
        """Return the share of the tighter limit used since the first request, None while no limit is known."""
        sent = self._cost.mark(now)
        shares = []
        for quota, used in ((self._requests, sent.requests), (self._tokens, sent.tokens * self._cost.factor)):
            allowed = quota.allowed(now)
            if allowed:
                shares.append(used / allowed)
        return max(shares, default=None)

    def refused(
        self,
        now: float,
        hint_s: float | None,
        *,
        kind: ThrottleKind,
        sent_at: float,
        tokens: float,
        random: Callable[[], float],
    ) -> bool:
        """Close the gate (see Gate.pause), and cut the rate where the refusal gives reason; True where none is known.

        A refusal that names a limit cuts that one; but where replies name its size, to which we keep, one or two within
        ten seconds are chance: a timer was late, or a way longer; and so where no limit is known and no wait is asked
        for. Others cut the tighter one (tokens where machines are provisioned) from a tenth, and three, of the last ten
        seconds' requests on. True means that there is reason, but no rate.
        """
        self.gate.pause(now, hint_s, sent_at=sent_at, random=random)
        for window, amount in ((self._refused, 1.0), (self._refused_tokens, tokens)):
            window.take(now, amount)
            window.sum(now)
        if kind is ThrottleKind.UTILIZATION and self._is_steered(now, sent_at=sent_at, tokens=tokens):
            return False
        match kind:
            case ThrottleKind.TOKENS:
                meant, cut = self._is_meant(now, self._tokens, hint_s), self._cut_tokens
            case ThrottleKind.REQUESTS:
                meant, cut = self._is_meant(now, self._requests, hint_s), self._cut_requests
            case _:
                by_tokens = self._tokens_are_tighter(tokens) or not self.is_known
                meant, cut = self._are_many(now), self._cut_tokens if by_tokens else self._cut_requests
        if not meant:
            return False
        if not self._is_told(now, kind, tokens):
            return not self.is_known
        cut(now, hint_s, sent_at=sent_at, tokens=tokens, kind=kind)
        return False

    def utilized(self, now: float, share: float, mark: Mark) -> bool:
        """Learn from a reply that says how full provisioned throughput was; True where there is not much room left.

        `mark` is what had left when its request did. Nothing is held back for it until the first refusal: the service
        may have other machines take what is too much.
        """
        self._provisioned.learn(now, sent_at=mark.at, sent=mark.tokens, share=share)
        if self._tokens.flows:
            self._steer(now)
        full = self._provisioned.fullness(now, self._cost.mark(now).tokens)
        return full is not None and full >= NEARING

    def _steer(self, now: float) -> bool:
        """Keep to what flows away of what is provisioned, as far as replies tell that; say whether they do."""
        self._steered_last = now
        if math.isfinite(self._steered_at) and now < self._steered_at:
            return False
        per_minute = self._provisioned.per_minute(now, self._cost.mark(now).tokens)
        if per_minute is None:
            return False
        self._steered_at = min(self._steered_at, now)
        self._tokens.rate.steer(per_minute)
        self._tokens.apply(now)
        return True

    def _is_steered(self, now: float, *, sent_at: float, tokens: float) -> bool:
        """Whether replies tell the rate, and not wrongly: a rate that was so found for ten seconds is not refused much.

        Where it is, or what they say cannot be so, refusals alone tell it for a minute.
        """
        self._tokens.flows = True
        self._provisioned.refused(sent_at, tokens)
        if sent_at >= self._steered_at + RECENT_S and self._are_many(now):
            self._steered_at = now + MINUTE_S
        return self._steer(now)

    def _is_told(self, now: float, kind: ThrottleKind, tokens: float) -> bool:
        """Whether a refusal tells a rate: one is known already, or enough was let in and it says which.

        Otherwise it may be others, or an earlier run, who used the quota up: the gate waits for that to be over.
        """
        if kind is ThrottleKind.REQUESTS:
            return self._requests.paced is not None or (
                self._spent_s(now, RECENT_S) >= REQUEST_SPAN_S
                and self._recent.sum(now) - self._refused.sum(now) >= TELLING
            )
        if kind in {ThrottleKind.TOKENS, ThrottleKind.UTILIZATION}:
            return self._tokens.paced is not None or self._let_in_enough(now, kind, tokens)
        return self.is_known

    def _let_in_enough(self, now: float, kind: ThrottleKind, tokens: float) -> bool:
        let_in = self._cost.mark(now).minute - self._refused_tokens.sum(now)
        early = kind is ThrottleKind.TOKENS and self._spent_s(now, MINUTE_S) < MINUTE_S
        return let_in >= (TELLING_EARLY if early else TELLING) * tokens

    def _are_many(self, now: float) -> bool:
        return self._refused.sum(now) >= max(REFUSED_LEAST, REFUSED_SHARE * self._recent.sum(now))

    def _is_meant(self, now: float, quota: Quota, hint_s: float | None) -> bool:
        """Whether a refusal that names a limit is believed to be for it."""
        if quota.offered is not None:
            return self._refused.sum(now) >= REFUSED_LEAST
        return quota.paced is not None or hint_s is not None or self._are_many(now)

    def overloaded(self, now: float) -> None:
        """Cut what is known of the rates once: the deployment fails more than retries can mend."""
        for quota in (self._requests, self._tokens):
            if quota.rate.ease(now):
                quota.apply(now)

    def reopen(self, now: float) -> None:
        """Begin again slowly, after the deployment was away."""
        for quota in (self._requests, self._tokens):
            quota.rate.ramp(now)
            quota.apply(now)

    def observe(
        self,
        now: float,
        *,
        limit_requests: float | None = None,
        limit_tokens: float | None = None,
        remaining_requests: float | None = None,
        remaining_tokens: float | None = None,
        mark: Mark | None = None,
    ) -> None:
        """Follow what a reply says of the limits (units a minute) and of what is left of them; None says nothing.

        `mark` is what had left when its request did. Of replies that overtook one another, the limits of the one sent
        last count.
        """
        sent = mark or self._cost.mark(now)
        if sent.at >= self._followed_at:
            self._followed_at = sent.at
            if limit_requests is not None:
                self._requests.follow(limit_requests, now)
            if limit_tokens is not None:
                self._tokens.follow(limit_tokens, now)
        by_now = self._cost.mark(now)
        since_s = max(0.0, now - sent.at)
        if remaining_requests is not None:
            taken = by_now.requests - sent.requests
            self._requests.at_most(now, remaining_requests, since_s=since_s, taken=taken)
        if remaining_tokens is not None:
            if limit_tokens is not None and self._cost.learn(now, sent, limit=limit_tokens, remaining=remaining_tokens):
                self._rescale(now)
            self._tokens.at_most(now, remaining_tokens, since_s=since_s, taken=by_now.tokens - sent.tokens)

    def _spent_s(self, now: float, most_s: float) -> float:
        """Seconds since the first request, at most so many."""
        return most_s if self._first_at is None else min(most_s, now - self._first_at)

    @staticmethod
    def _is_certain(kind: ThrottleKind, quota: Quota) -> bool:
        """Whether it took several refusals already to come to this."""
        return kind not in {ThrottleKind.REQUESTS, ThrottleKind.TOKENS} or quota.offered is not None

    def _rescale(self, now: float) -> None:
        self._tokens.scale = self._cost.factor
        self._tokens.apply(now)

    def _tokens_are_tighter(self, tokens: float) -> bool:
        """Whether requests of this size meet the limit of tokens before that of requests."""
        requests, tokens_paced = self._requests.paced, self._tokens.paced
        return requests is None or (tokens_paced is not None and tokens_paced < requests * max(1.0, tokens))

    def _cut_tokens(
        self, now: float, hint_s: float | None, *, sent_at: float, tokens: float, kind: ThrottleKind
    ) -> None:
        # A minute held no more than what was let in during the last one; what is provisioned flows away steadily.
        spent_s = self._spent_s(now, MINUTE_S)
        over_s = MINUTE_S if kind is not ThrottleKind.UTILIZATION else max(1.0, spent_s)
        sent = self._cost.mark(now).minute * self._cost.factor
        admitted = (sent - self._refused_tokens.sum(now) * self._cost.factor) * MINUTE_S / over_s
        if kind is ThrottleKind.UTILIZATION:
            admitted = self._flowed(now, admitted)
        rate = self._tokens.rate
        use = 0.0 if self._tokens.offered is not None else sent * MINUTE_S / max(_LEAST_S, spent_s)
        passed = rate.at_ease(admitted, use)  # where the limit is named, others are to blame
        if rate.cut(
            now,
            sent_at=sent_at,
            cool_down_s=hint_s or 0.0,
            passed=passed,
            admitted=admitted,
            least=tokens * self._cost.factor,
            lately=self._lately.sum(now),
            certain=self._is_certain(kind, self._tokens),
            unhinted=hint_s is None,
        ):
            self._cost.refused(now)
            self._rescale(now)

    def _flowed(self, now: float, admitted: float) -> float:
        """Tokens a minute that flowed away since it was first full; it is as full now. `admitted` until that tells."""
        taken_in = self._provisioned.taken_in(self._cost.mark(now).tokens)
        if self._full is None:
            self._full = now, taken_in
        at, before = self._full
        gone_s = now - at
        if gone_s < FLOWED_S:
            return admitted
        if gone_s >= MINUTE_S:
            self._full = now, taken_in
        return (taken_in - before) * MINUTE_S / gone_s

    def _cut_requests(
        self, now: float, hint_s: float | None, *, sent_at: float, tokens: float, kind: ThrottleKind
    ) -> None:
        del tokens  # a request is one, however large
        spent_s = self._spent_s(now, RECENT_S)
        open_s = spent_s - self.gate.closed_s(now, RECENT_S)
        sent = self._recent.sum(now)
        through = (sent - self._refused.sum(now)) * MINUTE_S
        rate = self._requests.rate
        passed = rate.at_ease(through / max(1.0, open_s), sent * MINUTE_S / max(_LEAST_S, open_s))
        admitted = through / max(1.0, spent_s)
        if rate.cut(
            now,
            sent_at=sent_at,
            cool_down_s=hint_s or 0.0,
            passed=passed,
            admitted=admitted,
            least=1.0,
            lately=sent,
            certain=self._is_certain(kind, self._requests),
            unhinted=hint_s is None,
        ):
            self._requests.apply(now)
