"""Counters for GET /_simulator/stats."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

_KEPT_SECONDS = 3_600


class Stats:
    """What is in flight, what was answered, and what each deployment was asked in each second."""

    def __init__(self) -> None:
        self._in_flight = 0
        self._peak_in_flight = 0
        self._by_status: Counter[int | None] = Counter()
        self._seconds: dict[str, deque[list[int]]] = {}

    def arrived(self) -> None:
        """Count a request in."""
        self._in_flight += 1
        self._peak_in_flight = max(self._peak_in_flight, self._in_flight)

    def answered(self, status: int | None) -> None:
        """Count a request out; None when it got no status line."""
        self._in_flight -= 1
        self._by_status[status] += 1

    def judged(self, deployment: str, at_s: float, *, tokens: int, throttled: bool) -> None:
        """Count what a deployment was asked; `at_s` is seconds since the first request."""
        seconds = self._seconds.get(deployment)
        if seconds is None:
            seconds = self._seconds[deployment] = deque(maxlen=_KEPT_SECONDS)
        second = int(at_s)
        if not seconds or seconds[-1][0] != second:
            seconds.append([second, 0, 0, 0])
        counts = seconds[-1]
        if throttled:
            counts[3] += 1
        else:
            counts[1] += 1
            counts[2] += tokens

    def summary(self) -> dict[str, Any]:
        """Give it all as JSON. Seconds count from the first request; the last hour of them is kept."""
        return {
            "in_flight": self._in_flight,
            "peak_in_flight": self._peak_in_flight,
            "answered": sum(self._by_status.values()),
            "by_status": {str(status or "none"): count for status, count in sorted(self._by_status.items(), key=str)},
            "deployments": {
                name: {
                    "requests": sum(counts[1] for counts in seconds),
                    "tokens": sum(counts[2] for counts in seconds),
                    "throttled": sum(counts[3] for counts in seconds),
                    "seconds": [
                        {"second": second, "requests": requests, "tokens": tokens, "throttled": throttled}
                        for second, requests, tokens, throttled in seconds
                    ],
                }
                for name, seconds in self._seconds.items()
            },
        }
