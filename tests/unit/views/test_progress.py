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


def test_rows_that_are_not_counted_yet_are_estimated() -> None:
    about = replace(RUNNING, rows=RowCounts(ok=250), rows_expected=1_003, waits_for=None, throttled=0)
    assert status_line(about) == "embed  ━━━━╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌ ~24% · 250/~1,003 rows · 25.0/s · 8 in flight · 30 s left"
    assert "~100% · 250/~250 rows" in status_line(replace(about, rows_expected=200))
    assert "~" not in status_line(replace(about, state="stopped"))


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


USES = tuple(
    DeploymentUse(
        name=name,
        requests=70,
        throttled=throttled,
        requests_per_minute=rpm,
        tokens_per_minute=tpm,
        sent_requests_per_minute=rpm * 0.99,
        sent_tokens_per_minute=(tpm or 10_000) * 0.5,
        paused_s=65.0 if throttled else 0.0,
    )
    for name, rpm, tpm, throttled in (("sweden-central", 600, 100_000, 12), ("uk-south", 300, None, 0))
)


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (
            140,
            [
                (
                    "  sweden-central  594 of 600 requests/min (99%) · 50,000 of 100,000 tokens/min (50%)"
                    " · 12 throttled · paused 1 min 5 s in all"
                ),
                "  uk-south        297 of 300 requests/min (99%) · 5,000 tokens/min",
            ],
        ),
        (
            115,
            [
                (
                    "  sweden-central  99% of 600 requests/min · 50% of 100,000 tokens/min · 12 throttled"
                    " · paused 1 min 5 s in all"
                ),
                "  uk-south        99% of 300 requests/min · 5,000 tokens/min",
            ],
        ),
        (
            80,
            [
                "  sweden-central  99% of requests · 50% of tokens · 12 throttled",
                "  uk-south        99% of requests · 5,000 tokens/min",
            ],
        ),
        (40, ["  sweden-central  req 99% · tok 50%", "  uk-south        req 99% · tok 5,000"]),
    ],
)
def test_a_narrow_terminal_is_told_the_shares_rather_than_half_of_the_figures(width: int, lines: list[str]) -> None:
    told = deployment_lines(replace(RUNNING, deployments=USES), width=width)
    assert told == lines
    assert all(len(line) <= width for line in told)


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (200, status_line(replace(RUNNING, cost_usd=1.5))),
        (90, "embed  25% · 250/1,000 rows · 25.0/s · 3 throttled · 10 failed · $1.50 · 30 s left"),
        (80, "embed  25% · 250/1,000 rows · 25.0/s · 10 failed · $1.50 · 30 s left"),
        (60, "embed  25% · 250/1,000 rows · 25.0/s · 10 failed · 30 s left"),
        (40, "embed  25% · 10 failed · 30 s left"),
        (20, "embed  25%"),
        (5, "embed  25%"),
    ],
)
def test_what_matters_least_is_left_out_first(width: int, line: str) -> None:
    assert status_line(replace(RUNNING, cost_usd=1.5), width=width) == line


@pytest.mark.parametrize("width", range(1, 200))
def test_no_line_is_longer_than_the_terminal_is_wide(width: int) -> None:
    long = replace(RUNNING, job="a-job-with-a-very-long-name-indeed", deployments=USES, cost_usd=1234.5)
    assert len(status_line(long, width=width)) <= max(width, 15)
    if width >= 40:
        assert all(len(line) <= width for line in deployment_lines(long, width=width))


def test_a_paused_run_says_for_how_long_instead_of_how_fast() -> None:
    paused = replace(
        RUNNING,
        paused_since="2026-11-23T13:00:00+00:00",
        updated_at="2026-11-23T13:02:05+00:00",
        eta_seconds=None,
    )
    assert " · paused for 2 min 5 s · 8 in flight · " in status_line(paused)
    assert "/s" not in status_line(paused)
    assert "paused for" in status_line(paused, width=40)
