"""A run that goes on while a test asks it things over its socket, as `pipeline pause` and the others do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx

from pipeline.cli.asking import NotAskedError, ask
from pipeline.store.summary import Summary, read_summary

PATIENCE_S = 60
"""Seconds for what comes by itself, on a machine that does much else."""
LOOK_S = 0.01


@dataclass(slots=True, kw_only=True)
class LiveRun:
    """One run: its folder, what its watcher was shown, and what it came to."""

    root: Path
    shown: list[Summary] = field(default_factory=list)
    summary: Summary | None = None

    @property
    def written(self) -> Summary:
        """What summary.json says."""
        return read_summary(self.root / "_pipeline" / "summary.json")

    async def ask(self, do: str, **values: str) -> dict[str, Any]:
        """Ask the run, in a thread. Raises NotAskedError."""
        request = {"do": do, "values": values} if values else {"do": do}
        return await anyio.to_thread.run_sync(ask, self.root, request)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds."""
        with anyio.fail_after(PATIENCE_S):
            while not holds():  # noqa: ASYNC110 - what is waited for tells nobody
                await anyio.sleep(LOOK_S)

    async def end(self) -> Summary:
        """Wait for its end."""
        await self.until(lambda: self.summary is not None)
        assert self.summary is not None
        return self.summary


@asynccontextmanager
async def going(root: Path, run: Callable[[Callable[[Summary], None]], Any]) -> AsyncIterator[LiveRun]:
    """Have a run go on, and be reachable, for the length of the block; it must have ended when that ends.

    `run` is handed a watcher, and returns what is awaited for the summary.
    """
    live = LiveRun(root=root)

    async def whole() -> None:
        live.summary = await run(live.shown.append)

    async with anyio.create_task_group() as group:
        group.start_soon(whole)
        with anyio.fail_after(PATIENCE_S):
            while True:
                try:
                    await live.ask("state")
                except NotAskedError:
                    await anyio.sleep(LOOK_S)
                else:
                    break
        yield live
        await live.end()


@dataclass(slots=True)
class Gauge(httpx.AsyncBaseTransport):
    """Counts the calls that are in flight to a service, and the most there were since `forget`."""

    service: httpx.AsyncBaseTransport
    now: int = 0
    most: int = 0
    sent: int = 0

    def forget(self) -> None:
        """Begin to measure anew."""
        self.most = self.now

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Count, and let the service answer."""
        self.now += 1
        self.sent += 1
        self.most = max(self.most, self.now)
        try:
            return await self.service.handle_async_request(request)
        finally:
            self.now -= 1
