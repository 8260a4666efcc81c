"""The rows that failed, wherever they are: in parts, or in the journal and the spool."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import DamageError, StorageError
from pipeline.store.journal import JournalReader, Span
from pipeline.store.spool import read_spool, spool_path
from pipeline.store.training import Mistake, read_mistakes
from pipeline.store.verify import id_column

if TYPE_CHECKING:
    from pipeline.model import RequestInfo, RowResult
    from pipeline.store.folder import Layout

_BATCH_ROWS = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A failed row. `id` is None where the job names no id column, or does not carry it."""

    ordinal: int
    id: Any
    type: str
    code: str
    message: str
    http_status: int | None
    attempts: int
    deployment: str | None
    client_request_id: str | None
    request_id: str | None
    apim_request_id: str | None


def failures(layout: Layout) -> Iterator[Failure]:
    """Failed rows by ordinal, also while the run goes on. Raises FileNotFoundError, DamageError, StorageError."""
    with JournalReader(layout.journal) as reader:
        yield from map(_of_mistake, read_mistakes(layout.mistakes))
        name = id_column(reader)
        # All of it as of one moment: what is sealed meanwhile is neither seen twice nor missed.
        with reader.snapshot():
            loose: list[Failure] = []
            for span in reader.open_ranges():
                found = list(reader.results(span.first, span.last, only_failed=True))
                ids = carried_cells(layout, span, [row.ordinal for row, _ in found]) if name and found else {}
                loose += [_of_journal(row, request, ids.get(row.ordinal, {}).get(name or "")) for row, request in found]
            parts = [(part, frozenset(reader.again(part.first, part.last))) for part in reader.parts() if part.failed]
    sealed = (
        failure
        for part, again in parts
        for failure in _of_part(layout.part(part.name), name)
        if failure.ordinal not in again
    )
    yield from heapq.merge(sealed, loose, key=lambda one: one.ordinal)


def _of_journal(row: RowResult, request: RequestInfo, identity: Any) -> Failure:
    if row.error is None:
        raise DamageError(f"the journal counts row {row.ordinal} as failed and has no error; run `pipeline verify`")
    return Failure(
        ordinal=row.ordinal,
        id=identity,
        type=row.error.type.value,
        code=row.error.code,
        message=row.error.message,
        http_status=row.error.http_status,
        attempts=request.attempts,
        deployment=request.deployment,
        client_request_id=request.client_request_id,
        request_id=request.request_id,
        apim_request_id=request.apim_request_id,
    )


def _of_mistake(mistake: Mistake) -> Failure:
    error = mistake.error
    return Failure(
        ordinal=mistake.ordinal,
        id=mistake.id,
        type=error.type.value,
        code=error.code,
        message=error.message if mistake.where is None else f"{mistake.where} input: {error.message}",
        http_status=None,
        attempts=0,
        deployment=None,
        client_request_id=None,
        request_id=None,
        apim_request_id=None,
    )


def _of_part(path: Path, name: str | None) -> Iterator[Failure]:
    import pyarrow.compute as pc  # noqa: PLC0415 - for commands that read rows
    import pyarrow.parquet as pq  # noqa: PLC0415

    with reading_part(path), pq.ParquetFile(path) as file:
        named = name if name in file.schema_arrow.names else None
        columns = ["ordinal", "status", "error", "request", *([named] if named else [])]
        for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
            for row in batch.filter(pc.equal(batch.column("status"), "failed")).to_pylist():
                error, request = row["error"], row["request"]
                yield Failure(
                    ordinal=row["ordinal"],
                    id=row[named] if named else None,
                    type=error["type"],
                    code=error["code"],
                    message=error["message"],
                    http_status=error["http_status"],
                    attempts=request["attempts"],
                    deployment=request["deployment"],
                    client_request_id=request["client_request_id"],
                    request_id=request["request_id"],
                    apim_request_id=request["apim_request_id"],
                )


def carried_cells(layout: Layout, span: Span, ordinals: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Carried cells of rows of an open range, as far as the spool has them on disk."""
    import pyarrow as pa  # noqa: PLC0415 - for commands that read rows

    wanted = sorted(ordinals)
    found: dict[int, dict[str, Any]] = {}
    first = span.first
    try:
        for batch in read_spool(spool_path(layout.spool, span.first)):
            for ordinal in wanted:
                if first <= ordinal < first + batch.num_rows:
                    found[ordinal] = batch.slice(ordinal - first, 1).to_pylist()[0]
            first += batch.num_rows
            if first > wanted[-1]:
                break
    except (StorageError, OSError, pa.ArrowInvalid):
        pass  # an open spool may end in the middle, and one of a killed run is gone: the row is shown without it
    return found


@contextmanager
def reading_part(path: Path) -> Iterator[None]:
    """Turn what reading a part may raise into a DamageError."""
    import pyarrow as pa  # noqa: PLC0415 - for commands that read rows

    try:
        yield
    except (OSError, pa.ArrowInvalid) as error:
        raise DamageError(
            f"{path.name} cannot be read ({type(error).__name__}); run `pipeline verify` on the folder"
        ) from error
