"""`pipeline doctor`: whether this machine, as it is, can run a job."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.common import (
    checked_job,
    echo_json,
    in_order,
    input_problems,
    job_argument,
    json_option,
    read_draft,
    set_option,
)
from pipeline.errors import JobFileError

if TYPE_CHECKING:
    from pipeline.views.doctor import Finding

_REFUSED = 3


@click.command("doctor")
@job_argument
@click.option("--probe", is_flag=True, help="Also send one tiny request to each deployment, which is billed.")
@set_option
@json_option
def command(*, job_file: Path, probe: bool, overrides: tuple[tuple[str, str], ...], as_json: bool) -> int:
    """Check disk, network, proxy, credentials, deployments and clock for a job.

    One line each says ok, warn or fail, and what to do about it. Nothing that costs money is sent without --probe, and
    nothing is written. The exit code is 3 when something failed, 2 for what is wrong with the job file.
    """
    draft = read_draft(job_file, overrides=dict(overrides), simulate=False)
    job = checked_job(draft)
    problems = input_problems(draft)
    if problems:
        raise JobFileError(in_order(problems))

    import anyio  # noqa: PLC0415 - what follows is for a job that can run

    from pipeline.clock import SystemClock  # noqa: PLC0415
    from pipeline.views.doctor import Status, examine, finding_lines  # noqa: PLC0415

    async def look() -> list[Finding]:
        return [one async for one in examine(job, clock=SystemClock(), environ=os.environ, probe=probe)]

    findings = anyio.run(look)
    failed = any(one.status is Status.FAIL for one in findings)
    if as_json:
        echo_json({"ok": not failed, "job": str(job_file), "findings": [one.as_json() for one in findings]})
    else:
        click.echo("\n".join(finding_lines(findings)))
    return _REFUSED if failed else 0
