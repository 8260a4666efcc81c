"""Reads every byte of a run back: parts, manifest, journal, attempts; says what is not as it was written."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import DamageError, FolderHeldError, StorageError
from pipeline.job.change import canonical
from pipeline.model import CHUNK
from pipeline.store.checksums import changed_files
from pipeline.store.database import integrity_problems, open_reader
from pipeline.store.files import sha256_of
from pipeline.store.folder import Layout
from pipeline.store.journal import JournalReader, Part, Span, Totals
from pipeline.store.manifest import MANIFEST_VERSION
from pipeline.store.parts import has_pieces, part_name, read_ordinals
from pipeline.store.summary import read_summary

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_ROWS = 16_384
_RESTORE = "restore the file from a copy, or start anew with --fresh"
_REWRITE = "run the job again: it is written anew"
_LEFT_OVER = "run the job again to have a left-over removed; move a file of your own elsewhere"
_REPORT = "please report this, with _pipeline/log.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is not as it was written. `file` is relative to the output folder."""

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
    try:
        with JournalReader(layout.journal) as reader:
            return _Check(layout, reader).all()
    except FileNotFoundError:
        return _hopeless(Finding(file=_inside(layout, layout.journal), message="is missing", advice=_RESTORE))
    except (StorageError, ValueError, TypeError, KeyError) as error:
        # A damaged value can take any shape, so any failure to read it is the damage that is looked for.
        message = str(error) if isinstance(error, StorageError) else f"cannot be read ({type(error).__name__})"
        return _hopeless(Finding(file=_inside(layout, layout.journal), message=message, advice=_RESTORE))


def _hopeless(finding: Finding) -> Verified:
    return Verified(findings=(finding,), parts=0, bytes=0, ok=0, failed=0, loose=0)


def _inside(layout: Layout, path: Path) -> str:
    return str(path.relative_to(layout.root))


