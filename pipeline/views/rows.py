"""Rows of a run, wherever they are: in parts, or in the journal and the spool."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import DamageError, StorageError
from pipeline.store.folder import Layout
from pipeline.store.ids import IdTable
from pipeline.store.journal import JournalReader, Part, Span
from pipeline.store.parts import has_pieces
from pipeline.store.spool import read_spool, spool_path
from pipeline.store.training import Mistake, read_mistakes
from pipeline.views.advice import advice

if TYPE_CHECKING:
    from pipeline.model import RequestInfo, RowResult

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


GROUPS: Mapping[str, tuple[str, ...]] = {
    "code": ("type", "code"),
    "type": ("type",),
    "deployment": ("deployment", "type", "code"),
}
"""What failed rows can be counted by, and which of their fields that tells apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Failed rows of one kind: the fields that they share. `example` is the first of them.

    `advice` is what to do about them; None where they are by type alone.
    """

    kind: Mapping[str, str | None]
    rows: int
    example: Failure
    advice: str | None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**self.kind, "rows": self.rows, "advice": self.advice, "example": asdict(self.example)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One row. `where` is the part's name, `journal`, or `pending`; `values` are its columns, empty while pending."""

    ordinal: int
    where: str
    values: Mapping[str, Any]
    attempts: Sequence[Mapping[str, Any]]


def failures(layout: Layout) -> Iterator[Failure]:
    """Failed rows by ordinal, also while the run goes on. Raises FileNotFoundError, DamageError, StorageError."""
    with JournalReader(layout.journal) as reader:
        yield from map(_of_mistake, read_mistakes(layout.mistakes))
        name = _id_column(reader)
        # The journal is read before the list of parts: what is sealed in between is seen twice, never missed.
        loose: list[Failure] = []
        for span in reader.spans():
            found = list(reader.results(span.first, span.last, only_failed=True))
            ids = _carried(layout, span, [row.ordinal for row, _ in found]) if name and found else {}
            loose += [_of_journal(row, request, ids.get(row.ordinal, {}).get(name or "")) for row, request in found]
        parts = reader.parts()
    sealed = (failure for part in parts if part.failed for failure in _of_part(layout.part(part.name), name))
    last = -1
    for failure in heapq.merge(sealed, loose, key=lambda one: one.ordinal):
        if failure.ordinal != last:
            yield failure
        last = failure.ordinal


def grouped(found: Iterator[Failure], *, by: str) -> list[Group]:
    """Count failures by a name of `GROUPS`; the most frequent first."""
    names = GROUPS[by]
    counts: Counter[tuple[str | None, ...]] = Counter()
    examples: dict[tuple[str | None, ...], Failure] = {}
    for failure in found:
        key = tuple(getattr(failure, name) for name in names)
        counts[key] += 1
        examples.setdefault(key, failure)
    return [
        Group(
            kind=dict(zip(names, key, strict=True)),
            rows=rows,
            example=examples[key],
            advice=advice(examples[key].type, examples[key].code) if "code" in names else None,
        )
        for key, rows in counts.most_common()
    ]


def find_ordinal(layout: Layout, text: str, *, as_ordinal: bool) -> int | None:
    """Which row an id or an ordinal means; an id comes first. None where it is neither."""
    with JournalReader(layout.journal) as reader:
        named = _id_column(reader) is not None
    if named and not as_ordinal and layout.ids.is_file():
        with IdTable(layout.ids) as table:
            for value in _readings(text):
                ordinal = table.find(value)
                if ordinal is not None:
                    return ordinal
    return int(text) if text.isascii() and text.isdigit() else None


def find_row(layout: Layout, ordinal: int) -> Found | None:
    """One row with its attempts; None when the run has not come to it. Raises as `failures`."""
    with JournalReader(layout.journal) as reader:
        attempts = [asdict(attempt) for _, attempt in _all_attempts(reader) if ordinal in attempt.ordinals]
        span = next((span for span in reader.spans() if span.first <= ordinal <= span.last), None)
        loose = list(reader.results(ordinal, ordinal))
        part = next((part for part in reader.parts() if part.first <= ordinal <= part.last), None)
    for attempt in attempts:
        attempt["started_at"] = datetime.fromtimestamp(attempt["started_at"], UTC)
    attempts = sorted([*_filed_attempts(layout, ordinal), *attempts], key=lambda one: str(one["started_at"]))
    if part is not None:
        return Found(ordinal=ordinal, where=part.name, values=_part_row(layout, part, ordinal), attempts=attempts)
    if loose and span is not None:
        carried = _carried(layout, span, [ordinal]).get(ordinal, {})
        return Found(ordinal=ordinal, where="journal", values=_journal_row(carried, *loose[0]), attempts=attempts)
    if span is not None and ordinal < span.first + span.read:
        return Found(
            ordinal=ordinal,
            where="pending",
            values=_carried(layout, span, [ordinal]).get(ordinal, {}),
            attempts=attempts,
        )
    return None


