"""Changes a journal outside of a run: makes it anew from manifest and parts, opens sealed ranges, forgets rows.

Each is one transaction, or a file that takes its place by a rename: done whole or not at all. Blocking, and only
under the folder's lock.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from pipeline.errors import DamageError
from pipeline.job.change import canonical
from pipeline.model import CHUNK, RequestInfo, WrittenFile
from pipeline.store.database import Connection, database_errors, open_database, transaction
from pipeline.store.files import TEMPORARY_SUFFIX, sha256_of
from pipeline.store.folder import Layout
from pipeline.store.journal import (
    ATTEMPTS_LOST,
    JournalReader,
    Part,
    Span,
    Totals,
    create_tables,
    insert,
    insert_results,
    keep_file,
    put,
)
from pipeline.store.manifest import MANIFEST_VERSION, NOTED, read_manifest
from pipeline.store.media import MEDIA, media_name
from pipeline.store.parts import (
    COMMON_AFTER,
    has_pieces,
    part_name,
    read_ordinals,
    read_origin,
    read_sections,
    whole_groups,
)
from pipeline.store.salvage import Done, outcomes, rows_of_part
from pipeline.store.verify import arrow_errors, count_rows, count_statuses

_START = '{"ordinal": 0, "file": 0, "offset": 0, "line": 1}'
"""The position of the first row (`sources.base.Position`), as the journal keeps it."""
_BATCH_ROWS = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """A new journal under a temporary name. `rows` are in its parts; `said` is what it was made from."""

    path: Path
    rows: int
    said: str


def rebuild_journal(layout: Layout, *, job: Mapping[str, Any]) -> Rebuilt:
    """Make a new journal beside the damaged one, from the manifest, the parts and the files of attempts.

    What was done and in no part is not in it. The input's identity is left out, so that the next run reads the input
    again and compares it. Raises DamageError when nothing says what job the parts belong to, StorageError.
    """
    manifest = _whole_manifest(layout)
    fingerprint = manifest["fingerprint"] if manifest else sha256(canonical(job)).hexdigest()
    parts = _parts(layout, manifest, fingerprint)
    path = layout.journal.with_name(layout.journal.name + TEMPORARY_SUFFIX)
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    connection = open_database(path)
    try:
        with database_errors(path.name), transaction(connection):
            create_tables(connection)
            for name in NOTED:
                value = (manifest or {"job": job}).get(name)
                if value is not None and name != "files":
                    put(connection, name, value)
            for part in parts:
                insert(connection, "part", part)
            for span in _gaps(parts):
                insert(connection, "span", span)
            totals = Totals()
            for part in parts:
                _count_part(layout, part, totals, connection)
            _count_attempts(layout, totals, connection)
            put(connection, "totals", asdict(totals))
    finally:
        connection.close()
    return Rebuilt(
        path=path,
        rows=totals.sealed_ok + totals.sealed_failed,
        said="the manifest and the parts" if manifest else "the parts",
    )


def reopen(layout: Layout, part: Part, *, without: frozenset[int]) -> int:
    """Make a part's range an open one, whose whole rows are done; returns how many are not.

    The part's file is read, and left where it is. A damaged one gives those rows whose row groups are what was
    written. Raises StorageError.
    """
    path = layout.part(part.name)
    try:
        return _reopen(layout, part, rows=_whole_rows(path, part, without))
    except arrow_errors():
        return _reopen(layout, part, rows=iter(()))


def ask_again(layout: Layout, ordinals: Iterable[int]) -> int:
    """Forget rows that are done and in no part, with their files; returns how many there were. Raises StorageError."""
    gone = 0
    with changing(layout) as change:
        connection = change.connection
        for ordinal in ordinals:
            row = connection.execute("SELECT ok FROM result WHERE ordinal = ?", (ordinal,)).fetchone()
            _forget_files(connection, ordinal)
            if row is None:
                continue
            gone += 1
            change.totals.ok -= row[0]
            change.totals.failed -= 1 - row[0]
            connection.execute("DELETE FROM result WHERE ordinal = ?", (ordinal,))
        connection.execute("DELETE FROM payload WHERE id NOT IN (SELECT payload FROM result)")
    return gone


def count_copies(layout: Layout) -> None:
    """Count anew the rows that were given another row's answer, in parts and in none. Raises StorageError."""
    with JournalReader(layout.journal) as reader:
        last = max((span.last for span in reader.spans()), default=-1)
        loose = sum(request.is_copy for _, request in reader.results(0, last))
        sealed = sum(_copies_of(layout.part(part.name)) for part in reader.parts())
    with changing(layout) as change:
        change.totals.copied = loose + sealed


