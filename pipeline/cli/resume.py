"""`pipeline resume`: have a paused run go on."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.asking import ask
from pipeline.cli.common import echo_json, find_run, json_option, run_argument


@click.command("resume")
@run_argument
@json_option
def command(*, target: Path, as_json: bool) -> None:
    """Have a run that `pipeline pause` paused go on.

    A run that has ended, paused or not, is continued by `pipeline run`.
    """
    answer = ask(find_run(target), {"do": "resume"})
    if as_json:
        echo_json(answer)
    else:
        click.echo("the run goes on" if answer["changed"] else "the run was not paused: it goes on")
