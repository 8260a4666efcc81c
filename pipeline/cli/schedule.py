"""`pipeline schedule`: what cron, systemd, Kubernetes or GitHub need to run a job."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import click

from pipeline.cli.common import checked_job, job_argument, read_draft

if TYPE_CHECKING:
    from pipeline.job.spec import Job
    from pipeline.views.schedule import Scheduled

_TARGETS = ("cron", "systemd", "kubernetes", "github")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)")


@click.command("schedule", context_settings={"ignore_unknown_options": False})
@job_argument
@click.argument("arguments", nargs=-1)
@click.option(
    "--at",
    required=True,
    metavar="TIMES",
    help="When: 02:15, weekdays 02:15, mon,thu 22:00, every 15 minutes, or the five fields of cron.",
)
@click.option("--for", "target", type=click.Choice(_TARGETS), default="cron", help="For whom; cron by default.")
@click.option("--timezone", metavar="ZONE", help="A time zone such as Europe/Berlin (systemd, Kubernetes).")
@click.option(
    "--env-file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A file of NAME=value lines with the variables that the job reads (cron, systemd).",
)
@click.option("--log", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="cron: where stderr goes.")
@click.option("--image", metavar="IMAGE", help="Kubernetes: the image in which pipeline is installed.")
@click.option("--claim", metavar="NAME", help="Kubernetes: the claim of the volume that holds the job's folders.")
@click.option(
    "--write",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Write files of the right names there, instead of printing them.",
)
def command(
    *,
    job_file: Path,
    arguments: tuple[str, ...],
    at: str,
    target: str,
    timezone: str | None,
    env_file: Path | None,
    log: Path | None,
    image: str | None,
    claim: str | None,
    folder: Path | None,
) -> None:
    """Print what runs a job on a schedule. Nothing is installed.

    Options for `pipeline run` follow two dashes:  pipeline schedule job.yaml --at 02:15 -- --deadline 3h
    """
    from pipeline.views.schedule import Scheduled, ScheduleError, read_times  # noqa: PLC0415 - for who schedules

    _check_arguments(job_file, arguments)
    job_file = job_file.absolute()
    job = checked_job(read_draft(job_file, overrides={}, simulate=True))
    output = job.output.path.absolute()
    try:
        scheduled = Scheduled(
            name=job.name,
            program=_program(),
            job=job_file,
            log=(log or job_file.with_suffix(".log")).absolute(),
            folder=Path(os.path.commonpath([job_file.parent, output.parent])),
            times=read_times(at),
            arguments=arguments,
            env_file=None if env_file is None else env_file.absolute(),
            timezone=timezone,
            grace_s=job.run.grace_s,
            variables=_variables(job_file),
        )
        files = _files(target, scheduled, job, image=image, claim=claim)
    except ScheduleError as error:
        raise click.UsageError(str(error)) from error
    if folder is None:
        several = len(files) > 1
        click.echo("\n".join(f"# {name}\n{text}" if several else text for name, text in files.items()), nl=False)
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
        click.echo(str(folder / name))


def _check_arguments(job_file: Path, arguments: tuple[str, ...]) -> None:
    """Have `pipeline run` read its options now, and not when nobody looks. Raises click.UsageError."""
    from pipeline.cli.run import command as run  # noqa: PLC0415 - for who schedules

    try:
        run.make_context("pipeline run", [str(job_file), *arguments])
    except click.UsageError as error:
        raise click.UsageError(f"pipeline run would not take that: {error.format_message()}") from error


def _files(target: str, scheduled: Scheduled, job: Job, *, image: str | None, claim: str | None) -> dict[str, str]:
    """What is to be printed, by the names of files. Raises ScheduleError, click.UsageError."""
    from pipeline.views.schedule import cron, github, kubernetes, systemd  # noqa: PLC0415 - for who schedules

    match target:
        case "cron":
            return {f"{scheduled.slug}.crontab": cron(scheduled)}
        case "systemd":
            return systemd(scheduled)
        case "kubernetes":
            if image is None:
                raise click.UsageError("--for kubernetes needs --image: one in which pipeline is installed")
            return {f"{scheduled.slug}.yaml": kubernetes(scheduled, image=image, claim=claim)}
    root = _repository(Path(scheduled.job))
    output = PurePosixPath(os.path.relpath(job.output.path.absolute(), root))
    inside = PurePosixPath(os.path.relpath(scheduled.job, root))
    return {f"{scheduled.slug}.yml": github(scheduled, job=inside, output=output)}


def _repository(job_file: Path) -> Path:
    """The repository that a job file lies in. Raises click.UsageError."""
    for folder in job_file.parents:
        if (folder / ".git").exists():
            return folder
    raise click.UsageError(f"{job_file} lies in no git repository, which --for github needs")


def _program() -> tuple[str, ...]:
    """How this installation is called, by an absolute path."""
    script = Path(sys.executable).with_name("pipeline")
    return (str(script),) if script.is_file() else (sys.executable, "-m", "pipeline")


def _variables(job_file: Path) -> tuple[str, ...]:
    """The variables that a job file names, in its order."""
    return tuple(dict.fromkeys(_VARIABLE.findall(job_file.read_text(encoding="utf-8"))))
