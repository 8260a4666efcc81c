"""Judges provisioned throughput as Azure does: a leaky bucket of estimated tokens, corrected when a call ends."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Utilization:
    """Where the bucket stands: 1.0 is full. `retry_after_s` is 0 for an admitted call, in quota seconds."""

    share: float
    retry_after_s: float = 0.0

    @property
    def refused(self) -> bool:
        """Whether the call was sent away."""
        return self.retry_after_s > 0


class Provisioned:
    """One deployment's utilization.

    It rises by the tokens that a call is estimated at and falls steadily by `tokens_per_minute`; full are `bucket_s`
    seconds of that. Calls are admitted until it is above 100 %, so that one can take it beyond; then they are told
    how long it takes to come back to 100 %. What a call really took is set right when it ends.
    """

    def __init__(self, *, tokens_per_minute: int, bucket_s: float) -> None:
        self._rate = tokens_per_minute / 60
        self._full = self._rate * bucket_s
        self._level = 0.0
        self._at_s = 0.0

    def judge(self, now_s: float, tokens: int) -> Utilization:
        """Charge a call of so many tokens at a time that never goes back, or refuse it and say until when."""
        self._drain(now_s)
        if self._level > self._full:
            return Utilization(share=self._level / self._full, retry_after_s=(self._level - self._full) / self._rate)
        self._level += tokens
        return Utilization(share=self._level / self._full)

    def settle(self, now_s: float, *, estimated: int, taken: int) -> None:
        """Set right what a call was charged, now that it is known."""
        self._drain(now_s)
        self._level += taken - estimated

    def _drain(self, now_s: float) -> None:
        self._level = max(0.0, self._level - self._rate * (now_s - self._at_s))
        self._at_s = now_s
