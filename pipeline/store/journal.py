"""The truth of a run: which rows are done and not yet in a part, which ranges are sealed, what was spent.

One writer thread owns the connection. Changes are queued and committed in groups: those of one turn of the event loop
are queued together, the thread takes whatever is queued, makes one transaction of it, and only then tells those who
wait. There is no timer, so a lone change is committed at once and a crowd of them shares one flush.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import ormsgpack

from pipeline.errors import DamageError, DefectError, PipelineError, StorageError
from pipeline.model import Attempt, Outcome, RequestInfo, RowResult, WrittenFile
from pipeline.store.ballast import PAUSES_S, Ballast
from pipeline.store.codec import (
    Kept,
    decode_attempt,
    decode_attempt_values,
    decode_outcome,
    decode_rows,
    encode_attempt,
    encode_outcome,
    restored,
)
from pipeline.store.database import (
    PAGE_BYTES,
    Connection,
    IntegrityError,
    Opened,
    database_errors,
    integrity_problems,
    open_database,
    open_reader,
    page_bytes_of,
    transaction,
)

SCHEMA_VERSION = 5
AGAIN_SINCE = 5
"""The version from which on rows may be asked again."""
ATTEMPTS_A_CHUNK = 500
ATTEMPTS_LOST = "attempts_lost"
"""Noted by a repair: how many attempts were in files that are gone."""

_TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS span (
    first INTEGER PRIMARY KEY, last INTEGER NOT NULL, start TEXT NOT NULL,
    read INTEGER NOT NULL DEFAULT 0, digest TEXT, finish TEXT
);
CREATE TABLE IF NOT EXISTS part (
    first INTEGER PRIMARY KEY, last INTEGER NOT NULL, name TEXT NOT NULL, ok INTEGER NOT NULL, failed INTEGER NOT NULL,
    bytes INTEGER NOT NULL, sha256 TEXT NOT NULL, digest TEXT NOT NULL, generation INTEGER NOT NULL,
    start TEXT NOT NULL, finish TEXT NOT NULL, sections TEXT NOT NULL DEFAULT '[]'
);
CREATE TABLE IF NOT EXISTS payload (id INTEGER PRIMARY KEY, blob BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS result (
    ordinal INTEGER PRIMARY KEY, payload INTEGER NOT NULL, slot INTEGER NOT NULL, ok INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS attempt (id INTEGER PRIMARY KEY AUTOINCREMENT, blob BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS piece (
    ordinal INTEGER NOT NULL, key TEXT NOT NULL, blob BLOB NOT NULL, PRIMARY KEY (ordinal, key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS file (
    name TEXT PRIMARY KEY, bytes INTEGER NOT NULL, sha256 TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS again (ordinal INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS replaced (
    ordinal INTEGER NOT NULL, generation INTEGER NOT NULL, blob BLOB NOT NULL, PRIMARY KEY (ordinal, generation)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rewrite (first INTEGER PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS batch (tag TEXT PRIMARY KEY, record TEXT NOT NULL, lines BLOB NOT NULL);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """An open range of ordinals. `last` is planned and shrinks where the input ends.

    `start` and `finish` are the source's positions before and after its rows; `finish` is None until it was read to
    its end. `digest` covers the first `read` rows.
    """

    first: int
    last: int
    start: str
    read: int = 0
    digest: str | None = None
    finish: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Again(Span):
    """A sealed range of which rows are asked again. Its part stands until a new one takes its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A sealed range: the Parquet file that holds it. `digest` is of its input rows, `sha256` of its bytes.

    `sections` are bytes and checksum of each row group and of the footer, as JSON: what is whole in a damaged file.
    """

    first: int
    last: int
    name: str
    ok: int
    failed: int
    bytes: int
    sha256: str
    digest: str
    generation: int
    start: str
    finish: str
    sections: str = "[]"


@dataclass(slots=True, kw_only=True)
class Totals:
    """What the folder's life has come to, over all invocations.

    `sealed_*` are rows in parts, `batched_*` those of the tokens that went through the Batch API. `carried` rows have
    an earlier run's results, `deleted` ones are there and not in the input any more. `copied` rows have another row's.
    """

    ok: int = 0
    failed: int = 0
    sealed_ok: int = 0
    sealed_failed: int = 0
    requests: int = 0
    attempts: int = 0
    throttled: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
    calls_on_refusals: int = 0
    batched_input_tokens: int = 0
    batched_output_tokens: int = 0
    carried: int = 0
    deleted: int = 0
    copied: int = 0


class BatchStep(StrEnum):
    """How far a batch has come; each step is kept before the call that follows it."""

    WRITTEN = "written"  # its lines lie in a file of ours, which may have been uploaded
    UPLOADED = "uploaded"
    SUBMITTING = "submitting"  # it may have been submitted
    SUBMITTED = "submitted"
    ENDED = "ended"
    COLLECTED = "collected"  # its results are kept; what remains is to tidy up


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRecord:
    """One batch of lines on its way. `since` is when it came to its step, epoch seconds.

    `tokens` is the estimate of its prompts, `most_input` and `most_output` what its lines can be billed for where the
    run has a budget. `file`, `batch`, `output` and `errors` are the service's ids. `overtaken`: its rows may have been
    answered one by one meanwhile.
    """

    tag: str
    deployment: str
    step: BatchStep
    since: float
    endpoint: str
    count: int
    bytes: int
    tokens: int
    most_input: int = 0
    most_output: int = 0
    file: str | None = None
    batch: str | None = None
    output: str | None = None
    errors: str | None = None
    overtaken: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLine:
    """One line of a batch: the rows that it asks for, and how often they were asked for before."""

    tries: int
    ordinals: tuple[int, ...]


class Packed(NamedTuple):
    """An outcome as the journal keeps it, packed by whichever process had the answer.

    `rows` are ordinals and whether they are ok, `attempts` verdicts and blobs. `tokens` are those of input, output,
    both and of the cache that count for the totals: none where the rows were `carried`.
    """

    rows: Sequence[tuple[int, bool]]
    payload: bytes
    attempts: Sequence[tuple[str, bytes]]
    tokens: tuple[int, int, int, int]
    batched: bool
    carried: bool


@dataclass(slots=True, kw_only=True)
class _Change:
    """One queued write, and who waits for it: rows to keep, which the writer packs, or something else to do."""

    rows: Outcome | Packed | None = None
    apply: Callable[[Connection], None] | None = None
    done: asyncio.Future[None] | None = None


class Journal:
    """The journal of one shard, open for writing. Create it in the event loop that commits to it."""

    def __init__(
        self,
        path: Path,
        *,
        ballast: Ballast | None = None,
        full: Callable[[StorageError], None] | None = None,
        page_bytes: int = PAGE_BYTES,
    ) -> None:
        """Open, or create with pages of so many bytes. Raises DamageError when it is damaged or of a newer version.

        `ballast` is given back when the disk refuses a change, which is then tried again; `full` is called in the event
        loop before, for nothing new should begin.
        """
        self.path = path
        self._ballast = ballast
        self._full = full
        self._connection = open_database(path, page_bytes=page_bytes)
        try:
            with database_errors(path.name):
                self.page_bytes = page_bytes_of(self._connection)
                self._create()
                known = self._connection.execute("SELECT value FROM meta WHERE key = 'totals'").fetchone()
                pending = self._connection.execute("SELECT coalesce(sum(length(blob)), 0) FROM payload").fetchone()
                last = self._connection.execute("SELECT coalesce(max(id), 0) FROM payload").fetchone()
                pieces = self._connection.execute("SELECT EXISTS (SELECT 1 FROM piece)").fetchone()
                self.largest: int = self._connection.execute(
                    "SELECT max((SELECT coalesce(max(length(blob)), 0) FROM payload),"
                    " (SELECT coalesce(max(bytes), 0) FROM file))"
                ).fetchone()[0]
        except BaseException:
            self._connection.close()
            raise
        self.totals = Totals(**json.loads(known[0])) if known else Totals()
        self.pending_bytes: int = pending[0]
        self._last_payload: int = last[0]
        self._in_pieces = bool(pieces[0])
        place = path.stat(follow_symlinks=False)
        self._identity = place.st_dev, place.st_ino
        self._loop = asyncio.get_running_loop()
        self._turn: list[_Change] = []
        self._queue: queue.SimpleQueue[list[_Change] | None] = queue.SimpleQueue()
        self._failure: PipelineError | None = None
        self._thread = threading.Thread(target=self._write, name="journal", daemon=True)
        self._thread.start()

    # -- writing -----------------------------------------------------------------------------------------------------

    async def commit(self, outcome: Outcome) -> None:
        """Keep an outcome. When this returns, it survives kill -9 and power loss.

        Raises StorageError when the disk refuses, DefectError when a row was already there.
        """
        await self._put(rows=outcome)

    async def keep_attempts(self, attempts: tuple[Attempt, ...]) -> None:
        """Keep attempts whose rows stay pending (a clean stop)."""
        await self._submit(lambda connection: self._keep_attempts(connection, attempts))

    def put_packed(self, packed: Packed) -> asyncio.Future[None]:
        """Queue an outcome that another process packed; the future is done when it is kept, as `commit` says it."""
        return self._put(rows=packed)

    def put_attempts(self, attempts: Sequence[tuple[str, bytes]]) -> asyncio.Future[None]:
        """Queue attempts that another process packed, likewise."""
        return self._put(apply=lambda connection: self._keep_packed_attempts(connection, attempts))

    async def keep_piece(self, key: str, outcome: Outcome) -> None:
        """Keep what a piece of a row came to, under the piece's key, until the row itself is committed as ok.

        The outcome holds one row: the piece's. Raises what `commit` raises.
        """
        await self._submit(lambda connection: self._keep_piece(connection, key, outcome))

    async def note(self, key: str, value: object) -> None:
        """Keep a fact of the run, as JSON."""
        await self._submit(lambda connection: put(connection, key, value))

    def post_span(self, span: Span) -> None:
        """Queue an open range, new or further read. Any thread; written before every later change."""
        change = _Change(
            apply=lambda connection: _execute(
                connection,
                "INSERT INTO span (first, last, start, read, digest, finish) VALUES (?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (first) DO UPDATE SET last = excluded.last, read = excluded.read, "
                "digest = excluded.digest, finish = excluded.finish",
                (span.first, span.last, span.start, span.read, span.digest, span.finish),
            )
        )
        self._queue.put([change])

    async def keep_batch(self, record: BatchRecord, lines: Sequence[BatchLine] | None = None) -> None:
        """Keep how far a batch has come; with `lines`, a new one. Raises what `commit` raises."""
        text = json.dumps(asdict(record))
        if lines is None:
            await self._submit(
                lambda connection: _execute(connection, "UPDATE batch SET record = ? WHERE tag = ?", (text, record.tag))
            )
            return
        blob = ormsgpack.packb([(line.tries, line.ordinals) for line in lines])
        await self._submit(
            lambda connection: _execute(connection, "INSERT INTO batch VALUES (?, ?, ?)", (record.tag, text, blob))
        )

    async def drop_batch(self, tag: str) -> None:
        """Forget a batch."""
        await self._submit(lambda connection: _execute(connection, "DELETE FROM batch WHERE tag = ?", (tag,)))

    async def flush(self) -> None:
        """Return when everything that was queued before is kept. Raises what `commit` raises."""
        await self._submit(lambda _: None)

    async def seal(self, part: Part, *, rest: Span | None) -> None:
        """Record a part and forget its rows. `rest` is what remains of its range after a short head."""
        await self._submit(lambda connection: self._seal(connection, part, rest))

    async def rewrite(self, part: Part) -> None:
        """Note what a part is about to become: from now on its file may be the old one or this one."""
        record = json.dumps(asdict(part))
        await self._submit(
            lambda connection: _execute(
                connection, "INSERT OR REPLACE INTO rewrite VALUES (?, ?)", (part.first, record)
            )
        )

    async def rewritten(self, part: Part) -> None:
        """Count the new file of a part, and forget the rows that were asked again for it."""

        def apply(connection: Connection) -> None:
            self.pending_bytes -= count_rewritten(connection, part, self.totals)

        await self._submit(apply)

    async def drop_attempts(self, first_id: int, last_id: int, *, file: WrittenFile) -> None:
        """Forget attempts that a file now holds, and keep that file's checksum."""

        def apply(connection: Connection) -> None:
            _execute(connection, "DELETE FROM attempt WHERE id BETWEEN ? AND ?", (first_id, last_id))
            keep_file(connection, file)

        await self._submit(apply)

    async def keep_files(self, files: Sequence[WrittenFile]) -> None:
        """Keep the checksums of files that were written from what is done."""

        def apply(connection: Connection) -> None:
            for file in files:
                keep_file(connection, file)

        await self._submit(apply)

    async def keep_deleted(self, rows: int, *, ended: str) -> None:
        """Keep how many rows of the earlier results are not in the input any more, and forget the fact `ended`."""

        def apply(connection: Connection) -> None:
            self.totals.deleted = rows
            _execute(connection, "DELETE FROM meta WHERE key = ?", (ended,))

        await self._submit(apply)

    async def close(self) -> None:
        """Write what is queued and give the file back."""
        self._end_turn()
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)
        self._connection.close()

    async def _submit(self, apply: Callable[[Connection], None]) -> None:
        # A waiter that is cancelled cancels nothing but this: the change is committed all the same.
        await self._put(apply=apply)

    def _put(
        self, *, rows: Outcome | Packed | None = None, apply: Callable[[Connection], None] | None = None
    ) -> asyncio.Future[None]:
        """Queue a change. Raises what ended the journal."""
        if self._failure is not None:
            raise self._failure
        if not self._turn:
            self._loop.call_soon(self._end_turn)
        done: asyncio.Future[None] = self._loop.create_future()
        self._turn.append(_Change(rows=rows, apply=apply, done=done))
        return done

    def _end_turn(self) -> None:
        """Hand over what the event loop's turn has brought: the writer then wakes once for all of it."""
        if self._turn:
            self._queue.put(self._turn)
            self._turn = []

    def _write(self) -> None:
        """The writer thread: whatever is queued becomes one transaction."""
        ended = False
        while not ended:
            changes: list[_Change] = []
            item = self._queue.get()
            while True:
                if item is None:
                    ended = True
                    break
                changes += item
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
            if changes:
                self._commit_group(changes)

    def _commit_group(self, changes: list[_Change]) -> None:
        if self._failure is None:
            failure = self._tried(changes)
            if isinstance(failure, StorageError) and not isinstance(failure, DamageError):
                failure = self._tried_with_ballast(changes, failure)
            # Not before: who commits meanwhile is refused by a failure, and this one may yet be overcome.
            self._failure = failure
        waiting = [change.done for change in changes if change.done is not None]
        if waiting:
            self._loop.call_soon_threadsafe(_resolve, waiting, self._failure)

    def _tried(self, changes: list[_Change]) -> PipelineError | None:
        """Make one transaction of the changes; returns why it could not be."""
        before = replace(self.totals), self.pending_bytes, self._last_payload
        failure: PipelineError
        try:
            with database_errors(str(self.path)), transaction(self._connection):
                for _, some in itertools.groupby(changes, key=lambda change: change.rows is None):
                    self._apply(list(some))
                put_text(self._connection, "totals", orjson.dumps(self.totals).decode())
        except PipelineError as error:
            failure = error
        except IntegrityError as error:
            failure = DefectError(
                f"a row was committed twice ({error}); nothing is lost: please report this, with log.jsonl"
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
            failure = DefectError(f"the journal's writer failed: {type(error).__name__}: {error}")
        else:
            return None
        # What was rolled back must not be counted as done.
        self.totals, self.pending_bytes, self._last_payload = before
        return failure

    def _apply(self, changes: Sequence[_Change]) -> None:
        """Write changes that are all of rows, or none of which is."""
        if rows := [change.rows for change in changes if change.rows is not None]:
            self._keep(self._connection, rows)
        for change in changes:
            if change.apply is not None:
                change.apply(self._connection)

    def _tried_with_ballast(self, changes: list[_Change], failure: StorageError) -> PipelineError | None:
        """Let nothing new begin, give the ballast back, and try again: answers that were paid for are in there.

        A quota that is used up looks like any other error of the disk to SQLite, so every one is tried again.
        """
        if self._ballast is None:
            return failure
        if self._full is not None:
            self._loop.call_soon_threadsafe(self._full, failure)
        self._ballast.release()
        last: PipelineError | None = failure
        for pause_s in PAUSES_S:
            time.sleep(pause_s)
            last = self._tried(changes)
            if not isinstance(last, StorageError):
                break
        return last

    def _keep(self, connection: Connection, rows: Sequence[Outcome | Packed]) -> None:
        """Keep what requests came to, in their order."""
        kept = [one if isinstance(one, Packed) else pack(one) for one in rows]
        first = self._last_payload + 1
        self._last_payload += len(kept)
        _insert_packed(connection, first, kept)
        self._keep_packed_attempts(connection, [attempt for packed in kept for attempt in packed.attempts])
        for packed in kept:
            self._count(packed)
        for one in rows:
            if isinstance(one, Outcome):
                self.totals.copied += len(one.rows) if one.request.is_copy else 0
                for file in one.files:
                    keep_file(connection, file)
        if self._in_pieces:
            # A failed row's pieces stay: when it is sent again, they are not.
            done = [(ordinal,) for packed in kept for ordinal, ok in packed.rows if ok]
            connection.executemany("DELETE FROM piece WHERE ordinal = ?", done)

    def _count(self, packed: Packed) -> None:
        totals = self.totals
        ok = sum(ok for _, ok in packed.rows)
        totals.ok += ok
        totals.failed += len(packed.rows) - ok
        totals.carried += len(packed.rows) if packed.carried else 0
        given, answered, in_all, cached = packed.tokens
        totals.input_tokens += given
        totals.output_tokens += answered
        totals.total_tokens += in_all
        totals.cached_tokens += cached
        if packed.batched:
            totals.batched_input_tokens += given
            totals.batched_output_tokens += answered
        if packed.attempts:
            totals.requests += 1
        self.pending_bytes += len(packed.payload)
        self._saw(len(packed.payload))

    def _saw(self, size: int) -> None:
        if self._ballast is not None:
            self._ballast.seen(size)

    def _keep_piece(self, connection: Connection, key: str, outcome: Outcome) -> None:
        (row,) = outcome.rows
        values = (row.ordinal, key, encode_outcome(outcome))
        connection.execute("INSERT OR REPLACE INTO piece VALUES (?, ?, ?)", values)
        self._saw(len(values[2]))
        self._in_pieces = True
        self.totals.requests += 1
        self._keep_attempts(connection, outcome.attempts)

    def _keep_attempts(self, connection: Connection, attempts: tuple[Attempt, ...]) -> None:
        self._keep_packed_attempts(connection, pack_attempts(attempts))

    def _keep_packed_attempts(self, connection: Connection, attempts: Sequence[tuple[str, bytes]]) -> None:
        _insert_many(connection, "attempt (blob)", 1, [blob for _, blob in attempts])
        for verdict, _ in attempts:
            self.totals.attempts += 1
            if verdict == "throttled":
                self.totals.throttled += 1
            elif verdict == "pack_refused":
                self.totals.calls_on_refusals += 1

    def _seal(self, connection: Connection, part: Part, rest: Span | None) -> None:
        span_last = part.last if rest is None else rest.last
        mine = "SELECT DISTINCT payload FROM result WHERE ordinal BETWEEN ? AND ?"
        connection.execute("CREATE TEMP TABLE IF NOT EXISTS gone (id INTEGER PRIMARY KEY)")
        connection.execute("DELETE FROM gone")
        # A pack may reach over the end of a short head; its payload stays until its last row is sealed.
        connection.execute(
            f"INSERT INTO gone {mine} EXCEPT {mine}",
            (part.first, part.last, part.last + 1, span_last),
        )
        freed = connection.execute("SELECT coalesce(sum(length(blob)), 0) FROM payload WHERE id IN gone").fetchone()[0]
        connection.execute("DELETE FROM payload WHERE id IN gone")
        connection.execute("DELETE FROM result WHERE ordinal BETWEEN ? AND ?", (part.first, part.last))
        connection.execute("DELETE FROM span WHERE first = ?", (part.first,))
        insert(connection, "part", part)
        if rest is not None:
            insert(connection, "span", rest)
        connection.execute("DELETE FROM again WHERE ordinal BETWEEN ? AND ?", (part.first, part.last))
        self.totals.sealed_ok += part.ok
        self.totals.sealed_failed += part.failed
        self.pending_bytes -= freed

    def _create(self) -> None:
        """Make the tables, all of them or none; refuse a journal whose tables are not ours."""
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise DamageError(_newer(self.path, version))
        if version < SCHEMA_VERSION:
            with transaction(self._connection):
                create_tables(self._connection)

    # -- reading, before the run begins or from the sealing thread ---------------------------------------------------

    def reader(self) -> JournalReader:
        """A second connection for reading what is committed. Raises StorageError where the file is gone."""
        try:
            return JournalReader(self.path)
        except FileNotFoundError as error:
            raise self._gone() from error

    def check_place(self) -> None:
        """Raise StorageError where the file that is written to is not the one that its path names any more."""
        try:
            found = self.path.stat(follow_symlinks=False)
        except OSError as error:
            raise self._gone() from error
        if (found.st_dev, found.st_ino) != self._identity:
            raise self._gone()

    def _gone(self) -> StorageError:
        return StorageError(
            f"{self.path} was moved or deleted while the run wrote to it; put the folder back where it was, if you "
            "have it, then run the same command again: without it, its rows that are in no part are asked again"
        )


class JournalReader(Opened):
    """What is committed, read beside the writer or after it. Close it, or use it in a with block."""

    def __init__(self, path: Path) -> None:
        """Raises FileNotFoundError where there is no journal, or one that a crash left without its tables."""
        self._connection = open_reader(path)
        try:
            row = self._one("PRAGMA user_version", ())
        except BaseException:
            self._connection.close()
            raise
        self.version: int = 0 if row is None else row[0]
        if self.version == 0:
            self._connection.close()
            raise FileNotFoundError(path)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Read everything within the block as of one moment, whatever is written meanwhile."""
        with database_errors("journal"):
            self._connection.execute("BEGIN")
        try:
            yield
        finally:
            self._connection.execute("ROLLBACK")

    def noted(self, key: str) -> Any:
        """A fact of the run; None when it was never noted."""
        row = self._one("SELECT value FROM meta WHERE key = ?", (key,))
        return None if row is None else json.loads(row[0])

    def totals(self) -> Totals:
        """What the folder's life has come to."""
        return Totals(**(self.noted("totals") or {}))

    def spans(self) -> list[Span]:
        """Open ranges, by ordinal."""
        names = [item.name for item in fields(Span)]
        rows = self._all(f"SELECT {', '.join(names)} FROM span ORDER BY first", ())  # noqa: S608 - our own names
        return [Span(**dict(zip(names, row, strict=True))) for row in rows]

    def parts(self) -> list[Part]:
        """Sealed ranges, by ordinal."""
        known = {row[1] for row in self._all("PRAGMA table_info(part)", ())}  # an older version's have no sections
        names = [item.name for item in fields(Part) if item.name in known]
        rows = self._all(f"SELECT {', '.join(names)} FROM part ORDER BY first", ())  # noqa: S608 - our own names
        return [Part(**dict(zip(names, row, strict=True))) for row in rows]

    def open_ranges(self) -> list[Span]:
        """Ranges with rows that are not done, by ordinal: open ones, and those of which rows are asked again."""
        return sorted([*self.spans(), *self._again_ranges()], key=lambda one: one.first)

    def _again_ranges(self) -> list[Again]:
        return [
            Again(
                first=part.first,
                last=part.last,
                start=part.start,
                read=part.last - part.first + 1,
                digest=part.digest,
                finish=part.finish,
            )
            for part in (self.parts() if self.asks_again else [])
            if self.again(part.first, part.last)
        ]

    @property
    def asks_again(self) -> bool:
        """Whether rows that had an end are asked again, and the parts that hold them are still the old ones."""
        return self.version >= AGAIN_SINCE and self._one("SELECT 1 FROM again LIMIT 1", ()) is not None

    def again(self, first: int, last: int) -> list[int]:
        """The rows within the bounds that are asked again, answered or not, by ordinal."""
        if self.version < AGAIN_SINCE:
            return []
        rows = self._all("SELECT ordinal FROM again WHERE ordinal BETWEEN ? AND ? ORDER BY ordinal", (first, last))
        return [ordinal for (ordinal,) in rows]

    def replaced(self, ordinal: int) -> list[tuple[int, RowResult, RequestInfo]]:
        """What a row came to before it was asked again: (generation that asked again, the row, its request)."""
        if self.version < AGAIN_SINCE:
            return []
        sql = "SELECT generation, blob FROM replaced WHERE ordinal = ? ORDER BY generation"
        found = [(generation, decode_outcome(blob)) for generation, blob in self._all(sql, (ordinal,))]
        return [(generation, outcome.rows[0], outcome.request) for generation, outcome in found]

    def rewrites(self) -> list[Part]:
        """What parts were about to become when a run was cut."""
        rows = self._all("SELECT record FROM rewrite", ()) if self.version >= AGAIN_SINCE else []
        return [Part(**json.loads(record)) for (record,) in rows]

    def batches(self) -> list[BatchRecord]:
        """Batches on their way, in no order."""
        records = [json.loads(text) for (text,) in self._all("SELECT record FROM batch", ())]
        return [BatchRecord(**{**record, "step": BatchStep(record["step"])}) for record in records]

    def batch_lines(self, tag: str) -> list[BatchLine]:
        """The lines of a batch, in the order of its file; none where it is not known."""
        row = self._one("SELECT lines FROM batch WHERE tag = ?", (tag,))
        packed = () if row is None else ormsgpack.unpackb(row[0])
        return [BatchLine(tries=tries, ordinals=tuple(ordinals)) for tries, ordinals in packed]

    def done(self, first: int, last: int) -> bytearray:
        """One byte an ordinal, from `first`: 1 where the row is done, in a part or not."""
        flags = bytearray(last - first + 1)
        with database_errors("journal"):
            for begin, end in self._connection.execute(
                "SELECT max(first, ?), min(last, ?) FROM part WHERE last >= ? AND first <= ?",
                (first, last, first, last),
            ):
                flags[begin - first : end - first + 1] = b"\1" * (end - begin + 1)
            for ordinal in self.again(first, last):
                flags[ordinal - first] = 0
            for (ordinal,) in self._connection.execute(
                "SELECT ordinal FROM result WHERE ordinal BETWEEN ? AND ?", (first, last)
            ):
                flags[ordinal - first] = 1
        return flags

    def count_done(self, first: int, last: int) -> int:
        """How many rows within the bounds are done."""
        row = self._one("SELECT count(*) FROM result WHERE ordinal BETWEEN ? AND ?", (first, last))
        return 0 if row is None else int(row[0])

    def counts(self) -> tuple[int, int]:
        """Rows done and not in parts: (ok, failed)."""
        row = self._one("SELECT coalesce(sum(ok), 0), count(*) FROM result", ())
        ok, done = row if row is not None else (0, 0)
        return int(ok), int(done - ok)

    def results(self, first: int, last: int, *, only_failed: bool = False) -> Iterator[tuple[RowResult, RequestInfo]]:
        """Rows done within the bounds, by ordinal. Raises what `kept` raises."""
        return map(restored, self.kept(first, last, only_failed=only_failed))

    def kept(self, first: int, last: int, *, only_failed: bool = False) -> Iterator[Kept]:
        """Rows done within the bounds, by ordinal, as they are kept. A payload is held from its first row to its last.

        Raises DamageError where a payload is gone.
        """
        condition = " AND NOT ok" if only_failed else ""
        open_payloads: dict[int, tuple[list[Kept], int]] = {}
        with database_errors("journal"):
            # A payload comes along with one of its rows, not with each: a pack is megabytes, and read as often.
            cursor = self._connection.execute(
                "SELECT result.payload, slot, blob FROM result "  # noqa: S608 - our own words
                "LEFT JOIN payload ON payload.id = result.payload AND slot = 0 "
                f"WHERE ordinal BETWEEN ? AND ?{condition} ORDER BY ordinal",
                (first, last),
            )
            for payload, slot, blob in cursor:
                rows, left = open_payloads.get(payload) or self._payload(payload, blob)
                if left == 1:
                    open_payloads.pop(payload, None)
                else:
                    open_payloads[payload] = (rows, left - 1)
                yield rows[slot]

    def results_of(self, ordinals: Sequence[int]) -> Iterator[tuple[RowResult, RequestInfo]]:
        """These rows, as far as they are done and in no part, in no order; one payload is held at a time."""
        places = ", ".join("?" * len(ordinals))
        held: tuple[int, list[Kept]] = (-1, [])
        with database_errors("journal"):
            rows = self._connection.execute(
                f"SELECT payload, slot FROM result WHERE ordinal IN ({places}) ORDER BY payload",  # noqa: S608 - marks
                tuple(ordinals),
            ).fetchall()
            for payload, slot in rows:
                if held[0] != payload:
                    held = payload, self._payload(payload)[0]
                yield restored(held[1][slot])

    def pieces(self, ordinal: int) -> dict[str, Outcome]:
        """What the pieces of a row came to, by their keys; none once the row is ok."""
        rows = self._all("SELECT key, blob FROM piece WHERE ordinal = ?", (ordinal,))
        return {key: decode_outcome(blob) for key, blob in rows}

    def files(self) -> Iterator[WrittenFile]:
        """The files of rows that are done, by name."""
        with database_errors("journal"):
            for name, size, digest in self._connection.execute("SELECT name, bytes, sha256 FROM file ORDER BY name"):
                yield WrittenFile(name=name, bytes=size, sha256=digest)

    def file_bytes(self) -> int:
        """Bytes of all files of rows that are done."""
        row = self._one("SELECT coalesce(sum(bytes), 0) FROM file", ())
        return 0 if row is None else int(row[0])

    def has_file(self, name: str) -> bool:
        """Whether a row that is done has this file."""
        return self._one("SELECT 1 FROM file WHERE name = ?", (name,)) is not None

    def attempts(self, *, after: int = 0, limit: int = ATTEMPTS_A_CHUNK) -> list[tuple[int, Attempt]]:
        """Attempts that no file holds yet, by id."""
        rows = self._all("SELECT id, blob FROM attempt WHERE id > ? ORDER BY id LIMIT ?", (after, limit))
        return [(row[0], decode_attempt(row[1])) for row in rows]

    def attempts_at_once(self) -> Iterator[list[tuple[int, Attempt]]]:
        """Attempts that no file holds, by id, as of one moment, a bounded number at a time. Read them to their end."""
        with database_errors("journal"):
            cursor = self._connection.execute("SELECT id, blob FROM attempt ORDER BY id")
            while rows := cursor.fetchmany(ATTEMPTS_A_CHUNK):
                yield [(row[0], decode_attempt(row[1])) for row in rows]

    def attempt_bounds(self, *, limit: int) -> tuple[int, int] | None:
        """The first and last number of at most `limit` attempts that no file holds; None when there are none."""
        row = self._one("SELECT min(id), max(id) FROM attempt", ())
        if row is None or row[0] is None:
            return None
        return int(row[0]), min(int(row[1]), int(row[0]) + limit - 1)

    def attempt_chunks(self, first: int, last: int) -> Iterator[list[Sequence[Any]]]:
        """The attempts within the bounds, as `attempt_values` gives them, a bounded number at a time."""
        with database_errors("journal"):
            cursor = self._connection.execute(
                "SELECT blob FROM attempt WHERE id BETWEEN ? AND ? ORDER BY id", (first, last)
            )
            while rows := cursor.fetchmany(ATTEMPTS_A_CHUNK):
                yield [decode_attempt_values(blob) for (blob,) in rows]

    def problems(self) -> list[str]:
        """What SQLite's integrity check, and a look at every payload, find wrong."""
        found = integrity_problems(self._connection)
        with database_errors("journal"):
            for identity, blob in self._connection.execute("SELECT id, blob FROM payload"):
                try:
                    decode_outcome(blob)
                except (ValueError, TypeError, KeyError):
                    found.append(f"payload {identity} cannot be read")
        return found

    def _payload(self, identity: int, blob: bytes | None = None) -> tuple[list[Kept], int]:
        """The rows of a payload, and how many they are; it is read where its `blob` is not given."""
        if blob is None:
            row = self._connection.execute("SELECT blob FROM payload WHERE id = ?", (identity,)).fetchone()
            if row is None:
                raise DamageError(f"the journal has lost payload {identity}; run `pipeline verify` on the folder")
            blob = row[0]
        rows = decode_rows(blob)
        return rows, len(rows)

    def _one(self, sql: str, values: tuple[Any, ...]) -> tuple[Any, ...] | None:
        with database_errors("journal"):
            row: tuple[Any, ...] | None = self._connection.execute(sql, values).fetchone()
        return row

    def _all(self, sql: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        with database_errors("journal"):
            return self._connection.execute(sql, values).fetchall()


def pack(outcome: Outcome) -> Packed:
    """Pack an outcome, but for its files."""
    usages = [] if outcome.carried else [row.usage for row in outcome.rows if row.usage is not None]
    return Packed(
        rows=[(row.ordinal, row.ok) for row in outcome.rows],
        payload=encode_outcome(outcome),
        attempts=pack_attempts(outcome.attempts),
        tokens=(
            sum(usage.input_tokens or 0 for usage in usages),
            sum(usage.output_tokens or 0 for usage in usages),
            sum(usage.total_tokens or 0 for usage in usages),
            sum(usage.cached_tokens or 0 for usage in usages),
        ),
        batched=outcome.batched,
        carried=outcome.carried,
    )


def pack_attempts(attempts: Sequence[Attempt]) -> list[tuple[str, bytes]]:
    """Pack attempts: verdict and blob of each."""
    return [(attempt.verdict, encode_attempt(attempt)) for attempt in attempts]


def create_tables(connection: Connection) -> None:
    """Make the tables that are not there, and bring those of an older version up to date; call it in a transaction."""
    for statement in _TABLES.split(";"):
        connection.execute(statement)
    if "sections" not in {row[1] for row in connection.execute("PRAGMA table_info(part)")}:
        connection.execute("ALTER TABLE part ADD COLUMN sections TEXT NOT NULL DEFAULT '[]'")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def count_rewritten(connection: Connection, part: Part, totals: Totals) -> int:
    """Count the new file of a part in the place of the old one; returns the bytes that its rows took in the journal."""
    bounds = (part.first, part.last)
    ok, failed = connection.execute("SELECT ok, failed FROM part WHERE first = ?", (part.first,)).fetchone()
    again = connection.execute("SELECT count(*) FROM again WHERE ordinal BETWEEN ? AND ?", bounds).fetchone()[0]
    totals.sealed_ok += part.ok - ok
    totals.sealed_failed += part.failed - (failed - again)
    mine = "SELECT payload FROM result WHERE ordinal BETWEEN ? AND ?"
    freed: int = connection.execute(
        f"SELECT coalesce(sum(length(blob)), 0) FROM payload WHERE id IN ({mine})",  # noqa: S608 - our own words
        bounds,
    ).fetchone()[0]
    connection.execute(f"DELETE FROM payload WHERE id IN ({mine})", bounds)  # noqa: S608 - likewise
    connection.execute("DELETE FROM result WHERE ordinal BETWEEN ? AND ?", bounds)
    connection.execute("DELETE FROM again WHERE ordinal BETWEEN ? AND ?", bounds)
    connection.execute("DELETE FROM rewrite WHERE first = ?", (part.first,))
    connection.execute("DELETE FROM part WHERE first = ?", (part.first,))
    insert(connection, "part", part)
    return freed


def insert(connection: Connection, table: str, value: Part | Span) -> None:
    """Add a range to its table."""
    names = [item.name for item in fields(value)]
    places = ", ".join("?" * len(names))
    connection.execute(
        f"INSERT INTO {table} ({', '.join(names)}) VALUES ({places})",  # noqa: S608 - our own names
        tuple(getattr(value, name) for name in names),
    )


def insert_results(connection: Connection, outcome: Outcome) -> int:
    """Add the rows of an outcome; returns the bytes that they take. Raises IntegrityError for one that is there."""
    packed = pack(outcome)
    last = connection.execute("SELECT coalesce(max(id), 0) FROM payload").fetchone()[0]
    _insert_packed(connection, last + 1, [packed])
    return len(packed.payload)


def _insert_packed(connection: Connection, first: int, kept: Sequence[Packed]) -> None:
    """Add payloads, which get the ids from `first` on, and their rows."""
    payloads: list[Any] = []
    results: list[Any] = []
    for identity, packed in enumerate(kept, first):
        payloads += (identity, packed.payload)
        for slot, (ordinal, ok) in enumerate(packed.rows):
            results += (ordinal, identity, slot, ok)
    _insert_many(connection, "payload", 2, payloads)
    _insert_many(connection, "result", 4, results)


def _insert_many(connection: Connection, into: str, columns: int, values: list[Any]) -> None:
    """Add rows, whose values are in one list, by few statements.

    Each statement gives the interpreter's lock away, and may then wait for it for milliseconds.
    """
    at, left = 0, len(values) // columns
    while left:
        rows = next((size for size in _ROWS_AT_ONCE if left >= size), left)
        size = rows * columns
        connection.execute(_insertion(into, columns, rows), values[at : at + size])
        at, left = at + size, left - rows


_ROWS_AT_ONCE = (64, 16)
"""A few fixed sizes, and each below: so many statements of each table SQLite keeps compiled, to be used again."""


@lru_cache(maxsize=128)
def _insertion(into: str, columns: int, rows: int) -> str:
    row = f"({', '.join('?' * columns)})"
    return f"INSERT INTO {into} VALUES {', '.join([row] * rows)}"  # noqa: S608 - our own names


def keep_file(connection: Connection, file: WrittenFile) -> None:
    """Note a file's checksum, in the place of an older one."""
    connection.execute("INSERT OR REPLACE INTO file VALUES (?, ?, ?)", (file.name, file.bytes, file.sha256))


def _newer(path: Path, version: int) -> str:
    return (
        f"{path} was written by a newer version of pipeline (schema {version}, this one knows {SCHEMA_VERSION}); "
        "install that version to continue this run"
    )


def put(connection: Connection, key: str, value: object) -> None:
    """Note a fact of the run, as JSON, in the place of an older one."""
    put_text(connection, key, json.dumps(value))


def put_text(connection: Connection, key: str, text: str) -> None:
    """The same, of what is JSON already."""
    _execute(
        connection,
        "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        (key, text),
    )


def _execute(connection: Connection, sql: str, values: tuple[Any, ...]) -> None:
    connection.execute(sql, values)


def _resolve(waiting: list[asyncio.Future[None]], failure: PipelineError | None) -> None:
    for future in waiting:
        if future.done():
            continue
        if failure is None:
            future.set_result(None)
        else:
            future.set_exception(failure)
