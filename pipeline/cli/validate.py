"""`pipeline validate`: everything that can be known of job files without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.cli.common import (
    echo_json,
    in_order,
    input_problems,
    json_option,
    read_draft,
    set_option,
)
from pipeline.cli.endings import USAGE
from pipeline.errors import Problem
from pipeline.job.places import placed, placed_source_error
from pipeline.rehearsal import simulated_folder


@click.command("validate")
@click.argument("job_files", metavar="JOB...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--show", type=click.IntRange(min=0), default=1, metavar="N", help="Rows to show as they would be sent.")
@click.option(
    "--simulate", is_flag=True, help="Check the variables of deployments for their form, without reading them."
)
@set_option
@json_option
def command(
    *, job_files: tuple[Path, ...], show: int, simulate: bool, overrides: tuple[tuple[str, str], ...], as_json: bool
) -> int:
    """Check job files and show the first rows as they would be sent.

    Nothing is sent and nothing is written. Every problem is reported at once, as FILE:LINE:COL: path: what is wrong,
    and the exit code is then 2.
    """
    reports = [checked(path, overrides=dict(overrides), simulate=simulate, show=show) for path in job_files]
    if as_json:
        echo_json({"ok": not any(report["problems"] for report in reports), "jobs": reports})
    for report in reports:
        for problem in report["problems"]:
            click.echo(problem["text"], err=True)
    if not as_json:
        from pipeline.views.preview import preview_lines  # noqa: PLC0415 - for people

        for report in reports:
            if not report["problems"]:
                click.echo("\n".join(preview_lines(report)))
    return USAGE if any(report["problems"] for report in reports) else 0


def checked(path: Path, *, overrides: dict[str, str], simulate: bool, show: int) -> dict[str, Any]:
    """Say of one job file what is wrong with it, or what it does."""
    from pipeline.sources import SourceError  # noqa: PLC0415 - for a command that reads
    from pipeline.views.preview import output_problem, preview  # noqa: PLC0415

    draft = read_draft(path, overrides=overrides, simulate=simulate)
    if draft.job is None:
        return _refusal(path, in_order((*draft.problems, *input_problems(draft))))
    root = draft.job.output.path
    try:
        found = preview(draft.job, rows=show)
    except SourceError as error:
        return _refusal(path, (placed_source_error(draft, error),))
    if found.problems:
        return _refusal(path, found.problems)
    output = simulated_folder(root) if simulate else root
    unfit = output_problem(draft.job, output)
    if unfit is not None:
        return _refusal(path, (placed(draft, "output.path", unfit),))
    return {"file": str(path), "problems": [], **found.as_json(), "output": str(output)}


def _refusal(path: Path, problems: tuple[Problem, ...]) -> dict[str, Any]:
    return {
        "file": str(path),
        "problems": [
            {
                "line": problem.line,
                "column": problem.column,
                "path": problem.path,
                "message": problem.message,
                "text": str(problem),
            }
            for problem in problems
        ],
    }
