"""`pipeline plan`: what a run of a job would take, and what is done already."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.common import (
    checked_job,
    echo_json,
    job_argument,
    json_option,
    read_draft,
    set_option,
)
from pipeline.cli.endings import USAGE
from pipeline.cli.validate import checked
from pipeline.errors import JobFileError
from pipeline.job.places import placed_source_error
from pipeline.rehearsal import simulated_folder


@click.command("plan")
@job_argument
@click.option("--show", type=click.IntRange(min=0), default=0, metavar="N", help="Rows to show as they would be sent.")
@click.option("--limit", type=click.IntRange(min=0), metavar="N", help="Only the first N rows of the input.")
@click.option("--exact", is_flag=True, help="Count every row of a long input, where a sample is counted otherwise.")
@click.option(
    "--simulate", is_flag=True, help="Plan the rehearsal: its folder, and tokens as the simulator counts them."
)
@set_option
@json_option
def command(
    *,
    job_file: Path,
    show: int,
    limit: int | None,
    exact: bool,
    simulate: bool,
    overrides: tuple[tuple[str, str], ...],
    as_json: bool,
) -> int:
    """Say how many rows, requests and tokens a run would take, how many dollars, and how long at the quotas given.

    What the output folder holds is counted as done. Nothing is sent and nothing is written. The exit code is 2 where
    the job cannot run.
    """
    report = checked(job_file, overrides=dict(overrides), simulate=simulate, show=show)
    if report["problems"]:
        for problem in report["problems"]:
            click.echo(problem["text"], err=True)
        if as_json:
            echo_json({"ok": False, **report})
        return USAGE
    from pipeline.sources import SourceError  # noqa: PLC0415 - what follows is for a job that can run
    from pipeline.views.plan import make_plan, plan_lines  # noqa: PLC0415
    from pipeline.views.preview import shown_rows  # noqa: PLC0415

    draft = read_draft(job_file, overrides=dict(overrides), simulate=simulate)
    job = checked_job(draft)
    root = simulated_folder(job.output.path) if simulate else job.output.path
    try:
        plan = make_plan(job, root=root, limit=limit, exact=exact, simulated=simulate)
    except SourceError as error:
        raise JobFileError((placed_source_error(draft, error),)) from error
    if as_json:
        echo_json({"ok": True, "file": str(job_file), **plan, "shown": report["rows"]})
    else:
        click.echo("\n".join([*plan_lines(plan), *shown_rows(report)]))
    return 0
