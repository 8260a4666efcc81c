"""Results of rows on their way to the journal, whichever lane they came by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipeline.model import RowResult
from pipeline.store.salvage import Done


def without_reply(row: RowResult, *, raw: str) -> RowResult:
    """The row without a reply that the job does not want kept: waiting for its commit, it would hold it.

    `raw`: none, failed or all replies are kept.
    """
    if row.response is None or raw == "all" or (raw == "failed" and not row.ok):
        return row
    return replace(row, response=None)


def summed(rows: Sequence[RowResult], name: str) -> int | None:
    """The sum of a field of the rows' usage; None where none of them says it."""
    counts = [count for row in rows if row.usage is not None and (count := getattr(row.usage, name)) is not None]
    return sum(counts) if counts else None


def copy_of(done: Done, ordinal: int) -> Done:
    """What a row came to, for another that asks for the same: it names the same request, and cost nothing."""
    row, request = done
    return replace(row, ordinal=ordinal, usage=None), replace(request, attempts=0)
