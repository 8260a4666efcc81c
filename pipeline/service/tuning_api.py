"""Asks a deployment's service for trainings, beside their files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

from pipeline.service.resource_api import TAG, LostError, RefusedCallError, ResourceApi, count_in, text_in, whole

PURPOSE = "fine-tune"
"""What a file of examples is uploaded for."""
_JOBS = "fine_tuning/jobs"
_ENDED = frozenset({"succeeded", "failed", "cancelled"})
_NAMES = {"created": "validating_files", "pending": "queued", "canceled": "cancelled"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteTraining:
    """A training as the service shows it. `state` is in the words of the v1 API; unknown ones are under way.

    `result_files` are ids. `code` and `message` say why it failed, and are empty elsewhere.
    """

    id: str
    state: str
    tag: str | None
    training_file: str | None
    model: str | None
    trained_tokens: int | None
    result_files: tuple[str, ...]
    code: str = ""
    message: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in _ENDED


class TuningApi(ResourceApi):
    """The files and trainings of one deployment's resource."""

    async def create(self, *, model: str, files: Sequence[str], tag: str, asked: Mapping[str, Any]) -> RemoteTraining:
        """Have a model trained on a file, or on one and checked on a second, with our tag. Raises LostError."""
        body = {
            **asked,
            "model": model,
            **dict(zip(("training_file", "validation_file"), files, strict=False)),
            "metadata": {**(asked.get("metadata") or {}), TAG: tag},
        }
        return _training(await self.call("POST", _JOBS, body=whole(orjson.dumps(body)), once=True))

    async def training(self, name: str) -> RemoteTraining | None:
        """Look at a training; None where there is none of that id."""
        found = await self.find(f"{_JOBS}/{name}")
        return None if found is None else _training(found)

    async def find_training(self, tag: str, *, file: str) -> RemoteTraining | None:
        """Find the training with our tag, or of our file, which no other has; None where lists show none (yet)."""
        async for shown in self.pages(_JOBS, {}):
            found = _training(shown)
            if found.tag == tag or found.training_file == file:
                return found
        return None

    async def cancel(self, name: str) -> None:
        """Ask a training to end. What becomes of it is seen by looking at it."""
        with suppress(LostError, RefusedCallError):
            await self.call("POST", f"{_JOBS}/{name}/cancel", once=True)

    async def events(self, name: str) -> list[dict[str, Any]]:
        """Give what happened in a training, in the order of time, as the service says it."""
        return _in_time([shown async for shown in self.pages(f"{_JOBS}/{name}/events", {})])

    async def checkpoints(self, name: str) -> list[dict[str, Any]]:
        """Give the models that a training has left on its way, in the order of time, as the service says it."""
        return _in_time([shown async for shown in self.pages(f"{_JOBS}/{name}/checkpoints", {})])


def seconds_of(value: Any) -> float | None:
    """Epoch seconds of a time, which some services write as ISO 8601; None for what is none."""
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value).timestamp()
        except ValueError:
            return None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _in_time(newest_first: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Turn a list round, so that what happened in one second stays in its order."""
    oldest_first = newest_first[::-1]
    oldest_first.sort(key=lambda shown: seconds_of(shown.get("created_at")) or 0.0)
    return oldest_first


def _training(shown: Mapping[str, Any]) -> RemoteTraining:
    """Read a training in any of the spellings that services were seen to use."""
    state = str(shown.get("status") or "").lower()
    metadata = shown.get("metadata")
    error = shown.get("error")
    error = error if isinstance(error, dict) else {}
    files = shown.get("result_files")
    return RemoteTraining(
        id=str(shown.get("id")),
        state=_NAMES.get(state, state),
        tag=text_in(metadata.get(TAG)) if isinstance(metadata, dict) else None,
        training_file=text_in(shown.get("training_file")),
        model=text_in(shown.get("fine_tuned_model")),
        trained_tokens=count_in(shown.get("trained_tokens")),
        result_files=tuple(name for name in files if isinstance(name, str)) if isinstance(files, list) else (),
        code=text_in(error.get("code")) or "",
        message=text_in(error.get("message")) or "",
    )
