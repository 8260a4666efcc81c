"""Charts as plain numbers: bars and lines in a box of 1,000 by 300, with the words and tables that say the same."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate

from pipeline.views.attempts import Latencies, Moment, Timeline
from pipeline.views.text import count, duration, percent

WIDTH, HEIGHT = 1000, 300
"""The box that a chart is drawn in; a page stretches it."""
MOST_STEPS = 120
"""Steps of time in one chart."""
MINUTE_S = 60
_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)
_IDLE_S = 120
_FAR = 20
"""A limit this many times above everything drawn is told in words alone."""
_NICE = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
_PARTS = 4
"""Bars of latencies between two labels, which stand at 1, 2 and 5 times powers of ten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A bar, in the box's units. `kind` says what it counts, `text` its figure."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line through points of the box, written as SVG wants them."""

    points: str
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """What is drawn. `y_labels` stand from top to bottom and `x_labels` from left to right, evenly spaced.

    `legend` names the kinds; `text` says in words what the chart shows. `breaks` are places where time is left out.
    """

    title: str
    text: str
    y_labels: tuple[str, ...]
    x_labels: tuple[str, ...]
    legend: tuple[tuple[str, str], ...] = ()
    bars: tuple[Bar, ...] = ()
    lines: tuple[Line, ...] = ()
    breaks: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Time cut into steps of `step_s` seconds. `starts` are epoch seconds, `breaks` the steps that follow idle time."""

    step_s: int
    starts: tuple[int, ...]
    breaks: tuple[int, ...]
    idle_s: int

    @property
    def active_s(self) -> int:
        """Seconds that the steps cover."""
        return self.step_s * len(self.starts)


def steps_of(timeline: Timeline) -> Steps:
    """Cut the time in which anything was sent into at most `MOST_STEPS` steps; longer idle times are left out. Pure."""
    width = timeline.width_s
    busy = sorted({number * width for moments in timeline.moments.values() for number in moments})
    if not busy:
        return Steps(step_s=1, starts=(), breaks=(), idle_s=0)
    span = busy[-1] + width - busy[0]
    idle = max(_IDLE_S, min(span // 10, 3600))
    segments: list[tuple[int, int]] = []
    for second in busy:
        if segments and second - segments[-1][1] <= idle:
            segments[-1] = segments[-1][0], second + width
        else:
            segments.append((second, second + width))
    for step_s in (*(one for one in _STEPS_S if one >= width), _STEPS_S[-1] * math.ceil(span / _STEPS_S[-1])):
        counts = [math.ceil((end - start) / step_s) for start, end in segments]
        if sum(counts) <= MOST_STEPS:
            break
    starts = [start + step_s * i for (start, _), count in zip(segments, counts, strict=True) for i in range(count)]
    return Steps(
        step_s=step_s,
        starts=tuple(starts[:MOST_STEPS]),
        breaks=tuple(list(accumulate(counts))[:-1]),
        idle_s=span - sum(end - start for start, end in segments),
    )


def in_steps(steps: Steps, moments: Mapping[int, Moment], *, width_s: int) -> list[Moment]:
    """What began in each step. Pure."""
    found = [Moment() for _ in steps.starts]
    for number, moment in moments.items():
        place = bisect_right(steps.starts, number * width_s) - 1
        if place >= 0:
            found[place].add(moment)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What went out a minute: at the end of each step, and the most at any moment. `over_s`: measured over so long."""

    values: tuple[float, ...]
    most: float
    over_s: int


