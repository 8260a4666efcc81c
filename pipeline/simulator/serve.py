"""The simulator as a process of its own: the server in the child, the handle in the parent."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from pipeline.clock import SystemClock
from pipeline.simulator.config import SimulatorConfig, make_config

_STOP_S = 5.0
_PR_SET_PDEATHSIG = 1
_MISSING_PARENT_SIGNAL = signal.SIGUSR2


class SimulatorDiedError(Exception):
    """The simulator's process ended before it listened; the message holds what it wrote to stderr."""


class SimulatorProcess:
    """A running simulator. It ends with `stop`, with the context, or with this process, whichever is first."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self._process = process
        self.port = port

    @property
    def url(self) -> str:
        """Where it listens: an Azure endpoint; an OpenAI base URL with /v1 behind it."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def stop(self) -> None:
        """End it; the ledger is whole afterwards. Does nothing the second time."""
        _end(self._process, patience_s=_STOP_S)

    def __enter__(self) -> Self:
        """Keep it for the context."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self.stop()


def start(
    config: SimulatorConfig | Mapping[str, Any], *, ledger: Path | None = None, timeout_s: float = 30.0
) -> SimulatorProcess:
    """Start a simulator on a free loopback port and wait until it listens.

    Raises pydantic's ValidationError (a ValueError) for a bad configuration, and SimulatorDiedError when the process
    ends or says nothing within `timeout_s`. The child has a session of its own: no Ctrl-C meant for us reaches it.
    """
    checked = config if isinstance(config, SimulatorConfig) else make_config(config)
    command = [sys.executable, "-m", "pipeline.simulator", "--port", "0", "--config", "-", "--exit-with-parent"]
    if ledger is not None:
        command += ["--ledger", str(ledger)]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter, our own arguments
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        )
        try:
            line = _first_line(process, checked, timeout_s)
        except BaseException:
            _end(process, patience_s=0)
            raise
        if not line:
            _end(process, patience_s=0)
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip()
            raise SimulatorDiedError(f"the simulator did not start: {said or 'it said nothing'}")
    return SimulatorProcess(process, int(orjson.loads(line)["port"]))


def _end(process: subprocess.Popen[bytes], *, patience_s: float) -> None:
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _first_line(process: subprocess.Popen[bytes], config: SimulatorConfig, timeout_s: float) -> bytes:
    if process.stdin is None or process.stdout is None:
        return b""
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(config.model_dump_json().encode() + b"\n")
        process.stdin.flush()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        return process.stdout.readline() if selector.select(timeout_s) else b""


def serve(config: SimulatorConfig, *, port: int, ledger: Path | None, exit_with_parent: bool) -> None:
    """Serve until SIGTERM, SIGINT or, where asked, the parent's end; prints one line of JSON once it listens.

    Binds 127.0.0.1 and nothing else. Raises OSError when the port is taken.
    """
    import uvloop  # noqa: PLC0415 - only the child pays for it

    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        uvloop.run(_serve(config, listener, ledger, exit_with_parent=exit_with_parent))


async def _serve(
    config: SimulatorConfig, listener: socket.socket, ledger_path: Path | None, *, exit_with_parent: bool
) -> None:
    from pipeline.simulator.app import Simulator  # noqa: PLC0415 - only the child pays for it
    from pipeline.simulator.ledger import Ledger  # noqa: PLC0415 - only the child pays for it
    from pipeline.simulator.protocol import listen  # noqa: PLC0415 - only the child pays for it

    loop = asyncio.get_running_loop()
    clock = SystemClock()
    ledger = None if ledger_path is None else Ledger(ledger_path, now_s=clock.wall(), later=loop.call_soon)
    app = Simulator(config, clock=clock, ledger=ledger, instance=secrets.token_hex(4))
    leaving = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, leaving.set)
    if exit_with_parent:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _leave_with_parent(loop, leaving.set)
    else:
        loop.add_signal_handler(signal.SIGINT, leaving.set)
    server = await listen(app, listener)
    app.resume()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    line = {"event": "listening", "port": listener.getsockname()[1], "pid": os.getpid()}
    sys.stdout.buffer.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
    sys.stdout.buffer.flush()
    try:
        await leaving.wait()
    finally:
        server.close()
        if ledger is not None:
            ledger.close()
        logging.disable()  # what is in flight is cancelled now, and stays in flight in the ledger


def _leave_with_parent(loop: asyncio.AbstractEventLoop, leave: Callable[[], None]) -> None:
    """Leave when stdin ends, or when the kernel says that the parent died and it did.

    The kernel's signal alone will not do: it also comes when only the thread ended that started us.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.read(0, 4_096):
            pass
        with contextlib.suppress(RuntimeError):  # the loop is closed: we are leaving already
            loop.call_soon_threadsafe(leave)

    def look() -> None:
        if os.getppid() != parent:
            leave()

    loop.add_signal_handler(_MISSING_PARENT_SIGNAL, look)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(_MISSING_PARENT_SIGNAL), 0, 0, 0)
    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
