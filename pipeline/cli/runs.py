"""`pipeline runs`: when a folder was run, and what each time came to."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from pipeline.cli.common import echo_json, find_run, json_option, run_argument

_LIMIT = 20


@click.command("runs")
@run_argument
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help=f"The last N; {_LIMIT} by default, all as JSON.")
@json_option
def command(*, target: Path, limit: int | None, as_json: bool) -> None:
    """List the invocations of a run: when, how long, state, exit code, rows, cost.

    Takes a job file, an output folder, or a folder of output folders. Times are UTC; cost and new rows are each
    invocation's own. Only invocations that held the folder count: one that was refused (2, 75) left it alone.
    """
    from pipeline.views.runs import each_once, outputs_below, run_lines, runs_of  # noqa: PLC0415 - for the command that needs it

    several = target.is_dir() and target.name != "_pipeline" and not (target / "_pipeline").is_dir()
    roots = outputs_below(target) if several else []
    named = bool(roots)
    if not named:
        roots = [find_run(target)]
    found = []
    for root in roots:
        try:
            found += runs_of(root)
        except FileNotFoundError:
            if not named:
                raise click.UsageError(f"{root} has no history yet: the run has only begun") from None
    found = sorted(each_once(found), key=lambda one: one.invocation.begun)
    most = limit if limit is not None else len(found) if as_json else _LIMIT
    shown = found[-most:] if most else []
    if as_json:
        echo_json({"runs": [{"folder": one.folder, **asdict(one.invocation)} for one in shown]})
        return
    click.echo("\n".join(run_lines(shown, named=named)))
    if len(found) > len(shown):
        click.echo(f"and {len(found) - len(shown)} earlier: --limit {len(found)} lists all", err=True)
