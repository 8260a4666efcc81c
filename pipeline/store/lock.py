"""One run a folder: a kernel lock that the system frees even after kill -9."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import FolderHeldError
from pipeline.store.files import storage

TRIES = 10
BETWEEN_TRIES_S = 0.02


@contextmanager
def hold(path: Path, *, started: str, folder: Path | None = None) -> Iterator[None]:
    """Hold the lock file until the block ends. `folder` is what it stands for: by default, that of the run it lies in.

    Raises FolderHeldError, naming the holder, when another run has it, StorageError when it cannot be locked.
    """
    folder = path.parent.parent if folder is None else folder
    handle = _locked(path, folder)
    try:
        with storage(f"locking {folder}"):
            os.ftruncate(handle, 0)
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
            os.pwrite(handle, json.dumps(holder).encode(), 0)
        yield
    finally:
        os.close(handle)


def _locked(path: Path, folder: Path) -> int:
    """An open file that is locked, and still the one that the path names.

    Readers look at the lock for an instant, so it is tried for a while. A folder that was moved aside meanwhile takes
    its lock file with it: what was locked would be the old one's.
    """
    for tried in range(TRIES):
        with storage(f"locking {folder}"):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found = path.stat(follow_symlinks=False)
                if (found.st_dev, found.st_ino) == (os.fstat(handle).st_dev, os.fstat(handle).st_ino):
                    return handle
            except (BlockingIOError, FileNotFoundError):
                if tried == TRIES - 1:
                    holder = said_of(_read(handle))
                    os.close(handle)
                    raise FolderHeldError(
                        f"another run holds {folder}: {holder}; wait for it to end, or stop it"
                    ) from None
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)
        time.sleep(BETWEEN_TRIES_S)
    raise FolderHeldError(f"{folder} is being moved; run the same command again")


def is_held(path: Path) -> bool:
    """Whether a run holds the folder right now; False where there is no lock file."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def add_to_holder(path: Path, **facts: str) -> None:
    """Have the lock file say more of who holds it. Call it under the lock. Raises OSError."""
    handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        content = json.dumps({**_read(handle), **facts}).encode()
        os.pwrite(handle, content, 0)
        os.ftruncate(handle, len(content))
    finally:
        os.close(handle)


def read_holder(path: Path) -> dict[str, Any]:
    """What the lock file says of who holds it, or held it last; nothing where there is none."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return {}
    try:
        return _read(handle)
    finally:
        os.close(handle)


def said_of(holder: Mapping[str, Any]) -> str:
    """Say who holds a lock, as far as its file tells."""
    try:
        return f"process {int(holder['pid'])} on {holder['host']!s}, started {holder['started']!s}"
    except (ValueError, KeyError, TypeError):
        return "its holder has not written its name yet"


def _read(handle: int) -> dict[str, Any]:
    try:
        holder = json.loads(os.pread(handle, 4096, 0))
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}
