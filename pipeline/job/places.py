"""Where in the job file something stands that only shows later: what opening its input finds, say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import Problem

if TYPE_CHECKING:
    from pipeline.job.load import Draft
    from pipeline.job.spec import Job


def placed_source_error(job: Draft | Job, error: Exception) -> Problem:
    """Give what is wrong with an input its place: the key that the message begins with, else its path."""
    key, _, _ = str(error).partition(": ")
    return placed(job, key if key in {"input.format", "input.columns"} else "input.path", str(error))


def placed(job: Draft | Job, path: str, message: str) -> Problem:
    """Give what is wrong with a value its place in the job file."""
    keys = tuple(path.split("."))
    marks = job.origin.marks
    line, column = marks.get(keys) or marks.get((*keys, 0)) or (None, None)
    return Problem(file=str(job.file), line=line, column=column, path=path, message=message.removeprefix(f"{path}: "))
