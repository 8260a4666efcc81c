"""Opens the files that rows name, and nothing else: below one folder, by no link, of a bounded size."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import MediaError

_HEAD_BYTES = 64
_MOST_SHOWN = 200  # characters of a name in a message
_CLOEXEC = os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | _CLOEXEC
# Opening a FIFO for reading would wait for its writer.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | _CLOEXEC


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaFile:
    """A file that a row names, as it was when it was checked. `name` is its path below `root`; `head` its beginning.

    It holds nothing open. Reading checks that the file is still the one that was checked.
    """

    root: Path
    name: str
    size: int
    mtime_ns: int
    inode: int
    head: bytes

    def read(self) -> bytes:
        """Read it whole. Blocking. Raises MediaError, code `changed`, where it is no longer what it was."""
        with self.open() as file:
            content = _read(file, self.size + 1, self.name)
            if len(content) != self.size:
                raise _changed(self.name)
            self._check(file)
        return content

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open it for reading. Blocking. Raises MediaError as `read` does."""
        with _opened(self.root, self.name) as file:
            self._check(file)
            yield file

    def _check(self, file: BinaryIO) -> None:
        found = os.fstat(file.fileno())
        if (found.st_size, found.st_mtime_ns, found.st_ino) != (self.size, self.mtime_ns, self.inode):
            raise _changed(self.name)


def find_media(root: Path | None, name: object, *, max_bytes: int) -> MediaFile:
    """Find the file that a row names below `root`, the job's media_root, and look at its first bytes. Blocking.

    Raises MediaError: `no_media_root` where the job names no folder, `path` for a name that is no plain relative path
    (absolute, `..`, a link anywhere on the way), `not_found`, `not_a_file` for folders, FIFOs and devices, `empty`,
    `too_large` for more than `max_bytes`, `unreadable`.
    """
    if root is None:
        raise MediaError(code="no_media_root", message="the row names a file, but the job has no input.media_root")
    if not isinstance(name, str) or not name or "\0" in name:
        raise MediaError(code="path", message="the file's name is no text")
    with _opened(root, name) as file:
        found = os.fstat(file.fileno())
        if found.st_size == 0:
            raise MediaError(code="empty", message=f"{_shown(name)}: is empty")
        if found.st_size > max_bytes:
            message = f"{_shown(name)}: has {found.st_size} bytes, more than {max_bytes}"
            raise MediaError(code="too_large", message=message)
        head = _read(file, _HEAD_BYTES, name)
    return MediaFile(
        root=root, name=name, size=found.st_size, mtime_ns=found.st_mtime_ns, inode=found.st_ino, head=head
    )


@contextmanager
def _opened(root: Path, name: str) -> Iterator[BinaryIO]:
    """Open a regular file by walking down from the root, one name at a time, through no link."""
    names = name.split("/")  # the first of an absolute path is empty
    if any(part in {"", ".", ".."} for part in names):
        raise MediaError(code="path", message=f"{_shown(name)}: is no plain path below input.media_root")
    folder = -1
    try:
        # The root is the user's own word: it may be a link.
        folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | _CLOEXEC)
        for part in names[:-1]:
            below = os.open(part, _FOLDER, dir_fd=folder)
            os.close(folder)
            folder = below
        handle = os.open(names[-1], _FILE, dir_fd=folder)
    except FileNotFoundError:
        raise MediaError(code="not_found", message=f"{_shown(name)}: no such file below input.media_root") from None
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and _is_link(folder, error):
            raise MediaError(code="path", message=f"{_shown(name)}: a link is not followed") from None
        if isinstance(error, OSError) and error.errno == errno.ENXIO:
            raise _not_a_file(name) from None
        reason = error.strerror if isinstance(error, OSError) else "no name of a file"
        raise MediaError(code="unreadable", message=f"{_shown(name)}: cannot be opened: {reason}") from None
    finally:
        if folder >= 0:
            os.close(folder)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _not_a_file(name)
    with os.fdopen(handle, "rb") as file:
        yield file


def _is_link(folder: int, error: OSError) -> bool:
    """Tell whether opening failed because the last name is a link: ELOOP, or ENOTDIR for a link to a folder."""
    if error.errno == errno.ELOOP:
        return True
    if error.errno != errno.ENOTDIR or folder < 0 or not isinstance(error.filename, str):
        return False
    try:
        return stat.S_ISLNK(os.stat(error.filename, dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _read(file: BinaryIO, size: int, name: str) -> bytes:
    try:
        return file.read(size)
    except OSError as error:
        raise MediaError(code="unreadable", message=f"{_shown(name)}: cannot be read: {error.strerror}") from None


def _not_a_file(name: str) -> MediaError:
    return MediaError(code="not_a_file", message=f"{_shown(name)}: is no regular file")


def _changed(name: str) -> MediaError:
    return MediaError(code="changed", message=f"{_shown(name)}: changed while the job ran")


def _shown(name: str) -> str:
    """A row's name as a message may hold it: one short line that every encoding can write."""
    shown = name if name.isprintable() else name.encode("unicode_escape").decode("ascii")
    return shown if len(shown) <= _MOST_SHOWN else f"{shown[:_MOST_SHOWN]}…"
