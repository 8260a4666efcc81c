"""The output folder that a run owns: where everything lies, who holds it, how a range becomes a part."""

from __future__ import annotations

import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from pipeline.errors import DamageError, DiskFullError, JobFileError, Problem, StorageError
from pipeline.job.change import canonical
from pipeline.model import WrittenFile
from pipeline.store.checksums import forget_checksums, write_checksums
from pipeline.store.files import private_folder, publish, refuse_link, remove_temporaries, sha256_of, storage
from pipeline.store.journal import Journal, JournalReader, Part, Span
from pipeline.store.lock import hold, is_held
from pipeline.store.media import MEDIA
from pipeline.store.parts import Origin, make_part, part_name, read_columns, temporary_of, write_attempts, write_part
from pipeline.store.salvage import carried_of_part, renewed
from pipeline.store.spool import SPOOL_SUFFIX, read_spool, spool_path, spooled_rows

if TYPE_CHECKING:
    import pyarrow as pa

ATTEMPTS_A_FILE = 20_000
_MEDIA_FILE = re.compile(r"\d{12,}\.[A-Za-z0-9]+")
_TAG = re.compile(r"[0-9a-f]{16}")
_PART = re.compile(r"part-(\d{12,})-(\d{12,})\.parquet")


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths below an output folder."""

    root: Path

    @property
    def private(self) -> Path:
        """What is the run's own; dataset readers skip names that begin with an underscore."""
        return self.root / "_pipeline"

    @property
    def journal(self) -> Path:
        """The journal of shard 0."""
        return self.private / "journal" / "00.sqlite"

    @property
    def ids(self) -> Path:
        """Which ordinal holds which id."""
        return self.private / "journal" / "ids.sqlite"

    @property
    def asked(self) -> Path:
        """Which row was asked what, where the job is incremental."""
        return self.private / "journal" / "asked.sqlite"

    @property
    def requests(self) -> Path:
        """Which row was the first to ask for what, where rows that ask for the same share an answer."""
        return self.private / "journal" / "requests.sqlite"

    @property
    def carries(self) -> Path:
        """The names of the folders whose results this one takes over, while it does."""
        return self.private / "carries.json"

    @property
    def spool(self) -> Path:
        """Carried columns of open ranges."""
        return self.private / "spool"

    @property
    def pieces(self) -> Path:
        """Pieces of recordings that are being sent; made anew when they are needed again."""
        return self.private / "pieces"

    @property
    def batches(self) -> Path:
        """Lines and results of batches that are on their way."""
        return self.private / "batches"

    @property
    def training(self) -> Path:
        """Examples of a training that are on their way."""
        return self.private / "training"

    @property
    def mistakes(self) -> Path:
        """The rows that are no examples, where a training was refused for them."""
        return self.training / "mistakes.jsonl"

    @property
    def media(self) -> Path:
        """Files of rows: speech, pictures, subtitles."""
        return self.root / MEDIA

    @property
    def attempts(self) -> Path:
        """One row an HTTP attempt."""
        return self.private / "attempts"

    @property
    def ballast(self) -> Path:
        """Space that is set aside while a run goes on."""
        return self.private / "ballast"

    @property
    def stall(self) -> Path:
        """What a run did when it was found to do nothing any more."""
        return self.private / "stalled.txt"

    @property
    def lock(self) -> Path:
        """The kernel lock of the run that holds the folder."""
        return self.private / "lock"

    @property
    def manifest(self) -> Path:
        """The parts that count."""
        return self.private / "manifest.json"

    @property
    def summary(self) -> Path:
        """Replaced each second while a run goes on."""
        return self.private / "summary.json"

    @property
    def history(self) -> Path:
        """The invocations that held the folder."""
        return self.private / "runs.jsonl"

    @property
    def report(self) -> Path:
        """The page that a person reads afterwards."""
        return self.private / "report.html"

    @property
    def log(self) -> Path:
        """Every event of the run."""
        return self.private / "log.jsonl"

    @property
    def http_log(self) -> Path:
        """Requests and replies, where `--http-log` asks for them."""
        return self.private / "http.log.jsonl"

    @property
    def repair(self) -> Path:
        """What a repair found, while it goes on: one that was cut short is gone on with."""
        return self.private / "repair.json"

    @property
    def damaged(self) -> Path:
        """Files that a repair took out of the way."""
        return self.private / "damaged"

    def part(self, name: str) -> Path:
        """A part's file."""
        return self.root / name

    def inside(self, path: Path) -> str:
        """A path below the output folder, as the journal and messages name it."""
        return path.relative_to(self.root).as_posix()

    def written(self, path: Path) -> WrittenFile:
        """A file as it is now."""
        return WrittenFile(name=self.inside(path), bytes=path.stat().st_size, sha256=sha256_of(path))


