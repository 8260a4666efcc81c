"""`pipeline export`: everything finished, as one file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline import operations
from pipeline.cli.common import (
    checked_job,
    echo_json,
    find_run,
    json_option,
    read_draft,
    refuse_within_run,
    run_argument,
)
from pipeline.errors import JobFileError

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.store.export import Exported, Finished
    from pipeline.store.folder import Layout

_FORMATS = ("parquet", "jsonl", "csv")


@click.command("export")
@run_argument
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--format", "kind", type=click.Choice(_FORMATS), help="Default: what FILE's name ends with.")
@click.option("--force", is_flag=True, help="Replace FILE where it is there.")
@json_option
def command(*, target: Path, file: Path, kind: str | None, force: bool, as_json: bool) -> None:
    """Write everything finished as one Parquet, JSONL or CSV file, in the order of the input.

    Rows that are finished and not yet in a part are among them; rows that `pipeline retry` is sending again are not.
    FILE is whole or absent, and lies outside the output folder; `-` writes JSONL or CSV to stdout. In CSV, lists and
    structs are JSON, and text that a spreadsheet would run as a formula begins with '.
    """
    from pipeline.store.export import Format, write_export, write_lines  # noqa: PLC0415
    from pipeline.store.folder import Layout  # noqa: PLC0415 - for the command that needs it
    from pipeline.views.text import count  # noqa: PLC0415

    is_stdout = str(file) == "-"
    kind = kind or file.name.rpartition(".")[2].lower()
    if kind not in _FORMATS:
        raise click.UsageError("say --format parquet, jsonl or csv, or let FILE's name end with one of them")
    if is_stdout and (kind == Format.PARQUET or as_json):
        raise click.UsageError("only JSONL and CSV can be written to stdout, and nothing beside them")
    if not is_stdout and not file.parent.is_dir():
        raise click.UsageError(f"{file.parent} is no folder: make it first")
    layout = Layout(find_run(target))
    if not is_stdout:
        refuse_within_run(layout.root, file)
    finished = _finished(layout, target)
    if is_stdout:
        write_lines(sys.stdout.buffer, finished, Format(kind))
        sys.stdout.buffer.flush()
        exported = finished.exported
    else:
        try:
            exported = write_export(file, finished, Format(kind), replace=force)
        except FileExistsError:
            raise click.UsageError(f"{file} is there already: give --force to replace it") from None
    _tell(exported)
    if as_json:
        echo_json(
            {
                "file": str(file),
                "rows": exported.rows,
                "rows_without_input_columns": exported.without_cells,
                "rows_asked_again": exported.asked_again,
            }
        )
    elif not is_stdout:
        click.echo(f"{count(exported.rows, 'row')} in {file}")


def _tell(exported: Exported) -> None:
    """Say on stderr what an export lacks."""
    from pipeline.views.text import count  # noqa: PLC0415 - for the command that needs it

    if exported.without_cells:
        click.echo(
            f"{count(exported.without_cells, 'row')} without the input's columns, which are null: the input is not "
            "what the run read",
            err=True,
        )
    if exported.asked_again:
        is_are = "is" if exported.asked_again == 1 else "are"
        click.echo(f"{count(exported.asked_again, 'row')} {is_are} being sent again, and left out", err=True)


def _finished(layout: Layout, target: Path) -> Finished:
    """Find the columns and, for rows in no part, the input. Raises click.UsageError where nothing is finished."""
    import pyarrow.parquet as pq  # noqa: PLC0415 - for the command that needs it

    from pipeline.store.export import Finished  # noqa: PLC0415
    from pipeline.store.journal import JournalReader  # noqa: PLC0415

    try:
        with JournalReader(layout.journal) as reader:
            parts, loose = reader.parts(), sum(reader.counts())
    except FileNotFoundError:
        parts, loose = [], 0
    if not parts and not loose and not _is_complete(layout):
        raise click.UsageError(f"nothing is finished yet in {layout.root}")
    schema = pq.read_schema(layout.part(parts[0].name)).remove_metadata() if parts else None
    return Finished(layout=layout, schema=schema) if schema and not loose else _with_input(layout, target, schema)


def _is_complete(layout: Layout) -> bool:
    """Whether there is nothing left to do: an input without rows has been read, too."""
    from pipeline.store.summary import read_summary  # noqa: PLC0415 - for the command that needs it

    try:
        return read_summary(layout.summary).state == "complete"
    except FileNotFoundError:
        return False


def _with_input(layout: Layout, target: Path, schema: pa.Schema | None) -> Finished:
    """Have the cells of rows in no part read from the input, and the columns that the first part will have."""
    from pipeline.plan.again import carried_again  # noqa: PLC0415 - for the command that needs it
    from pipeline.plan.ranges import carried_schema, plan_rules  # noqa: PLC0415
    from pipeline.sources import SourceError, open_source  # noqa: PLC0415
    from pipeline.store.earlier import earlier  # noqa: PLC0415
    from pipeline.store.export import Finished  # noqa: PLC0415
    from pipeline.store.parts import part_schema  # noqa: PLC0415

    try:
        job = checked_job(read_draft(_job_file(layout, target), overrides={}, simulate=True))
        before = earlier(layout)
        kept = None if before is None else before.schema
        source = open_source(job.input.path, format=job.input.format, columns=job.input.columns, kept_schema=kept)
    except (click.UsageError, JobFileError, SourceError):
        if schema is None:
            raise
        return Finished(layout=layout, schema=schema)
    rules = plan_rules(job, source, limit=None)
    operation = operations.get(job.operation).factory(job).settled(before.facts if before else {})
    if schema is None:
        try:
            schema = part_schema(carried_schema(source, rules), operation.schema())
        except LookupError:
            raise click.UsageError(
                "no part is written yet, and the columns' types are not known until a row is ok"
            ) from None
    return Finished(layout=layout, schema=schema, cells=lambda span: carried_again(source, operation, rules, span))


def _job_file(layout: Layout, target: Path) -> Path:
    """Find the job file of a run: what was given, or what the run's summary names. Raises click.UsageError."""
    from pipeline.store.summary import read_summary  # noqa: PLC0415 - for the command that needs it

    if target.is_file():
        return target
    try:
        file = Path(read_summary(layout.summary).job_file)
    except FileNotFoundError:
        file = Path()
    if not file.is_file():
        raise click.UsageError("no part is written yet: give the job file instead of the folder")
    return file
