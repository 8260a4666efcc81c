"""Files that a service is given: uploaded once, and waited for until it has looked at them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.pace.retry import full_jitter
from pipeline.service.resource_api import TRIES, LostError
from pipeline.store.files import storage

if TYPE_CHECKING:
    from pipeline.lanes.stop import Stop
    from pipeline.service.resource_api import ResourceApi

PROCESSED_EVERY_S = 5.0
"""Seconds between two looks at a file that the service looks at first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploads:
    """Gives one service files for a purpose. `pause` waits some seconds, `look_s` are the least between two looks."""

    api: ResourceApi
    purpose: str
    stop: Stop
    pause: Callable[[float], Awaitable[None]]
    random: Callable[[], float]
    look_s: float

    async def upload(self, path: Path, *, size: int, expires_s: int | None, may_be_there: bool) -> str:
        """Upload a file, unless it is there already, whole; returns the service's id. Raises LostError, StorageError.

        `may_be_there`: an earlier try may have been carried out.
        """
        name = f"pipeline-{path.name}"
        for attempt in range(TRIES):
            found = None
            try:
                with self.stop.sending(), storage(f"reading {path}"):
                    if may_be_there:
                        found = await self.api.find_file(name, purpose=self.purpose)
                    if found is None or found.broken or found.bytes != size:
                        found = await self.api.upload(path, name=name, purpose=self.purpose, expires_s=expires_s)
            except LostError:
                if attempt + 1 == TRIES:
                    raise
                may_be_there = True
                await self.pause(full_jitter(attempt, self.random))
            else:
                return found.id
        raise AssertionError("the last attempt returns or raises")

    async def is_processed(self, file: str) -> bool:
        """Wait until the service has looked at a file; False where it is gone, or cannot be used."""
        while True:
            with self.stop.sending():
                found = await self.api.file(file)
            if found is None or found.broken:
                return False
            if found.ready:
                return True
            await self.pause(min(PROCESSED_EVERY_S, self.look_s))
