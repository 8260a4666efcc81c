"""`pipeline show`: one row with all its attempts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from pipeline.cli.common import echo_json, find_run, json_option, run_argument


@click.command("show")
@run_argument
@click.argument("identity", metavar="ID")
@click.option("--ordinal", "as_ordinal", is_flag=True, help="ID is an ordinal, even where some row has it as its id.")
@json_option
def command(*, target: Path, identity: str, as_ordinal: bool, as_json: bool) -> None:
    """Show one row: its columns, its answer or error, and every attempt at it.

    ID is a value of the job's id column, or the row's ordinal (from 0).
    """
    from pipeline.store.folder import Layout  # noqa: PLC0415 - for the command that needs it
    from pipeline.views.row import plain_values, row_lines  # noqa: PLC0415
    from pipeline.views.rows import find_ordinal, find_row  # noqa: PLC0415

    layout = Layout(find_run(target))
    ordinal = find_ordinal(layout, identity, as_ordinal=as_ordinal)
    found = None if ordinal is None else find_row(layout, ordinal)
    if found is None:
        raise click.UsageError(f"no row has the id or ordinal {identity!r} in {layout.root}, so far as it was read")
    if as_json:
        echo_json(plain_values(asdict(found)))
    else:
        click.echo("\n".join(row_lines(found)))
