"""Runs of one user on one machine that ask the same deployment share its quota, without a server between them.

Each run holds a seat, a locked file in a folder that the deployment's address names. The kernel gives the lock back
when a process dies, however it dies, so a seat that can be locked by another is nobody's any more.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

LOOK_EVERY_S = 1.0
"""Seconds between two looks at who else is there; a new run waits as long before it sends, so that the others know."""
_FOLDER = 0o700
_FILE = 0o600
_COMING = ".coming-"


def shared_folder(environ: Mapping[str, str]) -> Path:
    """Return where the seats of this user's runs lie: a folder that ends with the session or the machine."""
    runtime = environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir():
        return Path(runtime) / "aoai-pipeline"
    return Path(environ.get("TMPDIR") or "/tmp") / f"aoai-pipeline-{os.getuid()}"  # noqa: S108 - it is checked to be ours


def is_ours_alone(folder: Path) -> bool:
    """Make a folder if need be; whether it is this user's, and nobody else may look into it."""
    try:
        folder.mkdir(mode=_FOLDER, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077


class Seat:
    """One run's place among those that ask one deployment. Its methods take some microseconds a neighbour.

    A folder that cannot be used, because it is another user's or the disk refuses, seats the run alone: sharing is a
    courtesy, and no run fails for it.
    """

    def __init__(self, folder: Path, *, origin: str, deployment: str) -> None:
        name = hashlib.sha256(f"{origin}\n{deployment}".encode()).hexdigest()[:32]
        self._folder = folder / name
        self._handle: int | None = None
        self._path: Path | None = None
        self.take()

    def take(self) -> None:
        """Sit down again, where the seat was given back."""
        if self._path is None:
            with contextlib.suppress(OSError):
                self._take()

    def others(self) -> int:
        """How many other runs hold a seat now. Seats of runs that have died are removed."""
        if self._path is None:
            return 0
        found = 0
        with contextlib.suppress(OSError):
            for entry in os.scandir(self._folder):
                if entry.name != self._path.name and not entry.name.startswith(_COMING):
                    found += _is_held(Path(entry.path))
        return found

    def close(self) -> None:
        """Give the seat back."""
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()
        if self._handle is not None:
            os.close(self._handle)
        self._handle = self._path = None

    def __enter__(self) -> Self:
        """Return the seat itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give it back."""
        self.close()

    def _take(self) -> None:
        if not (is_ours_alone(self._folder.parent) and is_ours_alone(self._folder)):
            return
        name = f"{os.getpid()}-{os.urandom(6).hex()}"
        coming = self._folder / f"{_COMING}{name}"
        handle = os.open(coming, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, _FILE)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # It is locked before anybody can take it for a dead run's.
            coming.rename(self._folder / name)
        except OSError:
            os.close(handle)
            raise
        self._handle, self._path = handle, self._folder / name


def _is_held(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        with contextlib.suppress(OSError):
            path.unlink()
        return False
    finally:
        os.close(handle)
