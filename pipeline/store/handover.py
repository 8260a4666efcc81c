"""An output folder hands its results over to a new one in its place, when its input has changed.

The old folder is moved aside to a numbered name and the new one takes its name, which says in `carries.json` whose
results it takes over. Each step is durable before the next, and `hold_job` goes on wherever that was cut. Once the new
run is complete it needs no other folder, and the next handover removes what is older than it.
Blocking, and only under the job's lock.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import DamageError, InputChangedError, StorageError
from pipeline.store.asked import AskedReader
from pipeline.store.database import database_errors, open_database, transaction
from pipeline.store.files import private_folder, refuse_link, replace_text, storage, sync_folder
from pipeline.store.folder import Layout
from pipeline.store.generations import finish_rewrites
from pipeline.store.history import hand_history_over
from pipeline.store.journal import JournalReader, create_tables, put
from pipeline.store.lock import hold

if TYPE_CHECKING:
    from datetime import datetime

_KEPT = ("job", "facts", "models", "variants")
"""What of an old journal goes for the new run, too."""
TAKES_OVER = "takes_over"
"""Noted while a run takes results over: without the list of folders it must not go on."""


@contextmanager
def hold_job(root: Path, *, now: datetime) -> Iterator[None]:
    """Be the only run of an incremental job, whose folder's name may pass from one folder to another.

    A handover that was cut is ended first.

    Raises FolderHeldError, StorageError.
    """
    with storage(f"preparing {root.parent}"):
        root.parent.mkdir(parents=True, exist_ok=True)
    with hold(root.with_name(f".{root.name}.lock"), started=now.isoformat(), folder=root):
        _finish(root)
        yield


def _finish(root: Path) -> None:
    """Go on with a handover that was cut, and with the removal of what nobody needs any more."""
    following = _following(root)
    with storage(f"preparing {root}"):
        if following.is_dir() and not root.exists():
            following.rename(root)
            sync_folder(root.parent)
        _discard(_discarded(root))


def hand_over(root: Path, *, now: datetime) -> None:
    """Move a folder aside, and put a new one in its place that takes its results over.

    Raises InputChangedError where the old run must first be gone on with, DamageError where nothing says what its rows
    were asked, StorageError.
    """
    layout = Layout(root)
    with hold(layout.lock, started=now.isoformat()):
        finish_rewrites(layout)
        _require_known(layout)
        carried = read_carries(layout)
        with storage(f"preparing {root}"):
            for folder in _numbered(root):
                if folder.name not in carried:
                    folder.rename(_discarded(root))
                    _discard(_discarded(root))
            name = _next_name(root)
            _make(_following(root), layout, carries=(name, *carried))
            root.rename(root.with_name(name))
            sync_folder(root.parent)
            _following(root).rename(root)
            sync_folder(root.parent)


def read_carries(layout: Layout) -> tuple[str, ...]:
    """The folders beside this one whose results it takes over, the latest first.

    Raises DamageError, FileNotFoundError where there is no journal.
    """
    try:
        names = json.loads(layout.carries.read_text(encoding="utf-8"))
    except FileNotFoundError:
        with JournalReader(layout.journal) as reader:
            if not reader.noted(TAKES_OVER):
                return ()
        names = None
    except ValueError:
        names = None
    if not isinstance(names, list) or not names or not all(_is_numbered(layout.root, name) for name in names):
        raise DamageError(
            f"{layout.carries} is not what was written; put the file back, or start anew with --fresh, which asks "
            "every row again (what is here is moved aside, not deleted)"
        )
    return tuple(names)


def end_handover(layout: Layout) -> None:
    """Note that the folder holds a result for every row, and needs no other. Raises StorageError."""
    with storage(f"removing {layout.carries}"), suppress(FileNotFoundError):
        layout.carries.unlink()
        sync_folder(layout.private)


def _require_known(layout: Layout) -> None:
    with JournalReader(layout.journal) as reader:
        ok, under_way = reader.totals().ok, reader.batches()
    if under_way:
        raise InputChangedError(
            f"the input changed while batches of {layout.root} are under way: put the old input back until they are "
            "collected, or start anew with --fresh (the old results are moved aside, not deleted)"
        )
    try:
        with AskedReader(layout.asked) as asked:
            known = asked.count()
    except (FileNotFoundError, StorageError):
        known = 0
    if known < ok:
        raise DamageError(
            f"the input changed, and {layout.asked} does not say what {ok - known} of {ok} answered rows were "
            "asked: put the old input or the file back, or start anew with --fresh, which asks every row again (the "
            "old results are moved aside, not deleted)"
        )


def _make(folder: Path, old: Layout, *, carries: tuple[str, ...]) -> None:
    """Make the folder that follows, durably, under its temporary name."""
    _discard(folder)
    layout = Layout(folder)
    folder.mkdir(mode=old.root.stat().st_mode & 0o777)
    private_folder(layout.private)
    private_folder(layout.journal.parent)
    connection = open_database(layout.journal)
    try:
        with database_errors(layout.journal.name), transaction(connection):
            create_tables(connection)
            put(connection, TAKES_OVER, True)
            for name, value in _noted(old).items():
                put(connection, name, value)
    finally:
        connection.close()
    replace_text(layout.carries, json.dumps(carries), durable=True)
    hand_history_over(old, layout)
    for one in (layout.journal.parent, layout.private, folder, folder.parent):
        sync_folder(one)


def _noted(old: Layout) -> Mapping[str, Any]:
    with JournalReader(old.journal) as reader:
        return {name: value for name in _KEPT if (value := reader.noted(name)) is not None}


def _numbered(root: Path) -> list[Path]:
    """Folders of earlier runs beside this one."""
    return [path for path in root.parent.glob("*.before.*") if _is_numbered(root, path.name) and _is_ours(path)]


def _is_numbered(root: Path, name: object) -> bool:
    return isinstance(name, str) and re.fullmatch(re.escape(root.name) + r"\.before\.[1-9]\d*", name) is not None


def _is_ours(path: Path) -> bool:
    return not path.is_symlink() and Layout(path).journal.is_file()


def _next_name(root: Path) -> str:
    taken = [path.name for path in root.parent.glob("*.before.*") if _is_numbered(root, path.name)]
    last = max((int(name.rpartition(".")[2]) for name in taken), default=0)
    return f"{root.name}.before.{last + 1}"


def _following(root: Path) -> Path:
    return root.with_name(f".{root.name}.next")


def _discarded(root: Path) -> Path:
    return root.with_name(f".{root.name}.gone")


def _discard(folder: Path) -> None:
    refuse_link(folder)
    if folder.exists():
        shutil.rmtree(folder)
