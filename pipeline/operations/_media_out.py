"""Where speech and pictures go: a binary column, or a file whose path is a column, as `output.media` says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pipeline.model import OutputFile

if TYPE_CHECKING:
    import pyarrow as pa

Media = Literal["auto", "column", "files"]

COLUMN_BYTES = 1_000_000
"""The most that `auto` puts into a column."""
PATH_BYTES = 64
"""What a file's path adds to a row, about."""


def media_fields(column: str, media: Media) -> list[pa.Field]:
    """The columns of a kind of media: `column` for the bytes, `column_path` for the file's path, or both for `auto`."""
    import pyarrow as pa  # noqa: PLC0415 - `pipeline --help` does not pay for it

    inside, path = pa.field(column, pa.binary()), pa.field(f"{column}_path", pa.string())
    return {"column": [inside], "files": [path], "auto": [inside, path]}[media]


def place_media(
    column: str, media: Media, content: bytes, suffix: str
) -> tuple[dict[str, Any], tuple[OutputFile, ...]]:
    """Put a row's bytes where the job wants them: the values of its columns, and the files to be written."""
    if media == "column":
        return {column: content}, ()
    if media == "auto" and len(content) <= COLUMN_BYTES:
        return {column: content, f"{column}_path": None}, ()
    others = {column: None} if media == "auto" else {}
    return others, (OutputFile(column=f"{column}_path", suffix=suffix, content=content),)


def kept_bytes(media: Media, expected: int) -> int:
    """How much of the bytes expected for a row its range's part will hold."""
    match media:
        case "column":
            return expected
        case "files":
            return PATH_BYTES
        case "auto":
            return expected if expected <= COLUMN_BYTES else PATH_BYTES
