"""Repairs a folder: what is whole rebuilds what is not, and only rows that nothing holds any more are asked again.

`plan` turns findings of `verify` into actions and touches nothing. `repair_folder` does them, one durable step after
another: what it found is kept in `_pipeline/repair.json` until all is done, and every step may be done twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.errors import DamageError
from pipeline.store.checksums import CHECKSUMS, forget_checksums
from pipeline.store.files import (
    TEMPORARY_SUFFIX,
    private_folder,
    refuse_link,
    remove_temporaries,
    replace_text,
    storage,
    sync_folder,
)
from pipeline.store.folder import Layout
from pipeline.store.generations import finish_rewrites
from pipeline.store.journal import JournalReader, Part
from pipeline.store.lock import hold
from pipeline.store.rebuild import ask_again, count_copies, lose_attempts, rebuild_journal, reopen
from pipeline.store.summary import read_summary
from pipeline.store.verify import Finding, Kind, verify_folder

_MOVED = "moved to _pipeline/damaged; what is needed is written anew"


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildJournal:
    """Make the journal anew from the manifest and the parts. The rest is judged by the new one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildIds:
    """Claim every id again from the input; it needs the input, so the run does it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reopen:
    """Make a part an open range again, with the rows that are whole; those of `without` are asked again."""

    first: int
    without: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class AskAgain:
    """Forget rows that are done and in no part."""

    ordinals: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoseAttempts:
    """Go on without files of attempts; they tell what happened, and no row depends on them."""

    files: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAside:
    """Move a file out of the way."""

    file: str


Action = RebuildJournal | RebuildIds | Reopen | AskAgain | LoseAttempts | SetAside


@dataclass(frozen=True, slots=True, kw_only=True)
class Mended:
    """Something that was done. `rows` must be sent again for it; None: how many is not known."""

    file: str
    what: str
    rows: int | None = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired:
    """What a repair came to. `ids_gone`: the table of ids is still to be made, before any row is read."""

    mended: tuple[Mended, ...] = ()
    ids_gone: bool = False


def plan(findings: Iterable[Finding], parts: Sequence[Part]) -> tuple[Action, ...]:
    """What to do about findings, in order. `parts` are those that the journal counts. Pure.

    Where the journal itself is damaged, that comes first and alone: nothing else that it says can be gone by.
    """
    found = list(findings)
    if any(finding.kind is Kind.JOURNAL for finding in found):
        return (RebuildJournal(),)
    firsts = {part.name: part.first for part in parts}
    reopened: dict[int, set[int]] = {
        firsts[finding.file]: set() for finding in found if finding.kind is Kind.PART and finding.file in firsts
    }
    loose: set[int] = set()
    aside: list[str] = []
    for finding in found:
        match finding.kind:
            case Kind.MEDIA:
                ordinal = int(Path(finding.file).name.partition(".")[0])
                part = next((part for part in parts if part.first <= ordinal <= part.last), None)
                (loose if part is None else reopened.setdefault(part.first, set())).add(ordinal)
                aside.append(finding.file)
            case Kind.WRITTEN_ANEW | Kind.STRAY:
                aside.append(finding.file)
    attempts = tuple(dict.fromkeys(finding.file for finding in found if finding.kind is Kind.ATTEMPTS))
    return (
        *[Reopen(first=first, without=frozenset(reopened[first])) for first in sorted(reopened)],
        *([AskAgain(ordinals=frozenset(loose))] if loose else []),
        *[SetAside(file=file) for file in dict.fromkeys(aside)],
        *([LoseAttempts(files=attempts)] if attempts else []),
        *([RebuildIds()] if any(finding.kind is Kind.IDS for finding in found) else []),
    )


def repair_folder(layout: Layout, *, job: Mapping[str, Any], now: datetime) -> Repaired:
    """Verify a folder and repair what is found. Blocking.

    `job` are the semantic keys of the job that is about to run. Where the table of ids is gone, what is left to be
    done stays noted until `end_repair`.
    Raises FolderHeldError while a run goes on, StorageError, and DamageError when the folder was written by a newer
    version or nothing says what its parts belong to.
    """
    if not layout.private.is_dir():
        return Repaired()
    for folder in (layout.private, layout.media):
        refuse_link(folder)
    with hold(layout.lock, started=now.isoformat()):
        return _Repair(layout, job, now).all()


def end_repair(layout: Layout) -> None:
    """Say that all is done. Call it under the folder's lock. Raises StorageError."""
    with storage("ending a repair"):
        layout.repair.unlink(missing_ok=True)
        sync_folder(layout.private)


