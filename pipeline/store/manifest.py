"""The manifest: an atomic export of the journal that says which parts count. The journal is the truth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.store.files import replace_text, storage
from pipeline.store.journal import Part

MANIFEST_VERSION = 1


def write_manifest(
    path: Path, *, parts: Sequence[Part], fingerprint: str, variants: Mapping[str, Any], schema: Sequence[str]
) -> None:
    """Write the manifest: parts that count, the wording of each variant, the columns."""
    text = json.dumps(
        {
            "version": MANIFEST_VERSION,
            "fingerprint": fingerprint,
            "variants": dict(variants),
            "columns": list(schema),
            "parts": [
                {key: value for key, value in asdict(part).items() if key not in {"start", "finish"}} for part in parts
            ],
        },
        indent=1,
    )
    with storage("writing manifest.json"):
        replace_text(path, text, durable=True)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest as it was written. Raises FileNotFoundError, ValueError."""
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{path} is not a manifest")  # noqa: TRY004 - one error for whatever cannot be read
    return value
