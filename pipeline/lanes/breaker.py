"""Stops a run whose every request is refused for the same reason, before it is asked a million times."""

from __future__ import annotations

from enum import Enum

from pipeline.errors import RefusedError
from pipeline.model import ErrorInfo

LIMIT = 20
"""Refusals of one kind, with no answer before them, that stop the run."""
LIMIT_LATER = 100
"""Refusals of one kind in a row that stop a run which had answers before: a deployment may change under it."""

_WIDE_CODES = frozenset({"unsupported_parameter", "unknown_parameter", "model_not_found", "operationnotsupported"})
"""Codes that are about the request's shape or the model, whatever the values are."""
_WIDE_VALUES = frozenset({"unsupported_value", "invalid_json_schema"})
"""Codes that are about a value, which may be the row's own."""
_ROWS_OWN = frozenset({"input", "messages", "prompt", "file"})
"""The fields that rows fill in every job: what is wrong with them is wrong with a row."""


class Suspicion(Enum):
    """What a refusal looks like: the row's own; everybody's, so it is asked again; or perhaps, so it is held back."""

    NONE = "none"
    ASK_AGAIN = "ask again"
    HOLD_BACK = "hold back"


class Breaker:
    """Counts refusals that every row would meet: a parameter, a model, a schema. An answer begins the count anew.

    Before anything was answered the request is asked again, for there is no sign yet that any can be. Later the refusal
    may well be its rows' own, so it is held back, and the next ones show what it is: an answer, or a hundred refusals.
    """

    def __init__(self, rows_own: frozenset[str] | None = frozenset()) -> None:
        """`rows_own` names further fields of the request that rows fill; None: each row brings the whole request."""
        self._rows_own = rows_own
        self._answered = False
        self._count = 0
        self._unanswered = 0
        self._kind: tuple[str, str | None] | None = None

    def answered(self) -> None:
        """Note that the service answered a request."""
        self._answered = True
        self._count = 0

    def suspects(self, error: ErrorInfo) -> Suspicion:
        """Say whether a refusal may be everybody's.

        Raises RefusedError at the 20th of one kind in a row, or the 100th after answers; before any answer also at the
        100th of whatever kinds, for they would be asked again without end. The rows that were asked again, or held
        back, then stay pending.
        """
        if not self._is_wide(error):
            return Suspicion.NONE
        kind = (error.code, error.param)
        self._count = self._count + 1 if kind == self._kind else 1
        self._kind = kind
        self._unanswered += 1
        if self._count >= (LIMIT_LATER if self._answered else LIMIT):
            raise RefusedError(self._said(error))
        if not self._answered and self._unanswered >= LIMIT_LATER:
            raise RefusedError(
                f"each of the first {LIMIT_LATER} requests was refused for a reason that is no row's own, the last one "
                f"for {error.code}: {error.message} Mend the job file and run the same command again; no row was "
                "failed by this"
            )
        return Suspicion.HOLD_BACK if self._answered else Suspicion.ASK_AGAIN

    def _is_wide(self, error: ErrorInfo) -> bool:
        code = error.code.lower()
        if code in _WIDE_CODES:
            return True
        if self._rows_own is None or code == "content_filter":
            return False
        field = (error.param or "").lstrip("$.").partition("[")[0].partition(".")[0]
        return (bool(field) or code in _WIDE_VALUES) and field not in _ROWS_OWN | self._rows_own

    def _said(self, error: ErrorInfo) -> str:
        if not self._answered:
            return (
                f"each of the first {LIMIT} requests was refused for the same reason, {error.code}: {error.message} "
                "Mend the job file and run the same command again; no row was failed by this"
            )
        return (
            f"{LIMIT_LATER} requests in a row were refused for the same reason, {error.code}: {error.message} "
            "See whether the deployment was changed, then run the same command again; no row was failed by this"
        )
