"""Failed rows counted by kind, without making an object of each: a million of them are a page as well."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.store.journal import JournalReader
from pipeline.store.training import read_mistakes
from pipeline.views.attempts import EXAMPLES, first_places

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.store.folder import Layout

MOST_KINDS = 100
"""Kinds told apart; the codes are the service's, and it may make them up."""
OTHER = "(others)"
_BATCH_ROWS = 16_384
_LOOKS = 5
_KEYS = ("type", "code", "http_status")
_EXAMPLE = ("ordinal", "id", "client_request_id", "request_id", "apim_request_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedRow:
    """A failed row, as an example of its kind. `id` is None where the run carries none, the others if none was sent."""

    ordinal: int
    id: Any = None
    client_request_id: str | None = None
    request_id: str | None = None
    apim_request_id: str | None = None


@dataclass(slots=True, kw_only=True)
class FailedKind:
    """Failed rows of one type, code and status. What the service said of each is not here: it may quote the prompt."""

    type: str
    code: str
    http_status: int | None
    rows: int = 0
    examples: list[FailedRow] = field(default_factory=list)


@dataclass(slots=True)
class FailedKinds:
    """All of them, the most frequent first. `unread` names parts that are missing or damaged."""

    kinds: list[FailedKind] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)


_Found = dict[tuple[str, str, int | None], FailedKind]


def failed_kinds(layout: Layout) -> FailedKinds:
    """Count a folder's failed rows, also while the run goes on; memory does not grow with their number.

    Raises FileNotFoundError where there is no journal, DamageError, StorageError.
    """
    unread: list[str] = []
    with JournalReader(layout.journal) as reader:
        name = ((reader.noted("job") or {}).get("input") or {}).get("id")
        for _ in range(_LOOKS):
            parts = reader.parts()
            # Rows that are asked again have no end any more, or a new one, which the journal holds.
            again = {part.name: reader.again(part.first, part.last) for part in parts if part.failed}
            found = _loose(layout, reader)
            if reader.parts() == parts:  # else rows went from the journal into a part between the two looks
                break
    for part in parts:
        if part.failed:
            for batch in _failed_rows(layout.part(part.name), name, again[part.name], unread):
                _count_batch(found, batch)
    return FailedKinds(kinds=sorted(found.values(), key=lambda kind: (-kind.rows, kind.type, kind.code)), unread=unread)


def _loose(layout: Layout, reader: JournalReader) -> _Found:
    """Failed rows that are in no part."""
    found: _Found = {}
    for mistake in read_mistakes(layout.mistakes):
        error = mistake.error
        _count(found, error.type.value, error.code, None, 1, [FailedRow(ordinal=mistake.ordinal, id=mistake.id)])
    for span in reader.open_ranges():
        for row, request in reader.results(span.first, span.last, only_failed=True):
            if row.error is not None:
                example = FailedRow(
                    ordinal=row.ordinal,
                    client_request_id=request.client_request_id,
                    request_id=request.request_id,
                    apim_request_id=request.apim_request_id,
                )
                _count(found, row.error.type.value, row.error.code, row.error.http_status, 1, [example])
    return found


def _failed_rows(
    path: Path, id_column: str | None, again: Sequence[int], unread: list[str]
) -> Iterator[pa.RecordBatch]:
    """The failed rows of a part but those of `again`, flat: ordinal, id, type, code, status and request ids."""
    import pyarrow as pa  # noqa: PLC0415 - for commands that read rows
    import pyarrow.compute as pc  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        with pq.ParquetFile(path) as file:
            named = [id_column] if id_column in file.schema_arrow.names else []
            for batch in file.iter_batches(_BATCH_ROWS, columns=["ordinal", "status", "error", "request", *named]):
                rows = batch.filter(pc.equal(batch.column("status"), "failed"))
                if again:
                    asked = pc.is_in(rows.column("ordinal"), value_set=pa.array(again, pa.int64()))
                    rows = rows.filter(pc.invert(asked))
                if not rows.num_rows:
                    continue
                error, request = rows.column("error"), rows.column("request")
                columns = {name: pc.struct_field(error, name) for name in ("type", "code", "http_status")}
                for one in ("client_request_id", "request_id", "apim_request_id"):
                    columns[one] = pc.struct_field(request, one)
                columns["id"] = rows.column(named[0]) if named else pa.nulls(rows.num_rows)
                columns["ordinal"] = rows.column("ordinal")
                columns["place"] = pa.array(range(rows.num_rows), pa.int64())
                yield pa.RecordBatch.from_pydict(columns)
    except (OSError, pa.ArrowException):
        unread.append(path.name)


def _count_batch(found: _Found, batch: pa.RecordBatch) -> None:
    import pyarrow as pa  # noqa: PLC0415 - for commands that read rows

    table = pa.table(batch)
    counts = table.group_by(_KEYS).aggregate([("place", "count")]).to_pylist()
    rows = {(group["type"], group["code"], group["http_status"]): group["place_count"] for group in counts}
    for group, places in first_places(table, _KEYS):
        key = group["type"], group["code"], group["http_status"]
        examples = [
            FailedRow(**{name: row[name] for name in _EXAMPLE})
            for place in places
            for row in batch.slice(place, 1).to_pylist()
        ]
        _count(found, *key, rows[key], examples)


def _count(
    found: _Found,
    type_: str,
    code: str,
    status: int | None,
    rows: int,
    examples: list[FailedRow],
) -> None:
    key = type_, code, status
    if key not in found and len(found) >= MOST_KINDS:
        key = OTHER, OTHER, None
    kind = found.get(key)
    if kind is None:
        kind = found[key] = FailedKind(type=key[0], code=key[1], http_status=key[2])
    kind.rows += rows
    kind.examples += examples[: EXAMPLES - len(kind.examples)]
