"""Files that are whole or absent: temporary name, fsync, rename, fsync of the folder."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import DiskFullError, StorageError

TEMPORARY_SUFFIX = ".tmp"
PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700

FREE_SPACE = "free some space, then run the same command again: what was committed is safe"
"""What to do about a full disk."""
_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def storage(doing: str) -> Iterator[None]:
    """Turn an OSError into a StorageError that says what was being done and what to do now."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        place = f" ({error.filename})" if error.filename else ""
        if error.errno in _FULL:
            raise DiskFullError(f"{doing}: {reason}{place}; {FREE_SPACE}") from error
        advice = "check the disk and its permissions, then run the same command again: what was committed is safe"
        raise StorageError(f"{doing}: {reason}{place}; {advice}") from error


def sync_folder(folder: Path) -> None:
    """Make renames within the folder survive a power loss."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Make the file's content survive a power loss."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish(temporary: Path, final: Path) -> None:
    """Give a finished file its name, durably: fsync(file), rename, fsync(folder)."""
    sync_file(temporary)
    temporary.replace(final)
    sync_folder(final.parent)


def replace_text(path: Path, text: str, *, durable: bool, mode: int = PRIVATE_FILE) -> None:
    """Write a small file that readers see whole, old or new. `durable` also survives a power loss.

    `mode` is what it may be done with, whatever the umask; by default its owner alone may read it.
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    with suppress(FileNotFoundError):
        temporary.unlink()
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, PRIVATE_FILE)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(handle, mode)
        if durable:
            publish(temporary, path)
        else:
            temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


def create_private(path: Path) -> None:
    """Make an empty file that only its owner may read. Raises FileExistsError, also for a symbolic link."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE_FILE))


def open_private(path: Path) -> BinaryIO:
    """Open a file anew for writing that only its owner may read. Raises OSError, also for a symbolic link."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, PRIVATE_FILE), "wb")


def refuse_link(path: Path) -> None:
    """Raise StorageError for a symbolic link in the place of a run's own folder."""
    if path.is_symlink():
        raise StorageError(f"{path} is a symbolic link; a run's own folder must be a real one: remove the link")


def private_folder(path: Path) -> None:
    """Make a folder that only its owner may enter; a symbolic link in its place is refused."""
    refuse_link(path)
    path.mkdir(mode=PRIVATE_FOLDER, parents=False, exist_ok=True)
    path.chmod(PRIVATE_FOLDER)


def remove_temporaries(*folders: Path, suffix: str = TEMPORARY_SUFFIX) -> None:
    """Remove what a killed run left unfinished. Call it under the folder's lock."""
    for folder in folders:
        if folder.is_dir():
            for path in folder.glob(f"*{suffix}"):
                path.unlink()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
