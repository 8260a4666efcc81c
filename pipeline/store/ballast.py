"""Space set aside on the disk, given back when it is full, so that answers in flight can still be written."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pipeline.errors import DiskFullError
from pipeline.store.database import PAGE_BYTES
from pipeline.store.disk import free_bytes
from pipeline.store.files import FREE_SPACE, PRIVATE_FILE, storage

MIB = 1024 * 1024
LEAST_BYTES = 4 * MIB
MOST_BYTES = 256 * MIB
STEP_BYTES = MIB
"""The file grows by whole steps, so that results that are a little larger each time do not move it each time."""
PAGES = 8
"""What the journal writes about a result besides itself: whole pages of its tables and indexes."""
PAUSES_S = (0.0, 0.05, 0.2, 0.5, 1.0)
"""Seconds before each further try of what a full disk refused: a part that is being written fails too, and is removed
then, which frees more."""

Allocate = Callable[[int, int, int], None]


def wanted_bytes(workers: int, largest: int, page_bytes: int = PAGE_BYTES) -> int:
    """How much to set aside: twice what `workers` results of the `largest` size take, within bounds."""
    needed = 2 * workers * (largest + PAGES * page_bytes)
    return min(MOST_BYTES, max(LEAST_BYTES, -(-needed // STEP_BYTES) * STEP_BYTES))


class Ballast:
    """One file of really allocated blocks. Any thread may use it."""

    def __init__(self, path: Path, *, workers: int, allocate: Allocate | None = None) -> None:
        """`allocate(handle, offset, length)` gives an open file blocks, as posix_fallocate does."""
        self._path = path
        self._workers = workers
        self._allocate = allocate or _allocate
        self._lock = threading.Lock()
        self._released = False
        self._page_bytes = PAGE_BYTES
        self.bytes = 0

    def make(self, largest: int = 0, page_bytes: int = PAGE_BYTES) -> None:
        """Set space aside, anew where a killed run left some; `page_bytes` are the journal's.

        Raises DiskFullError with the figures, StorageError.
        """
        self._page_bytes = page_bytes
        wanted = wanted_bytes(self._workers, largest, page_bytes)
        try:
            with self._lock, storage(f"setting {wanted // MIB} MiB aside"):
                self._path.unlink(missing_ok=True)
                try:
                    self._grow(wanted)
                except OSError:
                    # A file of half the size would be of no use, and in the way.
                    self._path.unlink(missing_ok=True)
                    raise
        except DiskFullError as error:
            free = free_bytes(self._path.parent) / MIB
            raise DiskFullError(
                f"the disk of {self._path.parent} is too full to begin: a run sets {wanted // MIB} MiB aside, so that "
                f"no answer is lost when the disk fills up, and {free:.1f} MiB are free, or less by a quota; "
                f"{FREE_SPACE}"
            ) from error

    def resize(self, workers: int) -> None:
        """Expect so many results at once from now on; the file grows with the next that is seen."""
        self._workers = workers

    def seen(self, size: int) -> None:
        """Note the size of a result in bytes. A disk without room for a larger ballast keeps the one that it has."""
        wanted = wanted_bytes(self._workers, size, self._page_bytes)
        if wanted <= self.bytes:
            return
        with self._lock, suppress(OSError):
            if self.bytes and not self._released and wanted > self.bytes:
                self._grow(wanted)

    def release(self) -> bool:
        """Give the space back; True where there was some. It is not taken again in this invocation."""
        with self._lock:
            had, self._released, self.bytes = self.bytes > 0, True, 0
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
        return had

    def _grow(self, to: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(self._path, flags, PRIVATE_FILE)
        try:
            try:
                self._allocate(handle, self.bytes, to - self.bytes)
            except OSError:
                os.ftruncate(handle, self.bytes)
                raise
        finally:
            os.close(handle)
        self.bytes = to


def _allocate(handle: int, offset: int, length: int) -> None:
    """Have real blocks: by the system's own call, else by bytes that no file system can make smaller."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, offset, length)
        return
    for at in range(offset, offset + length, STEP_BYTES):
        os.pwrite(handle, os.urandom(min(STEP_BYTES, offset + length - at)), at)
