"""`pipeline run`: run a job, or continue it."""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.common import checked_job, echo_json, job_argument, json_option, read_draft, set_option
from pipeline.cli.endings import end_quietly
from pipeline.errors import PipelineError
from pipeline.memory import keep_memory_small

if TYPE_CHECKING:
    from pipeline.service.http_log import DetailLevel
    from pipeline.store.summary import Summary

_LEVELS = ("debug", "info", "warning", "error")
_DETAILS = ("none", "basic", "headers", "allowed_headers", "body", "body_and_headers")
_DETAIL_VARIABLE = "AZURE_HTTP_LOG_DETAIL_LEVEL"


def _detail(_: click.Context, parameter: click.Parameter, value: str | None) -> DetailLevel | None:
    """Read the level in any of the Azure SDKs' spellings; a word of the environment's that is none means none."""
    text = value if value is not None else os.environ.get(_DETAIL_VARIABLE, "")
    if not text.strip():
        return None
    from pipeline.service.http_log import detail_level  # noqa: PLC0415 - for those who ask

    level = detail_level(text)
    if level is None and value is not None:
        raise click.BadParameter(f"must be one of {', '.join(_DETAILS)}", param=parameter)
    return level


@click.command("run")
@job_argument
@click.option("--simulate", is_flag=True, help="Rehearse against the embedded simulator; no credential is touched.")
@click.option(
    "--simulate-speed",
    type=click.FloatRange(min=0, min_open=True),
    metavar="FACTOR",
    help="Let quota time pass faster: at 60 an hour of quota passes in a minute.",
)
@set_option
@click.option("--limit", type=click.IntRange(min=0), metavar="N", help="Only the first N rows of the input.")
@click.option("--workers", metavar="N", help="Requests in flight at most (run.workers).")
@click.option("--max-cost", metavar="DOLLARS", help="Stop before the folder has cost more than this (run.max_cost).")
@click.option("--deadline", metavar="TIME", help="Stop cleanly after this long, such as 2h (run.deadline).")
@click.option("--fail-on", metavar="WHEN", help="When failed rows make the exit code 1: any, never or a share (5%).")
@click.option(
    "--no-wait",
    is_flag=True,
    help="Batch lane and fine-tuning: submit what fits, collect what is done, and end with exit code 4 while batches "
    "or a training are under way.",
)
@click.option("--cancel", is_flag=True, help="Fine-tuning: have the training that is under way ended.")
@click.option("--fresh", is_flag=True, help="Begin anew; the old output folder is moved aside, never deleted.")
@click.option(
    "--repair", is_flag=True, help="Verify the output folder first; rebuild what is damaged, ask again what is gone."
)
@json_option
@click.option(
    "--progress",
    type=click.Choice(["auto", "rich", "plain", "none"]),
    default="auto",
    help="A status line (rich), a line every five seconds (plain), or nothing; auto looks at the terminal.",
)
@click.option(
    "--log-format",
    type=click.Choice(["auto", "console", "json"]),
    default="auto",
    help="Lines for a person or JSON on stderr; auto looks at the terminal.",
)
@click.option("--log-level", type=click.Choice(_LEVELS), default="info", help="The least important lines to print.")
@click.option(
    "--http-log",
    metavar="LEVEL",
    callback=_detail,
    help=f"Log requests and replies: {', '.join(_DETAILS)}. Default: {_DETAIL_VARIABLE}, else none. Bodies hold "
    "personal data.",
)
@click.option(
    "--http-log-allow",
    metavar="HEADER",
    multiple=True,
    help="Log this header's value too, where it is no credential. Repeatable.",
)
def command(
    *,
    job_file: Path,
    simulate: bool,
    simulate_speed: float | None,
    overrides: tuple[tuple[str, str], ...],
    limit: int | None,
    workers: str | None,
    max_cost: str | None,
    deadline: str | None,
    fail_on: str | None,
    no_wait: bool,
    cancel: bool,
    fresh: bool,
    repair: bool,
    as_json: bool,
    progress: str,
    log_format: str,
    log_level: str,
    http_log: DetailLevel | None,
    http_log_allow: tuple[str, ...],
) -> int:
    """Run a job, or continue the run that its output folder holds.

    The results are Parquet files in the job's output folder. Ctrl-C stops cleanly, a second one at once; either way
    the same command continues. A run that is complete does nothing.
    """
    keep_memory_small()
    if simulate_speed is not None and not simulate:
        raise click.UsageError("--simulate-speed is for rehearsals: add --simulate")
    if repair and fresh:
        raise click.UsageError("--repair keeps what is whole and --fresh begins anew: give one of them")
    options = {"run.workers": workers, "run.max_cost": max_cost, "run.deadline": deadline, "run.fail_on": fail_on}
    wanted = {**dict(overrides), **{name: value for name, value in options.items() if value is not None}}
    job = checked_job(read_draft(job_file, overrides=wanted, simulate=simulate))

    import anyio  # noqa: PLC0415 - what follows is for a job that can run

    from pipeline.cli.simulation import simulated  # noqa: PLC0415
    from pipeline.clock import SystemClock  # noqa: PLC0415
    from pipeline.log import Level  # noqa: PLC0415
    from pipeline.run import RunOptions, run_job  # noqa: PLC0415
    from pipeline.service.http_log import HttpLogRules  # noqa: PLC0415
    from pipeline.views.closing import closing  # noqa: PLC0415
    from pipeline.views.console import EventPrinter, Screen  # noqa: PLC0415
    from pipeline.views.progress import open_progress  # noqa: PLC0415

    with ExitStack() as stack:
        if simulate:
            job = stack.enter_context(simulated(job, speed=simulate_speed or 1.0))
        elsewhere = simulate or "output.path" in wanted
        reader = shlex.quote(str(job.output.path if elsewhere else job_file))
        screen = Screen(log_format=log_format)
        view = stack.enter_context(open_progress(progress, screen, wall=SystemClock().wall))
        printer = EventPrinter(screen, level=Level[log_level.upper()], reader=reader)

        async def run() -> Summary:
            return await run_job(
                job,
                options=RunOptions(
                    limit=limit,
                    fresh=fresh,
                    repair=repair,
                    wait=not no_wait,
                    cancel=cancel,
                    signals=True,
                    http_log=HttpLogRules(level=http_log, allow=http_log_allow) if http_log else None,
                ),
                listener=printer.hear,
                watcher=view.update,
            )

        try:
            summary = anyio.run(run, backend_options={"use_uvloop": True})
        except Exception as error:
            if not isinstance(error, PipelineError):  # the run began, and its page helps to find out why it ended
                _write_page(job.output.path)
            raise
    page = _write_page(job.output.path)
    try:
        if as_json:
            echo_json(summary.as_json())
        else:
            click.echo("\n".join(closing(summary, reader=reader, report=page)))
        sys.stdout.flush()
    except OSError:
        end_quietly()  # nobody reads the last words; what the run came to is said by the exit code all the same
    return summary.exit_code or 0


def _write_page(root: Path) -> str | None:
    """Write the report, which tells and which nothing depends on; None, and a word on stderr, where that fails."""
    from pipeline.clock import SystemClock  # noqa: PLC0415 - once the run has ended
    from pipeline.views.report import write_report  # noqa: PLC0415

    try:
        return str(write_report(root, now=SystemClock().wall()))
    except Exception as error:  # noqa: BLE001 - what the run came to is not changed by its page
        reason = str(error) if isinstance(error, PipelineError) else type(error).__name__
        with suppress(OSError):
            click.echo(f"the report could not be written ({reason}); later: pipeline report {root}", err=True)
        return None
