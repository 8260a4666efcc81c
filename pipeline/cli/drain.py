"""`pipeline drain`: have a run that goes on end once its requests have."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.asking import ask, in_flight
from pipeline.cli.common import echo_json, find_run, json_option, run_argument


@click.command("drain")
@run_argument
@json_option
def command(*, target: Path, as_json: bool) -> None:
    """Have a run that goes on take no new rows, and end once what is in flight has.

    Unlike a signal, which gives requests in flight `run.grace`, it lets each take its time. The run then ends as one
    that was stopped, with exit code 4, and the same command continues it. Batches and a training go on at the service.
    """
    answer = ask(find_run(target), {"do": "drain"})
    if as_json:
        echo_json(answer)
        return
    click.echo(f"{'drains' if answer['changed'] else 'is ending already'}: no new rows are taken; {in_flight(answer)}")
    if answer["changed"]:
        click.echo("the run then ends with exit code 4, and the same command continues it")
