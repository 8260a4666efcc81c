"""What operations check of a request alike: texts of rows, and fields that a job file should not have said."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.errors import JobFileError, Problem, RowError
from pipeline.job.batch import BATCH_FORMAT
from pipeline.job.template import has_template

if TYPE_CHECKING:
    from pipeline.job.spec import Job


def refuse(job: Job, problems: Mapping[str, str]) -> None:
    """Raise JobFileError, in the file's order, where there are problems: what is wrong with which of its fields."""
    if not problems:
        return
    marks = job.origin.marks
    found = []
    for field, message in problems.items():
        line, column = marks.get(("request", field)) or marks.get(("request",)) or (None, None)
        found.append(Problem(file=str(job.file), line=line, column=column, path=f"request.{field}", message=message))
    raise JobFileError(tuple(sorted(found, key=lambda problem: (problem.line or 0, problem.column or 0))))


def lacking(request: Mapping[str, Any], *fields: str) -> dict[str, str]:
    """Say which of these fields the request does not have, and what was likely meant by them."""
    said = {}
    for field in fields:
        if field not in request:
            near = difflib.get_close_matches(field, request, 1)
            said[field] = f"is missing (did you mean it by `{near[0]}`?)" if near else "is missing"
    return said


def require(job: Job, *fields: str) -> None:
    """Raise JobFileError where the job's request lacks one of these fields. Lines for the Batch API bring their own."""
    if job.input.format != BATCH_FORMAT:
        refuse(job, lacking(job.request, *fields))


def is_fixed(value: Any) -> bool:
    """Whether a field of the request says the same for every row."""
    return not (isinstance(value, str) and has_template(value))


def text_of(body: Mapping[str, Any], field: str, *, most: int | None, taker: str = "the service") -> str:
    """Give a row's text. Raises RowError: `empty`, `type`, and `too_long` for more than `most` characters."""
    value = body.get(field)
    if value is None or value == "":
        raise RowError(code="empty", message=f"request.{field} is empty or null")
    if not isinstance(value, str):
        raise RowError(
            code="type",
            message=f"request.{field} is {type(value).__name__}, not text; '{{{{ column | string }}}}' makes it text",
        )
    if most is not None and len(value) > most:
        raise RowError(
            code="too_long",
            message=f"request.{field} has {len(value)} characters; {taker} takes at most {most}: shorten it",
        )
    return value