def _readings(text: str) -> list[Any]:
    """The values that an id on the command line may stand for."""
    values: list[Any] = [text]
    for kind in (int, float):
        try:
            values.append(kind(text))
        except ValueError:
            continue
    return values


def _id_column(reader: JournalReader) -> str | None:
    name = ((reader.noted("job") or {}).get("input") or {}).get("id")
    return name if isinstance(name, str) else None


def _all_attempts(reader: JournalReader) -> Iterator[tuple[int, Any]]:
    after = 0
    while found := reader.attempts(after=after):
        yield from found
        after = found[-1][0]


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

    with _reading(path), pq.ParquetFile(path) as file:
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


def _part_row(layout: Layout, part: Part, ordinal: int) -> dict[str, Any]:
    """The columns of a row. Where it may have pieces, the operation's hold a list, as they do in the journal."""
    import pyarrow.compute as pc  # noqa: PLC0415 - for commands that read rows
    import pyarrow.parquet as pq  # noqa: PLC0415

    path = layout.part(part.name)
    found: list[dict[str, Any]] = []
    with _reading(path), pq.ParquetFile(path) as file:
        for index in range(file.num_row_groups):
            ordinals = file.read_row_group(index, columns=["ordinal"]).column("ordinal")
            place = pc.index(ordinals, ordinal).as_py()
            if place >= 0:
                pieces = pc.sum(pc.equal(ordinals, ordinal)).as_py()
                found += file.read_row_group(index).slice(place, pieces).to_pylist()
        schema = file.schema_arrow
    if not found:
        raise DamageError(f"{part.name} does not hold row {ordinal}; run `pipeline verify` on the folder")
    if not has_pieces(schema) or found[0]["status"] == "failed":
        return found[0]
    results = schema.names[schema.names.index("status") + 1 : schema.names.index("error")]
    return found[0] | {name: [piece[name] for piece in found] for name in results}


def _journal_row(carried: Mapping[str, Any], row: RowResult, request: RequestInfo) -> dict[str, Any]:
    """The columns as the part will have them; vectors and the like are still the journal's bytes."""
    return {
        "ordinal": row.ordinal,
        **carried,
        "status": "ok" if row.ok else "failed",
        **(row.values or {}),
        "error": None
        if row.error is None
        else {name: getattr(row.error, name) for name in ("type", "code", "message", "http_status")},
        "usage": None if row.usage is None else asdict(row.usage),
        "request": asdict(request)
        | {"finished_at": None if request.finished_at is None else datetime.fromtimestamp(request.finished_at, UTC)},
        "response": None if row.response is None else row.response.decode("utf-8", "replace"),
    }


def _carried(layout: Layout, span: Span, ordinals: Sequence[int]) -> dict[int, dict[str, Any]]:
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


def _filed_attempts(layout: Layout, ordinal: int) -> Iterator[dict[str, Any]]:
    import pyarrow.compute as pc  # noqa: PLC0415 - for commands that read rows
    import pyarrow.parquet as pq  # noqa: PLC0415

    for path in sorted(layout.attempts.glob("*.parquet")):
        with _reading(path), pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH_ROWS):
                lists = batch.column("ordinals")
                hit = pc.equal(pc.list_flatten(lists), ordinal)
                yield from batch.take(pc.unique(pc.list_parent_indices(lists).filter(hit))).to_pylist()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    import pyarrow as pa  # noqa: PLC0415 - for commands that read rows

    try:
        yield
    except (OSError, pa.ArrowInvalid) as error:
        raise DamageError(
            f"{path.name} cannot be read ({type(error).__name__}); run `pipeline verify` on the folder"
        ) from error
