"""`pipeline init`: a commented job file that runs."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from pipeline import operations

_ROWS = "rows.jsonl"


@click.command("init")
@click.argument("operation", type=click.Choice(operations.names()))
@click.argument("job_file", metavar="[JOB]", required=False, type=click.Path(path_type=Path))
def command(*, operation: str, job_file: Path | None) -> None:
    """Write a commented job file, and a few rows for it.

    JOB is the file or folder to write to; by default OPERATION.yaml in this folder. Nothing is overwritten.
    """
    path = job_file or Path()
    if path.is_dir():
        path /= f"{operation}.yaml"
    entry = operations.get(operation)
    rows = path.with_name(_ROWS)
    if rows.exists() and rows.read_text(encoding="utf-8") != entry.starter_rows:
        rows = path.with_name(f"{path.stem}-{_ROWS}")
    if path.suffix not in {".yaml", ".yml"}:
        raise click.UsageError(f"{path} would be read as another format: give it a name that ends with .yaml")
    for file in (path, rows):
        if file.exists() and file.name != _ROWS:
            raise click.UsageError(f"{file} exists: name another file, pipeline init {operation} NAME.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    # A folder of its own for each job: two jobs in one folder would be one run.
    starter = entry.starter.replace(_ROWS, rows.name).replace(f"out/{operation}", f"out/{path.stem}")
    path.write_text(starter, encoding="utf-8")
    wrote = [path] if rows.exists() else [path, rows]
    rows.write_text(entry.starter_rows, encoding="utf-8")
    for name, content in entry.starter_files().items():
        file = path.parent / name
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(content)
            wrote.append(file)
    said = shlex.quote(str(path))
    click.echo(f"wrote {_listed(wrote)}")
    click.echo(f"try it without an account:  pipeline run --simulate {said}")
    click.echo(f"check it for the real one:  pipeline validate {said}")


def _listed(files: list[Path]) -> str:
    *most, last = map(str, files)
    return f"{', '.join(most)} and {last}" if most else last
