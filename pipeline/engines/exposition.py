"""The Prometheus text format, version 0.0.4: families of samples, as text; pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

Labels = Mapping[str, str]
_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_HELP_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One metric: its samples by their labels. A sample without a value (None) is left out, and so is an empty family.

    `suffixed` samples are a histogram's: (what follows the name, labels, value).
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    samples: Sequence[tuple[Labels, float | None]] = ()
    suffixed: Sequence[tuple[str, Labels, float]] = ()


@dataclass(slots=True)
class Histogram:
    """Counts values by buckets. `bounds` rise; a value on a bound is below it."""

    bounds: Sequence[float]
    counts: list[int] = field(default_factory=list)
    sum: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def samples(self, labels: Labels) -> list[tuple[str, Labels, float]]:
        """The samples of its family: cumulative buckets, the sum and the count."""
        upto = list(accumulate(self.counts))
        bounds = [*(format_value(bound) for bound in self.bounds), "+Inf"]
        buckets = [("_bucket", {**labels, "le": bound}, float(n)) for bound, n in zip(bounds, upto, strict=True)]
        return [*buckets, ("_sum", labels, self.sum), ("_count", labels, float(upto[-1]))]


def render(families: Iterable[Family]) -> str:
    """Write families, each with its HELP and TYPE."""
    return "".join(line for family in families for line in _lines(family))


def sample(name: str, labels: Labels) -> str:
    """What a sample's line begins with: the name and the labels, in their order."""
    inner = ",".join(f'{label}="{value.translate(_ESCAPES)}"' for label, value in labels.items())
    return f"{name}{{{inner}}}" if inner else name


def format_value(value: float) -> str:
    """Write a number: whole ones without a point."""
    return str(int(value)) if value == int(value) else repr(float(value))


def _lines(family: Family) -> list[str]:
    samples = [("", labels, value) for labels, value in family.samples if value is not None]
    every = [*samples, *family.suffixed]
    if not every:
        return []
    return [
        f"# HELP {family.name} {family.help.translate(_HELP_ESCAPES)}\n",
        f"# TYPE {family.name} {family.kind}\n",
        *(f"{sample(family.name + suffix, labels)} {format_value(value)}\n" for suffix, labels, value in every),
    ]
