"""Speech, pictures and subtitles beside the parts: named by ordinal, whole or absent."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from pipeline.model import OutputFile, WrittenFile
from pipeline.store.files import TEMPORARY_SUFFIX, publish, storage, sync_folder

MEDIA = "media"
"""The folder, below the output folder."""
_PUBLIC_FILE = 0o644


def media_name(ordinal: int, suffix: str) -> str:
    """The path of a row's file below the output folder. Raises ValueError for a suffix that is no plain word."""
    if not suffix.isalnum() or not suffix.isascii():
        raise ValueError(f"{suffix!r} is no suffix of a file")
    return f"{MEDIA}/{ordinal:012d}.{suffix}"


def write_media(root: Path, ordinal: int, file: OutputFile) -> WrittenFile:
    """Write a row's file durably; one that a crash left behind is replaced. Blocking.

    It counts once the row's outcome, which names it, is committed. Raises StorageError when the disk refuses.
    """
    name = media_name(ordinal, file.suffix)
    path = root / name
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    with storage(f"writing {name}"):
        if not path.parent.is_dir():
            path.parent.mkdir(exist_ok=True)
            sync_folder(root)
        with suppress(FileNotFoundError):
            temporary.unlink()
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, _PUBLIC_FILE)
        with os.fdopen(handle, "wb") as out:
            out.write(file.content)
        publish(temporary, path)
    return WrittenFile(name=name, bytes=len(file.content), sha256=hashlib.sha256(file.content).hexdigest())
