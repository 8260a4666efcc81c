"""Stops a run whose every request is refused for the same reason, before it is asked a million times."""

from __future__ import annotations

from pipeline.errors import RefusedError
from pipeline.model import ErrorInfo

LIMIT = 20
"""Refusals of one kind, with no answer before them, that stop the run."""

_WIDE_CODES = frozenset(
    {
        "unsupported_parameter",
        "unsupported_value",
        "unknown_parameter",
        "invalid_json_schema",
        "model_not_found",
        "operationnotsupported",
    }
)
_ROWS_OWN = ("input", "messages", "prompt")
"""The fields that rows fill: what is wrong with them is wrong with a row."""


class Breaker:
    """Counts refusals that every row would meet: a parameter, a model, a schema. One answer, and it counts no more."""

    def __init__(self) -> None:
        self._answered = False
        self._count = 0
        self._kind: tuple[str, str | None] | None = None

    def answered(self) -> None:
        """Note that the service answered a request: what it refuses from now on is the row's own."""
        self._answered = True

    def holds(self, error: ErrorInfo) -> bool:
        """Whether a refusal may be everybody's, so that its rows should wait and be asked again.

        Raises RefusedError at the 20th of one kind in a row; the rows then stay pending.
        """
        if self._answered or not _is_wide(error):
            return False
        kind = (error.code, error.param)
        self._count = self._count + 1 if kind == self._kind else 1
        self._kind = kind
        if self._count >= LIMIT:
            raise RefusedError(
                f"each of the first {LIMIT} requests was refused for the same reason, {error.code}: {error.message} "
                "Mend the job file and run the same command again; no row was failed by this"
            )
        return True


def _is_wide(error: ErrorInfo) -> bool:
    if error.code.lower() in _WIDE_CODES:
        return True
    field = (error.param or "").lstrip("$.").partition("[")[0].partition(".")[0]
    return bool(field) and field not in _ROWS_OWN and error.code != "content_filter"
