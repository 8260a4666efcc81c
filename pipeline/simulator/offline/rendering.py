"""How times, lists and refusals of files, batches and fine-tuning jobs are written down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from pipeline.simulator.base import RefusedError, bad_request
from pipeline.simulator.config import Quirk
from pipeline.simulator.offline.shelf import Record


def refusal(status: int, code: str, message: str, *, param: str | None = None) -> RefusedError:
    """Refuse as the authoring service words it."""
    return RefusedError(
        status, {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}
    )


def json_object(body: bytes) -> dict[str, Any]:
    """Read a body that must be an object. Raises RefusedError."""
    try:
        asked = orjson.loads(body)
    except orjson.JSONDecodeError:
        asked = None
    if not isinstance(asked, dict):
        raise bad_request("The body is no JSON object.")
    return asked


def time_of(epoch_s: float | None, quirks: frozenset[Quirk]) -> int | str | None:
    """Write a time as whole epoch seconds, or as ISO 8601 where the quirk has it so."""
    if epoch_s is None:
        return None
    if Quirk.ISO_DATES in quirks:
        return datetime.fromtimestamp(int(epoch_s), UTC).isoformat()
    return int(epoch_s)


def page(
    records: Sequence[Record], query: Mapping[str, str], render: Callable[[Record], dict[str, Any]], *, limit: int = 20
) -> dict[str, Any]:
    """Write one page of a list: `limit` records behind `after`."""
    try:
        most = min(max(int(query.get("limit", limit)), 1), 10_000)
    except ValueError:
        most = limit
    start = 0
    if (after := query.get("after")) is not None:
        start = next((index + 1 for index, record in enumerate(records) if record["id"] == after), len(records))
    shown = records[start : start + most]
    return {
        "object": "list",
        "data": [render(record) for record in shown],
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": start + most < len(records),
    }
