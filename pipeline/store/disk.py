"""What is known of the disk that an output folder lies on: its kind, its room, and what a run may still need of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.store.journal import JournalReader

NETWORK_FILE_SYSTEMS = ("9p", "afs", "ceph", "cifs", "fuse.", "glusterfs", "lustre", "ncpfs", "nfs", "smb")
"""How the kinds begin whose locks, and whose promise that bytes are durable, rest on another machine."""


def file_system(folder: Path, *, mounts: str | None = None) -> str:
    """Name the kind of file system that a folder lies on; empty where the system does not say (macOS).

    `mounts` is the text of /proc/self/mountinfo; None: it is read.
    """
    try:
        text = mounts if mounts is not None else Path("/proc/self/mountinfo").read_text("utf-8", "replace")
        device = folder.stat().st_dev
    except OSError:
        return ""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2:3] == [wanted]:
            return after.split()[0]
    return ""


def is_network(kind: str) -> bool:
    """Whether a kind of file system lies on another machine."""
    return kind.startswith(NETWORK_FILE_SYSTEMS)


def free_bytes(folder: Path) -> int:
    """Bytes that this user may still write. Raises OSError."""
    return shutil.disk_usage(folder).free


def needed_bytes(reader: JournalReader, *, rows: int | None) -> int | None:
    """Estimate what the rows without a part will take in parts and files, from what those with one took.

    `rows` is how many the input has. None where that, or what a row takes, is not known yet.
    """
    parts = reader.parts()
    sealed = sum(part.ok + part.failed for part in parts)
    if rows is None or not sealed:
        return None
    written = sum(part.bytes for part in parts) + reader.file_bytes()
    return max(0, rows - sealed) * written // sealed
