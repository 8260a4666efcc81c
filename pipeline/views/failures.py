"""Failed rows for people: one a line, or counted by kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.views.text import count, plain, shortened, table

if TYPE_CHECKING:
    from pipeline.views.rows import Failure, Group

_ID_CHARS = 40
_MESSAGE_CHARS = 160
_NONE = "no row failed"


def failure_lines(found: Sequence[Failure], *, more: int) -> list[str]:
    """Give a line for each; `more` is how many there are besides."""
    if not found and not more:
        return [_NONE]
    cells = [
        (
            str(one.ordinal),
            "" if one.id is None else shortened(str(one.id), _ID_CHARS),
            one.type,
            plain(one.code),
            "" if one.http_status is None else str(one.http_status),
            plain(one.request_id or ""),
            shortened(one.message, _MESSAGE_CHARS),
        )
        for one in found
    ]
    lines = table(cells, head=("row", "id", "type", "code", "status", "x-request-id", "message"))
    if more:
        lines.append(
            f"and {count(more, 'row')} more: --limit {len(found) + more} lists all, --group-by code counts them"
        )
    return lines


def group_lines(groups: Sequence[Group]) -> list[str]:
    """Give a line for each kind, with its first row."""
    if not groups:
        return [_NONE]
    cells = [
        (
            f"{one.rows:,}",
            one.type,
            plain(one.code or ""),
            f"row {one.example.ordinal}: {shortened(one.example.message, _MESSAGE_CHARS)}",
        )
        for one in groups
    ]
    return table(cells, head=("rows", "type", "code", "first"))
