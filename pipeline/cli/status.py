"""`pipeline status`: how far a run is, while it runs and after."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.common import echo_json, find_run, json_option, run_argument


@click.command("status")
@run_argument
@json_option
def command(*, target: Path, as_json: bool) -> None:
    """Show how far a run is: counts, rate, time left, throttling, cost.

    Takes a job file or an output folder, while the run goes on and after. The exit code is 0 whatever the state.
    """
    from pipeline.views.status import read_status, status_lines  # noqa: PLC0415 - for the command that needs it

    root = find_run(target)
    try:
        summary = read_status(root)
    except FileNotFoundError:
        raise click.UsageError(f"{root} has no summary yet: the run has only begun, or ended at once") from None
    if as_json:
        echo_json(summary.as_json())
    else:
        click.echo("\n".join(status_lines(summary)))
