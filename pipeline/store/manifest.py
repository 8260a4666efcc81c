"""The manifest: an atomic export of the journal that says which parts count. The journal is the truth.

It holds all that a journal must know of sealed ranges and of the job, so that a damaged journal can be rebuilt from
it and the parts, and a checksum of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from pipeline.job.change import canonical
from pipeline.store.files import replace_text, storage
from pipeline.store.journal import JournalReader

MANIFEST_VERSION = 2
NOTED = ("job", "variants", "schema", "files", "facts", "models", "generations")
"""Facts of the run that the manifest repeats, under the names that the journal notes them by."""


def manifest_of(reader: JournalReader, *, columns: Sequence[str]) -> dict[str, Any]:
    """What the manifest of a journal says. `columns` are those of the parts."""
    noted = {name: reader.noted(name) for name in NOTED}
    return {
        "version": MANIFEST_VERSION,
        "fingerprint": sha256(canonical(noted["job"])).hexdigest(),
        **noted,
        "columns": list(columns),
        "parts": [asdict(part) for part in reader.parts()],
    }


def write_manifest(path: Path, reader: JournalReader, *, columns: Sequence[str]) -> None:
    """Write the manifest, durably. Raises StorageError."""
    with storage("writing manifest.json"):
        replace_text(path, spelled(manifest_of(reader, columns=columns)), durable=True)


def spelled(manifest: Mapping[str, Any]) -> str:
    """The text of the file: what it says, then a checksum of that."""
    return json.dumps({**manifest, "sha256": sha256(canonical(manifest)).hexdigest()}, indent=1)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest as it was written, without its checksum.

    Raises FileNotFoundError, and ValueError when it is not what was written.
    """
    text = path.read_text(encoding="utf-8")
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"{path} is not a manifest")  # noqa: TRY004 - one error for whatever cannot be read
    said = {name: item for name, item in value.items() if name != "sha256"}
    if spelled(said) != text:
        raise ValueError(f"{path} is not what was written")
    return said