def lose_attempts(layout: Layout) -> int:
    """Go on without the attempts that no file holds any more; returns how many those are. Raises StorageError."""
    with changing(layout) as change:
        connection = change.connection
        found: int = connection.execute("SELECT count(*) FROM attempt").fetchone()[0]
        connection.execute("DELETE FROM file WHERE name LIKE ?", (f"{layout.inside(layout.attempts)}/%",))
        for path in sorted(layout.attempts.glob("*.parquet")):
            found += count_rows(path)
            keep_file(connection, layout.written(path))
        lost = change.totals.attempts - found
        put(connection, ATTEMPTS_LOST, lost)
    return lost


@dataclass(slots=True)
class Change:
    """A transaction on the journal, and the totals that it leaves."""

    connection: Connection
    totals: Totals


@contextmanager
def changing(layout: Layout) -> Iterator[Change]:
    """Change the journal in one transaction, under the folder's lock. Raises StorageError."""
    with JournalReader(layout.journal) as reader:
        totals = reader.totals()
    connection = open_database(layout.journal)
    try:
        with database_errors(layout.journal.name), transaction(connection):
            create_tables(connection)
            yield Change(connection, totals)
            put(connection, "totals", asdict(totals))
    finally:
        connection.close()


def _reopen(layout: Layout, part: Part, *, rows: Iterator[Done]) -> int:
    done = bytearray(part.last - part.first + 1)
    with changing(layout) as change:
        connection, totals = change.connection, change.totals
        connection.execute("DELETE FROM part WHERE first = ?", (part.first,))
        span = Span(
            first=part.first,
            last=part.last,
            start=part.start,
            read=part.last - part.first + 1,
            digest=part.digest,
            finish=part.finish,
        )
        insert(connection, "span", span)
        # Rows that are asked again have no end any more, or a new one, which the journal holds.
        found = connection.execute("SELECT ordinal FROM again WHERE ordinal BETWEEN ? AND ?", (part.first, part.last))
        again = {ordinal for (ordinal,) in found}
        connection.execute("DELETE FROM rewrite WHERE first = ?", (part.first,))
        ok = failed = 0
        for outcome in outcomes(row for row in rows if row[0].ordinal not in again):
            insert_results(connection, outcome)
            ok += sum(row.ok for row in outcome.rows)
            failed += sum(not row.ok for row in outcome.rows)
            for row in outcome.rows:
                done[row.ordinal - part.first] = 1
        for ordinal in again:
            done[ordinal - part.first] = 1
        totals.ok += ok - part.ok
        totals.failed += failed - (part.failed - len(again))
        totals.sealed_ok -= part.ok
        totals.sealed_failed -= part.failed - len(again)
        if connection.execute("SELECT 1 FROM file WHERE name LIKE ?", (f"{MEDIA}/%",)).fetchone():
            for ordinal in (part.first + place for place, is_done in enumerate(done) if not is_done):
                _forget_files(connection, ordinal)
    return done.count(0)


def _whole_rows(path: Path, part: Part, without: frozenset[int]) -> Iterator[Done]:
    """The rows of a part that are what was written, but for those of `without`."""
    if not path.is_file():
        return
    if sha256_of(path) != part.sha256:
        groups = whole_groups(path, part.sections)
    elif read_ordinals(path) == (part.first, part.last):
        groups = None
    else:
        return  # it was written wrong: nothing that it says is to be gone by
    for row, request in rows_of_part(path, groups) if groups is None or groups else ():
        if part.first <= row.ordinal <= part.last and row.ordinal not in without:
            yield row, request


def _forget_files(connection: Connection, ordinal: int) -> None:
    """Forget a row's files, whatever their suffix."""
    name = media_name(ordinal, "x").removesuffix("x")
    connection.execute("DELETE FROM file WHERE name >= ? AND name < ?", (name, f"{name}\x7f"))


def _whole_manifest(layout: Layout) -> dict[str, Any] | None:
    try:
        manifest = read_manifest(layout.manifest)
    except (FileNotFoundError, ValueError, TypeError, RecursionError):
        return None
    return manifest if manifest.get("version") == MANIFEST_VERSION else None


def _parts(layout: Layout, manifest: Mapping[str, Any] | None, fingerprint: str) -> list[Part]:
    """Those of the manifest, then those beside it that say themselves what they are; none over another."""
    parts = [_newest(layout, Part(**said), fingerprint) for said in manifest["parts"]] if manifest else []
    known = {part.name for part in parts}
    for path in sorted(layout.root.glob("part-*.parquet")):
        part = None if path.name in known else _read_part(path, fingerprint)
        if part is not None and all(part.last < other.first or part.first > other.last for other in parts):
            parts.append(part)
    return sorted(parts, key=lambda part: part.first)


def _newest(layout: Layout, part: Part, fingerprint: str) -> Part:
    """What a part says of itself, where it was replaced after the manifest was written; else what that says."""
    path = layout.part(part.name)
    found = _read_part(path, fingerprint) if path.is_file() else None
    return part if found is None or found.generation <= part.generation else found


