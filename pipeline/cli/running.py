"""What `run` and `retry` share: how a job is read, how it is watched, and what it ends with."""

from __future__ import annotations

import functools
import os
import shlex
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.common import checked_job, echo_json, job_argument, json_option, read_draft, set_option
from pipeline.cli.endings import end_quietly
from pipeline.errors import PipelineError
from pipeline.memory import collect_seldom, keep_memory_small
from pipeline.views.text import plain

if TYPE_CHECKING:
    from pipeline.job.spec import Job
    from pipeline.run import RunOptions
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


_OPTIONS = (
    job_argument,
    click.option("--simulate", is_flag=True, help="Rehearse against the embedded simulator; no credential is touched."),
    click.option(
        "--simulate-speed",
        type=click.FloatRange(min=0, min_open=True),
        metavar="FACTOR",
        help="Let quota time pass faster: at 60 an hour of quota passes in a minute.",
    ),
    set_option,
    click.option("--workers", metavar="N", help="Requests in flight at most (run.workers)."),
    click.option(
        "--max-cost", metavar="DOLLARS", help="Stop before the folder has cost more than this (run.max_cost)."
    ),
    click.option("--deadline", metavar="TIME", help="Stop cleanly after this long, such as 2h (run.deadline)."),
    click.option(
        "--canary", metavar="N", help="The first rows that must pass before others are sent, or off (run.canary)."
    ),
    click.option(
        "--fail-on", metavar="WHEN", help="When failed rows make the exit code 1: any, never or a share (5%)."
    ),
    click.option(
        "--no-wait",
        is_flag=True,
        help="Batch lane and fine-tuning: submit what fits, collect what is done, and end with exit code 4 while "
        "batches or a training are under way.",
    ),
    json_option,
    click.option(
        "--progress",
        type=click.Choice(["auto", "rich", "plain", "none"]),
        default="auto",
        help="A status line (rich), a line every five seconds (plain), or nothing; auto looks at the terminal.",
    ),
    click.option(
        "--log-format",
        type=click.Choice(["auto", "console", "json"]),
        default="auto",
        help="Lines for a person or JSON on stderr; auto looks at the terminal.",
    ),
    click.option("--log-level", type=click.Choice(_LEVELS), default="info", help="The least important lines to print."),
    click.option(
        "--http-log",
        metavar="LEVEL",
        callback=_detail,
        help=f"Log requests and replies: {', '.join(_DETAILS)}. Default: {_DETAIL_VARIABLE}, else none. Bodies hold "
        "personal data.",
    ),
    click.option(
        "--http-log-allow",
        metavar="HEADER",
        multiple=True,
        help="Log this header's value too, where it is no credential. Repeatable.",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """What both commands are called with: the job file, what replaces its values, and what is shown meanwhile."""

    job_file: Path
    simulate: bool
    simulate_speed: float | None
    overrides: tuple[tuple[str, str], ...]
    workers: str | None
    max_cost: str | None
    deadline: str | None
    canary: str | None
    fail_on: str | None
    no_wait: bool
    as_json: bool
    progress: str
    log_format: str
    log_level: str
    http_log: DetailLevel | None
    http_log_allow: tuple[str, ...]

    @property
    def wanted(self) -> dict[str, str]:
        """The values of the job file that are replaced."""
        options = {
            "run.workers": self.workers,
            "run.max_cost": self.max_cost,
            "run.deadline": self.deadline,
            "run.canary": self.canary,
            "run.fail_on": self.fail_on,
        }
        return {**dict(self.overrides), **{name: value for name, value in options.items() if value is not None}}

    @property
    def settings(self) -> str:
        """The `--set` options again, quoted for a shell."""
        return "".join(f" --set {shlex.quote(plain(f'{name}={value}'))}" for name, value in self.overrides)

    def job(self, *, but: str | None = None) -> Job:
        """Read the job, with the values that are replaced but for those below `but`. Raises JobFileError."""
        if self.simulate_speed is not None and not self.simulate:
            raise click.UsageError("--simulate-speed is for rehearsals: add --simulate")
        wanted = {name: value for name, value in self.wanted.items() if name.partition(".")[0] != but}
        return checked_job(read_draft(self.job_file, overrides=wanted, simulate=self.simulate))


def running(function: Callable[..., int]) -> Callable[..., int]:
    """Give a command the options of `How`, and hand them to it as `how`."""
    names = [item.name for item in fields(How)]

    @functools.wraps(function)
    def call(**given: Any) -> int:
        keep_memory_small()
        return function(how=How(**{name: given.pop(name) for name in names}), **given)

    decorated: Callable[..., int] = call
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


def carry_out(how: How, job: Job, options: RunOptions) -> int:
    """Run a job, show how it goes, print what it came to; returns the exit code."""
    import anyio  # noqa: PLC0415 - what follows is for a job that can run

    from pipeline.clock import SystemClock  # noqa: PLC0415
    from pipeline.cores import on_one_core  # noqa: PLC0415
    from pipeline.log import Level  # noqa: PLC0415
    from pipeline.rehearsal import simulated  # noqa: PLC0415
    from pipeline.run import run_job  # noqa: PLC0415
    from pipeline.service.http_log import HttpLogRules  # noqa: PLC0415
    from pipeline.views.closing import closing  # noqa: PLC0415
    from pipeline.views.console import EventPrinter, Screen  # noqa: PLC0415
    from pipeline.views.progress import open_progress  # noqa: PLC0415

    http_log = HttpLogRules(level=how.http_log, allow=how.http_log_allow) if how.http_log else None
    options = replace(options, wait=not how.no_wait, simulated=how.simulate, signals=True, http_log=http_log)
    with ExitStack() as stack:
        if how.simulate:
            job = stack.enter_context(simulated(job, speed=how.simulate_speed or 1.0))
        elsewhere = how.simulate or "output.path" in how.wanted
        reader = shlex.quote(str(job.output.path if elsewhere else how.job_file))
        screen = Screen(log_format=how.log_format)
        view = stack.enter_context(open_progress(how.progress, screen, wall=SystemClock().wall))
        printer = EventPrinter(screen, level=Level[how.log_level.upper()], reader=reader)

        async def run() -> Summary:
            return await run_job(job, options=options, listener=printer.hear, watcher=view.update)

        collect_seldom()
        if job.run.processes == 1:  # its senders would begin on the one core
            stack.enter_context(on_one_core())
        try:
            summary = anyio.run(run, backend_options={"use_uvloop": True})
        except Exception as error:
            if not isinstance(error, PipelineError):  # the run began, and its page helps to find out why it ended
                _write_page(job.output.path)
            raise
    page = _write_page(job.output.path)
    try:
        if how.as_json:
            echo_json(summary.as_json())
        else:
            click.echo("\n".join(closing(summary, reader=reader, report=page, settings=how.settings)))
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
