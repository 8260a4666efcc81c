"""One run a folder: a kernel lock that the system frees even after kill -9."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import FolderHeldError
from pipeline.store.files import storage


@contextmanager
def hold(path: Path, *, started: str) -> Iterator[None]:
    """Hold the lock file until the block ends.

    Raises FolderHeldError, naming the holder, when another run has it, StorageError when it cannot be locked.
    """
    with storage(f"locking {path.parent.parent}"):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with storage(f"locking {path.parent.parent}"):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FolderHeldError(
                    f"another run holds {path.parent.parent}: {_holder(handle)}; wait for it to end, or stop it"
                ) from None
            os.ftruncate(handle, 0)
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
            os.pwrite(handle, json.dumps(holder).encode(), 0)
        yield
    finally:
        os.close(handle)


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


def _holder(handle: int) -> str:
    """Say who holds the lock, as far as its file tells."""
    try:
        holder = json.loads(os.pread(handle, 4096, 0))
        return f"process {int(holder['pid'])} on {holder['host']!s}, started {holder['started']!s}"
    except (ValueError, KeyError, TypeError):
        return "its holder has not written its name yet"
