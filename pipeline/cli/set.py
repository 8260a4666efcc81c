"""`pipeline set`: change what a run that goes on may do, without a restart."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.asking import ask
from pipeline.cli.common import echo_json, find_run, json_option, pairs_of, run_argument


@click.command("set")
@run_argument
@click.argument(
    "values",
    metavar="NAME=VALUE…",
    nargs=-1,
    required=True,
    callback=pairs_of("name=value, such as workers=64 or leave=20%"),
)
@json_option
def command(*, target: Path, values: tuple[tuple[str, str], ...], as_json: bool) -> None:
    """Change the workers of a run that goes on, and the share of the quota that it leaves to others.

    `workers` is the most requests in flight, `leave` the share of each deployment's quota. They are values of the job
    file's `run:`, and checked as those are: `pipeline set JOB workers=64 leave=20%`. They hold until the run ends; the
    next one goes by the job file again.
    """
    answer = ask(find_run(target), {"do": "set", "values": dict(values)})
    if as_json:
        echo_json(answer)
        return
    said = f"workers {answer['workers']:,}, leave {answer['leave'] * 100:g}%"
    click.echo(f"{said}, until this run ends" if answer["changed"] else f"{said}: nothing changed")
