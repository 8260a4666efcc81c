"""The Prometheus text format, judged by the parser of Prometheus' own client."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from pipeline.engines.exposition import Family, Histogram, render

BOUNDS = (0.5, 1.0, 10.0)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53)


def parsed(*families: Family) -> dict[str, Any]:
    return {family.name: family for family in text_string_to_metric_families(render(families))}


@given(label=TEXTS, help_=TEXTS, value=NUMBERS)
def test_whatever_a_label_a_help_or_a_value_holds_comes_back(label: str, help_: str, value: float) -> None:
    family = Family(name="a_thing", kind="gauge", help=help_, samples=[({"one": label, "two": "x"}, value)])
    found = parsed(family)["a_thing"]
    assert (found.type, found.documentation.strip()) == ("gauge", help_.strip())
    assert [(one.labels, one.value) for one in found.samples] == [({"one": label, "two": "x"}, value)]


@pytest.mark.parametrize("hostile", ['"', "\\", "\n", '\\"', "\\n", 'a"} 1\nother{b="', "# HELP x", "ä\u2028\x00"])
def test_a_label_cannot_end_itself(hostile: str) -> None:
    found = parsed(Family(name="a", kind="gauge", help="", samples=[({"l": hostile}, 1)]))
    assert list(found) == ["a"]
    assert [one.labels for one in found["a"].samples] == [{"l": hostile}]


def test_a_counter_is_read_as_one() -> None:
    found = parsed(Family(name="a_total", kind="counter", help="h", samples=[({}, 3)]))
    assert found["a"].type == "counter"
    assert [(one.name, one.labels, one.value) for one in found["a"].samples] == [("a_total", {}, 3.0)]


def test_what_has_no_value_is_left_out_with_its_head() -> None:
    none = Family(name="a", kind="gauge", help="h", samples=[({}, None)])
    some = Family(name="b", kind="gauge", help="h", samples=[({"l": "1"}, None), ({"l": "2"}, 0)])
    assert render([none]) == ""
    assert [(one.labels, one.value) for one in parsed(none, some)["b"].samples] == [({"l": "2"}, 0.0)]


@given(st.lists(st.floats(0, 100)))
def test_a_histogram_counts_each_value_in_every_bucket_that_reaches_it(values: list[float]) -> None:
    histogram = Histogram(BOUNDS)
    for value in values:
        histogram.add(value)
    family = Family(name="h_seconds", kind="histogram", help="h", suffixed=histogram.samples({"l": "1"}))
    found = parsed(family)["h_seconds"]
    buckets = {one.labels["le"]: one.value for one in found.samples if one.name == "h_seconds_bucket"}
    assert found.type == "histogram"
    assert buckets == {
        **{str(bound).removesuffix(".0"): sum(value <= bound for value in values) for bound in BOUNDS},
        "+Inf": len(values),
    }
    rest = {one.name: one.value for one in found.samples if one.name != "h_seconds_bucket"}
    assert rest == {"h_seconds_sum": pytest.approx(sum(values)), "h_seconds_count": len(values)}
