"""The paths of an input: what of them is a folder, and what is a pattern over its files."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

MAGIC = re.compile(r"[*?\[]")
_ESCAPED = re.compile(r"\[([*?\[])\]")


def static_folder(paths: Sequence[str]) -> Path:
    """The folder that all files of an input lie below: the paths' own, before any wildcard, or their common parent.

    Paths are absolute. A folder gives itself, a file its parent, a glob what stands before its first wildcard.
    """
    return Path(os.path.commonpath([_folder(text) for text in paths]))


def exists(path: str | Path) -> bool:
    """Whether there is anything of this name. A name that no file can have has nothing."""
    return os.path.exists(path)  # noqa: PTH110 - Path.exists raises for a name that is too long


def is_folder(path: str | Path) -> bool:
    """Whether there is a folder of this name, or a link to one."""
    return os.path.isdir(path)  # noqa: PTH112 - likewise


def _folder(text: str) -> str:
    if is_folder(text):
        return os.path.normpath(text)
    if not exists(text):
        names = text.split("/")
        plain = [_ESCAPED.sub("", name) for name in names]
        first = next((place for place, name in enumerate(plain) if MAGIC.search(name)), None)
        if first is not None:
            return os.path.normpath("/".join(_ESCAPED.sub(r"\1", name) for name in names[:first]) or "/")
        text = _ESCAPED.sub(r"\1", text)
    return os.path.dirname(os.path.normpath(text))  # noqa: PTH120 - text in, text out
