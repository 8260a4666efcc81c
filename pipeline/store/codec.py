"""How an outcome lies in the journal: one MessagePack payload for all rows of a request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import ormsgpack

from pipeline.model import Attempt, ErrorInfo, ErrorType, Outcome, RequestInfo, RowResult, Usage


class Kept(NamedTuple):
    """A finished row in the shape that payloads have, from which columns are made without more objects.

    `error`, `usage` and `request` are the values of the columns of these names, in order, but for `finished_at`, which
    is epoch seconds.
    """

    ordinal: int
    values: Mapping[str, Any] | None
    error: Sequence[Any] | None
    usage: Sequence[Any] | None
    response: bytes | None
    request: Sequence[Any]

    @property
    def ok(self) -> bool:
        """True when the row has an answer."""
        return self.error is None


def kept(row: RowResult, request: RequestInfo) -> Kept:
    """A row as its payload has it."""
    return Kept._make((*_row(row), _request_values(request)))


def restored(row: Kept) -> tuple[RowResult, RequestInfo]:
    """The row that `kept` was given."""
    own = _unrow(row.ordinal, row.values, row.error, row.usage, row.response)
    return own, _unrequest(row.request)


def encode_outcome(outcome: Outcome) -> bytes:
    """Pack the rows and their request; the attempts are kept beside it."""
    return ormsgpack.packb((_request_values(outcome.request), [_row(row) for row in outcome.rows]))


def decode_outcome(payload: bytes) -> Outcome:
    """Unpack what `encode_outcome` packed, without the attempts."""
    request, rows = ormsgpack.unpackb(payload)
    return Outcome(rows=tuple(_unrow(*row) for row in rows), request=_unrequest(request))


def decode_rows(payload: bytes) -> list[Kept]:
    """The rows of a payload, each with the request."""
    request, rows = ormsgpack.unpackb(payload)
    return [Kept._make((*row, request)) for row in rows]


def _row(row: RowResult) -> tuple[Any, ...]:
    usage = row.usage
    error = row.error
    return (
        row.ordinal,
        row.values,
        None if error is None else (error.type.value, error.code, error.message, error.http_status),
        None
        if usage is None
        else (
            usage.input_tokens,
            usage.output_tokens,
            usage.total_tokens,
            usage.cached_tokens,
            usage.reasoning_tokens,
            usage.seconds,
            usage.characters,
        ),
        row.response,
    )


def _unrow(
    ordinal: int,
    values: Mapping[str, Any] | None,
    error: Sequence[Any] | None,
    usage: Sequence[Any] | None,
    response: bytes | None,
) -> RowResult:
    return RowResult(
        ordinal=ordinal,
        values=values,
        error=None
        if error is None
        else ErrorInfo(type=ErrorType(error[0]), code=error[1], message=error[2], http_status=error[3]),
        usage=None
        if usage is None
        else Usage(
            input_tokens=usage[0],
            output_tokens=usage[1],
            total_tokens=usage[2],
            cached_tokens=usage[3],
            reasoning_tokens=usage[4],
            seconds=usage[5],
            characters=usage[6],
        ),
        response=response,
    )


_REQUEST_FIELDS = (
    "attempts",
    "deployment",
    "model",
    "variant",
    "client_request_id",
    "request_id",
    "apim_request_id",
    "region",
    "latency_ms",
    "finished_at",
)
_request_values = attrgetter(*_REQUEST_FIELDS)


def _unrequest(values: Sequence[Any]) -> RequestInfo:
    return RequestInfo(**dict(zip(_REQUEST_FIELDS, values, strict=True)))


_ATTEMPT_FIELDS = (
    "ordinals",
    "deployment",
    "started_at",
    "latency_ms",
    "status",
    "verdict",
    "code",
    "client_request_id",
    "request_id",
    "apim_request_id",
    "region",
    "estimated_tokens",
    "input_tokens",
    "output_tokens",
    "retry_after_ms",
)
attempt_values: Callable[[Attempt], Sequence[Any]] = attrgetter(*_ATTEMPT_FIELDS)
"""The values of an attempt's fields, in order: the shape that payloads have."""


def encode_attempt(attempt: Attempt) -> bytes:
    """Pack one attempt."""
    return ormsgpack.packb(attempt_values(attempt))


def decode_attempt_values(payload: bytes) -> Sequence[Any]:
    """Unpack what `encode_attempt` packed, as `attempt_values` gives it."""
    values: list[Any] = ormsgpack.unpackb(payload)
    return values


def decode_attempt(payload: bytes) -> Attempt:
    """Unpack what `encode_attempt` packed."""
    fields = dict(zip(_ATTEMPT_FIELDS, decode_attempt_values(payload), strict=True))
    fields["ordinals"] = tuple(fields["ordinals"])
    return Attempt(**fields)
