"""One row for people: its columns, then its attempts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pipeline.views.text import json_text, plain, table

if TYPE_CHECKING:
    from pipeline.views.rows import Found

_LIST_ITEMS = 8
_HEAD = ("started", "deployment", "verdict", "status", "code", "ms", "x-request-id")


def plain_values(value: Any) -> Any:
    """Give a row's value as JSON can hold it: times as ISO 8601, bytes as their number."""
    match value:
        case Mapping():
            return {name: plain_values(item) for name, item in value.items()}
        case list() | tuple():
            return [plain_values(item) for item in value]
        case bytes():
            return f"({len(value):,} bytes)"
        case datetime():
            return value.isoformat()
    return value


def row_lines(found: Found) -> list[str]:
    """Lay a row out. Long lists are cut; JSON has them whole."""
    lines = [f"row {found.ordinal} ({found.where})"]
    for name, value in found.values.items():
        lines += _cell(name, _parsed(value) if name == "response" else value)
    for before in found.replaced:
        lines += _cell(f"before generation {before['generation']}", before["error"])
    attempts = [
        (
            attempt["started_at"].isoformat(timespec="milliseconds"),
            plain(attempt["deployment"]),
            attempt["verdict"],
            "-" if attempt["status"] is None else str(attempt["status"]),
            plain(attempt["code"] or "-"),
            f"{attempt['latency_ms']:,.0f}",
            plain(attempt["request_id"] or "-"),
        )
        for attempt in found.attempts
    ]
    lines.append(f"attempts: {len(attempts)}")
    return [*lines, *[f"  {line}" for line in (table(attempts, head=_HEAD) if attempts else [])]]


def _cell(name: str, value: Any) -> list[str]:
    value = _cut(plain_values(value))
    if isinstance(value, dict):
        value = {key: item for key, item in value.items() if item is not None}
    if isinstance(value, str):
        first, *more = [plain(line) for line in value.splitlines()] or [""]
    else:
        first, *more = json_text(value).splitlines()
    return [f"{plain(name)}: {first}", *[f"  {line}" for line in more]]


def _cut(value: Any) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], list):
        return [_cut(item) for item in value]
    if isinstance(value, list) and len(value) > _LIST_ITEMS and not isinstance(value[0], dict):
        return f"{json_text(value[:_LIST_ITEMS], indent=None)[:-1]}, …] ({len(value):,} values)"
    if isinstance(value, dict):
        return {name: _cut(item) for name, item in value.items()}
    return value


def _parsed(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value
