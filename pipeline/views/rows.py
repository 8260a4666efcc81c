"""Rows of a run, wherever they are: in parts, or in the journal and the spool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pipeline.errors import DamageError
from pipeline.store.failures import Failure, carried_cells, reading_part
from pipeline.store.folder import Layout
from pipeline.store.ids import IdTable
from pipeline.store.journal import JournalReader, Part
from pipeline.store.parts import has_pieces
from pipeline.store.verify import id_column
from pipeline.views.advice import advice

if TYPE_CHECKING:
    from pipeline.model import ErrorInfo, RequestInfo, RowResult
    from pipeline.store.journal import Span

_BATCH_ROWS = 16_384

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
    """One row. `where` is the part's name, `journal`, or `pending`; `values` are its columns, empty while pending.

    `replaced` is what it came to before it was asked again: `generation`, by which it was, `error` and `request`.
    """

    ordinal: int
    where: str
    values: Mapping[str, Any]
    attempts: Sequence[Mapping[str, Any]]
    replaced: Sequence[Mapping[str, Any]] = ()


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
        named = id_column(reader) is not None
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
        is_again = bool(reader.again(ordinal, ordinal))
        replaced = [
            {
                "generation": generation,
                "error": None if row.error is None else _error(row.error),
                "request": asdict(request),
            }
            for generation, row, request in reader.replaced(ordinal)
        ]
    for attempt in attempts:
        attempt["started_at"] = datetime.fromtimestamp(attempt["started_at"], UTC)
    attempts = sorted([*_filed_attempts(layout, ordinal), *attempts], key=lambda one: str(one["started_at"]))
    found = _found(layout, ordinal, part=part, span=span, loose=loose, is_again=is_again)
    return None if found is None else Found(ordinal=ordinal, attempts=attempts, replaced=replaced, **found)


def _found(
    layout: Layout,
    ordinal: int,
    *,
    part: Part | None,
    span: Span | None,
    loose: Sequence[tuple[RowResult, RequestInfo]],
    is_again: bool,
) -> dict[str, Any] | None:
    """Where a row is, and its columns; None when the run has not come to it."""
    if part is not None:
        values = _part_row(layout, part, ordinal)
        if not is_again:
            return {"where": part.name, "values": values}
        carried = dict(list(values.items())[1 : list(values).index("status")])
    elif span is not None and (loose or ordinal < span.first + span.read):
        carried = carried_cells(layout, span, [ordinal]).get(ordinal, {})
    else:
        return None
    if loose:
        return {"where": "journal", "values": _journal_row(carried, *loose[0])}
    return {"where": "pending", "values": carried}


def _readings(text: str) -> list[Any]:
    """The values that an id on the command line may stand for."""
    values: list[Any] = [text]
    for kind in (int, float):
        try:
            values.append(kind(text))
        except ValueError:
            continue
    return values


def _all_attempts(reader: JournalReader) -> Iterator[tuple[int, Any]]:
    after = 0
    while found := reader.attempts(after=after):
        yield from found
        after = found[-1][0]


def _part_row(layout: Layout, part: Part, ordinal: int) -> dict[str, Any]:
    """The columns of a row. Where it may have pieces, the operation's hold a list, as they do in the journal."""
    import pyarrow.compute as pc  # noqa: PLC0415 - for commands that read rows
    import pyarrow.parquet as pq  # noqa: PLC0415

    path = layout.part(part.name)
    found: list[dict[str, Any]] = []
    with reading_part(path), pq.ParquetFile(path) as file:
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


def _error(error: ErrorInfo) -> dict[str, Any]:
    return {name: getattr(error, name) for name in ("type", "code", "message", "http_status")}


def _journal_row(carried: Mapping[str, Any], row: RowResult, request: RequestInfo) -> dict[str, Any]:
    """The columns as the part will have them; vectors and the like are still the journal's bytes."""
    return {
        "ordinal": row.ordinal,
        **carried,
        "status": "ok" if row.ok else "failed",
        **(row.values or {}),
        "error": None if row.error is None else _error(row.error),
        "usage": None if row.usage is None else asdict(row.usage),
        "request": asdict(request)
        | {"finished_at": None if request.finished_at is None else datetime.fromtimestamp(request.finished_at, UTC)},
        "response": None if row.response is None else row.response.decode("utf-8", "replace"),
    }


def _filed_attempts(layout: Layout, ordinal: int) -> Iterator[dict[str, Any]]:
    import pyarrow.compute as pc  # noqa: PLC0415 - for commands that read rows
    import pyarrow.parquet as pq  # noqa: PLC0415

    for path in sorted(layout.attempts.glob("*.parquet")):
        with reading_part(path), pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH_ROWS):
                lists = batch.column("ordinals")
                hit = pc.equal(pc.list_flatten(lists), ordinal)
                yield from batch.take(pc.unique(pc.list_parent_indices(lists).filter(hit))).to_pylist()
