"""Decides what goes wrong and how long an answer takes, by the seed, the request and how often it came before."""

from __future__ import annotations

import math
from collections.abc import Mapping
from hashlib import blake2b
from statistics import NormalDist

from pipeline.simulator.config import FaultKind, FaultsConfig, LatencyConfig, Shortage

Befalling = FaultKind | Shortage | int
"""What goes wrong: a kind of fault, a shortage, or a status."""

_BY_NAME: Mapping[str, FaultKind | Shortage] = {kind.value: kind for kind in (*FaultKind, *Shortage)}
_NORMAL = NormalDist()


def share(seed: int, purpose: str, digest: bytes, attempt: int) -> float:
    """Give a number from 0 up to 1 that is evenly spread and the same for the same arguments."""
    named = f"{seed}/{purpose}/{attempt}/".encode()
    return int.from_bytes(blake2b(named + digest, digest_size=8).digest()) / 2**64


class Faults:
    """Counts how often each body came and says what befalls it."""

    def __init__(self, config: FaultsConfig, *, seed: int) -> None:
        self._seed = seed
        self._attempts = config.attempts
        self._headers = config.headers
        self._steps: list[tuple[float, Befalling]] = []
        total = 0.0
        for name, rate in config.rates.items():
            total += rate
            self._steps.append((total, _befalling(name)))
        self._seen: dict[bytes, int] = {}

    def befalls(self, digest: bytes) -> Befalling | None:
        """Say what goes wrong with this sending of a body, None where nothing does."""
        if not self._steps:
            return None
        attempt = self._seen.get(digest, 0) + 1
        self._seen[digest] = attempt
        if self._attempts is not None and attempt > self._attempts:
            return None
        drawn = share(self._seed, "fault", digest, attempt)
        return next((fault for bound, fault in self._steps if drawn < bound), None)

    def place(self, digest: bytes) -> float:
        """Say where in the reply to the latest sending of a body it goes wrong: a share from 0 up to 1."""
        return share(self._seed, "place", digest, self._seen.get(digest, 0))

    def headers(self, injected: int | Shortage) -> Mapping[str, str]:
        """Give the headers that go with an injected refusal: the configured ones, else a short wait with status 429.

        A shortage says nothing of when it is over.
        """
        if self._headers is not None:
            return self._headers
        return {"retry-after": "1", "retry-after-ms": "200"} if injected == 429 else {}  # noqa: PLR2004 - a status


def _befalling(name: str) -> Befalling:
    return int(name) if name.isdecimal() else _BY_NAME[name]


def lognormal(median: float, sigma: float, seed: int, purpose: str, digest: bytes) -> float:
    """Draw a number about a median, the same for the same arguments; the median itself where sigma is 0."""
    if not sigma or not median:
        return median
    drawn = share(seed, purpose, digest, 0)
    return median * math.exp(sigma * _NORMAL.inv_cdf(min(max(drawn, 1e-9), 1 - 1e-9)))


def latency_s(config: LatencyConfig, *, seed: int, digest: bytes, output_tokens: int) -> tuple[float, float]:
    """Give the seconds until the first byte, and the seconds that the output takes after it."""
    first_byte_s = lognormal(config.median_ms / 1000, config.sigma, seed, "latency", digest)
    return first_byte_s, config.per_output_token_ms * output_tokens / 1000
