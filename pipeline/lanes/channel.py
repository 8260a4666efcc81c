"""Messages between the processes of one run, over a socket pair; what one turn of the loop says goes at once."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from enum import IntEnum
from typing import Any, cast

import ormsgpack

_LENGTH = struct.Struct("<I")


class Kind(IntEnum):
    """What a message is. From the run to a sender, then from a sender to the run."""

    BEGIN = 1
    WORK = 2
    NO_MORE = 3
    KEPT = 4
    SHARES = 5
    HOLD = 6
    STOP = 7
    ABANDON = 8

    WANT = 20
    ROWS = 21
    ATTEMPTS = 22
    NOTE = 23
    READ_ON = 24
    LOG = 25
    STATUS = 26
    ENDED = 27


class Channel(asyncio.Protocol):
    """One end. `hear` is called for each message, `closed` once, when the other end is gone or this one was closed."""

    def __init__(self, *, hear: Callable[[Kind, Any], None], closed: Callable[[], None]) -> None:
        self._hear = hear
        self._closed = closed
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._came = bytearray()
        self._said: list[tuple[int, Any]] = []
        self._lines: list[bytes] = []

    async def open(self, end: socket.socket) -> None:
        """Take one end of a socket pair."""
        await self._loop.create_unix_connection(lambda: self, sock=end)

    def say(self, kind: Kind, value: Any = None) -> None:
        """Send a message with what else is said in this turn of the loop. Nobody hears it where the other end is gone.

        Call it once the channel is open.

        `value` is what MessagePack knows.
        """
        self._later()
        self._said.append((kind, value))

    def log(self, line: bytes) -> None:
        """Send a line for the run's log, with what else is said."""
        self._later()
        self._lines.append(line)

    def flush(self) -> None:
        """Send what was said."""
        if self._lines:
            self._said.append((Kind.LOG, b"".join(self._lines)))
            self._lines.clear()
        if self._said and self._transport is not None and not self._transport.is_closing():
            packed = ormsgpack.packb(self._said)
            self._transport.write(_LENGTH.pack(len(packed)) + packed)
        self._said.clear()

    def close(self) -> None:
        """Send what was said, and close."""
        self.flush()
        if self._transport is not None:
            self._transport.close()

    def _later(self) -> None:
        if not self._said and not self._lines:
            self._loop.call_soon(self.flush)

    # -- asyncio's protocol --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one, and does not say so

    def data_received(self, data: bytes) -> None:
        """Hear every message that is whole."""
        came = self._came
        came += data
        at = 0
        while len(came) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(came, at)
            begin = at + _LENGTH.size
            if len(came) - begin < length:
                break
            at = begin + length
            for kind, value in ormsgpack.unpackb(bytes(came[begin:at])):
                self._hear(Kind(kind), value)
        del came[:at]

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 - the protocol's
        """Say that it is over."""
        self._closed()
