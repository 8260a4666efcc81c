"""How batches are cut, how often they are looked at, and how many tokens may be enqueued; pure, time passed in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

LOOKS_A_LIFE = 10
"""A batch is looked at again after a tenth of its age, within bounds: Microsoft asks for no more than once a minute."""
LONGEST_LOOK_S = 600.0
"""Seconds; the longest time between two looks."""
FIRST_WAIT_S = 5.0
"""Seconds before a batch that found no room is submitted again, doubled each time (Microsoft's sample code)."""
LONGEST_WAIT_S = 600.0
"""Seconds; the longest of those waits."""
CANCELLING_S = 600.0
"""Seconds that a batch may take to be cancelled (Azure's and OpenAI's word)."""
USUAL_S = 1800.0
"""Seconds until somebody should come back to a batch of which nothing is done yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileLimits:
    """How much one file of lines may hold. `inputs` counts the texts of embeddings; None: it is not bounded."""

    lines: int
    bytes: int
    inputs: int | None = None
    tokens: int | None = None


AZURE_LIMITS = FileLimits(lines=100_000, bytes=200_000_000)
"""Azure's quotas and limits page, 2026-03: 100,000 requests and 200 MB a file."""
OPENAI_LIMITS = FileLimits(lines=50_000, bytes=200_000_000, inputs=50_000)
"""OpenAI's Batch API guide: 50,000 requests, 200 MB and 50,000 embedding inputs a batch."""


@dataclass(slots=True, kw_only=True)
class Filled:
    """What a file holds so far."""

    lines: int = 0
    bytes: int = 0
    inputs: int = 0
    tokens: int = 0

    def fits(self, limits: FileLimits, *, size: int, inputs: int, tokens: int) -> bool:
        """Whether one more line does; the first always does, for it could not be cut."""
        if not self.lines:
            return True
        return (
            self.lines < limits.lines
            and self.bytes + size <= limits.bytes
            and (limits.inputs is None or self.inputs + inputs <= limits.inputs)
            and (limits.tokens is None or self.tokens + tokens <= limits.tokens)
        )

    def add(self, *, size: int, inputs: int, tokens: int) -> None:
        """Count one more line."""
        self.lines += 1
        self.bytes += size
        self.inputs += inputs
        self.tokens += tokens


class Room:
    """The tokens that a deployment lets be enqueued: the stated limit, and what is known to be in its batches."""

    def __init__(self, limit: int | None) -> None:
        """`limit` is None where the job does not say it."""
        self.limit = limit
        self.enqueued = 0

    @property
    def a_file(self) -> int | None:
        """The most tokens that one file should hold: half of the limit, so that the next one can wait beside it."""
        return None if self.limit is None else max(1, self.limit // 2)

    def has(self, tokens: int) -> bool:
        """Whether a batch of so many tokens can be submitted now; one alone always may try."""
        return not self.enqueued or self.limit is None or self.enqueued + tokens <= self.limit

    def enter(self, tokens: int) -> None:
        """Count a batch that is submitted."""
        self.enqueued += tokens

    def leave(self, tokens: int) -> None:
        """Count one that has ended."""
        self.enqueued -= tokens


def look_after_s(age_s: float, *, least_s: float, random: Callable[[], float]) -> float:
    """Seconds until a batch of an age is looked at again, a tenth more or less by lot."""
    return min(LONGEST_LOOK_S, max(least_s, age_s / LOOKS_A_LIFE)) * (0.9 + random() / 5)


def wait_for_room_s(refusals: int, *, random: Callable[[], float]) -> float:
    """Seconds to wait after so many refusals for want of room."""
    return float(min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** max(0, refusals - 1))) * (0.9 + random() / 5)


def come_back_s(age_s: float, *, done: int, total: int) -> float:
    """Seconds until a batch of an age should have ended, by what is done of it."""
    if done <= 0 or total <= 0:
        return USUAL_S
    return max(60.0, age_s * (total - done) / done)


def online_s(
    *, requests: float, tokens: float, requests_per_minute: float | None, tokens_per_minute: float | None
) -> float | None:
    """Seconds that so much takes at these quotas; None where neither is known."""
    times = [
        60 * amount / quota
        for amount, quota in ((requests, requests_per_minute), (tokens, tokens_per_minute))
        if quota is not None
    ]
    return max(times, default=None)


def pull_back_at(*, deadline_at: float, began_at: float, online_s: float | None) -> float:
    """When what is unfinished must leave its batches, to be sent one by one until the deadline.

    A fifth more than the quotas say, and ten minutes for batches to be cancelled, but at most a quarter of the whole
    time; where no quota is known, a quarter of the whole time.
    """
    whole_s = deadline_at - began_at
    reserve_s = whole_s / 4 if online_s is None else 1.2 * online_s + min(CANCELLING_S, whole_s / 4)
    return deadline_at - min(reserve_s, whole_s)
