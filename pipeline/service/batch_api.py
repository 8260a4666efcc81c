"""Asks a deployment's service for batches, beside their files."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson

from pipeline.service.address import Family
from pipeline.service.resource_api import TAG, LostError, RefusedCallError, ResourceApi, count_in, text_in, whole

PURPOSE = "batch"
"""What a file of lines is uploaded for."""
_ENDED = frozenset({"completed", "failed", "expired", "cancelled"})


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchProblem:
    """What the service says is wrong with a batch as a whole, or with one of its lines, counted from 1."""

    code: str
    message: str
    line: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteBatch:
    """A batch as the service shows it. `state` is in lower case; unknown ones are taken for being under way."""

    id: str
    state: str
    tag: str | None
    input_file: str | None
    output_file: str | None
    error_file: str | None
    total: int | None
    completed: int | None
    failed: int | None
    problems: tuple[BatchProblem, ...]

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in _ENDED


class BatchApi(ResourceApi):
    """The files and batches of one deployment's resource."""

    async def create(self, file: str, *, endpoint: str, tag: str, expires_s: int | None) -> RemoteBatch:
        """Submit a file's lines, with our tag. Raises LostError."""
        asked: dict[str, Any] = {
            "input_file_id": file,
            "endpoint": endpoint,
            "completion_window": "24h",
            "metadata": {TAG: tag},
        }
        if expires_s is not None:
            asked["output_expires_after"] = {"anchor": "created_at", "seconds": expires_s}
        return _batch(await self.call("POST", "batches", body=whole(orjson.dumps(asked)), once=True))

    async def batch(self, name: str) -> RemoteBatch | None:
        """Look at a batch; None where there is none of that id."""
        found = await self.find(f"batches/{name}")
        return None if found is None else _batch(found)

    async def find_batch(self, tag: str) -> RemoteBatch | None:
        """Find the batch with our tag; None where lists do not show one (yet)."""
        async for shown in self.pages("batches", {}):
            metadata = shown.get("metadata")
            if isinstance(metadata, dict) and metadata.get(TAG) == tag:
                return _batch(shown)
        return None

    async def cancel(self, name: str) -> None:
        """Ask a batch to end. What becomes of it is seen by looking at it."""
        with suppress(LostError, RefusedCallError):
            await self.call("POST", f"batches/{name}/cancel", once=True)


def endpoint_of(url: str, family: Family) -> str:
    """What a batch's `endpoint` says for lines of a `url`: Azure's pages say /chat/completions for both spellings."""
    return "/chat/completions" if family is not Family.OPENAI and url == "/v1/chat/completions" else url


def _batch(shown: Mapping[str, Any]) -> RemoteBatch:
    """Read a batch in any of the spellings that services were seen to use."""
    counts = shown.get("request_counts")
    counts = counts if isinstance(counts, dict) else {}
    metadata = shown.get("metadata")
    tag = metadata.get(TAG) if isinstance(metadata, dict) else None
    return RemoteBatch(
        id=str(shown.get("id")),
        state=str(shown.get("status") or "").lower(),
        tag=tag if isinstance(tag, str) else None,
        input_file=text_in(shown.get("input_file_id")),
        output_file=text_in(shown.get("output_file_id")),
        error_file=text_in(shown.get("error_file_id")),
        total=count_in(counts.get("total")),
        completed=count_in(counts.get("completed")),
        failed=count_in(counts.get("failed")),
        problems=tuple(_problems(shown.get("errors"))),
    )


def _problems(shown: Any) -> list[BatchProblem]:
    entries = shown.get("data") if isinstance(shown, dict) else shown
    found = []
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict):
            line = entry.get("line")
            found.append(
                BatchProblem(
                    code=str(entry.get("code") or "unknown"),
                    message=str(entry.get("message") or ""),
                    line=int(line) if isinstance(line, int | str) and str(line).isdecimal() else None,
                )
            )
    return found