def refuse_damage(layout: Layout, *, has_ids: bool) -> None:
    """Raise DamageError where a run must not go on as if nothing had happened: it would pay for rows again.

    `has_ids`: the job names a column of ids.
    """
    if layout.repair.is_file():
        raise DamageError(f"a repair of {layout.root} was cut short; run the same command again with --repair")
    lost = None
    try:
        with JournalReader(layout.journal) as reader:
            if has_ids and reader.parts() and not layout.ids.is_file():
                lost = layout.ids
    except FileNotFoundError:
        if any(layout.root.glob("part-*.parquet")):
            lost = layout.journal
        elif any(layout.training.glob("*")):
            raise DamageError(
                f"{layout.journal} is missing, which knew the training of {layout.root}: see at the service whether "
                "that goes on, then begin anew with --fresh (what is here is moved aside, not deleted)"
            ) from None
    if lost is not None:
        raise DamageError(
            f"{lost} is missing beside finished parts; run the same command again with --repair to rebuild it, or "
            "with --fresh to begin anew (the old results are moved aside, not deleted)"
        )


class _Repair:
    """One repair, under the folder's lock."""

    def __init__(self, layout: Layout, job: Mapping[str, Any], now: datetime) -> None:
        self._layout = layout
        self._job = job
        self._now = now
        self._mended: list[Mended] = []

    def all(self) -> Repaired:
        """Find, plan and do, first for the journal, then for what it counts."""
        layout = self._layout
        with suppress(DamageError):  # of the journal, which is then made anew
            finish_rewrites(layout)
        findings = self._findings()
        if not findings:
            end_repair(layout)
            return Repaired()
        self._note(findings)
        private_folder(layout.damaged)
        self._forget_checksums(findings)
        for folder in (layout.journal.parent, layout.spool, layout.attempts):
            private_folder(folder)
        remove_temporaries(layout.root, layout.private, layout.attempts, layout.journal.parent, layout.media)
        if any(finding.kind is Kind.JOURNAL for finding in findings):
            self._rebuild_journal()
            self._note(finding for finding in findings if finding.kind is not Kind.JOURNAL)
            # What the new journal knows less of than the files that tell is no damage of theirs.
            findings = [one for one in self._findings() if one.kind is not Kind.WRITTEN_ANEW or one in findings]
            if problem := next((finding for finding in findings if finding.kind is Kind.JOURNAL), None):
                raise DamageError(
                    f"{layout.journal} cannot be rebuilt: {problem.message}; restore the folder from a copy, or start "
                    "anew with --fresh (the old results are moved aside, not deleted)"
                )
        with JournalReader(layout.journal) as reader:
            parts = reader.parts()
            has_copies = reader.totals().copied > 0
        actions = plan(findings, parts)
        for action in actions:
            self._do(action, {part.first: part for part in parts})
        if has_copies:
            count_copies(layout)
        ids_gone = any(isinstance(action, RebuildIds) for action in actions)
        if ids_gone:
            self._note(finding for finding in findings if finding.kind is Kind.IDS)
        else:
            end_repair(layout)
        return Repaired(mended=tuple(self._mended), ids_gone=ids_gone)

    def _forget_checksums(self, findings: Iterable[Finding]) -> None:
        """Take back what is said of the files, for they change now."""
        path = self._layout.private / CHECKSUMS
        if any(finding.file == self._layout.inside(path) for finding in findings) and self._set_aside(path):
            self._mended.append(Mended(file=self._layout.inside(path), what=_MOVED))
        forget_checksums(self._layout.private)

    def _findings(self) -> list[Finding]:
        """What is wrong now, and what a repair that was cut short had found."""
        found = [finding for finding in verify_folder(self._layout).findings if finding.kind is not Kind.CUT_REPAIR]
        for finding in found:
            if finding.kind is Kind.NEWER:
                raise DamageError(f"{self._layout.journal} {finding.message}; repair it with that version")
        return list(dict.fromkeys([*self._noted(), *found]))

    def _noted(self) -> list[Finding]:
        """What a repair noted. A note that is damaged itself stands for the worst: the journal is made anew."""
        path = self._layout.repair
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            return [Finding(**{**one, "kind": Kind(one["kind"])}) for one in said]
        except FileNotFoundError:
            return []
        except (ValueError, TypeError, KeyError):
            return [Finding(kind=Kind.JOURNAL, file=self._layout.inside(self._layout.journal), message="", advice="")]

    def _note(self, findings: Iterable[Finding]) -> None:
        with storage(f"writing {self._layout.repair.name}"):
            text = json.dumps([asdict(finding) for finding in findings], indent=1)
            replace_text(self._layout.repair, text, durable=True)

    def _do(self, action: Action, parts: Mapping[int, Part]) -> None:
        layout = self._layout
        match action:
            case Reopen(first=first, without=without):
                part = parts[first]
                gone = reopen(layout, part, without=without)
                self._set_aside(layout.part(part.name))
                what = "its rows that are whole are sealed anew, the others are asked again"
                self._mended.append(Mended(file=part.name, what=what, rows=gone))
            case AskAgain(ordinals=ordinals):
                gone = ask_again(layout, ordinals)
                what = "rows whose files are gone are asked again"
                self._mended.append(Mended(file=layout.inside(layout.media), what=what, rows=gone))
            case SetAside(file=file):
                if self._set_aside(layout.root / file):
                    self._mended.append(Mended(file=file, what=_MOVED))
            case LoseAttempts(files=files):
                for file in files:
                    self._set_aside(layout.root / file)
                lost = lose_attempts(layout)
                what = f"{lost} attempts are no longer told; no row is touched"
                self._mended.append(Mended(file=layout.inside(layout.attempts), what=what))
            case RebuildIds():
                self._set_aside_database(layout.ids, self._set_aside)
                self._mended.append(Mended(file=layout.inside(layout.ids), what="made anew from the input"))

    def _rebuild_journal(self) -> None:
        layout = self._layout
        rebuilt = rebuild_journal(layout, job=self._job)
        self._set_aside_database(layout.journal, self._copy_aside)
        with storage("replacing the journal"):
            rebuilt.path.replace(layout.journal)
            sync_folder(layout.journal.parent)
        what = f"made anew from {rebuilt.said}; rows that were in no part are asked again"
        self._mended.append(Mended(file=layout.inside(layout.journal), what=what, rows=self._unfinished(rebuilt.rows)))

    def _unfinished(self, sealed: int) -> int | None:
        """How many rows were done and in no part, as the last summary says it."""
        try:
            rows = read_summary(self._layout.summary).rows
        except (FileNotFoundError, DamageError, AttributeError):
            return None
        return max(0, rows.ok + rows.failed - sealed)

    def _set_aside_database(self, path: Path, move: Callable[[Path], bool]) -> None:
        """Move a database, its log first: it must not be read into another one."""
        for suffix in ("-wal", "-shm"):
            self._set_aside(path.with_name(path.name + suffix))
        move(path)

    def _copy_aside(self, path: Path) -> bool:
        """Give a file a second name, so that there is always one in its place."""
        with storage(f"keeping {path.name}"):
            if not path.is_file():
                return False
            try:
                os.link(path, self._place(path))
            except OSError:
                return self._set_aside(path)
            sync_folder(self._layout.damaged)
        return True

    def _set_aside(self, path: Path) -> bool:
        with storage(f"moving {path.name} aside"):
            if not path.is_file():
                return False
            path.rename(self._place(path))
            sync_folder(path.parent)
            sync_folder(self._layout.damaged)
        return True

    def _place(self, path: Path) -> Path:
        """A name in the folder of damaged files that nobody has yet."""
        name = f"{self._now:%Y%m%dT%H%M%S}-{path.name.removesuffix(TEMPORARY_SUFFIX)}"
        taken = set()
        with suppress(FileNotFoundError):
            taken = {found.name for found in self._layout.damaged.iterdir()}
        number = next(number for number in range(len(taken) + 1) if _numbered(name, number) not in taken)
        return self._layout.damaged / _numbered(name, number)


def _numbered(name: str, number: int) -> str:
    return f"{name}.{number}" if number else name
