from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest

from pipeline.store.summary import DeploymentUse, RowCounts, Summary
from pipeline.views.console import Screen
from pipeline.views.progress import PLAIN_EVERY_S, deployment_lines, open_progress, status_line

RUNNING = Summary(
    state="running",
    rows=RowCounts(total=1_000, ok=240, failed=10, pending=750),
    throttled=3,
    rows_per_second=25.0,
    eta_seconds=30.0,
    in_flight=8,
    waits_for=17,
    job="embed",
)


def test_the_status_line_says_all_that_moves() -> None:
    assert status_line(RUNNING) == (
        "embed  ━━━━━╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌ 25% · 250/1,000 rows · 25.0/s · 8 in flight · 3 throttled · 10 failed · 30 s left"
        " · waits for row 17"
    )


def test_the_status_line_leaves_out_what_is_not_known() -> None:
    bare = replace(RUNNING, rows=RowCounts(ok=5), throttled=0, eta_seconds=None, waits_for=None)

    assert status_line(bare) == "embed  5 rows · 25.0/s · 8 in flight"


def test_the_cost_is_said_once_there_is_one() -> None:
    assert " · $1,234.50 · " in status_line(replace(RUNNING, cost_usd=1234.5))
    assert " · $0.0004 · " in status_line(replace(RUNNING, cost_usd=0.0004))
    assert "$" not in status_line(replace(RUNNING, cost_usd=0.0))


def test_each_deployment_is_shown_beside_its_quota() -> None:
    first = DeploymentUse(
        name="sweden",
        requests=70,
        throttled=2,
        requests_per_minute=300,
        tokens_per_minute=50_000,
        sent_requests_per_minute=297,
        sent_tokens_per_minute=12_500.4,
        paused_s=65.0,
    )
    second = DeploymentUse(name="uk", requests=1, sent_requests_per_minute=6, set_aside="paused: 429")
    unused = DeploymentUse(name="spare")
    lines = deployment_lines(replace(RUNNING, deployments=(first, second, unused)))
    assert lines == [
        (
            "  sweden  297 of 300 requests/min (99%) · 12,500 of 50,000 tokens/min (25%) · 2 throttled · "
            "paused 1 min 5 s in all"
        ),
        "  uk      6 requests/min · 0 tokens/min · set aside: paused: 429",
    ]


def test_of_many_deployments_the_first_are_shown() -> None:
    many = tuple(DeploymentUse(name=f"d{number}", requests=1) for number in range(9))
    lines = deployment_lines(replace(RUNNING, deployments=many))
    assert len(lines) == 7
    assert lines[-1] == "  and 3 more"


@pytest.mark.parametrize("total", [0, 1, 3])
def test_a_complete_run_fills_the_bar(total: int) -> None:
    done = replace(RUNNING, rows=RowCounts(total=total, ok=total, pending=0))

    assert "╌" not in status_line(done)


def _lines(kind: str, seconds: range) -> list[dict[str, object]]:
    stream = io.StringIO()
    with open_progress(kind, Screen(log_format="json", stream=stream), wall=lambda: 0.0) as progress:
        for second in seconds:
            progress.update(replace(RUNNING, seconds=float(second)))
        progress.update(replace(RUNNING, seconds=1e6, state="complete"))
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize("kind", ["plain", "auto"])
def test_where_there_is_no_terminal_a_line_comes_every_few_seconds(kind: str) -> None:
    lines = _lines(kind, range(21))

    assert len(lines) == 20 / PLAIN_EVERY_S
    assert {line["event"] for line in lines} == {"progress"}
    assert lines[0]["done"] == 250


def test_nothing_is_shown_where_nothing_is_wanted() -> None:
    assert _lines("none", range(60)) == []


def test_lines_go_above_the_status_line_and_the_screen_is_given_back() -> None:
    stream = io.StringIO()
    screen = Screen(log_format="console", stream=stream)
    before = screen.write

    with open_progress("rich", screen, wall=lambda: 0.0) as progress:
        progress.update(RUNNING)
        screen.write("a line")

    assert screen.write == before
    assert "a line\n" in stream.getvalue()
