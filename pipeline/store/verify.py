"""Reads every byte of a run back: parts, manifest, journal, attempts; says what is not as it was written."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import DamageError, FolderHeldError, StorageError
from pipeline.model import CHUNK
from pipeline.store.checksums import CHECKSUMS, changed_files
from pipeline.store.database import integrity_problems, open_reader
from pipeline.store.files import sha256_of
from pipeline.store.folder import Layout
from pipeline.store.journal import ATTEMPTS_LOST, SCHEMA_VERSION, JournalReader, Part, Span, Totals
from pipeline.store.manifest import manifest_of, read_manifest
from pipeline.store.media import MEDIA
from pipeline.store.parts import has_pieces, part_name, read_ordinals
from pipeline.store.summary import read_summary
from pipeline.store.training import noted_training

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_ROWS = 16_384
_REPAIR = "`pipeline run JOB --repair` rebuilds it from what is whole"
_ASK_AGAIN = "`pipeline run JOB --repair` asks again what it held and nothing else holds"
_REWRITE = "run the job again: it is written anew"
_NOT_ANEW = "put it back from a copy: nothing else says which results may be carried over"
_ATTEMPTS = "no row is touched by it: `pipeline run JOB --repair` moves it aside"
_LEFT_OVER = "run the job again to have a left-over removed; move a file of your own elsewhere"
_REPORT = "please report this, with _pipeline/log.jsonl; `pipeline run JOB --repair` asks its rows again"


class Kind(StrEnum):
    """What a finding is about; `store.repair` goes by it."""

    JOURNAL = "journal"
    NEWER = "newer"
    IDS = "ids"
    PART = "part"
    MEDIA = "media"
    ATTEMPTS = "attempts"
    WRITTEN_ANEW = "written_anew"
    STRAY = "stray"
    CUT_REPAIR = "cut_repair"
    INPUT = "input"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is not as it was written. `file` is relative to the output folder."""

    kind: Kind
    file: str
    message: str
    advice: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What was read. Rows are those finished; `loose` of them are in the journal and not yet in a part."""

    findings: tuple[Finding, ...]
    parts: int
    bytes: int
    ok: int
    failed: int
    loose: int


@contextmanager
def keep_runs_out(layout: Layout) -> Iterator[None]:
    """Let no run begin while the block reads; nothing is written. Raises FolderHeldError while a run goes on."""
    try:
        handle = os.open(layout.lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        yield  # no run ever held it, or it cannot be read: the findings will say
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderHeldError(f"a run holds {layout.root}; verify it when the run has ended") from None
        yield
    finally:
        os.close(handle)


def verify_folder(layout: Layout) -> Verified:
    """Read everything that a run wrote. Call it within `keep_runs_out`.

    Whatever is wrong is a finding; nothing is raised for it.
    """
    check = _Check(layout)
    check.files()
    try:
        with JournalReader(layout.journal) as reader:
            return check.all(reader)
    except FileNotFoundError:
        check.find(Kind.JOURNAL, layout.journal, "is missing", _REPAIR)
    except Exception as error:  # noqa: BLE001 - a damaged value can take any shape, so any failure is what is looked for
        message = str(error) if isinstance(error, StorageError) else f"cannot be read ({type(error).__name__})"
        check.find(Kind.JOURNAL, layout.journal, message, _REPAIR)
    return Verified(findings=tuple(check.findings), parts=0, bytes=0, ok=0, failed=0, loose=0)


class _Check:
    """One reading of one folder."""

    def __init__(self, layout: Layout) -> None:
        self.findings: list[Finding] = []
        self._layout = layout
        self._schema: pa.Schema | None = None

    def files(self) -> None:
        """Check what the run left of its own against its checksums, and that no repair was cut short."""
        private = self._layout.private
        if self._layout.repair.is_file():
            self.find(
                Kind.CUT_REPAIR, self._layout.repair, "says that a repair was cut short", "run it again with --repair"
            )
        try:
            changed = changed_files(private)
        except (ValueError, OSError, RecursionError):
            self.find(Kind.WRITTEN_ANEW, private / CHECKSUMS, "is not what was written", _REWRITE)
            return
        for name, how in changed.items():
            kind, advice = _kind_of(name, how)
            self.find(kind, private / name, f"{how} since the run ended", advice)

    def all(self, reader: JournalReader) -> Verified:
        """Check the journal first: it is what the rest is measured by."""
        self._reader = reader
        if reader.version > SCHEMA_VERSION and not self._is_damaged(self._layout.journal):
            message = f"was written by a newer version of pipeline (schema {reader.version})"
            self.find(Kind.NEWER, self._layout.journal, message, "verify it with that version")
            return Verified(findings=tuple(self.findings), parts=0, bytes=0, ok=0, failed=0, loose=0)
        self._journal()
        parts = reader.parts()
        spans = reader.spans()
        self._ranges([*parts, *spans])
        bytes_read = sum(self._part(part) for part in parts)
        self._strays(parts)
        bytes_read += self._files_of_rows()
        self._counts(parts)
        self._ids([*parts, *spans])
        self._attempts()
        self._manifest(parts)
        ok, failed = reader.counts()
        self._summary()
        return Verified(
            findings=tuple(self.findings),
            parts=len(parts),
            bytes=bytes_read,
            ok=sum(part.ok for part in parts) + ok,
            failed=sum(part.failed for part in parts) - self._again(parts) + failed,
            loose=ok + failed,
        )

    def find(self, kind: Kind, path: Path, message: str, advice: str) -> None:
        """Note a finding."""
        self.findings.append(Finding(kind=kind, file=self._layout.inside(path), message=message, advice=advice))

    def _is_damaged(self, path: Path) -> bool:
        name = self._layout.inside(path)
        return any(finding.file == name for finding in self.findings)

    def _journal(self) -> None:
        for problem in self._reader.problems():
            self.find(Kind.JOURNAL, self._layout.journal, problem, _REPAIR)

    def _ids(self, ranges: Sequence[Part | Span]) -> None:
        """Check the table of ids, where the job names an id and rows were read."""
        path = self._layout.ids
        if not path.is_file():
            if ranges and id_column(self._reader) is not None and not self._is_damaged(path):
                self.find(Kind.IDS, path, "is missing", _REPAIR)
            return
        try:
            connection = open_reader(path)
            try:
                problems = integrity_problems(connection)
            finally:
                connection.close()
        except StorageError as error:
            problems = [str(error)]
        for problem in problems:
            self.find(Kind.IDS, path, problem, _REPAIR)

    def _part(self, part: Part) -> int:
        """Check one part; returns its bytes."""
        path = self._layout.root / Path(part.name).name
        if part.name != part_name(part.first, part.last):
            message = f"names the part of rows {part.first} to {part.last} {part.name}"
            self.find(Kind.JOURNAL, self._layout.journal, message, _REPAIR)
        if not path.is_file():
            self.find(Kind.PART, path, "is missing: the journal counts it", _ASK_AGAIN)
            return 0
        size, digest = path.stat().st_size, sha256_of(path)
        # A run that was cut while it replaced a part left the old file or the new one: both are whole.
        new = next((new for new in self._reader.rewrites() if new.first == part.first), None)
        if new is not None and (size, digest) == (new.bytes, new.sha256):
            part = new
        if size != part.bytes or digest != part.sha256:
            self.find(Kind.PART, path, "is not what was written: its checksum differs", _ASK_AGAIN)
            return size
        try:
            if read_ordinals(path) != (part.first, part.last):
                self.find(Kind.PART, path, f"does not hold rows {part.first} to {part.last}", _REPORT)
            ok, rows, schema = count_statuses(path)
        except arrow_errors() as error:
            self.find(Kind.PART, path, f"cannot be read back ({type(error).__name__})", _REPORT)
            return size
        if (ok, rows - ok) != (part.ok, part.failed):
            message = f"holds {ok} rows ok and {rows - ok} failed, not {part.ok} and {part.failed}"
            self.find(Kind.PART, path, message, _REPORT)
        if self._schema is None:
            self._schema = schema
        elif not self._schema.equals(schema):
            self.find(Kind.PART, path, "has other columns than the parts before it", _REPORT)
        return size

    def _files_of_rows(self) -> int:
        """Check files whose checksums the journal keeps: media, attempts, Batch lines; returns their bytes."""
        known: set[str] = set()
        bytes_read = 0
        for file in self._reader.files():
            path = self._layout.root / file.name
            known.add(path.name)
            kind, advice = _file_kind(file.name)
            if self._is_damaged(path):
                continue
            if not path.is_file():
                self.find(kind, path, "is missing: the journal counts it", advice)
            elif path.stat().st_size != file.bytes or sha256_of(path) != file.sha256:
                self.find(kind, path, "is not what was written: its checksum differs", advice)
            bytes_read += file.bytes
        for path in sorted(self._layout.media.glob("*")):
            if path.name not in known:
                self.find(Kind.STRAY, path, "belongs to no row that is done", _LEFT_OVER)
        return bytes_read

    def _strays(self, parts: Sequence[Part]) -> None:
        known = {part.name for part in parts} | {file.name for file in self._reader.files()}
        for path in sorted(self._layout.root.glob("*.parquet")):
            if path.name not in known:
                self.find(
                    Kind.STRAY,
                    path,
                    "is not counted by the journal: a crash left it, or somebody put it there",
                    _LEFT_OVER,
                )

    def _ranges(self, ranges: Sequence[Part | Span]) -> None:
        expected = 0
        for one in sorted(ranges, key=lambda one: one.first):
            if one.first != expected or one.last < one.first:
                kind = "twice" if one.first < expected else "nowhere"
                low, high = sorted((one.first, expected))
                self.find(Kind.JOURNAL, self._layout.journal, f"has rows {low} to {high - 1} {kind}", _REPAIR)
            expected = one.last + 1

    def _counts(self, parts: Sequence[Part]) -> None:
        ok, failed = self._reader.counts()
        again = self._again(parts)
        inside = sum(self._reader.count_done(span.first, span.last) for span in self._reader.open_ranges())
        if inside != ok + failed:
            message = f"holds {ok + failed - inside} rows outside of every range"
            self.find(Kind.JOURNAL, self._layout.journal, message, _REPAIR)
        sealed_ok, sealed_failed = sum(part.ok for part in parts), sum(part.failed for part in parts) - again
        totals = self._reader.totals()
        counted = (sealed_ok, sealed_failed, sealed_ok + ok, sealed_failed + failed)
        if counted != (totals.sealed_ok, totals.sealed_failed, totals.ok, totals.failed):
            message = f"counts {_said(totals)}; its rows and parts come to {counted}"
            self.find(Kind.JOURNAL, self._layout.journal, message, _REPAIR)

    def _again(self, parts: Sequence[Part]) -> int:
        """How many rows that parts count as failed are asked again."""
        return sum(len(self._reader.again(part.first, part.last)) for part in parts)

    def _attempts(self) -> None:
        # What a file holds may be in the journal still, where a run was cut before it was forgotten there.
        filed = [int(path.stem.rpartition("-")[2]) for path in self._layout.attempts.glob("attempts-*-*.parquet")]
        rows, after = self._reader.noted(ATTEMPTS_LOST) or 0, max(filed, default=0)
        while found := self._reader.attempts(after=after):
            rows, after = rows + len(found), found[-1][0]
        for path in sorted(self._layout.attempts.glob("*.parquet")):
            if self._is_damaged(path):
                return
            try:
                rows += count_rows(path)
            except arrow_errors() as error:
                self.find(Kind.ATTEMPTS, path, f"cannot be read ({type(error).__name__})", _ATTEMPTS)
                return
        if rows != self._reader.totals().attempts:
            message = f"holds {rows} attempts with those of the journal, not {self._reader.totals().attempts}"
            self.find(Kind.ATTEMPTS, self._layout.attempts, message, _ATTEMPTS)

    def _manifest(self, parts: Sequence[Part]) -> None:
        path = self._layout.manifest
        if not path.is_file():
            if parts and not self._is_damaged(path):
                self.find(Kind.WRITTEN_ANEW, path, "is missing", _REWRITE)
            return
        try:
            found = read_manifest(path)
        except (ValueError, TypeError, RecursionError) as error:
            self.find(Kind.WRITTEN_ANEW, path, f"cannot be read ({type(error).__name__})", _REWRITE)
            return
        columns = found.get("columns") if self._schema is None else self._schema.names
        expected = manifest_of(self._reader, columns=columns or [])
        names = [name for name in (*expected, *found) if found.get(name) != expected.get(name)]
        if not (self._layout.private / CHECKSUMS).is_file():
            # No run has ended cleanly since it was written: it may be behind, and the next run writes it anew.
            names = [name for name in names if not _is_behind(name, found.get(name), expected.get(name))]
        if names:
            message = f"does not agree with the journal on: {', '.join(dict.fromkeys(names))}"
            self.find(Kind.WRITTEN_ANEW, path, message, _REWRITE)

    def _summary(self) -> None:
        path = self._layout.summary
        if not path.is_file():
            return
        try:
            summary = read_summary(path)
        except (DamageError, AttributeError, RecursionError):
            self.find(Kind.WRITTEN_ANEW, path, "cannot be read", _REWRITE)
            return
        totals = self._reader.totals()
        ended = summary.state != "running"
        if summary.training is not None:  # its rows are examples, of which the journal holds none
            record = noted_training(self._reader)
            if ended and record is not None and record.model != summary.fine_tuned_model:
                self.find(Kind.WRITTEN_ANEW, path, "does not name the model that the journal does", _REWRITE)
        elif ended and (summary.rows.ok, summary.rows.failed) != (totals.ok, totals.failed):
            self.find(
                Kind.WRITTEN_ANEW, path, f"does not agree with the journal, which counts {_said(totals)}", _REWRITE
            )


def _is_behind(name: str, found: object, expected: object) -> bool:
    """Whether what a manifest says is what the journal said before it went on."""
    match name, found, expected:
        case "variants" | "facts", None | dict(), dict():
            return (found or {}).items() <= expected.items()
        case "generations" | "models", None | list(), list():
            return expected[: len(found or ())] == (found or [])
        case "files", list(), list():
            return True  # the same rows may lie in files that were written again
        case "parts", list(), list():
            now = {part["first"]: part for part in expected}
            return all(_is_older(part, now.get(part["first"])) for part in found)
    return False


def _is_older(part: Mapping[str, Any], now: Mapping[str, Any] | None) -> bool:
    """Whether a part is what it was, or was replaced since."""
    return now is not None and (part == now or part["generation"] < now["generation"])


def _kind_of(name: str, how: str) -> tuple[Kind, str]:
    """What a file below the run's own folder is, and what is to be done about it."""
    if how == "is new":
        return Kind.STRAY, _LEFT_OVER
    match name.split("/"):
        case ["journal", "00.sqlite"]:
            return Kind.JOURNAL, _REPAIR
        case ["journal", "ids.sqlite"]:
            return Kind.IDS, _REPAIR
        case ["journal", "asked.sqlite"] | ["carries.json"]:
            return Kind.WRITTEN_ANEW, _NOT_ANEW
        case ["attempts", *_]:
            return Kind.ATTEMPTS, _ATTEMPTS
    return Kind.WRITTEN_ANEW, _REWRITE


