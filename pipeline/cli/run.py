"""`pipeline run`: run a job, or continue it."""

from __future__ import annotations

import click

from pipeline.cli.running import How, carry_out, running


@click.command("run")
@running
@click.option("--limit", type=click.IntRange(min=0), metavar="N", help="Only the first N rows of the input.")
@click.option("--cancel", is_flag=True, help="Fine-tuning: have the training that is under way ended.")
@click.option("--fresh", is_flag=True, help="Begin anew; the old output folder is moved aside, never deleted.")
@click.option(
    "--repair", is_flag=True, help="Verify the output folder first; rebuild what is damaged, ask again what is gone."
)
def command(*, how: How, limit: int | None, cancel: bool, fresh: bool, repair: bool) -> int:
    """Run a job, or continue the run that its output folder holds.

    The results are Parquet files in the job's output folder. Ctrl-C stops cleanly, a second one at once; either way
    the same command continues. A run that is complete does nothing.
    """
    if repair and fresh:
        raise click.UsageError("--repair keeps what is whole and --fresh begins anew: give one of them")
    job = how.job()

    from pipeline.run import RunOptions  # noqa: PLC0415 - for a job that can run

    return carry_out(how, job, RunOptions(limit=limit, cancel=cancel, fresh=fresh, repair=repair))
