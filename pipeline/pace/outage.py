"""Tells a deployment that is away from a row that cannot be answered, and when to look again; time is passed in."""

from __future__ import annotations

SILENCE_S = 30.0
"""Seconds without an answer that, with failures enough, make an outage."""
FAILURES = 20
"""The fewest failures that make an outage."""
FIRST_PROBE_S = 1.0
LAST_PROBE_S = 60.0
"""Seconds; probes go after 1, 2, 4 … 60 s."""


class Outage:
    """One deployment's silence. `on` while only probes are sent; `since` the first failure that no answer followed."""

    __slots__ = ("_answered", "_failures", "_least", "_pause_s", "on", "probe_at", "since")

    def __init__(self, *, workers: int) -> None:
        """`workers`: as many failures may come of one moment's requests, so that it takes at least so many."""
        self.on = False
        self.since: float | None = None
        self.probe_at = float("inf")
        self.expect(workers=workers)
        self._failures = 0
        self._answered = False
        self._pause_s = FIRST_PROBE_S

    @property
    def explains(self) -> bool:
        """Whether a fault is the service's rather than the row's: it is away, or has answered nobody for a while."""
        return self.on or not self._answered or self._failures >= FAILURES

    def answered(self) -> bool:
        """Note that the service dealt with a request, be it with a refusal; True where that ends an outage."""
        ended, self.on = self.on, False
        self._answered = True
        self._failures = 0
        self.since = None
        return ended

    def throttled(self, now: float) -> None:
        """Note a refusal to be waited out: no answer, but no sign of an outage either."""
        if self.since is None:
            self.since = now

    def failed(self, now: float) -> bool:
        """Note a fault; True where it begins an outage."""
        self.throttled(now)
        self._failures += 1
        assert self.since is not None  # noqa: S101 - set just now
        if self._failures < self._least or now - self.since < SILENCE_S:
            return False
        return self.begin(now)

    def begin(self, now: float) -> bool:
        """Begin an outage that needs no further proof; True where there was none."""
        self.throttled(now)
        if self.on:
            return False
        self.on = True
        self._pause_s = FIRST_PROBE_S
        self.probe_at = now + self._pause_s
        return True

    def leave_out(self, began: float, now: float) -> None:
        """Leave out of the silence the time from `began` to `now`, in which nothing was to be sent."""
        if self.since is not None:
            self.since += now - max(began, self.since)

    def expect(self, *, workers: int) -> None:
        """Take it that as many failures may come of one moment's requests from now on."""
        self._least = max(FAILURES, workers)

    def probed(self, now: float) -> None:
        """Note that a probe leaves; the next may follow after twice the time."""
        self._pause_s = min(LAST_PROBE_S, 2 * self._pause_s)
        self.probe_at = now + self._pause_s
