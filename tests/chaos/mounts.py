"""File systems of a test's own: an ext4 that loses power, a tmpfs of a given size, a folder that cannot be written."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN, _IOR('X', 125, __u32), of fs/ext4/ext4.h
_NO_LOG_FLUSH = 2  # EXT4_GOING_FLAGS_NOLOGFLUSH: what the file system's journal still holds in memory is gone
_MEGABYTE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """An ext4 in an image in memory, mounted at `root`."""

    image: Path
    root: Path

    def lose_power(self) -> None:
        """From now on nothing reaches the disk, not even what the file system's journal holds; every call fails."""
        handle = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(handle, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(handle)

    def come_back(self) -> None:
        """Unmount, and mount again as after a reboot. Nobody may use it."""
        _unmount(self.root)
        _mount("-o", "loop", str(self.image), str(self.root))


@contextmanager
def ext4(*, megabytes: int) -> Iterator[Disk]:
    """An empty ext4 for the block."""
    with tempfile.TemporaryDirectory(prefix="pipeline-faults-", dir="/dev/shm") as folder:
        disk = Disk(image=Path(folder) / "disk.img", root=Path(folder) / "disk")
        with disk.image.open("wb") as file:
            file.truncate(megabytes * _MEGABYTE)
        _run("mkfs.ext4", "-q", "-F", str(disk.image))
        disk.root.mkdir()
        _mount("-o", "loop", str(disk.image), str(disk.root))
        try:
            shutil.rmtree(disk.root / "lost+found")
            yield disk
        finally:
            _unmount(disk.root)


@contextmanager
def tmpfs(root: Path, *, megabytes: int) -> Iterator[None]:
    """A tmpfs of this size at `root`, for the block."""
    root.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={megabytes}m,mode=0755", "tmpfs", str(root))
    try:
        yield
    finally:
        _unmount(root)


def grow(root: Path, *, megabytes: int) -> None:
    """Give a tmpfs another size."""
    _mount("-o", f"remount,size={megabytes}m", str(root))


def fill(root: Path) -> None:
    """Take every free block of a file system with a file named `taken`, as a neighbour would.

    By one call, which is cut short where no block is left: a second one would take what the run gives back meanwhile.
    """
    free = os.statvfs(root)
    with (root / "taken").open("ab", buffering=0) as file, suppress(OSError):
        file.write(bytes(free.f_bavail * free.f_frsize + _MEGABYTE))


@contextmanager
def read_only(root: Path) -> Iterator[None]:
    """Let nobody, root among them, write below `root` within the block."""
    _mount("--bind", str(root), str(root))
    try:
        _mount("-o", "remount,ro,bind", str(root))
        yield
    finally:
        _unmount(root)


def _mount(*arguments: str) -> None:
    # Two tests may reach for the same loop device.
    for tried in range(5):
        done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        time.sleep(0.2 * (tried + 1))
    raise OSError(f"mount {' '.join(arguments)}: {done.stderr.strip()}")


def _unmount(root: Path) -> None:
    for tried in range(20):
        done = subprocess.run(["umount", str(root)], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        time.sleep(0.05 * (tried + 1))
    raise OSError(f"umount {root}: {done.stderr.strip()}")


def _run(*command: str) -> None:
    subprocess.run(command, capture_output=True, check=True)
