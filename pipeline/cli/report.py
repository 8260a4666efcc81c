"""`pipeline report`: one page that says what a run came to."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.common import echo_json, find_run, json_option, refuse_within_run, run_argument


@click.command("report")
@run_argument
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the page there, or to stdout (-); by default to _pipeline/report.html in the output folder.",
)
@json_option
def command(*, target: Path, output: Path | None, as_json: bool) -> None:
    """Write the HTML page of a run: outcome, cost, pace, latencies, what failed and what to do.

    Takes a job file or an output folder, while the run goes on, after it, and after it was killed. `pipeline run`
    writes the same page when it ends. It holds no prompts and no answers.
    """
    from pipeline.clock import SystemClock  # noqa: PLC0415 - for the command that needs it
    from pipeline.store.folder import Layout  # noqa: PLC0415
    from pipeline.views.report import read_report, render, write_report  # noqa: PLC0415

    root, now = find_run(target), SystemClock().wall()
    try:
        if as_json:
            echo_json(read_report(root, now=now).as_json())
        elif output == Path("-"):
            click.echo(render(read_report(root, now=now)))
        else:
            if output is not None and output.resolve() != Layout(root).report.resolve():
                refuse_within_run(root, output)
            click.echo(str(write_report(root, now=now, path=output).absolute()))
    except FileNotFoundError as error:
        raise click.UsageError(f"{root} has no summary yet: the run has only begun, or ended at once") from error