def _read_part(path: Path, fingerprint: str) -> Part | None:
    """What a part says of itself; None for one that cannot be read. Raises DamageError for one of another job."""
    try:
        origin = read_origin(path)
        first, last = read_ordinals(path)
        ok, rows, _ = count_statuses(path)
        sections = read_sections(path)
    except arrow_errors():
        return None
    if path.name != part_name(first, last):
        return None
    if origin is None or origin.fingerprint != fingerprint:
        raise DamageError(
            f"neither the journal nor the manifest can be read, and {path.name} does not say that it belongs to this "
            "job; put the old wording of the job back, restore the files from a copy, or start anew with --fresh (the "
            "old results are moved aside, not deleted)"
        )
    return Part(
        first=first,
        last=last,
        name=path.name,
        ok=ok,
        failed=rows - ok,
        bytes=path.stat().st_size,
        sha256=sha256_of(path),
        digest=origin.digest,
        generation=origin.generation,
        start=origin.start,
        finish=origin.finish,
        sections=json.dumps(sections),
    )


def _gaps(parts: list[Part]) -> Iterator[Span]:
    """An open range for what lies before a part and in none; what follows the last one is read on from its end."""
    expected, start = 0, _START
    for part in parts:
        if part.first > expected:
            # It is planned as read, so that it is not made shorter: what follows it is sealed.
            read = part.first - expected
            yield Span(first=expected, last=part.first - 1, start=start, read=read)
        expected, start = part.last + 1, part.finish


def _count_part(layout: Layout, part: Part, totals: Totals, connection: Connection) -> None:
    """Add what a part says of rows, tokens and files of rows."""
    totals.ok += part.ok
    totals.failed += part.failed
    totals.sealed_ok += part.ok
    totals.sealed_failed += part.failed
    path = layout.part(part.name)
    if not path.is_file() or sha256_of(path) != part.sha256:
        return
    for usage in (usage for (usage,) in _rows(path, ["usage"]) if usage is not None):
        totals.input_tokens += usage["input_tokens"] or 0
        totals.output_tokens += usage["output_tokens"] or 0
        totals.total_tokens += usage["total_tokens"] or 0
        totals.cached_tokens += usage["cached_tokens"] or 0
    totals.copied += _copies_of(path)
    for named in _rows(path, _path_columns(path)):
        for name in named:
            if name is not None:
                file = layout.root / name
                gone = WrittenFile(name=name, bytes=0, sha256="")
                keep_file(connection, layout.written(file) if file.is_file() else gone)


def _copies_of(path: Path) -> int:
    """How many rows of a part were given another row's answer; of one in pieces, the first counts."""
    import pyarrow.parquet as pq  # noqa: PLC0415 - loaded when a journal is changed

    found = 0
    with pq.ParquetFile(path, pre_buffer=False) as file:
        piece = [CHUNK] if has_pieces(file.schema_arrow) else []
        for batch in file.iter_batches(_BATCH_ROWS, columns=["request.attempts", "request.client_request_id", *piece]):
            requests = batch.column("request").to_pylist()
            numbers = batch.column(CHUNK).to_pylist() if piece else [0] * len(requests)
            found += sum(
                RequestInfo(**request).is_copy and not number for request, number in zip(requests, numbers, strict=True)
            )
    return found


def _path_columns(path: Path) -> list[str]:
    """The columns of the operation's own that name files of rows."""
    import pyarrow.parquet as pq  # noqa: PLC0415 - loaded when a journal is rebuilt

    names: list[str] = pq.read_schema(path).names
    return [name for name in names[names.index("status") + 1 : -len(COMMON_AFTER)] if name.endswith("_path")]


def _count_attempts(layout: Layout, totals: Totals, connection: Connection) -> None:
    """Add what the files of attempts say, and go on numbering behind them."""
    highest = 0
    for path in sorted(layout.attempts.glob("*.parquet")):
        try:
            verdicts = [verdict for (verdict,) in _rows(path, ["verdict"])]
        except arrow_errors():
            continue
        counted = Counter(verdicts)
        totals.attempts += len(verdicts)
        totals.requests += counted["answered"]
        totals.throttled += counted["throttled"]
        totals.calls_on_refusals += counted["pack_refused"]
        keep_file(connection, layout.written(path))
        highest = max(highest, int(path.stem.rpartition("-")[2]))
    connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('attempt', ?)", (highest,))


def _rows(path: Path, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    """Some columns of a file, row by row, a bounded number in memory."""
    import pyarrow.parquet as pq  # noqa: PLC0415 - loaded when a journal is rebuilt

    if not columns:
        return
    with pq.ParquetFile(path, pre_buffer=False) as file:
        for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
            yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)
