"""`pipeline status`: how far a run is, while it runs and after."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from pipeline.cli.common import echo_json, find_run, json_option, run_argument

_WATCH_S = 1.0


@click.command("status")
@run_argument
@click.option(
    "--watch", is_flag=True, help="Show it anew each second until the run ends; with --json a line each time."
)
@json_option
def command(*, target: Path, watch: bool, as_json: bool) -> None:
    """Show how far a run is: counts, rate, time left, throttling, cost.

    Takes a job file or an output folder, while the run goes on and after. The exit code is 0 whatever the state.
    """
    root = find_run(target)
    if watch:
        _watch(root, as_json=as_json)
    else:
        _show(root, as_json=as_json)


def _watch(root: Path, *, as_json: bool) -> None:
    """Show it until the run has ended; a terminal is redrawn, elsewhere what is new follows."""
    redraws = not as_json and sys.stdout.isatty()
    while True:
        if redraws:
            click.clear()
        if _show(root, as_json=as_json, in_a_line=True) != "running":
            return
        sys.stdout.flush()
        time.sleep(_WATCH_S)


def _show(root: Path, *, as_json: bool, in_a_line: bool = False) -> str:
    """Show it once, and say which state it is in."""
    from pipeline.views.status import read_status, status_lines  # noqa: PLC0415 - for the command that needs it

    try:
        summary = read_status(root)
    except FileNotFoundError:
        raise click.UsageError(f"{root} has no summary yet: the run has only begun, or ended at once") from None
    if as_json:
        echo_json(summary.as_json(), in_a_line=in_a_line)
    else:
        click.echo("\n".join(status_lines(summary)))
    return summary.state
