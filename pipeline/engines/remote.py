"""Answers those who ask a run, over its socket, to pause, to go on, to drain, or to change while it goes on.

A request is one JSON line, and so is its reply (docs/running.md). Whoever connects is believed to be hostile: what is
read is bounded in bytes and in time, and nothing that is sent, or not sent, ends or delays the run.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import orjson

from pipeline.engines.descriptors import ensure_descriptors
from pipeline.errors import JobFileError, StorageError
from pipeline.job.load import run_values
from pipeline.job.training import TRAINING
from pipeline.lanes.stop import Drained
from pipeline.log import Event, Level
from pipeline.store.meeting import Peer, listening, may_ask, peer_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.job.spec import Job
    from pipeline.lanes.control import Control
    from pipeline.lanes.stop import Stop
    from pipeline.log import EventLog
    from pipeline.store.folder import Layout

MOST_BYTES = 4096
"""Bytes of a request, its line end included."""
REQUEST_S = 5.0
"""Seconds that a request and its reply may take together."""
MOST_CLIENTS = 8
"""Connections that are dealt with at once; others wait in the system's queue."""
AGAIN_S = 0.1
"""Seconds before connections are taken again, where the system refused one."""
CHANGEABLE = ("workers", "leave")
USAGE = 2


class RefusedRequestError(Exception):
    """A request that cannot be done; says why, for the person who asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """Does what it is asked to, for all stages of an invocation, and says in the log who asked."""

    job: Job
    control: Control
    stop: Stop
    log: EventLog

    def answer(self, line: bytes, peer: Peer) -> dict[str, Any]:
        """Do what a request asks for, and say what came of it; never raises."""
        try:
            changed = self._done(_read(line), peer)
        except (RefusedRequestError, JobFileError) as refused:
            return {"ok": False, "exit_code": USAGE, "error": str(refused)}
        return {"ok": True, "changed": changed, **self._state()}

    def _done(self, request: Mapping[str, Any], peer: Peer) -> bool:
        if not may_ask(peer):
            raise RefusedRequestError(f"this run is that of the user {os.geteuid()}, and heeds no other")
        if self.stop.cause is not None and request.get("do") not in {"state", "drain"}:
            raise RefusedRequestError(f"the run is ending already: {self.stop.cause}")
        match request:
            case {"do": "state", **rest} if not rest:
                return False
            case {"do": "pause", **rest} if not rest:
                return self._pause(peer)
            case {"do": "resume", **rest} if not rest:
                return self._resume(peer)
            case {"do": "drain", **rest} if not rest:
                return self._drain(peer)
            case {"do": "set", "values": dict(values), **rest} if not rest:
                return self._set(values, peer)
        raise RefusedRequestError(f"a request is one of {', '.join(_REQUESTS)}")

    def _state(self) -> dict[str, Any]:
        control = self.control
        state = "draining" if self.stop.cause is not None else "paused" if control.is_paused else "running"
        return {
            "state": state,
            "paused_since": control.paused_since,
            "in_flight": control.in_flight(),
            "workers": control.workers,
            "leave": control.leave,
        }

    def _pause(self, peer: Peer) -> bool:
        if self.job.operation == TRAINING:
            raise RefusedRequestError(
                "a training goes on at the service whatever this process does, so it cannot be paused; `pipeline "
                "drain` ends this process alone, and `pipeline run JOB --cancel` ends the training"
            )
        self._refuse_senders()
        if not self.control.pause():
            return False
        self._say(Event.RUN_PAUSED, peer, in_flight=self.control.in_flight())
        return True

    def _resume(self, peer: Peer) -> bool:
        before_s = self.control.paused_s
        if not self.control.resume():
            return False
        self._say(Event.RUN_UNPAUSED, peer, paused_seconds=round(before_s, 3))
        return True

    def _drain(self, peer: Peer) -> bool:
        if self.stop.cause is not None:
            return False
        self._say(Event.DRAINING, peer, in_flight=self.control.in_flight())
        self.stop.request(Drained("drained by `pipeline drain`; run the same command again to continue"))
        return True

    def _set(self, values: dict[str, Any], peer: Peer) -> bool:
        given = {name.removeprefix("run."): text for name, text in values.items()}
        if not given or not all(isinstance(text, str) for text in given.values()):
            raise RefusedRequestError(f"`values` must be texts, by the names {' and '.join(CHANGEABLE)}")
        if elsewhere := [name for name in values if "." in name.removeprefix("run.")]:
            raise RefusedRequestError(_when_read(elsewhere[0]))
        checked = run_values(given)
        if others := sorted(given.keys() - set(CHANGEABLE)):
            raise RefusedRequestError(_when_read(f"run.{others[0]}"))
        if self.job.operation == TRAINING or self.job.run.lane == "batch":
            raise RefusedRequestError(
                "this run sends no requests one by one (run.lane: batch, or a training): it has no workers, and keeps "
                "to no quota that it could leave a share of"
            )
        self._refuse_senders()
        workers = checked.workers if "workers" in given else self.control.workers
        leave = checked.leave if "leave" in given else self.control.leave
        before = {"workers": self.control.workers, "leave": self.control.leave}
        now = {"workers": workers, "leave": leave}
        if now == before:
            return False
        run = self.job.run.model_copy(update=now)
        ensure_descriptors(self.job.model_copy(update={"run": run}))
        self.control.change(workers=workers, leave=leave)
        self._say(Event.RUN_CHANGED, peer, **now, before=before)
        return True

    def _refuse_senders(self) -> None:
        if self.job.run.processes > 1:
            raise RefusedRequestError(
                f"{self.job.run.processes} processes send for this run (run.processes), and only one can be paused or "
                "changed while it goes on; `pipeline drain` ends the run, and the same command continues it"
            )

    def _say(self, event: Event, peer: Peer, **fields: Any) -> None:
        """Log what was done, and who asked for it."""
        try:
            self.log.emit(event, Level.WARNING, uid=peer.uid, pid=peer.pid, **fields)
        except StorageError as error:
            self.stop.request(error)

    async def serve(self, listener: socket.socket) -> None:
        """Answer whoever connects, without end."""
        room = anyio.Semaphore(MOST_CLIENTS)
        loop = asyncio.get_running_loop()
        async with anyio.create_task_group() as talks:
            while True:
                await room.acquire()
                try:
                    connection, _ = await loop.sock_accept(listener)
                except OSError:
                    # Too many open files, or somebody who went away at once: the run needs neither.
                    room.release()
                    await anyio.sleep(AGAIN_S)
                    continue
                talks.start_soon(self._talk, connection, room)

    async def _talk(self, connection: socket.socket, room: anyio.Semaphore) -> None:
        try:
            with connection, anyio.move_on_after(REQUEST_S):
                connection.setblocking(False)
                loop = asyncio.get_running_loop()
                line = await _line_of(connection)
                if line is not None:
                    await loop.sock_sendall(connection, orjson.dumps(self.answer(line, peer_of(connection))) + b"\n")
        except OSError:
            pass  # who asked went away; what was asked for is done
        finally:
            room.release()


def _when_read(key: str) -> str:
    return (
        f"{key} is read when a run begins, so it cannot be changed while one goes on; drain it, and run it again with "
        f"--set {key}=…; {' and '.join(CHANGEABLE)} can be changed"
    )


async def _line_of(connection: socket.socket) -> bytes | None:
    """Read a line, or as much of one as may be; None where nothing was said."""
    loop = asyncio.get_running_loop()
    read = b""
    while b"\n" not in read and len(read) < MOST_BYTES:
        piece = await loop.sock_recv(connection, MOST_BYTES - len(read))
        if not piece:
            break
        read += piece
    return read or None


def _read(line: bytes) -> Mapping[str, Any]:
    """Read a request. Raises RefusedRequestError."""
    text, end, _ = line.partition(b"\n")
    if not end:
        raise RefusedRequestError(f"a request is one line of at most {MOST_BYTES} bytes, with its end")
    try:
        request = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise RefusedRequestError("a request is one JSON object in a line") from error
    if not isinstance(request, dict):
        raise RefusedRequestError("a request is one JSON object in a line")
    return request


@asynccontextmanager
async def reachable(remote: Remote, layout: Layout, *, environ: Mapping[str, str]) -> AsyncIterator[None]:
    """Let the run be asked for as long as the block goes on. Call it under the folder's lock.

    A run that has no place for its socket goes on without one, and says so.
    """
    failure: Exception | None = None
    with listening(layout, environ=environ) as listener:
        async with anyio.create_task_group() as group:
            if listener is not None:
                group.start_soon(remote.serve, listener, name="remote")
            else:
                remote.log.emit(Event.UNREACHABLE, Level.WARNING, advice=_UNREACHABLE)
            try:
                yield
            except Exception as error:  # noqa: BLE001 - it is raised again, outside of the group that would wrap it
                failure = error
            group.cancel_scope.cancel()
    if failure is not None:
        raise failure


_REQUESTS = (
    *(f'{{"do": "{word}"}}' for word in ("state", "pause", "resume", "drain")),
    '{"do": "set", "values": {"workers": "8", "leave": "20%"}}',
)
_UNREACHABLE = (
    "no folder could be found for a socket, so pipeline pause, resume, drain and set cannot reach this run; signals can"
)
