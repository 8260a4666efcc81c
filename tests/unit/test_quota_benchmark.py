"""The benchmark of quotas sees each of its bars missed."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from quota import REQUESTS, SCENARIOS, Call, Scenario, judge, use

TOLD: dict[str, Any] = {
    "state": "complete",
    "rows": {"failed": 0},
    "deployments": [{"name": "d", "offered_requests_per_minute": 600}],
}


def calls(per_second: float, seconds: int, *, begin: float = 1_000.25) -> list[Call]:
    """Calls of 60 tokens at an even pace, all of them answered."""
    return [
        Call(
            at=begin + number / per_second,
            deployment="d",
            key=str(number),
            tokens=60,
            status=200,
            fault=None,
            refused_by=None,
        )
        for number in range(int(per_second * seconds))
    ]


def missed(name: str, made: list[Call], told: dict[str, Any] | None = None, seconds: float = 100) -> list[str]:
    return judge(name, seconds, tokens=60, calls=made, told=TOLD | (told or {})).missed


def refused(call: Call, by: str, fault: str | None = None) -> Call:
    return replace(call, status=429, refused_by=by, fault=fault, tokens=0)


def test_an_even_pace_at_the_limit_keeps_every_bar() -> None:
    found = judge("requests", 100, tokens=60, calls=calls(10, 100), told=TOLD)
    assert (found.used, found.calls, found.refused, found.missed) == (pytest.approx(1, abs=1e-3), 1.0, 0.0, [])
    assert found.time == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("made", "told", "words"),
    [
        (calls(9.7, 100), {}, "used below 98%"),
        (calls(10, 100), {"rows": {"failed": 1}}, "failed rows"),
        (calls(10, 100), {"state": "stopped"}, "the run is stopped"),
        ([*calls(10, 100), *[refused(call, "requests") for call in calls(10, 2)]], {}, "calls per row above 1.01"),
    ],
)
def test_a_missed_bar_is_said(made: list[Call], told: dict[str, Any], words: str) -> None:
    assert missed("requests", made, told) == [words]


def test_injected_refusals_are_nobodys_fault_and_use_the_quota() -> None:
    made = calls(10, 100)
    made = [refused(call, "capacity", "capacity") if index % 10 == 5 else call for index, call in enumerate(made)]
    again = [replace(call, at=call.at + 100, status=200, refused_by=None, fault=None) for call in made[5::10]]
    assert missed("capacity", [*made, *again]) == []


def test_a_stated_limit_that_is_passed_within_any_minute_is_seen() -> None:
    at_the_limit = calls(200 / 60, 100)
    assert missed("too-low", at_the_limit) == []
    assert missed("too-low", calls(202 / 60, 100)) == ["202 calls in a minute, stated were 200"]
    extra = replace(at_the_limit[150], key="extra")
    assert missed("too-low", sorted([*at_the_limit, extra], key=lambda call: call.at)) == [
        "201 calls in a minute, stated were 200"
    ]


@pytest.mark.parametrize("offered", [None, 599])
def test_a_run_that_does_not_say_what_is_offered_is_seen(offered: float | None) -> None:
    told = {"deployments": [{"name": "d", "offered_requests_per_minute": offered}]}
    assert missed("too-low", calls(200 / 60, 100), told) == [f"{offered} are said to be offered, 600 are"]


def test_the_first_minute_is_left_out_where_limits_are_unknown() -> None:
    slow, fast = calls(2, 60), calls(10, 60, begin=1_060.25)
    made = [*slow, *[replace(call, key=f"later {call.key}") for call in fast]]
    assert missed("absent", made, seconds=120) == []
    assert missed("requests", made, seconds=120) == ["used below 98%"]


def test_a_halved_quota_is_used_up_by_half_the_pace() -> None:
    scenario = Scenario(places={"d": REQUESTS}, changes=((0.0, 0.5),))
    assert use(scenario, calls(5, 60), 60, 60)[0] == pytest.approx(1, abs=1e-3)
    assert use(SCENARIOS["requests"], calls(5, 60), 60, 60)[0] == pytest.approx(0.5, abs=1e-3)
