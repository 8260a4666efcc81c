"""Failed rows for people: one a line, or counted by kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.views.advice import advice
from pipeline.views.text import count, plain, shortened, table

if TYPE_CHECKING:
    from pipeline.store.failures import Failure
    from pipeline.views.rows import Group

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
    kinds = dict.fromkeys((one.type, one.code) for one in found)
    lines += [f"{plain(code)}: {advice(type_, code)}" for type_, code in kinds]
    if more:
        lines.append(
            f"and {count(more, 'row')} more: --limit {len(found) + more} lists all, --group-by code counts them"
        )
    return lines


def group_lines(groups: Sequence[Group]) -> list[str]:
    """Give a line for each kind, then its first row with its ids, and what to do."""
    if not groups:
        return [_NONE]
    cells = [(f"{one.rows:,}", *(plain(value or "-") for value in one.kind.values())) for one in groups]
    head, *lines = table(cells, head=("rows", *groups[0].kind))
    said = [head]
    for line, one in zip(lines, groups, strict=True):
        first = one.example
        ids = "" if first.request_id is None else f" (x-request-id {plain(first.request_id)})"
        said += [line, f"    first: row {first.ordinal}{ids}: {shortened(first.message, _MESSAGE_CHARS)}"]
        if one.advice is not None:
            said.append(f"    to do: {one.advice}")
    return said
