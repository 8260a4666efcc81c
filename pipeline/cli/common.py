"""What commands share: options, reading a job with all its problems, finding a run, printing JSON."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pipeline import operations, sources
from pipeline.errors import JobFileError, Problem
from pipeline.job.places import placed_source_error
from pipeline.rehearsal import simulated_folder
from pipeline.views.text import json_text

if TYPE_CHECKING:
    from pipeline.job.load import Draft
    from pipeline.job.spec import Job


_Command = TypeVar("_Command", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout and nothing else there.")


def pairs_of(form: str) -> Callable[[click.Context, click.Parameter, tuple[str, ...]], tuple[tuple[str, str], ...]]:
    """Have each value cut at its first equals sign; `form` says what one looks like."""

    def cut(_: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
        pairs = [text.partition("=") for text in values]
        for name, sign, _text in pairs:
            if not sign or not name.strip():
                raise click.BadParameter(f"must be of the form {form}", param=parameter)
        return tuple((name.strip(), text) for name, _sign, text in pairs)

    return cut


set_option = click.option(
    "--set",
    "overrides",
    metavar="PATH=VALUE",
    callback=pairs_of("path=value, such as run.workers=8"),
    multiple=True,
    help="Replace a value of the job file, such as run.workers=8 or request.dimensions=256. Repeatable.",
)


def job_argument(function: _Command) -> _Command:
    """One job file."""
    return click.argument("job_file", metavar="JOB", type=click.Path(path_type=Path))(function)


def run_argument(function: _Command) -> _Command:
    """A run, by its job file or its output folder."""
    return click.argument("target", metavar="JOB_OR_FOLDER", type=click.Path(exists=True, path_type=Path))(function)


def read_draft(path: Path, *, overrides: Mapping[str, str], simulate: bool) -> Draft:
    """Read a job file with this process's environment."""
    from pipeline.job.load import read  # noqa: PLC0415 - pydantic, for commands that read a job

    return read(
        path,
        environ=os.environ,
        operations=operations.names(),
        formats=sources.names(),
        overrides=overrides,
        simulate=simulate,
        first_url=sources.first_url,
    )


def checked_job(draft: Draft) -> Job:
    """Return the job. Raises JobFileError with every problem, those of the input's columns among them."""
    if draft.job is not None:
        return draft.job
    raise JobFileError(in_order((*draft.problems, *input_problems(draft))))


def input_problems(draft: Draft, *, result_columns: tuple[str, ...] = ()) -> tuple[Problem, ...]:
    """Find what opening the input shows, in spite of problems elsewhere."""
    from pipeline.sources import SourceError, open_source  # noqa: PLC0415 - pyarrow, likewise

    if draft.input is None:
        return ()
    try:
        source = open_source(draft.input.path, format=draft.input.format, columns=draft.input.columns)
    except SourceError as error:
        return (placed_source_error(draft, error),)
    return draft.column_problems(source.schema.names, result_columns=result_columns)


def in_order(problems: tuple[Problem, ...]) -> tuple[Problem, ...]:
    """Sort by place; what has none comes first."""
    return tuple(sorted(problems, key=lambda problem: (problem.line or 0, problem.column or 0, problem.path)))


def echo_json(value: object, *, in_a_line: bool = False) -> None:
    """Print JSON on stdout, for people to read or in one line."""
    click.echo(json_text(value, indent=None if in_a_line else 2))


def find_run(target: Path) -> Path:
    """Return the output folder that a job file or a folder means.

    A job whose only run is a simulated one means that, which is said on stderr. Raises click.UsageError where there
    is no run, JobFileError where the job file does not say where its output goes.
    """
    if target.is_dir():
        root = target.parent if target.name == "_pipeline" else target
        if (root / "_pipeline").is_dir():
            return root
        raise click.UsageError(f"{target} holds no run: give a job file, or the folder that its output.path names")
    draft = read_draft(target, overrides={}, simulate=True)
    if draft.output is None:
        raise JobFileError(draft.problems)
    root = draft.output.path
    if (root / "_pipeline").is_dir():
        return root
    simulated = simulated_folder(root)
    if (simulated / "_pipeline").is_dir():
        click.echo(f"there is only a simulated run: {simulated}", err=True)
        return simulated
    raise click.UsageError(f"{target} has not been run yet: {root} does not exist; begin with: pipeline run {target}")


def refuse_within_run(root: Path, file: Path) -> None:
    """Refuse to write a file among those of a run, which it would destroy or be taken for. Raises click.UsageError."""
    if root.resolve() in file.resolve().parents:
        raise click.UsageError(f"{file} lies in the run's own folder, which is for its results: name a file elsewhere")
