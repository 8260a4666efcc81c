"""The addresses of files, batches and fine-tuning jobs in all three families, and who answers there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import orjson

from pipeline.simulator import refusals
from pipeline.simulator.base import Family
from pipeline.simulator.offline.batches import Batches
from pipeline.simulator.offline.files import Files
from pipeline.simulator.offline.fine_tuning import FineTuning
from pipeline.simulator.offline.rendering import page

_ROOTS = (
    (Family.V1, re.compile(r"(?P<resource>.*?)/openai/v1/(?P<rest>.+)")),
    (Family.CLASSIC, re.compile(r"(?P<resource>.*?)/openai/(?P<rest>.+)")),
    (Family.OPENAI, re.compile(r"(?P<resource>.*?)/v1/(?P<rest>.+)")),
)
_KINDS = re.compile(r"(?P<kind>files|batches|fine_tuning/jobs)(?:/(?P<name>[^/]+)(?:/(?P<part>[a-z]+))?)?")
_CREATED = 201


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One request for what is kept. `resource` is the path before the family's own, mostly empty."""

    family: Family
    resource: str
    kind: str
    name: str | None
    part: str | None
    method: str
    query: Mapping[str, str]

    @property
    def action(self) -> str:
        """Its name in the ledger and for the drawing of faults, such as "batches.create"."""
        if self.part is not None:
            return f"{self.kind}.{self.part}"
        if self.name is None:
            return f"{self.kind}.{'create' if self.method == 'POST' else 'list'}"
        return f"{self.kind}.{'delete' if self.method == 'DELETE' else 'get'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What is answered."""

    body: bytes
    status: int = 200
    content_type: bytes = b"application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


def find_wanted(path: str, query: str, method: str) -> Wanted | None:
    """Read a path, already unquoted; None where it names nothing that is kept."""
    for family, root in _ROOTS:
        match = root.fullmatch(path)
        kind = _KINDS.fullmatch(match["rest"]) if match else None
        if match is not None and kind is not None:
            return Wanted(
                family=family,
                resource=match["resource"].strip("/"),
                **kind.groupdict(),
                method=method,
                query=dict(parse_qsl(query)),
            )
    return None


class Offline:
    """Everything that is kept for a resource."""

    def __init__(self, files: Files, batches: Batches, training: FineTuning) -> None:
        self._files = files
        self._batches = batches
        self._training = training

    def resume(self) -> None:
        """Go on with what an earlier process left under way."""
        self._batches.resume()
        self._training.resume()

    async def answer(self, wanted: Wanted, body: bytes, content_type: str) -> Shown:
        """Do what is wanted. Raises RefusedError."""
        if wanted.family is Family.CLASSIC and "api-version" not in wanted.query:
            raise refusals.not_found()
        match wanted.kind:
            case "files":
                return self._file(wanted, body, content_type)
            case "batches":
                return await self._batch(wanted, body)
            case _:
                return self._job(wanted, body)

    def _file(self, wanted: Wanted, body: bytes, content_type: str) -> Shown:
        files, family = self._files, wanted.family
        match wanted.method, wanted.name, wanted.part:
            case "POST", None, None:
                record = files.upload(body, content_type, family)
                shown = _json(files.render(record, family))
                if family is not Family.CLASSIC:
                    return shown
                return Shown(body=shown.body, status=_CREATED, headers={"location": f"/openai/files/{record['id']}"})
            case "GET", None, None:
                return _json(page(files.all(wanted.query), wanted.query, lambda it: files.render(it, family)))
            case "GET", str() as name, None:
                return _json(files.render(files.get(name), family))
            case "GET", str() as name, "content":
                return Shown(body=_bytes_of(files.content(name)), content_type=b"application/octet-stream")
            case "DELETE", str() as name, None:
                return _json(files.delete(name))
        raise refusals.not_found()

    async def _batch(self, wanted: Wanted, body: bytes) -> Shown:
        batches, family = self._batches, wanted.family
        match wanted.method, wanted.name, wanted.part:
            case "POST", None, None:
                return _json(batches.render(await batches.create(body, family, wanted.resource)))
            case "GET", None, None:
                return _json(page(batches.all(), wanted.query, batches.render))
            case "GET", str() as name, None:
                return _json(batches.render(batches.get(name)))
            case "POST", str() as name, "cancel":
                return _json(batches.render(batches.cancel(name)))
        raise refusals.not_found()

    def _job(self, wanted: Wanted, body: bytes) -> Shown:
        training, family = self._training, wanted.family
        match wanted.method, wanted.name, wanted.part:
            case "POST", None, None:
                status = _CREATED if family is Family.CLASSIC else 200
                return _json(training.render(training.create(body, family), family), status=status)
            case "GET", None, None:
                return _json(page(training.all(), wanted.query, lambda it: training.render(it, family)))
            case "GET", str() as name, None:
                return _json(training.render(training.get(name), family))
            case "POST", str() as name, "cancel":
                return _json(training.render(training.cancel(name), family))
            case "GET", str() as name, "events":
                return _json(page(training.events(name), wanted.query, lambda it: it))
            case "GET", str() as name, "checkpoints":
                return _json(page(training.checkpoints(name), wanted.query, lambda it: it, limit=10))
        raise refusals.not_found()


def _json(value: Any, *, status: int = 200) -> Shown:
    return Shown(body=orjson.dumps(value), status=status)


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise refusals.not_found() from None
