"""Where a run can be talked to while it goes on: a socket that its owner alone may use, told of in the lock file.

It lies in the run's own folder, or where that path is too long for a socket, or its file system has none, in a
folder of the user's own beside the seats of runs that share a quota.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from pipeline.service.neighbours import is_ours_alone, shared_folder
from pipeline.store.folder import Layout
from pipeline.store.lock import add_to_holder, read_holder

SOCKET = "control.sock"
LONGEST_PATH = 103
"""Bytes that a socket's path may have: macOS leaves room for 104 with the zero at its end, Linux for 108."""
BACKLOG = 16
_PRIVATE = 0o600
_CREDENTIALS = struct.Struct("iII")


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Who is at the other end of a connection; None where the system does not say (it is no Linux)."""

    pid: int | None = None
    uid: int | None = None


@contextmanager
def listening(layout: Layout, *, environ: Mapping[str, str]) -> Iterator[socket.socket | None]:
    """Have a socket, until the block ends, that nobody but the owner may connect to; None where no place is left.

    Call it under the folder's lock: what lies in its place is that of a run that was killed, and is removed.
    """
    for path in _places(layout, environ):
        try:
            listener = _listen(path)
        except OSError:
            continue
        break
    else:
        yield None
        return
    with listener:
        mine = path.lstat()
        try:
            with suppress(OSError):
                add_to_holder(layout.lock, control=str(path))
            yield listener
        finally:
            with suppress(OSError):
                if (found := path.lstat()).st_ino == mine.st_ino and found.st_dev == mine.st_dev:
                    path.unlink()


def meeting_place(layout: Layout) -> Path | None:
    """Where the run that holds the folder says that it can be talked to; None where it says nothing."""
    control = read_holder(layout.lock).get("control")
    return Path(control) if isinstance(control, str) else None


def peer_of(connection: socket.socket) -> Peer:
    """Say who connected, by the kernel's word."""
    if not hasattr(socket, "SO_PEERCRED"):
        return Peer()
    pid, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return Peer(pid=pid, uid=uid)


def may_ask(peer: Peer) -> bool:
    """Whether somebody may tell this process what to do: its own user, and root, who may do all that anyway."""
    return peer.uid is None or peer.uid in {0, os.geteuid()}


def _places(layout: Layout, environ: Mapping[str, str]) -> Iterator[Path]:
    """Where the socket may lie, best first."""
    inside = layout.private.absolute() / SOCKET
    name = f"run-{sha256(os.fsencode(layout.private.resolve())).hexdigest()[:32]}.sock"
    without_session = {name: value for name, value in environ.items() if name != "XDG_RUNTIME_DIR"}
    for path in (
        inside,
        shared_folder(environ) / name,
        shared_folder(without_session) / name,
        shared_folder({}) / name,
    ):
        if len(os.fsencode(path)) <= LONGEST_PATH and (path == inside or is_ours_alone(path.parent)):
            yield path


def _listen(path: Path) -> socket.socket:
    """Listen at a path that nobody else may use from before the first connection on. Raises OSError."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.bind(str(path))
        path.chmod(_PRIVATE)  # nobody can connect before it listens
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener
