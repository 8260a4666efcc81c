"""From the paths of a job to the files of its input, in order, and their format."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.sources.base import Format, InputFile
from pipeline.sources.errors import SourceError

_GLOB = frozenset("*?[")
_HEAD_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The files of an input, all of one format; none where the format lists them itself."""

    format: Format
    files: tuple[InputFile, ...]


def discover(paths: Sequence[str], *, format: str, formats: Sequence[Format]) -> Found:  # noqa: A002 - the job file's word
    """Find the files: each path is a file, a folder or a glob; what they hold is read in the order of the paths.

    All are of the one of `formats` that `format` names; with `auto` it is found.
    A folder gives all its files, at any depth, sorted by name; names that begin with `_` or `.` are skipped, there
    and by a glob's wildcards. With a given format, a folder gives the files whose names say that format; with
    `auto`, each of its files must be of one and the same format.

    Raises SourceError where nothing is found, a file is named twice, unreadable or of an unknown or other format.
    """
    wanted = _named(format, formats)
    if wanted is not None and wanted.lists:
        return Found(format=wanted, files=())
    found: list[InputFile] = []
    examples: dict[str, tuple[Format, Path]] = {}
    for path in _unique(_expand(paths, wanted)):
        form, file = _examined(path, wanted, formats)
        found.append(file)
        examples.setdefault(form.name, (form, path))
    if len(examples) > 1:
        both = " and ".join(f"{name} ({path})" for name, (_, path) in sorted(examples.items()))
        raise SourceError(f"the input mixes formats: {both}; name the files of one format, by a glob for example")
    return Found(format=next(iter(examples.values()))[0], files=tuple(found))


def _named(format_: str, formats: Sequence[Format]) -> Format | None:
    """Give the format that the job names, None for `auto`."""
    if format_ == "auto":
        return None
    for form in formats:
        if form.name == format_:
            return form
    *most, last = ("auto", *(form.name for form in formats))
    raise SourceError(f"input.format: {format_!r} is not read; use {', '.join(most)} or {last}")


def _expand(paths: Sequence[str], wanted: Format | None) -> Iterator[Path]:
    for text in paths:
        path = Path(text)
        if path.is_dir():
            files = list(_walk(path, wanted))
            if not files:
                kind = f"{wanted.name} files" if wanted is not None and wanted.suffixes else "files"
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


def _walk(folder: Path, wanted: Format | None) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise SourceError(f"{folder}: cannot be listed: {error.strerror}") from error
    for entry in entries:
        if entry.name.startswith(("_", ".")):
            continue
        path = Path(entry.path)
        if entry.is_dir():
            yield from _walk(path, wanted)
        elif wanted is None or not wanted.suffixes or wanted.names(path):
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


def _unknown(path: Path, formats: Sequence[Format]) -> str:
    """Say what to do about a file that is of no format; tables of text can be turned into one by a line."""
    if path.suffix.lower() in {".csv", ".tsv"}:
        return (
            "tables of text are not read, since their values have no types: make a Parquet file of it, for example "
            f"with duckdb -c \"COPY (FROM '{path.name}') TO '{path.with_suffix('.parquet').name}'\""
        )
    names = ", ".join(sorted(form.name for form in formats))
    return f"neither its name nor its first bytes say a format; set input.format ({names})"


def _examined(path: Path, wanted: Format | None, formats: Sequence[Format]) -> tuple[Format, InputFile]:
    """Look a file over, and tell its format: what its first bytes say, else its name."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise SourceError(f"{path}: is no regular file, so it could not be read on from its middle")
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}") from error
    begun = next((form for form in formats if form.magic and head.startswith(form.magic)), None)
    form = wanted or begun or next((form for form in formats if form.names(path)), None)
    if form is None:
        raise SourceError(f"{path}: {_unknown(path, formats)}")
    if form.magic and begun is not form:
        raise SourceError(f"{path}: is no {form.title}")
    if form.suffixes and begun not in {None, form}:
        raise SourceError(f"{path}: is a {begun.title}, and input.format says {form.name}")
    return form, InputFile(path=path, size=status.st_size, mtime_ns=status.st_mtime_ns, inode=status.st_ino)
