"""Keeps files and records in a folder, so that they outlive the simulator's process where the folder does."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

Record = dict[str, Any]


class Shelf:
    """Records by kind and id, each a JSON file replaced whole, and contents beside them.

    A record is written before it is handed on; the order of a kind is that of creation.
    """

    def __init__(self, folder: Path) -> None:
        """Open a folder, which is made where it is missing. Raises OSError."""
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._records: dict[str, dict[str, Record]] = {}
        self._numbers: dict[str, int] = {}
        found = (orjson.loads(path.read_bytes()) for path in folder.glob("*.json"))
        for kept in sorted(found, key=lambda kept: kept["number"]):
            record = kept["record"]
            self._records.setdefault(kept["kind"], {})[record["id"]] = record
            self._numbers[record["id"]] = kept["number"]
        self._next = max(self._numbers.values(), default=-1) + 1

    def new_id(self, prefix: str) -> str:
        """Draw an id such as file-3f0c…: 32 hex digits behind the prefix."""
        return f"{prefix}{secrets.token_hex(16)}"

    def all(self, kind: str) -> Iterator[Record]:
        """Give every record of a kind, the newest first."""
        return reversed(list(self._records.get(kind, {}).values()))

    def find(self, kind: str, name: str) -> Record | None:
        """Give a record; None where there is none."""
        return self._records.get(kind, {}).get(name)

    def keep(self, kind: str, record: Record) -> None:
        """Write a record. Raises OSError."""
        number = self._numbers.get(record["id"])
        if number is None:
            number = self._numbers[record["id"]] = self._next
            self._next += 1
        self._records.setdefault(kind, {})[record["id"]] = record
        path = self._folder / f"{record['id']}.json"
        fresh = path.with_suffix(".new")
        fresh.write_bytes(orjson.dumps({"kind": kind, "number": number, "record": record}))
        os.replace(fresh, path)  # noqa: PTH105 - the same in fewer words

    def forget(self, kind: str, name: str) -> None:
        """Drop a record and its content."""
        self._records.get(kind, {}).pop(name, None)
        (self._folder / f"{name}.json").unlink(missing_ok=True)
        self.content(name).unlink(missing_ok=True)

    def content(self, name: str) -> Path:
        """Where a record's content lies."""
        return self._folder / f"{name}.bin"
