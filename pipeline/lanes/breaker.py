"""Stops a run whose every request is refused for the same reason, before it is asked a million times."""

from __future__ import annotations

from pipeline.errors import RefusedError
from pipeline.model import ErrorInfo

LIMIT = 20
"""Refusals of one kind, with no answer before them, that stop the run."""
LIMIT_LATER = 100
"""Refusals of one kind in a row that stop a run which had answers before: a deployment may change under it."""

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
    """Counts refusals that every row would meet: a parameter, a model, a schema. An answer begins the count anew.

    Before anything was answered every row waits. Later the first of a row of refusals may well be their rows' own, so
    those fail; from the twentieth on it looks like everybody's, and rows wait.
    """

    def __init__(self) -> None:
        self._answered = False
        self._count = 0
        self._kind: tuple[str, str | None] | None = None

    def answered(self) -> None:
        """Note that the service answered a request."""
        self._answered = True
        self._count = 0

    def holds(self, error: ErrorInfo) -> bool:
        """Whether a refusal may be everybody's, so that its row should wait and be asked again.

        Raises RefusedError at the 20th of one kind in a row, or the 100th after answers; the rows that wait then stay
        pending.
        """
        if not _is_wide(error):
            return False
        kind = (error.code, error.param)
        self._count = self._count + 1 if kind == self._kind else 1
        self._kind = kind
        if self._count >= (LIMIT_LATER if self._answered else LIMIT):
            raise RefusedError(self._said(error))
        return not self._answered or self._count >= LIMIT

    def _said(self, error: ErrorInfo) -> str:
        if not self._answered:
            return (
                f"each of the first {LIMIT} requests was refused for the same reason, {error.code}: {error.message} "
                "Mend the job file and run the same command again; no row was failed by this"
            )
        return (
            f"{LIMIT_LATER} requests in a row were refused for the same reason, {error.code}: {error.message} "
            f"The first {LIMIT - 1} of their rows failed, the others wait: see whether the deployment was changed, "
            "then run the same command again, and `pipeline retry` for those that failed"
        )


def _is_wide(error: ErrorInfo) -> bool:
    if error.code.lower() in _WIDE_CODES:
        return True
    field = (error.param or "").lstrip("$.").partition("[")[0].partition(".")[0]
    return bool(field) and field not in _ROWS_OWN and error.code != "content_filter"
