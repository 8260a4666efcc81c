"""How far a run is, from the summary that it replaces each second."""

from __future__ import annotations

import shlex
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from pipeline.store.folder import Layout, is_running
from pipeline.store.summary import Summary, read_summary
from pipeline.views.closing import headline, spent
from pipeline.views.progress import deployment_lines, status_line
from pipeline.views.text import count, duration, plain, table

if TYPE_CHECKING:
    from pathlib import Path


def read_status(root: Path) -> Summary:
    """Read the summary; a run that says `running` and holds no lock was interrupted, after it was last written.

    Raises FileNotFoundError where no run wrote one, DamageError.
    """
    path = Layout(root).summary
    summary = read_summary(path)
    if summary.state != "running" or is_running(root):
        return summary
    summary = read_summary(path)  # it may have ended between the two looks
    if summary.state != "running":
        return summary
    return replace(
        summary,
        state="interrupted",
        reason=_killed(summary),
        in_flight=0,
        eta_seconds=None,
        waits_for=None,
        paused_since=None,
    )


def _killed(summary: Summary) -> str:
    """Say that nobody counts any more, and what the last count is worth: the journal may hold more rows than it."""
    finished = count(summary.rows.ok + summary.rows.failed, "row")
    return (
        "the run ended without a word (killed, or the machine stopped)\n"
        f"{finished} finished when it last wrote this, a second or so before its end\n"
        "the same command continues it: what was finished since then is counted, and not sent again"
    )


def status_lines(summary: Summary) -> list[str]:
    """Lay it out for people."""
    facts = [
        *_paused(summary),
        *spent(summary),
        *_limits(summary),
        ("output", plain(summary.output)),
        ("job", plain(summary.job_file)),
    ]
    uses = [
        (
            plain(use.name),
            f"{use.requests:,}",
            f"{use.throttled:,}",
            duration(use.paused_s),
            _figure(use.requests_per_minute),
            _figure(use.tokens_per_minute),
            "-" if use.quota_used is None else f"{use.quota_used:.0%}",
            plain(use.set_aside or ""),
        )
        for use in summary.deployments
    ]
    head = ("deployment", "requests", "throttled", "paused", "requests/min", "tokens/min", "quota used", "")
    return [
        headline(summary),
        *([status_line(summary), *deployment_lines(summary)] if summary.state == "running" else []),
        *[f"  {plain(line.strip())}" for line in (summary.reason or "").splitlines()],
        *[f"  {line}" for line in table(facts)],
        *([f"  {line}" for line in table(uses, head=head)] if summary.training is None else []),
    ]


def _paused(summary: Summary) -> list[tuple[str, str]]:
    if summary.paused_since is None:
        return []
    since = datetime.fromisoformat(summary.paused_since).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    again = f"pipeline resume {shlex.quote(plain(summary.output))}"
    return [("paused", f"since {since}, {summary.in_flight:,} in flight; to go on: {again}")]


def _limits(summary: Summary) -> list[tuple[str, str]]:
    """Say how many requests may be in flight, and what is left to others of the quotas."""
    if summary.workers is None or summary.leave is None:
        return []
    left = f", {summary.leave * 100:g}% of each quota left to others" if summary.leave else ""
    return [("workers", f"{summary.workers:,}{left}")]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"
