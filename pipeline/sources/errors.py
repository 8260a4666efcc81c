"""The one error that a source raises: the input as a whole cannot be read."""

from __future__ import annotations

from typing import ClassVar

from pipeline.errors import PipelineError


class SourceError(PipelineError):
    """The input cannot be read: nothing there, an unknown or damaged format, files that do not agree, a wrong type."""

    exit_code: ClassVar[int] = 2
