"""`pipeline verify`: read every byte of a run back and check it."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import click

from pipeline.cli.common import (
    checked_job,
    echo_json,
    find_run,
    json_option,
    read_draft,
    run_argument,
)
from pipeline.rehearsal import SIMULATED_SUFFIX

_DAMAGED = 5


@click.command("verify")
@run_argument
@click.option("--input", "with_input", is_flag=True, help="Read the whole input again and compare it too.")
@json_option
def command(*, target: Path, with_input: bool, as_json: bool) -> int:
    """Read every byte of a run back: parts, files of rows, checksums, ordinals, counts, manifest, journal, attempts.

    Takes a job file or an output folder, of a run that has ended. Nothing is written. The exit code is 5 when
    anything is not as it was written.
    """
    from pipeline.store.folder import Layout  # noqa: PLC0415 - for the command that needs it
    from pipeline.store.verify import keep_runs_out, verify_folder  # noqa: PLC0415
    from pipeline.views.text import count, plain, size  # noqa: PLC0415

    layout = Layout(find_run(target))
    with keep_runs_out(layout):
        verified = verify_folder(layout)
        findings = list(verified.findings)
        if with_input and not findings:
            from pipeline.views.reread import reread_input  # noqa: PLC0415 - for those who ask

            job = checked_job(read_draft(_job_file(target, layout.summary), overrides={}, simulate=True))
            findings += reread_input(job, layout)
    if layout.root.name.endswith(SIMULATED_SUFFIX):
        # Without --simulate it would be the real job that runs.
        findings = [
            replace(found, advice=found.advice.replace("--repair", "--simulate --repair")) for found in findings
        ]
    if as_json:
        echo_json(
            {
                "ok": not findings,
                "output": str(layout.root),
                "parts": verified.parts,
                "bytes": verified.bytes,
                "rows": {"ok": verified.ok, "failed": verified.failed, "not_in_parts": verified.loose},
                "findings": [asdict(finding) for finding in findings],
            }
        )
    else:
        for finding in findings:
            click.echo(f"{plain(finding.file)}: {plain(finding.message)}; {finding.advice}")
        rows = (
            f"{count(verified.ok, 'row')} ok, {verified.failed:,} failed, {verified.loose:,} of them not yet in a part"
        )
        state = "all as it was written" if not findings else count(len(findings), "finding")
        click.echo(
            f"{plain(str(layout.root))}: {count(verified.parts, 'part')}, {size(verified.bytes)}, {rows}: {state}"
        )
    return _DAMAGED if findings else 0


def _job_file(target: Path, summary_path: Path) -> Path:
    """Return the job file of a run: the one given, or the one that its summary names."""
    if target.is_file():
        return target
    from pipeline.store.summary import read_summary  # noqa: PLC0415 - for those who ask

    try:
        file = Path(read_summary(summary_path).job_file)
    except FileNotFoundError:
        file = None
    if file is None or not file.is_file():
        raise click.UsageError("the run's job file is not found from here: give it instead of the folder")
    return file