@contextmanager
def hold_folder(root: Path, *, fresh: bool, now: datetime) -> Iterator[Layout]:
    """Make the folder if need be, hold it, and clear away what a killed run left unfinished.

    `fresh` moves an older run's folder aside first, to a name that ends with the time; it never deletes.
    When the block ends without an error, checksums of the run's own files are left behind, so that `verify` finds any
    bit that flips in them; a disk that is too full for them, or a folder that is gone, takes no run's result away.
    Raises FolderHeldError when another run holds it, StorageError when it is no folder of a run or cannot be written.
    """
    layout = Layout(root)
    with storage(f"preparing {root}"):
        refuse_link(layout.private)
        refuse_link(layout.media)
        if fresh and layout.private.is_dir():
            with hold(layout.lock, started=now.isoformat()):
                root.rename(root.with_name(f"{root.name}.{now:%Y%m%dT%H%M%S%f}"))
        _claim(layout)
    with hold(layout.lock, started=now.isoformat()):
        with storage(f"preparing {root}"):
            for folder in (layout.journal.parent, layout.spool, layout.attempts):
                private_folder(folder)
        clear_leftovers(layout)
        forget_checksums(layout.private)
        yield layout
        try:
            write_checksums(layout.private)
        except StorageError as error:
            if layout.private.is_dir() and not isinstance(error, DiskFullError):
                raise


def clear_leftovers(layout: Layout) -> None:
    """Clear away what whoever worked here before left unfinished. Call it under the folder's lock."""
    with storage(f"preparing {layout.root}"):
        remove_temporaries(layout.root, layout.private, layout.attempts)
        # A spool counts only as far as whoever goes on has read its rows again.
        remove_temporaries(layout.spool, suffix=SPOOL_SUFFIX)
        remove_temporaries(layout.media)
        shutil.rmtree(layout.pieces, ignore_errors=True)


def _claim(layout: Layout) -> None:
    root = layout.root
    if root.exists() and not root.is_dir():
        raise _unfit(f"{root} is a file: name a folder that the run may own")
    if not may_own(root):
        raise _unfit(f"{root} holds files that are not a run's: name an empty or new folder, which the run then owns")
    root.mkdir(parents=True, exist_ok=True)
    mode = root.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise StorageError(f"{root} may be written by everybody; take that right away (chmod o-w), then run again")
    private_folder(layout.private)


def _unfit(message: str) -> JobFileError:
    return JobFileError((Problem(file="", line=None, column=None, path="output.path", message=message),))


def may_own(root: Path) -> bool:
    """Whether a run may take this folder: it is not there yet, it is empty, or it is a run's.

    One look decides: between two of them, another run may have begun, whose files would be taken for a stranger's.
    """
    names = {path.name for path in root.iterdir()} if root.is_dir() else set()
    return not names or Layout(root).private.name in names


def columns_of_parts(layout: Layout) -> pa.Schema | None:
    """The columns of the parts; None while there are none. Raises StorageError, DamageError."""
    with JournalReader(layout.journal) as reader:
        parts = reader.parts()
    return read_columns(layout.part(parts[0].name)) if parts else None


def is_running(root: Path) -> bool:
    """Whether a run holds the folder right now."""
    return is_held(Layout(root).lock)


