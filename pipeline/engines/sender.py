"""A process that sends for a run: the online lane over a plan and a journal in the run's own process.

It is started as `python -m pipeline.engines.sender FD`, where FD is its end of a socket pair. It touches nothing of the
output folder, and ends when the run's process does, however that ends.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from pipeline import operations
from pipeline.clock import SystemClock
from pipeline.engines.lanes import lane_rules
from pipeline.errors import DefectError, StoppedEarlyError
from pipeline.job.portable import job_of
from pipeline.lanes.afar import FarJournal, FarPlan
from pipeline.lanes.channel import Channel, Kind
from pipeline.lanes.commit import Commits
from pipeline.lanes.control import Control
from pipeline.lanes.findings import Findings
from pipeline.lanes.online import OnlineLane
from pipeline.lanes.parcels import aside_values, cause_values, deployment_values, task_of
from pipeline.lanes.pulse import Pulse
from pipeline.lanes.spending import Spending
from pipeline.lanes.stop import Stop
from pipeline.log import EventLog, render
from pipeline.memory import collect_seldom, keep_memory_small
from pipeline.operations.base import Portable
from pipeline.service.pool import Pool, open_pool
from pipeline.store.folder import Layout

STATUS_S = 0.1
"""Seconds between two messages about how things stand."""
LOOK_S = 1.0
"""Seconds between two looks whether the run still lives."""
ORPHANED = 70
"""The exit code of a sender whose run has died; nobody looks at it."""


class _AskedError(StoppedEarlyError):
    """The run's own process asked for the end, and knows why."""


class _Sender:
    """What one sender does from its orders on."""

    def __init__(self) -> None:
        self.channel = Channel(hear=self._hear, closed=self._closed)
        self._begun = anyio.Event()
        self._orders: dict[str, Any] = {}
        self._shares: dict[str, Any] = {}
        self._stop = Stop()
        self._plan = FarPlan(self.channel)
        self._journal = FarJournal(self.channel, Path())
        self._operation: Portable | None = None
        self._pool: Pool | None = None
        self._ended = False

    async def run(self) -> None:
        """Obey until there is no more to send, then say how it ended."""
        await self._begun.wait()
        try:
            await self._send()
        except Exception as error:  # noqa: BLE001 - whatever it is, the run must hear of it
            self._stop.request(error)
        cause = self._stop.cause
        self._ended = True
        self.channel.say(Kind.ENDED, None if isinstance(cause, _AskedError) else cause_values(cause))
        self.channel.flush()
        await anyio.sleep_forever()  # the run closes the channel, which ends the process

    async def _send(self) -> None:
        orders, channel, stop, clock = self._orders, self.channel, self._stop, SystemClock()
        job = job_of(orders["job"])
        operation = operations.get(job.operation).factory(job)
        if not isinstance(operation, Portable):
            raise DefectError(f"rows of {job.operation} are not sent by several processes")
        self._operation = operation
        pulse = Pulse()
        log = EventLog(listener=lambda said: channel.log(render(said)), wall=clock.wall)
        layout = Layout(job.output.path)
        commits = Commits(journal=self._journal, ballast=None, root=layout.root, stop=stop, log=log, pulse=pulse)
        findings = Findings(
            operation, facts=orders["facts"], models=orders["models"], journal=self._journal, commits=commits
        )
        async with open_pool(job, clock=clock, random=random.random, seated=False) as pool:
            self._pool = pool
            self._share()
            lane = OnlineLane(
                plan=self._plan,
                pool=pool,
                journal=self._journal,
                findings=findings,
                commits=commits,
                rules=lane_rules(job, layout),
                fetcher=None,
                stop=stop,
                clock=clock,
                random=random.random,
                pulse=pulse,
                spending=Spending(budgets=(), operation=operation, journal=self._journal, noted={}, stop=stop),
                control=Control(workers=job.run.workers, leave=job.run.leave, clock=clock),
            )
            async with anyio.create_task_group() as group:
                group.start_soon(self._tell, lane, pool, pulse)
                async with anyio.create_task_group() as workers:
                    for number in range(job.run.workers):
                        workers.start_soon(lane.work, name=f"worker {number}")
                group.cancel_scope.cancel()
            self._say_status(lane, pool, pulse)

    async def _tell(self, lane: OnlineLane, pool: Pool, pulse: Pulse) -> None:
        while True:
            self._say_status(lane, pool, pulse)
            await anyio.sleep(STATUS_S)

    def _say_status(self, lane: OnlineLane, pool: Pool, pulse: Pulse) -> None:
        self.channel.say(
            Kind.STATUS,
            {
                "in_flight": lane.in_flight,
                "waits_until": lane.waits_until,
                "beats": pulse.beats,
                "deployments": {one.name: deployment_values(one) for one in pool.deployments},
                "asides": [aside_values(aside) for aside in pool.asides],
            },
        )

    def _share(self) -> None:
        if self._pool is None:
            return
        for deployment in self._pool.deployments:
            index, of = self._shares["portion"]
            deployment.share(self._shares["parts"][deployment.name], (index, of))
        self._plan.limit(self._shares["workers"])

    def _hear(self, kind: Kind, value: Any) -> None:
        try:
            self._obey(kind, value)
        except Exception as error:  # noqa: BLE001 - whatever it is, the run must hear of it
            self._begun.set()
            self._stop.request(error)

    def _obey(self, kind: Kind, value: Any) -> None:
        match kind:
            case Kind.BEGIN:
                self._orders = value
            case Kind.SHARES:
                self._shares = value
                self._share()
                self._begun.set()
            case Kind.WORK if self._operation is not None:
                self._plan.give([task_of(value, self._operation)])
            case Kind.NO_MORE:
                self._plan.end()
            case Kind.KEPT:
                self._journal.kept(*value)
            case Kind.HOLD if self._pool is not None:
                self._hold(self._pool, *value)
            case Kind.STOP | Kind.ABANDON:
                self._stop.request(_AskedError("the run stops"))
                if kind is Kind.ABANDON:
                    self._stop.abandon()

    def _hold(self, pool: Pool, name: str, until: float) -> None:
        for deployment in pool.deployments:
            if deployment.name == name:
                deployment.hold(until)

    def _closed(self) -> None:
        """Leave at once: the run has what it wanted, or has died, and then nobody may send for it."""
        os._exit(0 if self._ended else ORPHANED)


async def _serve(end: socket.socket) -> None:
    sender = _Sender()
    await sender.channel.open(end)
    async with anyio.create_task_group() as group:
        group.start_soon(_end_with, os.getppid())
        await sender.run()


async def _end_with(parent: int) -> None:
    """Leave when the run is gone, were it that the socket's end does not say so."""
    while True:
        await anyio.sleep(LOOK_S)
        if os.getppid() != parent:
            os._exit(ORPHANED)


def main(arguments: list[str]) -> None:
    """Send for the run at the other end of a socket pair, whose descriptor is the only argument."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the run hears them, and says what follows
    keep_memory_small()
    end = socket.socket(fileno=int(arguments[0]))
    end.setblocking(False)
    collect_seldom()
    anyio.run(partial(_serve, end), backend_options={"use_uvloop": True})


if __name__ == "__main__":
    main(sys.argv[1:])
