"""Every error that leaves the package, drawn as a tree; each carries fields and says what to do next.

PipelineError
 +-- JobFileError        the job file is wrong: every problem at once                 exit 2
 +-- JobChangedError     a semantic key changed since the run began                   exit 2
 +-- InputChangedError   the input's rows changed since the run began                 exit 2
 +-- ExamplesError       rows are no examples to train on: nothing was sent           exit 2
 +-- RefusedError        the service refuses: credentials, network, deployment        exit 3
 +-- StoppedEarlyError   a budget, deadline, outage or long pause ended the run       exit 4
 +-- StorageError        disk full or failing                                         exit 5
 |    +-- DiskFullError  no space, or no quota, is left on the disk                   exit 5
 |    +-- DamageError    a committed file is not what was written                     exit 5
 +-- DefectError         a bug of ours                                                exit 70
 |    +-- StalledError   nothing happened for too long, and nothing was waited for    exit 70
 +-- FolderHeldError     another run holds the output folder                          exit 75
 +-- RowProblem          one row cannot be asked, or its answer cannot be used; never leaves a run
      +-- RowError  +-- TemplateError  +-- MediaError  +-- ReplyError
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.model import ErrorInfo, ErrorType


class PipelineError(Exception):
    """Something that a person must know. `exit_code` is what the command ends with."""

    exit_code: ClassVar[int] = 70


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing wrong in a job file, with its place. Lines and columns count from 1.

    `line` and `column` are None where the problem has no place in the file (an override on the command line); `file` is
    empty where it is in no file.
    """

    file: str
    line: int | None
    column: int | None
    path: str
    message: str

    def __str__(self) -> str:
        """FILE:LINE:COL: path.to.field: what is wrong. One line, in which nothing foreign moves a cursor."""
        place = self.file if self.line is None else f"{self.file}:{self.line}:{self.column}"
        text = ": ".join(part for part in (place, self.path, self.message) if part)
        if text.isprintable():
            return text
        return "".join(
            one if one.isprintable() else one.encode("unicode_escape", "backslashreplace").decode() for one in text
        )


class JobFileError(PipelineError):
    """The job file is wrong; nothing was sent and nothing was written."""

    exit_code: ClassVar[int] = 2

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))


class JobChangedError(PipelineError):
    """What is asked of the rows changed since the run began; its results would be mixed."""

    exit_code: ClassVar[int] = 2


class InputChangedError(PipelineError):
    """The input's rows changed since the run began; results would belong to other rows."""

    exit_code: ClassVar[int] = 2


class ExamplesError(PipelineError):
    """Rows are no examples to train a model on; nothing was sent."""

    exit_code: ClassVar[int] = 2


class RefusedError(PipelineError):
    """The service refuses, and a person must act: credentials, network rules, deployment, spent money."""

    exit_code: ClassVar[int] = 3


class StoppedEarlyError(PipelineError):
    """The run ended before its rows did and can be continued. The message says when to come back."""

    exit_code: ClassVar[int] = 4


class NoTokenYetError(StoppedEarlyError):
    """A token endpoint does not answer, or is busy: asking again later may do."""


class StorageError(PipelineError):
    """A disk is full or failing; what was committed is safe and the run can be continued."""

    exit_code: ClassVar[int] = 5


class DiskFullError(StorageError):
    """No space, or no quota, is left on the disk."""


class DamageError(StorageError):
    """A committed file is not what was written."""


class DefectError(PipelineError):
    """A defect of ours; what was committed is safe."""

    exit_code: ClassVar[int] = 70


class StalledError(DefectError):
    """Nothing happened for too long although nothing was waited for."""


class FolderHeldError(PipelineError):
    """Another run holds the output folder."""

    exit_code: ClassVar[int] = 75


class RowProblem(Exception):  # noqa: N818 - not an error of the run: it ends one row
    """One row cannot be asked, or its answer cannot be used."""

    type: ClassVar[ErrorType] = ErrorType.ROW

    def __init__(self, *, code: str, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(message)

    @property
    def info(self) -> ErrorInfo:
        """The row's `error` column."""
        return ErrorInfo(type=self.type, code=self.code, message=self.message)


class RowError(RowProblem):
    """The row's own data cannot be used: unparseable, wrong type, empty, too long, a second holder of its id."""


class TemplateError(RowProblem):
    """A template of the request could not be rendered over the row."""

    type: ClassVar[ErrorType] = ErrorType.TEMPLATE


class MediaError(RowProblem):
    """A picture or recording that the row names cannot be read or sent."""

    type: ClassVar[ErrorType] = ErrorType.MEDIA


class ReplyError(RowProblem):
    """The service's answer is not what the operation promises: cut, shapeless, too few vectors."""

    type: ClassVar[ErrorType] = ErrorType.REPLY
