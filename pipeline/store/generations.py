"""Opens a new generation of rows: those that failed are pending again, and each part stands until its new one is whole.

A part is replaced in three steps, of which each is durable before the next: what it is to become is noted
(`rewrite`), the file takes its name, the journal counts it. `finish_rewrites` goes on wherever that was cut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pipeline.model import ErrorInfo, ErrorType, Outcome, RequestInfo, RowResult
from pipeline.store.codec import encode_outcome
from pipeline.store.failures import Failure, failures
from pipeline.store.files import sha256_of, storage
from pipeline.store.journal import JournalReader, count_rewritten, put
from pipeline.store.rebuild import changing

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.store.database import Connection
    from pipeline.store.folder import Layout

GENERATIONS = "generations"


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """Rows that were asked again together. `only` are the types and codes that were asked for, none for all.

    `variant` names their wording, `began` is ISO 8601.
    """

    number: int
    rows: int
    only: tuple[str, ...]
    variant: str
    began: str


def generations(reader: JournalReader) -> list[Generation]:
    """All generations of a folder but the first, which a run makes."""
    return [Generation(**{**said, "only": tuple(said["only"])}) for said in reader.noted(GENERATIONS) or []]


def is_meant(failure: Failure, only: frozenset[str]) -> bool:
    """Whether a row failed with one of these types or codes, in any case; none of them means all."""
    return not only or not only.isdisjoint({failure.type.lower(), failure.code.lower()})


def count_failed(layout: Layout, only: frozenset[str]) -> tuple[int, Mapping[tuple[str, str], int]]:
    """How many failed rows are meant, and how many there are of each type and code. Raises what `failures` raises."""
    kinds: Counter[tuple[str, str]] = Counter()
    meant = 0
    for failure in failures(layout):
        kinds[failure.type, failure.code] += 1
        meant += is_meant(failure, only)
    return meant, kinds


def open_generation(
    layout: Layout, *, only: frozenset[str], variant: str, wording: Mapping[str, Any], now: datetime
) -> int:
    """Have failed rows asked again, with those that already are; returns how many are new. In one transaction.

    `variant` and `wording` are those of the request that they are asked with. Call it under the folder's lock. Raises
    StorageError, DamageError.
    """
    with JournalReader(layout.journal) as reader:
        known = generations(reader)
        variants = reader.noted("variants") or {}
    number = known[-1].number + 1 if known else 1
    rows = 0
    with changing(layout) as change:
        connection, totals = change.connection, change.totals
        for failure in failures(layout):
            if is_meant(failure, only):
                rows += 1
                totals.failed -= 1
                totals.sealed_failed -= _ask_again(connection, failure, number)
                totals.copied -= _request(failure).is_copy
        connection.execute("DELETE FROM payload WHERE id NOT IN (SELECT payload FROM result)")
        begun = Generation(number=number, rows=rows, only=tuple(sorted(only)), variant=variant, began=now.isoformat())
        put(connection, GENERATIONS, [asdict(one) for one in (*known, begun)])
        put(connection, "variants", {**variants, variant: wording})
    return rows


def _ask_again(connection: Connection, failure: Failure, generation: int) -> int:
    """Make a row pending, and keep what it came to; returns 1 where a part counts it as failed, else 0."""
    connection.execute(
        "INSERT INTO replaced VALUES (?, ?, ?)", (failure.ordinal, generation, encode_outcome(_ended(failure)))
    )
    connection.execute("INSERT OR IGNORE INTO again VALUES (?)", (failure.ordinal,))
    loose = connection.execute("DELETE FROM result WHERE ordinal = ?", (failure.ordinal,)).rowcount
    return 1 - loose


def _ended(failure: Failure) -> Outcome:
    error = ErrorInfo(
        type=ErrorType(failure.type), code=failure.code, message=failure.message, http_status=failure.http_status
    )
    return Outcome(rows=(RowResult(ordinal=failure.ordinal, error=error),), request=_request(failure))


def _request(failure: Failure) -> RequestInfo:
    return RequestInfo(
        attempts=failure.attempts,
        deployment=failure.deployment,
        client_request_id=failure.client_request_id,
        request_id=failure.request_id,
        apim_request_id=failure.apim_request_id,
    )


def finish_rewrites(layout: Layout) -> None:
    """Count the new file of a part whose replacing was cut after it had its name, forget one that has none.

    Call it under the folder's lock. Raises StorageError.
    """
    try:
        with JournalReader(layout.journal) as reader:
            cut = reader.rewrites()
    except FileNotFoundError:
        return
    for part in cut:
        path = layout.part(part.name)
        with storage(f"reading {part.name}"):
            is_new = path.is_file() and sha256_of(path) == part.sha256
        with changing(layout) as change:
            if is_new:
                count_rewritten(change.connection, part, change.totals)
            else:
                change.connection.execute("DELETE FROM rewrite WHERE first = ?", (part.first,))
