"""uvicorn's HTTP protocol with the transport in reach, so that an application can break a connection as networks do."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

Application = Callable[[Any, Any, Any], Awaitable[None]]

_BACKLOG = 4_096
_KEEP_ALIVE_S = 3_600
_EXTENSION = "pipeline.transport"
_LINGER_ZERO = struct.pack("ii", 1, 0)


class SimulatorProtocol(HttpToolsProtocol):
    """Hands the application its transport as an ASGI extension."""

    def on_message_begin(self) -> None:
        """Begin a request's scope."""
        super().on_message_begin()
        self.scope["extensions"] = {_EXTENSION: {"transport": self.transport}}


async def listen(app: Application, listener: socket.socket) -> asyncio.Server:
    """Serve an application on a bound socket, in this event loop, until the server is closed."""
    config = uvicorn.Config(
        app,
        http=SimulatorProtocol,
        lifespan="off",
        log_level="error",
        access_log=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
    )
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    return await loop.create_server(
        lambda: SimulatorProtocol(config=config, server_state=state, app_state={}), sock=listener, backlog=_BACKLOG
    )


def transport_of(scope: MutableMapping[str, Any]) -> asyncio.Transport:
    """Give the connection of a request that `SimulatorProtocol` read."""
    transport: asyncio.Transport = scope["extensions"][_EXTENSION]["transport"]
    return transport


def reset(transport: asyncio.Transport) -> None:
    """End the connection by a TCP reset; what was written and not yet sent is lost."""
    connection = transport.get_extra_info("socket")
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
    transport.abort()
