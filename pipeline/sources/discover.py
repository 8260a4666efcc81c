"""From the paths of a job to the files of its input, in order, and their format."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.sources.base import InputFile
from pipeline.sources.errors import SourceError

JSONL = "jsonl"
PARQUET = "parquet"

_FORMATS = {".jsonl": JSONL, ".ndjson": JSONL, ".json": JSONL, ".parquet": PARQUET, ".pq": PARQUET}
_COMPRESSED = (".gz", ".zst")
Codec = Literal["gzip", "zstd"]
"""A compression of JSON Lines, by the name that pyarrow gives it."""

_CODECS: dict[bytes, Codec] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_PARQUET_MAGIC = b"PAR1"
_GLOB = frozenset("*?[")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The files of an input, all of one format. `codecs` names each file's compression, None where it is plain."""

    format: str
    files: tuple[InputFile, ...]
    codecs: tuple[Codec | None, ...]


def discover(paths: Sequence[str], *, format: str) -> Found:  # noqa: A002 - the job file's word
    """Find the files: each path is a file, a folder or a glob; what they hold is read in the order of the paths.

    A folder gives all its files, at any depth, sorted by name; names that begin with `_` or `.` are skipped, there
    and by a glob's wildcards. With a given format, a folder gives the files whose names say that format; with
    `auto`, each of its files must be of one and the same format.

    Raises SourceError where nothing is found, a file is named twice, unreadable or of an unknown or other format.
    """
    found = [(path, *_format(path, format)) for path in _unique(_expand(paths, format))]
    formats = {name: path for path, name, _ in found}
    if len(formats) > 1:
        both = " and ".join(f"{name} ({path})" for name, path in sorted(formats.items()))
        raise SourceError(f"the input mixes formats: {both}; name the files of one format, by a glob for example")
    return Found(
        format=next(iter(formats)),
        files=tuple(_input_file(path) for path, _, _ in found),
        codecs=tuple(codec for _, _, codec in found),
    )


def _expand(paths: Sequence[str], format_: str) -> Iterator[Path]:
    for text in paths:
        path = Path(text)
        if path.is_dir():
            files = list(_walk(path, format_))
            if not files:
                kind = "files" if format_ == "auto" else f"{format_} files"
                raise SourceError(f"{text}: the folder holds no {kind} (names that begin with _ or . are skipped)")
            yield from files
        elif path.exists():
            yield path
        elif _GLOB.intersection(text):
            matches = sorted(Path(match) for match in glob.glob(text, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
            files = [match for match in matches if match.is_file() and not match.name.startswith(("_", "."))]
            if not files:
                raise SourceError(f"{text}: no file matches")
            yield from files
        else:
            raise SourceError(f"{text}: no such file or folder")


def _walk(folder: Path, format_: str) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise SourceError(f"{folder}: cannot be listed: {error.strerror}") from error
    for entry in entries:
        if entry.name.startswith(("_", ".")):
            continue
        path = Path(entry.path)
        if entry.is_dir():
            yield from _walk(path, format_)
        elif format_ in {"auto", _named_format(path)}:
            yield path


def _unique(paths: Iterator[Path]) -> list[Path]:
    seen: dict[Path, Path] = {}
    for path in paths:
        place = path.resolve()
        if place in seen:
            raise SourceError(f"{path}: the input names this file twice; its rows would be sent twice")
        seen[place] = path
    if not seen:
        raise SourceError("the input names no file")
    return list(seen.values())


def _named_format(path: Path) -> str | None:
    """Tell the format that a file's name says."""
    stem = path.with_suffix("") if path.suffix.lower() in _COMPRESSED else path
    return _FORMATS.get(stem.suffix.lower())


def _format(path: Path, format_: str) -> tuple[str, Codec | None]:
    """Tell the format and compression of a file: what its first bytes say, else its name."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise SourceError(f"{path}: is no regular file, so it could not be read on from its middle")
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}") from error
    is_parquet = head == _PARQUET_MAGIC
    named = _named_format(path)
    wanted = format_ if format_ != "auto" else (PARQUET if is_parquet else named)
    match wanted:
        case "parquet" if is_parquet:
            return PARQUET, None
        case "parquet":
            raise SourceError(f"{path}: is no Parquet file")
        case "jsonl" if not is_parquet:
            return JSONL, next((codec for magic, codec in _CODECS.items() if head.startswith(magic)), None)
        case "jsonl":
            raise SourceError(f"{path}: is a Parquet file, and input.format says jsonl")
        case None:
            raise SourceError(f"{path}: neither its name nor its first bytes say a format; set input.format")
        case _:
            raise SourceError(f"input.format: {wanted!r} is not read; use auto, jsonl or parquet")


def _input_file(path: Path) -> InputFile:
    status = path.stat()
    return InputFile(path=path, size=status.st_size, mtime_ns=status.st_mtime_ns, inode=status.st_ino)