def _file_kind(name: str) -> tuple[Kind, str]:
    """What a file whose checksum the journal keeps is, and what is to be done about it."""
    if name.startswith(f"{MEDIA}/"):
        return Kind.MEDIA, _ASK_AGAIN
    return (Kind.WRITTEN_ANEW, _REWRITE) if "/" not in name else (Kind.ATTEMPTS, _ATTEMPTS)


def id_column(reader: JournalReader) -> str | None:
    """The column that names the rows, as the job of a journal says."""
    job = reader.noted("job")
    given = job.get("input") if isinstance(job, dict) else None
    name = given.get("id") if isinstance(given, dict) else None
    return None if name is None else str(name)


def _said(totals: Totals) -> str:
    ok = f"{totals.ok} rows ok ({totals.sealed_ok} in parts)"
    return f"{ok} and {totals.failed} failed ({totals.sealed_failed} in parts)"


def count_statuses(path: Path) -> tuple[int, int, pa.Schema]:
    """Rows ok, rows, and the columns of a part; every page of it is decoded. The pieces of a row count once."""
    import pyarrow.compute as pc  # noqa: PLC0415 - loaded when a run is verified
    import pyarrow.parquet as pq  # noqa: PLC0415

    ok = rows = 0
    with pq.ParquetFile(path, pre_buffer=False) as file:
        pieces = has_pieces(file.schema_arrow)
        for batch in file.iter_batches(_BATCH_ROWS):
            statuses = batch.column("status")
            if pieces:
                statuses = statuses.filter(pc.equal(pc.fill_null(batch.column(CHUNK), 0), 0))
            rows += len(statuses)
            ok += pc.sum(pc.equal(statuses, "ok")).as_py() or 0
        return ok, rows, file.schema_arrow


def count_rows(path: Path) -> int:
    """Rows of a file; every page of it is decoded."""
    import pyarrow.parquet as pq  # noqa: PLC0415 - loaded when a run is verified

    with pq.ParquetFile(path, pre_buffer=False) as file:
        return sum(batch.num_rows for batch in file.iter_batches(_BATCH_ROWS))


def arrow_errors() -> tuple[type[Exception], ...]:
    """What pyarrow raises over damaged bytes."""
    import pyarrow as pa  # noqa: PLC0415 - loaded when a run is verified

    return DamageError, pa.ArrowException, OSError, ValueError, KeyError
