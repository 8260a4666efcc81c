"""What rows that were counted, or a sample of them, come to: totals with intervals, dollars, minutes; pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from pipeline.job.prices import Rate, cost_of

Z_95 = 1.96
"""How many standard errors a figure is given within: 19 times in 20 it holds."""
MINUTE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bunch:
    """Consecutive rows that are not done. `failing` cannot be asked, `copied` ask for what an earlier one asks.

    The rest is what their requests come to.
    """

    rows: int = 0
    failing: float = 0
    copied: float = 0
    requests: float = 0
    quota_tokens: float = 0
    input_tokens: float = 0
    most_output: float = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A count, and by how much it may be off (0: it is exact)."""

    value: float
    within: float = 0.0

    def at_most(self) -> float:
        """The upper end."""
        return self.value + self.within

    def times(self, factor: float) -> Figure:
        """As many times as much."""
        return Figure(value=self.value * factor, within=self.within * factor)


_SUMMED = tuple(item.name for item in fields(Bunch) if item.name != "rows")


@dataclass(slots=True, kw_only=True)
class _Stratum:
    """A stretch of the input of whose bunches equally many were looked at: `rows` of it, `seen` of them."""

    rows: int = 0
    seen: int = 0
    bunches: int = 0
    rows_squared: int = 0
    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    squares: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    products: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def spread(self, name: str) -> float:
        """The variance between bunches of what is not explained by their numbers of rows."""
        mean = self.sums[name] / self.seen
        residues = self.squares[name] - 2 * mean * self.products[name] + mean * mean * self.rows_squared
        return max(0.0, residues) / (self.bunches - 1)


@dataclass(slots=True, kw_only=True)
class Sums:
    """Adds bunches up. What was passed over is put at the mean a row of its stratum: one bunch in so many."""

    _strata: dict[int, _Stratum] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """All rows, looked at or not."""
        return sum(stratum.rows for stratum in self._strata.values())

    @property
    def seen(self) -> int:
        """The rows that were looked at."""
        return sum(stratum.seen for stratum in self._strata.values())

    def add(self, bunch: Bunch, *, every: int) -> None:
        """Count a bunch, of a stretch where one in `every` is looked at."""
        stratum = self._strata.setdefault(every, _Stratum())
        stratum.rows += bunch.rows
        stratum.seen += bunch.rows
        stratum.bunches += 1
        stratum.rows_squared += bunch.rows**2
        for name in _SUMMED:
            value = getattr(bunch, name)
            stratum.sums[name] += value
            stratum.squares[name] += value * value
            stratum.products[name] += value * bunch.rows

    def unseen(self, rows: int, *, every: int) -> None:
        """Count rows that were passed over."""
        self._strata.setdefault(every, _Stratum()).rows += rows

    def figure(self, name: str) -> Figure:
        """The total of one of `Bunch`'s fields, as ratio estimates of each stratum."""
        value = variance = mean = 0.0
        for _, stratum in sorted(self._strata.items()):
            if stratum.seen:
                mean = stratum.sums[name] / stratum.seen
            missing = stratum.rows - stratum.seen
            value += stratum.sums[name] + missing * mean
            if missing and stratum.bunches > 1:
                scale = stratum.rows / stratum.seen
                variance += scale**2 * stratum.bunches * stratum.spread(name) * (1 - 1 / scale)
        return Figure(value=value, within=Z_95 * math.sqrt(variance))


@dataclass(frozen=True, slots=True, kw_only=True)
class Money:
    """Dollars of what is still to be asked; None where a price or a bound is unknown.

    `input` is that of the prompts alone, `likely` with answers as long as the run's so far, `most` with all of them as
    long as their bounds.
    """

    input: float | None
    likely: float | None
    most: float | None


def money(
    rates: Sequence[Rate], *, input_tokens: float | None, likely_output: float | None, most_output: float | None
) -> Money:
    """Price tokens; None among them is not known."""

    def cost(output: float | None) -> float | None:
        return None if input_tokens is None or output is None else cost_of(rates, input_tokens, output)

    return Money(input=cost(0.0), likely=cost(likely_output), most=cost(most_output))


def likely_output(*, rows: float, known_rows: int, known_output: int, most: float | None) -> float | None:
    """Output tokens of rows like those that were answered; None where none was."""
    if not known_rows:
        return None
    likely = rows * known_output / known_rows
    return likely if most is None else min(likely, most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Minutes:
    """How long requests take by each limit; None where it is not known. `binds` names the one that takes longest."""

    requests: float | None
    tokens: float | None
    workers: float | None
    binds: str | None

    @property
    def longest(self) -> float | None:
        """The figure of the limit that binds."""
        return None if self.binds is None else float(getattr(self, self.binds))


def minutes(
    *,
    requests: float,
    tokens: float,
    requests_per_minute: float | None,
    tokens_per_minute: float | None,
    workers: int,
    latency_s: float | None,
) -> Minutes:
    """Say how long it takes at quotas, and at the latency of calls so far; None: not given, or not known."""
    found = {
        "requests": None if requests_per_minute is None else requests / requests_per_minute,
        "tokens": None if tokens_per_minute is None else tokens / tokens_per_minute,
        "workers": None if latency_s is None else requests * latency_s / workers / MINUTE_S,
    }
    known = {name: value for name, value in found.items() if value is not None}
    return Minutes(**found, binds=max(known, key=lambda name: known[name]) if known else None)


def summed_quota(quotas: Sequence[float | None], *, leave: float) -> float | None:
    """What all deployments together allow a minute, less the share that is left to others; None where one is open."""
    known = [quota for quota in quotas if quota is not None]
    return sum(known) * (1 - leave) if known and len(known) == len(quotas) else None
