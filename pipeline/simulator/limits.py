"""Writes limits and waits into headers, in every spelling that services were seen to use."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from email.utils import formatdate

from pipeline.simulator.config import Quirk
from pipeline.simulator.quota import Verdict

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitWriter:
    """Writes in real time: quota time runs `speed` times as fast."""

    speed: float = 1.0
    quirks: Collection[Quirk] = ()

    def limits(self, verdict: Verdict, *, azure: bool) -> Headers:
        """Say what the limits are, what is left of them, and when they begin anew."""
        if Quirk.NO_LIMITS in self.quirks:
            return []
        if Quirk.NEGATIVE_LIMITS in self.quirks:
            negative = [(b"x-ratelimit-%b-tokens" % name, b"-1") for name in (b"limit", b"remaining")]
            return [*negative, (b"x-ratelimit-reset-tokens", b"0")]
        of_slice = Quirk.REMAINING_OF_SLICE in self.quirks
        requests_left = verdict.requests_left_in_slice if of_slice else verdict.requests_left
        reset = b"x-rate-limit-reset-" if Quirk.MISSPELT_RESET in self.quirks else b"x-ratelimit-reset-"
        headers: Headers = []
        for unit, limit, left, reset_s in (
            (b"requests", verdict.requests_limit, requests_left, verdict.requests_reset_s),
            (b"tokens", verdict.tokens_limit, verdict.tokens_left, verdict.tokens_reset_s),
        ):
            if limit is not None:
                headers += [
                    (b"x-ratelimit-limit-" + unit, b"%d" % (limit * self.speed)),
                    (b"x-ratelimit-remaining-" + unit, b"%d" % (left * self.speed)),
                    (reset + unit, self._reset(reset_s / self.speed, azure=azure)),
                ]
        return headers

    def waits(self, wait_s: float, *, wall_s: float) -> dict[str, str]:
        """Say when to come back, `wait_s` from now in real seconds, whole ones and milliseconds."""
        silent = {Quirk.NEGATIVE_LIMITS, Quirk.NO_RETRY_AFTER, Quirk.MISSPELT_RESET}
        if not silent.isdisjoint(self.quirks):
            return {}
        if Quirk.RETRY_AFTER_DATE in self.quirks:
            return {"retry-after": formatdate(math.ceil(int(wall_s) + wait_s), usegmt=True)}
        if Quirk.RETRY_AFTER_FLOAT in self.quirks:
            return {"retry-after": f"{wait_s:.3f}", "retry-after-ms": f"{wait_s * 1000:.1f}"}
        return {"retry-after": str(whole_seconds(wait_s)), "retry-after-ms": str(math.ceil(wait_s * 1000))}

    def _reset(self, seconds: float, *, azure: bool) -> bytes:
        if Quirk.RESET_MILLISECONDS in self.quirks:
            return b"%dms" % math.ceil(seconds * 1000)
        if azure and Quirk.RESET_DURATIONS not in self.quirks:
            return b"%d" % math.ceil(seconds)
        return go_duration(seconds)


def whole_seconds(wait_s: float) -> int:
    """Round a wait up as `retry-after` has it: at least a second."""
    return max(1, math.ceil(wait_s))


def go_duration(seconds: float) -> bytes:
    """Write a duration as Go does, as OpenAI's headers have it: 120ms, 1.5s, 6m0s."""
    if seconds < 1:
        return b"%dms" % math.ceil(seconds * 1000)
    minutes, rest = divmod(round(seconds, 3), 60)
    return (f"{int(minutes)}m{rest:g}s" if minutes else f"{rest:g}s").encode()