def pace_of(steps: Steps, figures: Mapping[int, int], *, width_s: int) -> Pace:
    """Measure figures of moments over the minute before each step's end, over the step itself where that is longer."""
    over_s = max(MINUTE_S, steps.step_s, width_s)
    numbers = sorted(figures)
    sums = [0, *accumulate(figures[number] for number in numbers)]

    def until(end_s: float) -> float:
        high = bisect_right(numbers, (end_s - 1) // width_s)
        low = bisect_right(numbers, (end_s - over_s - 1) // width_s)
        return (sums[high] - sums[low]) * MINUTE_S / over_s

    return Pace(
        values=tuple(until(start + steps.step_s) for start in steps.starts),
        most=max((until((number + 1) * width_s) for number in numbers), default=0.0),
        over_s=over_s,
    )


def outcomes_chart(steps: Steps, moments: Sequence[Moment]) -> Chart:
    """Attempts in each step: answered, throttled, failed otherwise."""
    top = nice(max((moment.requests for moment in moments), default=0))
    width = WIDTH / max(1, len(moments))
    bars = []
    for place, moment in enumerate(moments):
        failed = moment.requests - moment.answered - moment.throttled
        below = 0.0
        for kind, attempts in (("answered", moment.answered), ("throttled", moment.throttled), ("failed", failed)):
            if attempts:
                height = attempts / top * HEIGHT
                text = f"{clock(steps.starts[place])}: {attempts:,} {kind}"
                bars.append(_bar(place * width, below, width, height, kind=kind, text=text))
                below += height
    busiest = max(range(len(moments)), key=lambda place: moments[place].requests, default=None)
    most = "" if busiest is None else f" Most: {moments[busiest].requests:,} at {clock(steps.starts[busiest])}."
    return Chart(
        title=f"Attempts in each {_spell(steps.step_s)}",
        text=f"Attempts by when they were sent, {count(len(moments), 'step')} of {_length(steps.step_s)}.{most}",
        y_labels=_scale(top),
        x_labels=_times(steps),
        legend=(("answered", "answered"), ("throttled", "throttled (429)"), ("failed", "failed otherwise")),
        bars=tuple(bars),
        breaks=_breaks(steps, width),
    )


def pace_chart(steps: Steps, pace: Pace, *, noun: str, quota: float | None) -> Chart:
    """What went out a minute, against the quota where one is known."""
    most = max((*pace.values, pace.most), default=0.0)
    near = quota is not None and quota <= most * _FAR
    top = nice(max(most, quota or 0.0) if near else most)
    width = WIDTH / max(1, len(pace.values))
    bars = [
        _bar(place * width, 0, width, value / top * HEIGHT, kind="used", text=f"{clock(start)}: {value:,.0f}")
        for place, (start, value) in enumerate(zip(steps.starts, pace.values, strict=True))
        if value
    ]
    lines: tuple[Line, ...] = ()
    if quota is not None and near:
        y = HEIGHT - quota / top * HEIGHT
        lines = (Line(points=f"0,{y:.1f} {WIDTH},{y:.1f}", kind="quota"),)
    said = f"Most: {pace.most:,.0f} {noun} a minute"
    if quota:
        said += f", {percent(pace.most / quota)} of the quota of {quota:,.0f}"
    return Chart(
        title=f"{noun.capitalize()} a minute",
        text=f"{said}. Each bar is measured over the {_spell(pace.over_s)} before its end.",
        y_labels=_scale(top),
        x_labels=_times(steps),
        legend=(("used", f"{noun} a minute"), *((("quota", f"quota: {quota:,.0f}"),) if quota and near else ())),
        bars=tuple(bars),
        lines=lines,
        breaks=_breaks(steps, width),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """Answers that took from `low` to below `high` milliseconds."""

    low: float
    high: float
    count: int


def slots_of(latencies: Latencies) -> tuple[Slot, ...]:
    """Cut latencies into slots, four between each two of 1, 2, 5, 10, 20, 50 … ms, from the least to the most. Pure."""
    if not latencies.count:
        return ()
    edges = [factor * 10.0**power for power in range(-3, 8) for factor in (1, 2, 5)]
    first = max(0, bisect_right(edges, latencies.least) - 1)
    last = min(len(edges) - 1, bisect_right(edges, latencies.most))
    bounds = [
        low + (high - low) * part / _PARTS
        for low, high in zip(edges[first:last], edges[first + 1 : last + 1], strict=True)
        for part in range(_PARTS)
    ]
    # What lies outside of all edges counts with the outermost.
    ends = [*bounds[1:], edges[last]]
    return tuple(
        Slot(
            low=low,
            high=high,
            count=latencies.between(0.0 if low == bounds[0] else low, math.inf if high == ends[-1] else high),
        )
        for low, high in zip(bounds, ends, strict=True)
    )


def latency_chart(latencies: Latencies, slots: Sequence[Slot]) -> Chart:
    """How many answers took how long."""
    top = nice(max((slot.count for slot in slots), default=0))
    width = WIDTH / max(1, len(slots))
    bars = [
        _bar(
            place * width,
            0,
            width,
            slot.count / top * HEIGHT,
            kind="used",
            text=f"{milliseconds(slot.low)} to {milliseconds(slot.high)}: {slot.count:,}",
        )
        for place, slot in enumerate(slots)
        if slot.count
    ]
    half, slow = latencies.percentile(0.5), latencies.percentile(0.95)
    said = (
        ""
        if half is None or slow is None
        else f"Half came within {milliseconds(half)}, 95 % within {milliseconds(slow)}."
    )
    edges = [slot.low for slot in slots[::_PARTS]] + [slot.high for slot in slots[-1:]]
    return Chart(
        title="Answers by how long they took",
        text=f"{said} The scale is not even: labels stand at 1, 2 and 5 times powers of ten.",
        y_labels=_scale(top),
        x_labels=tuple(milliseconds(edge) for edge in edges),
        bars=tuple(bars),
    )


def curve_chart(title: str, curves: Mapping[str, Sequence[tuple[float, float]]], *, noun: str) -> Chart:
    """Lines of figures over the steps of a training, by the names of the figures."""
    points = [point for curve in curves.values() for point in curve]
    low_x, high_x = min(x for x, _ in points), max(x for x, _ in points)
    top = nice(max(y for _, y in points))
    low = min(0.0, *(y for _, y in points))
    lines, said = [], []
    for number, (name, curve) in enumerate(curves.items()):
        places = (
            f"{(x - low_x) / ((high_x - low_x) or 1) * WIDTH:.1f},{HEIGHT - (y - low) / (top - low) * HEIGHT:.1f}"
            for x, y in curve
        )
        lines.append(Line(points=" ".join(places), kind=f"curve-{number}"))
        said.append(f"{name} went from {curve[0][1]:.3g} to {curve[-1][1]:.3g}")
    return Chart(
        title=title,
        text=f"{'; '.join(said)}; over {noun}s {low_x:,.0f} to {high_x:,.0f}.",
        y_labels=_scale(top, low=low),
        x_labels=(f"{noun} {low_x:,.0f}", f"{noun} {high_x:,.0f}"),
        legend=tuple((f"curve-{number}", name) for number, name in enumerate(curves)),
        lines=tuple(lines),
    )


def nice(value: float) -> float:
    """The least round number that is no smaller: a round figure from 1 to 10 times a power of ten; 1 for zero."""
    if value <= 0 or not math.isfinite(value):
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in _NICE if factor * power >= value * (1 - 1e-9))


def milliseconds(value: float) -> str:
    """Say `0.5 ms`, `42 ms`, `1.2 s`, `2 min 5 s`."""
    if value < 10:  # noqa: PLR2004 - two figures are enough
        return f"{value:.2g} ms"
    if value < 1000:  # noqa: PLR2004 - a second
        return f"{value:.0f} ms"
    return f"{value / 1000:.3g} s" if value < MINUTE_S * 1000 else duration(value / 1000)


def clock(second: float) -> str:
    """The time of day, in UTC."""
    return datetime.fromtimestamp(second, UTC).strftime("%H:%M:%S")


def _spell(whole_s: int) -> str:
    """Say `5 s`, `minute`, `10 min`, `2 h`: the length of a step."""
    for unit, word in ((3600, "h"), (MINUTE_S, "min")):
        if whole_s % unit == 0:
            return "minute" if whole_s == MINUTE_S else f"{whole_s // unit} {word}"
    return "second" if whole_s == 1 else f"{whole_s} s"


def _length(whole_s: int) -> str:
    """Say `5 s`, `a minute`, `10 min`: what a step has."""
    said = _spell(whole_s)
    return said if said[0].isdigit() else f"a {said}"


def _bar(x: float, below: float, width: float, height: float, *, kind: str, text: str) -> Bar:
    gap = min(2.0, width * 0.1)
    return Bar(
        x=round(x + gap / 2, 2),
        y=round(HEIGHT - below - height, 2),
        width=round(width - gap, 2),
        height=round(height, 2),
        kind=kind,
        text=text,
    )


def _scale(top: float, *, low: float = 0.0) -> tuple[str, ...]:
    return tuple(_short(value) for value in (top, (top + low) / 2, low))


def _short(value: float) -> str:
    for unit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= unit:
            return f"{value / (1000 if suffix == 'k' else unit):,.4g}{suffix}"
    return f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"  # noqa: PLR2004 - where groups of figures begin


def _times(steps: Steps) -> tuple[str, ...]:
    if not steps.starts:
        return ()
    first, last = steps.starts[0], steps.starts[-1] + steps.step_s
    if first // 86400 == last // 86400:
        return clock(first), clock(last)
    days = [datetime.fromtimestamp(second, UTC).strftime("%-d %b %H:%M") for second in (first, last)]
    return days[0], days[1]


def _breaks(steps: Steps, width: float) -> tuple[float, ...]:
    return tuple(round(place * width, 2) for place in steps.breaks)
