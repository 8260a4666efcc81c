"""Decides what follows a verdict; it never sleeps and never sends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import assert_never

from pipeline.model import ErrorInfo
from pipeline.pace.verdict import (
    Answered,
    BadReply,
    DeploymentRefused,
    RowRefused,
    SpentMoney,
    Throttled,
    ThrottleKind,
    Transient,
    Unauthorized,
    Verdict,
)

BASE_S = 0.5
"""Seconds; the first back-off is drawn from 0 to this."""
CAP_S = 30.0
"""Seconds; the longest back-off of a transient fault."""
LEAST_S = 0.05
"""Seconds; the shortest back-off: chance may draw next to nothing."""
GROWTH = 1.25
"""A back-off is at least so many times as long as the wait before the attempt that just failed: full jitter alone may
draw a shorter wait after a longer one, but a service that still fails after ten seconds needs more of them."""
CAPACITY_CAP_S = 60.0
"""Seconds; the longest back-off of a row that met a lack of capacity."""
BAD_REPLIES = 3
"""Attempts that may end in an unusable answer before the row fails."""
QUIET_PAUSE_S = 120.0
"""Seconds; a pause up to this is taken without a word (the longest that the openai SDK for Python obeys)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryRules:
    """The job's own limits. `max_attempts`: transient faults a row may meet. `max_pause_s`: the longest pause taken."""

    max_attempts: int = 8
    max_pause_s: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """How often one request has met what. `backoff` is the exponent of the next back-off; a hint resets it.

    `waited_s` is how long the request had waited, for whatever reason, before its last attempt.
    """

    transient: int = 0
    bad_replies: int = 0
    capacity: int = 0
    backoff: int = 0
    waited_s: float = 0.0

    def after(self, verdict: Verdict) -> History:
        """Return the history with one more verdict in it."""
        match verdict:
            case Transient(hint_s=hint_s):
                return replace(self, transient=self.transient + 1, backoff=0 if hint_s else self.backoff + 1)
            case BadReply():
                return replace(self, bad_replies=self.bad_replies + 1, backoff=self.backoff + 1)
            case Throttled(kind=ThrottleKind.CAPACITY):
                return replace(self, capacity=self.capacity + 1)
            case _:
                return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The request is answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Send again, not before `after_s` seconds; the row keeps its worker meanwhile."""

    after_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Throttle:
    """Close the deployment's gate for `hint_s` seconds (None: its own back-off), then send again."""

    hint_s: float | None
    error: ErrorInfo
    kind: ThrottleKind = ThrottleKind.UNNAMED

    @property
    def worth_saying(self) -> bool:
        """True when the pause is long enough that a person would wonder."""
        return self.hint_s is not None and self.hint_s > QUIET_PAUSE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Reauthorise:
    """Have the credential renewed once, then send again; where that was done already, the deployment is set aside."""

    error: ErrorInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Count the refusal against the deployment, then send again to whichever is next."""

    error: ErrorInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """Set the deployment aside at once: its account is empty."""

    error: ErrorInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class TooLong:
    """Set the deployment aside: it asks for a pause of `hint_s` seconds, longer than the job takes."""

    hint_s: float
    error: ErrorInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail:
    """The request's rows fail with this error."""

    error: ErrorInfo


Decision = Done | Retry | Throttle | Reauthorise | Refused | Spent | TooLong | Fail


def full_jitter(exponent: int, random: Callable[[], float], *, cap_s: float = CAP_S) -> float:
    """Return rand(0, min(cap, 0.5 * 2^exponent)) seconds (AWS architecture blog, gRPC A6); exponents count from 0."""
    return random() * min(cap_s, BASE_S * 2.0 ** min(exponent, 16))


def _back_off(history: History, random: Callable[[], float]) -> float:
    """Full jitter, but longer than the wait before, up to the cap."""
    wait_s = full_jitter(max(0, history.backoff - 1), random)
    return min(CAP_S, max(wait_s, LEAST_S, GROWTH * history.waited_s))


def decide(  # noqa: C901, PLR0911, PLR0912 - the table of verdicts, a case each
    verdict: Verdict, history: History, rules: RetryRules, *, random: Callable[[], float]
) -> Decision:
    """Say what follows. `history` already holds this verdict; `random` gives numbers from 0 to 1.

    Being throttled, refused or unauthorised is never an attempt: only Transient and BadReply use a row up.
    """
    match verdict:
        case Answered():
            return Done()
        case Transient(error=error, hint_s=hint_s):
            if history.transient >= rules.max_attempts:
                return Fail(error=error)
            if hint_s is not None and hint_s > rules.max_pause_s:
                return TooLong(hint_s=hint_s, error=error)
            if hint_s is not None:
                return Retry(after_s=hint_s + full_jitter(0, random) / 10)
            return Retry(after_s=_back_off(history, random))
        case BadReply(error=error):
            if history.bad_replies >= min(BAD_REPLIES, rules.max_attempts):
                return Fail(error=error)
            return Retry(after_s=_back_off(history, random))
        case Throttled(error=error, hint_s=hint_s, kind=kind):
            if hint_s is not None and hint_s > rules.max_pause_s:
                return TooLong(hint_s=hint_s, error=error)
            if kind is ThrottleKind.CAPACITY:
                wait_s = full_jitter(max(0, history.capacity - 1), random, cap_s=CAPACITY_CAP_S)
                return Retry(after_s=max(wait_s, hint_s or 0.0))
            return Throttle(hint_s=hint_s, error=error, kind=kind)
        case Unauthorized(error=error):
            return Reauthorise(error=error)
        case DeploymentRefused(error=error):
            return Refused(error=error)
        case SpentMoney(error=error):
            return Spent(error=error)
        case RowRefused(error=error):
            return Fail(error=error)
        case _:
            assert_never(verdict)