class _Check:
    """One reading of one folder."""

    def __init__(self, layout: Layout, reader: JournalReader) -> None:
        self._layout = layout
        self._reader = reader
        self._findings: list[Finding] = []
        self._columns: list[str] | None = None

    def all(self) -> Verified:
        """Check the journal first: it is what the rest is measured by."""
        self._checksums()
        self._journal()
        parts = self._reader.parts()
        spans = self._reader.spans()
        bytes_read = sum(self._part(part) for part in parts)
        self._strays(parts)
        bytes_read += self._media()
        self._ranges([*parts, *spans])
        self._counts(parts, spans)
        self._attempts()
        self._manifest(parts)
        ok, failed = self._reader.counts()
        self._summary()
        return Verified(
            findings=tuple(self._findings),
            parts=len(parts),
            bytes=bytes_read,
            ok=sum(part.ok for part in parts) + ok,
            failed=sum(part.failed for part in parts) + failed,
            loose=ok + failed,
        )

    def _find(self, path: Path, message: str, advice: str) -> None:
        self._findings.append(Finding(file=_inside(self._layout, path), message=message, advice=advice))

    def _checksums(self) -> None:
        private = self._layout.private
        try:
            changed = changed_files(private)
        except ValueError:
            self._find(private / "checksums.json", "cannot be read", _REWRITE)
            return
        for name, how in changed.items():
            advice = _REWRITE if name in {"manifest.json", "summary.json"} else _RESTORE
            self._find(private / name, f"{how} since the run ended", advice)

    def _journal(self) -> None:
        for problem in self._reader.problems():
            self._find(self._layout.journal, problem, _RESTORE)
        if self._layout.ids.is_file():
            try:
                connection = open_reader(self._layout.ids)
                try:
                    problems = integrity_problems(connection)
                finally:
                    connection.close()
            except StorageError as error:
                problems = [str(error)]
            for problem in problems:
                self._find(self._layout.ids, problem, _RESTORE)

    def _part(self, part: Part) -> int:
        """Check one part; returns its bytes."""
        path = self._layout.part(part.name)
        if part.name != part_name(part.first, part.last):
            self._find(
                self._layout.journal, f"names the part of rows {part.first} to {part.last} {part.name}", _RESTORE
            )
        if not path.is_file():
            self._find(path, "is missing: the journal counts it", _RESTORE)
            return 0
        size = path.stat().st_size
        if size != part.bytes or sha256_of(path) != part.sha256:
            self._find(path, "is not what was written: its checksum differs", _RESTORE)
            return size
        try:
            if read_ordinals(path) != (part.first, part.last):
                self._find(path, f"does not hold rows {part.first} to {part.last}", _REPORT)
            ok, rows, schema = _statuses(path)
        except _arrow_errors() as error:
            self._find(path, f"cannot be read back ({type(error).__name__})", _REPORT)
            return size
        if (ok, rows - ok) != (part.ok, part.failed):
            self._find(path, f"holds {ok} rows ok and {rows - ok} failed, not {part.ok} and {part.failed}", _REPORT)
        if self._columns is None:
            self._columns = schema.names
        elif self._columns != schema.names:
            self._find(path, "has other columns than the parts before it", _REPORT)
        return size

    def _media(self) -> int:
        """Check the files of rows; returns their bytes."""
        known: set[str] = set()
        bytes_read = 0
        for file in self._reader.files():
            path = self._layout.root / file.name
            known.add(path.name)
            if not path.is_file():
                self._find(path, "is missing: the journal counts it", _RESTORE)
            elif path.stat().st_size != file.bytes or sha256_of(path) != file.sha256:
                self._find(path, "is not what was written: its checksum differs", _RESTORE)
            bytes_read += file.bytes
        for path in sorted(self._layout.media.glob("*")):
            if path.name not in known:
                self._find(path, "belongs to no row that is done", _LEFT_OVER)
        return bytes_read

    def _strays(self, parts: Sequence[Part]) -> None:
        known = {part.name for part in parts}
        for path in sorted(self._layout.root.glob("*.parquet")):
            if path.name not in known:
                self._find(
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
                self._find(self._layout.journal, f"has rows {low} to {high - 1} {kind}", _RESTORE)
            expected = one.last + 1

    def _counts(self, parts: Sequence[Part], spans: Sequence[Span]) -> None:
        ok, failed = self._reader.counts()
        inside = sum(self._reader.done(span.first, span.last).count(1) for span in spans if span.last >= span.first)
        if inside != ok + failed:
            self._find(self._layout.journal, f"holds {ok + failed - inside} rows outside of every range", _RESTORE)
        sealed_ok, sealed_failed = sum(part.ok for part in parts), sum(part.failed for part in parts)
        totals = self._reader.totals()
        counted = (sealed_ok, sealed_failed, sealed_ok + ok, sealed_failed + failed)
        if counted != (totals.sealed_ok, totals.sealed_failed, totals.ok, totals.failed):
            self._find(self._layout.journal, f"counts {_said(totals)}; its rows and parts come to {counted}", _RESTORE)

    def _attempts(self) -> None:
        rows, after, names = 0, 0, []
        while found := self._reader.attempts(after=after):
            rows, after = rows + len(found), found[-1][0]
        for path in sorted(self._layout.attempts.glob("*.parquet")):
            names.append(path.name)
            try:
                rows += _read_all(path)
            except _arrow_errors() as error:
                self._find(
                    path, f"cannot be read ({type(error).__name__})", f"the rows are not touched by it; {_RESTORE}"
                )
                return
        if rows != self._reader.totals().attempts:
            message = f"holds {rows} attempts with those of the journal, not {self._reader.totals().attempts}"
            self._find(self._layout.attempts, message, f"the rows are not touched by it; {_RESTORE}")

    def _manifest(self, parts: Sequence[Part]) -> None:
        path = self._layout.manifest
        if not path.is_file():
            if parts:
                self._find(path, "is missing", _REWRITE)
            return
        try:
            text = path.read_text(encoding="utf-8")
            found = json.loads(text)
            known = [
                {key: value for key, value in asdict(part).items() if key not in {"start", "finish"}} for part in parts
            ]
            job = self._reader.noted("job")
            expected = {
                "version": MANIFEST_VERSION,
                "fingerprint": sha256(canonical(job)).hexdigest(),
                "variants": self._reader.noted("variants"),
                "columns": found["columns"] if self._columns is None else self._columns,
                "parts": known,
            }
            names = [name for name in (*expected, *found) if found.get(name) != expected.get(name)]
            if names:
                self._find(path, f"does not agree with the journal on: {', '.join(dict.fromkeys(names))}", _REWRITE)
            elif json.dumps(found, indent=1) != text:
                self._find(path, "is not spelled as it was written", _REWRITE)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            self._find(path, f"cannot be read ({type(error).__name__})", _REWRITE)

    def _summary(self) -> None:
        path = self._layout.summary
        if not path.is_file():
            return
        try:
            summary = read_summary(path)
        except (DamageError, AttributeError):
            self._find(path, "cannot be read", _REWRITE)
            return
        totals = self._reader.totals()
        ended = summary.state != "running"
        if ended and (summary.rows.ok, summary.rows.failed) != (totals.ok, totals.failed):
            self._find(path, f"does not agree with the journal, which counts {_said(totals)}", _REWRITE)


def _said(totals: Totals) -> str:
    ok = f"{totals.ok} rows ok ({totals.sealed_ok} in parts)"
    return f"{ok} and {totals.failed} failed ({totals.sealed_failed} in parts)"


def _statuses(path: Path) -> tuple[int, int, pa.Schema]:
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


def _read_all(path: Path) -> int:
    import pyarrow.parquet as pq  # noqa: PLC0415 - loaded when a run is verified

    with pq.ParquetFile(path, pre_buffer=False) as file:
        return sum(batch.num_rows for batch in file.iter_batches(_BATCH_ROWS))


def _arrow_errors() -> tuple[type[Exception], ...]:
    """What pyarrow raises over damaged bytes."""
    import pyarrow as pa  # noqa: PLC0415 - loaded when a run is verified

    return DamageError, pa.ArrowException, OSError, ValueError, KeyError
