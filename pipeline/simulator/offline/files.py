"""Files as the service keeps them: uploaded with a purpose, looked at for a while, read, listed, deleted."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.simulator.base import Family, RefusedError, bad_request, missing
from pipeline.simulator.config import OfflineConfig, Quirk
from pipeline.simulator.multipart import Form, Upload, read_form
from pipeline.simulator.offline.rendering import refusal, time_of
from pipeline.simulator.offline.shelf import Record, Shelf

KIND = "file"
_PURPOSES = frozenset({"batch", "fine-tune", "assistants", "evals"})
_PURPOSES_OPENAI = _PURPOSES | {"vision", "user_data"}
_MOST_BYTES = 512 * 1024 * 1024
_DAY_S = 86_400
_EXPIRY_S = {True: (14 * _DAY_S, 30 * _DAY_S), False: (3_600, 30 * _DAY_S)}


class Files:
    """The files of a resource."""

    def __init__(self, shelf: Shelf, config: OfflineConfig, quirks: frozenset[Quirk], now: Callable[[], float]) -> None:
        """`now` gives epoch seconds."""
        self._shelf = shelf
        self._config = config
        self._quirks = quirks
        self._now = now

    def upload(self, body: bytes, content_type: str, family: Family) -> Record:
        """Take a file from a form. Raises RefusedError."""
        try:
            form = read_form(body, content_type)
        except ValueError as error:
            raise bad_request(f"The request is no form that could be read: {error}.") from None
        purpose = _text(form, "purpose")
        if purpose not in (_PURPOSES if family.azure else _PURPOSES_OPENAI):
            raise bad_request(f"'{purpose}' is not a purpose that files can have.", param="purpose")
        upload = form.get("file", [None])[0]
        if not isinstance(upload, Upload):
            raise missing("file")
        self._check_size(purpose, upload.content, family)
        lives_s = _lifetime_s(form, family)
        if purpose == "batch":
            self._check_count(expiring=lives_s is not None)
        record = self._put(purpose, upload.filename, lives_s)
        self._shelf.content(record["id"]).write_bytes(upload.content)
        record["bytes"] = len(upload.content)
        self._shelf.keep(KIND, record)
        return record

    def make(self, purpose: str, filename: str, source: Path, *, lives_s: int | None = None) -> Record:
        """Keep a file that the service itself wrote; `source` is moved."""
        record = self._put(purpose, filename, lives_s)
        record["bytes"] = source.stat().st_size
        record["ready_at"] = record["created_at"]
        shutil.move(source, self._shelf.content(record["id"]))
        self._shelf.keep(KIND, record)
        return record

    def get(self, name: str) -> Record:
        """Find a file. Raises RefusedError."""
        record = self._shelf.find(KIND, name)
        if record is None or (record["expires_at"] is not None and record["expires_at"] <= self._now()):
            raise refusal(404, "notFound", f"No file with the id '{name}' was found.")
        return record

    def content(self, name: str) -> Path:
        """Where the file's content lies. Raises RefusedError."""
        return self._shelf.content(self.get(name)["id"])

    def is_ready(self, record: Record) -> bool:
        """Whether the service has looked at it."""
        return bool(record["ready_at"] <= self._now())

    def delete(self, name: str) -> dict[str, Any]:
        """Forget a file. Raises RefusedError."""
        self._shelf.forget(KIND, self.get(name)["id"])
        return {"id": name, "object": "file", "deleted": True}

    def all(self, query: Mapping[str, str]) -> list[Record]:
        """Give those of a purpose, or all, the newest first."""
        purpose = query.get("purpose")
        return [record for record in self._shelf.all(KIND) if purpose in {None, record["purpose"]}]

    def render(self, record: Record, family: Family) -> dict[str, Any]:
        """Write a file as the family does."""
        waiting = "pending" if family.azure else "uploaded"
        return {
            "id": record["id"],
            "object": "file",
            "bytes": record["bytes"],
            "created_at": time_of(record["created_at"], self._quirks),
            "expires_at": time_of(record["expires_at"], self._quirks),
            "filename": record["filename"],
            "purpose": record["purpose"],
            "status": "processed" if self.is_ready(record) else waiting,
            "status_details": None,
        }

    def _put(self, purpose: str, filename: str, lives_s: int | None) -> Record:
        now = self._now()
        return {
            "id": self._shelf.new_id("file-"),
            "purpose": purpose,
            "filename": filename,
            "created_at": now,
            "ready_at": now + self._config.processed_s,
            "expires_at": None if lives_s is None else now + lives_s,
            "bytes": 0,
        }

    def _check_size(self, purpose: str, content: bytes, family: Family) -> None:
        most = self._config.most_bytes if purpose == "batch" else _MOST_BYTES
        if len(content) > most:
            raise refusal(413, "invalidPayload", f"The file is larger than {most} bytes.")
        if not content and family.azure:
            raise refusal(400, "invalidPayload", "The file is empty.")

    def _check_count(self, *, expiring: bool) -> None:
        kept = sum(
            record["purpose"] == "batch" and (record["expires_at"] is not None) is expiring
            for record in self._shelf.all(KIND)
        )
        most = self._config.most_expiring_files if expiring else self._config.most_files
        if kept >= most:
            raise refusal(400, "quotaExceeded", f"The resource holds {kept} batch files already; delete some first.")


def _text(form: Form, name: str) -> str:
    value = form.get(name, [None])[0]
    if not isinstance(value, str):
        raise missing(name)
    return value


def _lifetime_s(form: Form, family: Family) -> int | None:
    """Read how long a file shall live, in both spellings."""
    for open_, close in (("[", "]"), (".", "")):
        seconds = form.get(f"expires_after{open_}seconds{close}", [None])[0]
        if seconds is None:
            continue
        anchor = form.get(f"expires_after{open_}anchor{close}", [None])[0]
        if anchor != "created_at":
            raise bad_request("expires_after counts from created_at.", param="expires_after.anchor")
        return checked_lifetime_s(seconds, family)
    return None


def checked_lifetime_s(seconds: Any, family: Family) -> int:
    """Check a lifetime against the family's bounds. Raises RefusedError."""
    least, most = _EXPIRY_S[family.azure]
    try:
        lives_s = int(str(seconds))
    except ValueError:
        lives_s = -1
    if not least <= lives_s <= most:
        raise RefusedError(
            400,
            {
                "error": {
                    "message": f"expires_after.seconds must be from {least} to {most}.",
                    "type": "invalid_request_error",
                    "param": "expires_after.seconds",
                    "code": "invalidPayload",
                }
            },
        )
    return lives_s
