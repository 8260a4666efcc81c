"""`pipeline retry`: send failed rows again."""

from __future__ import annotations

import click

from pipeline.cli.running import How, carry_out, running


def _listed(_: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> frozenset[str]:
    """Cut values at their commas."""
    names = [name.strip() for value in values for name in value.split(",")]
    if not all(names):
        raise click.BadParameter("must be error types or codes with commas between them", param=parameter)
    return frozenset(names)


@click.command("retry")
@running
@click.option(
    "--only",
    metavar="TYPE_OR_CODE,…",
    multiple=True,
    callback=_listed,
    help="Only rows that failed with one of these, such as RateLimitError,content_filter; default: all. Repeatable.",
)
def command(*, how: How, only: frozenset[str]) -> int:
    """Send the rows that failed again, and no others.

    Their new results take the place of the old ones in the output folder, part by part, each part whole at every
    moment; `pipeline show` still has what a row came to before. `--set request.…` asks them in another wording, which
    the other rows keep theirs beside. Ctrl-C stops cleanly; `pipeline retry JOB` or `pipeline run JOB` continues.
    """
    job = how.job(but="request")
    asked = how.job()

    from pipeline.engines.again import Retry  # noqa: PLC0415 - for a job that can run
    from pipeline.run import RunOptions  # noqa: PLC0415

    worded = any(name.partition(".")[0] == "request" for name in how.wanted)
    return carry_out(how, job, RunOptions(retry=Retry(only=only, request=asked.request if worded else None)))
