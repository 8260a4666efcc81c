"""Opens what is kept, and answers for it.

The faults of its calls strike after they were carried out, but for statuses below 500: those refuse.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from pipeline.clock import Clock
from pipeline.simulator import refusals
from pipeline.simulator.base import Answer
from pipeline.simulator.config import Shortage, SimulatorConfig
from pipeline.simulator.faults import Faults
from pipeline.simulator.ledger import body_digest
from pipeline.simulator.offline.batches import Batches, Desk
from pipeline.simulator.offline.files import Files
from pipeline.simulator.offline.fine_tuning import FineTuning
from pipeline.simulator.offline.routes import Offline, Wanted
from pipeline.simulator.offline.shelf import Shelf
from pipeline.simulator.sending import Reply

_SERVER_ERROR = 500
_TOO_MANY = 429


class OfflineService:
    """The files, batches and fine-tuning jobs of a simulator; nothing is opened before it is asked for."""

    def __init__(self, config: SimulatorConfig, *, clock: Clock, desk: Desk) -> None:
        self._config = config
        self._clock = clock
        self._desk = desk
        self._faults = Faults(config.offline.faults, seed=config.seed)
        self._own: tempfile.TemporaryDirectory[str] | None = None
        self._offline: Offline | None = None

    def resume(self) -> None:
        """Go on with what an earlier process left in the folder, if one is named; needs a running event loop."""
        if self._config.folder is not None:
            self._opened()

    async def serve(self, wanted: Wanted, body: bytes, content_type: str) -> Reply:
        """Do what is wanted, and say so, or break the reply as the configuration has it. Raises RefusedError."""
        drip_interval_s = self._config.offline.faults.drip_interval_s
        befalling = self._faults.befalls(body_digest(wanted.action.encode()))
        fault = _TOO_MANY if isinstance(befalling, Shortage) else befalling
        if isinstance(fault, int) and fault < _SERVER_ERROR:
            return self._injected(fault)
        shown = await self._opened().answer(wanted, body, content_type)
        if isinstance(fault, int):
            return self._injected(fault)
        headers = [(name.encode(), value.encode()) for name, value in shown.headers.items()]
        answer = Answer(body=shown.body, content_type=shown.content_type)
        place = 0.0 if fault is None else self._faults.place(body_digest(wanted.action.encode()))
        return Reply(
            status=shown.status,
            headers=headers,
            answer=answer,
            fault=fault,
            place=place,
            drip_interval_s=drip_interval_s,
        )

    def _injected(self, status: int) -> Reply:
        headers = [(name.lower().encode(), value.encode()) for name, value in self._faults.headers(status).items()]
        return Reply(status=status, headers=headers, answer=Answer(body=refusals.injected(status).body), injected=True)

    def _opened(self) -> Offline:
        if self._offline is None:
            config, clock = self._config, self._clock
            folder = config.folder
            if folder is None:
                self._own = tempfile.TemporaryDirectory(prefix="pipeline-simulator-")
                folder = Path(self._own.name)
            shelf = Shelf(folder)
            files = Files(shelf, config.offline, config.quirks, clock.wall)
            batches = Batches(
                shelf,
                files,
                self._desk,
                config=config.offline,
                quirks=config.quirks,
                seed=config.seed,
                speed=config.speed,
                now=clock.wall,
                sleep=clock.sleep,
            )
            training = FineTuning(
                shelf,
                files,
                config=config.offline,
                quirks=config.quirks,
                speed=config.speed,
                now=clock.wall,
                sleep=clock.sleep,
                note=self._desk.note,
            )
            self._offline = Offline(files, batches, training)
            self._offline.resume()
        return self._offline
