"""`pipeline pause`: have a run that goes on send nothing new for a while."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from pipeline.cli.asking import ask, in_flight
from pipeline.cli.common import echo_json, find_run, json_option, run_argument


@click.command("pause")
@run_argument
@json_option
def command(*, target: Path, as_json: bool) -> None:
    """Have a run that goes on send nothing new, until `pipeline resume`.

    What is in flight ends and is kept. The process stays, and with it everything that it knows of the quota; its share
    of that is left to other runs meanwhile. A deadline goes on. Batches that were submitted are still collected.
    """
    answer = ask(find_run(target), {"do": "pause"})
    if as_json:
        echo_json(answer)
        return
    since = "" if answer["changed"] else f" already, since {answer['paused_since']}"
    click.echo(f"paused{since}: nothing new is sent; {in_flight(answer)}")
    click.echo(f"to go on: pipeline resume {shlex.quote(str(target))}")
