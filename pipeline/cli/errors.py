"""`pipeline errors`: the rows that failed, and why."""

from __future__ import annotations

from dataclasses import asdict
from itertools import islice
from pathlib import Path

import click

from pipeline.cli.common import echo_json, find_run, json_option, run_argument

_LIMIT = 20


@click.command("errors")
@run_argument
@click.option(
    "--group-by",
    type=click.Choice(["code", "type", "deployment"]),
    help="Count by error type and code, by type, or by deployment, type and code.",
)
@click.option("--limit", type=click.IntRange(min=0), metavar="N", help=f"Most rows; {_LIMIT} by default, all as JSON.")
@json_option
def command(*, target: Path, group_by: str | None, limit: int | None, as_json: bool) -> None:
    """List the rows that failed: type, code, message and ids, and what to do about them.

    Takes a job file or an output folder, while the run goes on and after.
    """
    from pipeline.store.failures import failures  # noqa: PLC0415 - for the command that needs it
    from pipeline.store.folder import Layout  # noqa: PLC0415
    from pipeline.views.failures import failure_lines, group_lines  # noqa: PLC0415
    from pipeline.views.rows import grouped  # noqa: PLC0415

    found = failures(Layout(find_run(target)))
    if group_by is not None:
        groups = grouped(found, by=group_by)[:limit]
        if as_json:
            echo_json({"groups": [group.as_json() for group in groups]})
        else:
            click.echo("\n".join(group_lines(groups)))
        return
    shown = list(islice(found, limit if limit is not None else None if as_json else _LIMIT))
    more = sum(1 for _ in found)
    if as_json:
        echo_json({"failed": len(shown) + more, "rows": [asdict(failure) for failure in shown]})
    else:
        click.echo("\n".join(failure_lines(shown, more=more)))
