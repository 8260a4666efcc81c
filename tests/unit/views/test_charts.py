from __future__ import annotations

import random

import pytest

from pipeline.store.parts import attempts_batch
from pipeline.views.attempts import Attempts, Moment, Timeline
from pipeline.views.charts import (
    HEIGHT,
    MOST_STEPS,
    WIDTH,
    Chart,
    curve_chart,
    in_steps,
    latency_chart,
    milliseconds,
    nice,
    outcomes_chart,
    pace_chart,
    pace_of,
    slots_of,
    steps_of,
)
from tests.report_scene import T0, attempt, busy


def _timeline(*seconds: int) -> Timeline:
    timeline = Timeline()
    for second in seconds:
        timeline.add("d", second, Moment(requests=1, answered=1, tokens=10))
    return timeline


def _within(chart: Chart) -> bool:
    boxes = all(
        0 <= bar.x <= bar.x + bar.width <= WIDTH + 0.01 and -0.01 <= bar.y <= bar.y + bar.height <= HEIGHT + 0.01
        for bar in chart.bars
    )
    points = [tuple(map(float, point.split(","))) for line in chart.lines for point in line.points.split()]
    return boxes and all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)


@pytest.mark.parametrize("span", [1, 59, 120, 121, 7_000, 86_400, 40 * 86_400, 4_000 * 86_400])
def test_any_length_of_time_becomes_a_bounded_number_of_steps_that_hold_every_moment(span: int) -> None:
    dice = random.Random(span)
    seconds = sorted({int(T0), int(T0) + span, *(int(T0) + dice.randrange(span) for _ in range(500))})
    timeline = _timeline(*seconds)
    steps = steps_of(timeline)
    found = in_steps(steps, timeline.moments["d"], width_s=timeline.width_s)

    assert 1 <= len(steps.starts) <= MOST_STEPS
    assert sum(moment.requests for moment in found) == len(seconds)
    assert list(steps.starts) == sorted(steps.starts)


def test_a_night_in_which_nothing_was_sent_is_left_out() -> None:
    timeline = _timeline(*range(1000, 1060), *range(30_000, 30_060))
    steps = steps_of(timeline)

    assert len(steps.breaks) == 1
    assert steps.starts[steps.breaks[0]] == 30_000
    assert steps.idle_s == 30_000 - 1060
    assert steps.active_s == 120


def test_nothing_sent_is_no_step() -> None:
    steps = steps_of(Timeline())

    assert steps.starts == ()
    assert outcomes_chart(steps, []).bars == ()


def test_what_went_out_a_minute_is_measured_over_the_minute_before() -> None:
    dice = random.Random(3)
    seconds = [int(T0) + second for second in range(600)]
    figures = {second: dice.randint(0, 50) for second in seconds}
    timeline = Timeline()
    for second, tokens in figures.items():
        timeline.add("d", second, Moment(requests=1, tokens=tokens))
    steps = steps_of(timeline)
    pace = pace_of(steps, figures, width_s=timeline.width_s)

    exact = [sum(figures[second] for second in seconds if end - 60 < second <= end) for end in seconds]
    assert pace.most == max(exact)
    ends = [start + steps.step_s for start in steps.starts]
    assert list(pace.values) == [sum(figures[s] for s in seconds if end - 60 <= s < end) for end in ends]


def test_every_chart_stays_in_its_box_and_says_in_words_what_it_shows() -> None:
    found = Attempts()
    everything = list(busy(3000))
    for place in range(0, 3000, 500):
        found.add(attempts_batch(everything[place : place + 500]))
    steps = steps_of(found.timeline)
    moments = found.timeline.moments["sweden"]
    tokens = {number: moment.tokens for number, moment in moments.items()}
    pace = pace_of(steps, tokens, width_s=1)
    slots = slots_of(found.all_latencies)
    charts = [
        outcomes_chart(steps, in_steps(steps, moments, width_s=1)),
        pace_chart(steps, pace, noun="tokens", quota=700_000.0),
        pace_chart(steps, pace, noun="tokens", quota=None),
        pace_chart(steps, pace, noun="tokens", quota=pace.most * 1000),
        latency_chart(found.all_latencies, slots),
        curve_chart("Loss", {"training loss": [(1, 2.0), (2, 0.5)], "validation loss": [(1, 2.2)]}, noun="step"),
        curve_chart("Loss", {"training loss": [(1, -0.5)]}, noun="step"),
    ]

    for chart in charts:
        assert _within(chart), chart.title
        assert chart.text.endswith(".")
    assert sum(slot.count for slot in slots) == found.all_latencies.count
    assert [len(chart.lines) for chart in charts[1:4]] == [1, 0, 0]  # a limit far above is told in words
    assert "of the quota of" in charts[3].text


@pytest.mark.parametrize("value", [0.001, 0.3, 1, 1.01, 7, 99, 100, 101, 2.4e9])
def test_a_scale_ends_at_a_round_figure_not_far_above(value: float) -> None:
    assert value <= nice(value) * (1 + 1e-9)
    assert nice(value) <= value * 1.51


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_a_scale_of_nothing_is_one(value: float) -> None:
    assert nice(value) == 1.0


def test_latencies_from_microseconds_to_hours_all_count() -> None:
    found = Attempts()
    values = [0.0004, 0.3, 5.0, 480.0, 90_000.0, 9e8]
    found.add(attempts_batch([attempt(0, latency_ms=value) for value in values]))

    assert sum(slot.count for slot in slots_of(found.all_latencies)) == len(values)


@pytest.mark.parametrize(
    ("value", "said"), [(0.51, "0.51 ms"), (42.2, "42 ms"), (1234.0, "1.23 s"), (125_000.0, "2 min 5 s")]
)
def test_milliseconds_are_said_by_their_size(value: float, said: str) -> None:
    assert milliseconds(value) == said
