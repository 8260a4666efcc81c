"""What a run's own files were when it ended cleanly, so that any bit flipped since then is found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from pipeline.store.files import replace_text, sha256_of, storage, sync_folder

CHECKSUMS = "checksums.json"
# Files that change after the last look, or tell and are not relied on.
_LEFT_OUT = (
    CHECKSUMS,
    "lock",
    "log*.jsonl",
    "http.log*.jsonl",
    "spool/*",
    "pieces/*",
    "ballast",
    "stalled.txt",
    "report.html",
    "damaged/*",
    "repair.json",
    "*-shm",
    "*-wal",
)


def forget_checksums(private: Path) -> None:
    """Take back what is said of the files: a run is about to change them. Call it under the folder's lock."""
    with storage(f"removing {CHECKSUMS}"), suppress(FileNotFoundError):
        (private / CHECKSUMS).unlink()
        sync_folder(private)


def write_checksums(private: Path) -> None:
    """Say what the files are, once a run has closed them. Call it under the folder's lock."""
    with storage(f"writing {CHECKSUMS}"):
        sums = {str(path.relative_to(private)): sha256_of(path) for path in _files(private)}
        replace_text(private / CHECKSUMS, _spelled(sums), durable=True)


def changed_files(private: Path) -> Mapping[str, str]:
    """What is not as it was, by path below `private`: `is missing`, `differs`, `is new`.

    Empty where no run has ended cleanly since the files changed: nothing is known then. Raises ValueError when the
    list of checksums itself is not what was written.
    """
    path = private / CHECKSUMS
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    value = json.loads(text)
    known = value.get("files") if isinstance(value, dict) else None
    if not isinstance(known, dict) or _spelled(known) != text:
        raise ValueError(f"{CHECKSUMS} is not what was written")
    found = {str(path.relative_to(private)): sha256_of(path) for path in _files(private)}
    return {
        **{name: "is missing" for name in known if name not in found},
        **{name: "differs" for name, digest in found.items() if name in known and known[name] != digest},
        **{name: "is new" for name in found if name not in known},
    }


def _spelled(sums: Mapping[str, str]) -> str:
    """The text of the file: the list, and a checksum of the list itself."""
    return json.dumps({"files": sums, "sha256": sha256(json.dumps(sums).encode()).hexdigest()}, indent=1)


def _files(private: Path) -> list[Path]:
    return sorted(
        path for path in private.rglob("*") if path.is_file() and not any(path.match(name) for name in _LEFT_OUT)
    )