def remove_strays(layout: Layout, reader: JournalReader) -> list[str]:
    """Remove files that were named but not recorded before a crash: their rows are pending, or in the journal.

    A part whose rows the journal does not have, and a file that is not named like ours, is left where it is.
    """
    known = {part.name for part in reader.parts()}
    spans = reader.spans()
    removed = []
    for path in sorted(layout.root.glob("part-*.parquet")):
        match = _PART.fullmatch(path.name)
        if match is None or path.name in known:
            continue
        first, last = int(match[1]), int(match[2])
        if any(span.first <= first and last <= span.last for span in spans):
            with storage(f"removing {path.name}"):
                path.unlink()
            removed.append(path.name)
    if layout.media.is_dir():
        for path in sorted(layout.media.iterdir()):
            name = f"{MEDIA}/{path.name}"
            if _MEDIA_FILE.fullmatch(path.name) and not reader.has_file(name):
                with storage(f"removing {name}"):
                    path.unlink()
                removed.append(name)
    if layout.batches.is_dir():
        tags = {record.tag for record in reader.batches()}
        for path in sorted(layout.batches.iterdir()):
            tag, _, kind = path.name.partition(".")
            if _TAG.fullmatch(tag) and (tag not in tags or kind.endswith(("tmp", "part"))):
                with storage(f"removing {path.name}"):
                    path.unlink()
                removed.append(f"{layout.batches.name}/{path.name}")
    return removed


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealer:
    """Turns finished ranges into parts. Its methods block: call them in a worker thread, one at a time."""

    layout: Layout
    schema: pa.Schema
    carries: bool
    compression: str

    def part_of(self, span: Span, *, last: int, finish: str, digest: str) -> Part:
        """Write and publish the part of `span.first` to `last`; the journal does not count it yet."""
        name = part_name(span.first, last)
        with JournalReader(self.layout.journal) as reader:
            job = canonical(reader.noted("job"))
            file = write_part(
                self.layout.part(name),
                first=span.first,
                last=last,
                schema=self.schema,
                carried=read_spool(spool_path(self.layout.spool, span.first)) if self.carries else None,
                results=reader.kept(span.first, last),
                compression=self.compression,
                origin=Origin(
                    start=span.start,
                    finish=finish,
                    digest=digest,
                    fingerprint=sha256(job).hexdigest(),
                ),
            )
        return Part(
            first=span.first,
            last=last,
            name=name,
            ok=file.ok,
            failed=file.failed,
            bytes=file.bytes,
            sha256=file.sha256,
            digest=digest,
            generation=0,
            start=span.start,
            finish=finish,
            sections=file.sections,
        )

    def renewed_part(self, span: Span) -> Part:
        """Write what becomes of a part whose rows were asked again, under its temporary name; the old one stands.

        Raises DamageError where the old one is not what was written, JobChangedError where it has other columns.
        """
        with JournalReader(self.layout.journal) as reader:
            job = canonical(reader.noted("job"))
            part = next(part for part in reader.parts() if part.first == span.first)
            path = self.layout.part(part.name)
            _require_whole(path, part)
            _require_answered(reader, part)
            generation = part.generation + 1
            file = make_part(
                path,
                first=part.first,
                last=part.last,
                schema=self.schema,
                carried=carried_of_part(path) if self.carries else None,
                results=renewed(path, reader.kept(part.first, part.last)),
                compression=self.compression,
                origin=Origin(
                    start=part.start,
                    finish=part.finish,
                    digest=part.digest,
                    fingerprint=sha256(job).hexdigest(),
                    generation=generation,
                ),
            )
        return replace(
            part,
            ok=file.ok,
            failed=file.failed,
            bytes=file.bytes,
            sha256=file.sha256,
            generation=generation,
            sections=file.sections,
        )

    def publish(self, part: Part) -> None:
        """Put a renewed part in the place of the old one, durably."""
        path = self.layout.part(part.name)
        with storage(f"replacing {part.name}"):
            publish(temporary_of(path), path)

    def readable_to(self, span: Span) -> int:
        """The ordinal after the last row of an open range that a part could hold now, as far as its cells go."""
        if not self.carries:
            return span.last + 1
        return span.first + spooled_rows(spool_path(self.layout.spool, span.first))

    def forget_spool(self, first: int) -> None:
        """Remove the carried columns of a range that is sealed."""
        with storage("removing a spool"):
            spool_path(self.layout.spool, first).unlink(missing_ok=True)


def _require_whole(path: Path, part: Part) -> None:
    """Raise DamageError where a part's file is not what was written: it must not be made into a new one."""
    with storage(f"reading {part.name}"):
        is_whole = path.is_file() and sha256_of(path) == part.sha256
    if not is_whole:
        raise DamageError(
            f"{part.name} is not what was written; run `pipeline run JOB --repair`, then this command again"
        )


def _require_answered(reader: JournalReader, part: Part) -> None:
    """Raise DamageError where a row of a part that is asked again has no new end."""
    at = reader.done(part.first, part.last).find(0)
    if at >= 0:
        raise DamageError(f"row {part.first + at} is missing in the journal; run `pipeline verify` on the folder")


async def export_attempts(layout: Layout, journal: Journal, *, at_least: int) -> None:
    """Move attempts from the journal to files, as long as it holds `at_least` so many.

    A file is named by its attempts' numbers, so what a crash left written and not forgotten is not written again.
    """
    while True:
        exported = await anyio.to_thread.run_sync(_export_some, layout, at_least)
        if exported is None:
            return
        first, last, file = exported
        await journal.drop_attempts(first, last, file=file)


def _export_some(layout: Layout, at_least: int) -> tuple[int, int, WrittenFile] | None:
    """Write one file of attempts; returns the first and last number in it and the file; None where there are few."""
    with JournalReader(layout.journal) as reader:
        bounds = reader.attempt_bounds(limit=ATTEMPTS_A_FILE)
        if bounds is None or bounds[1] - bounds[0] + 1 < at_least:
            return None
        first, last = bounds
        # A crash may have left a file that the journal has not forgotten yet: it is written again, the same.
        for left in layout.attempts.glob(f"attempts-{first:012d}-*.parquet"):
            last = int(left.stem.rpartition("-")[2])
        path = layout.attempts / f"attempts-{first:012d}-{last:012d}.parquet"
        write_attempts(path, reader.attempt_chunks(first, last))
    return first, last, layout.written(path)
