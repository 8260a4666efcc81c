"""Starts Python commands by fork from a server that has imported everything, so that a start costs no imports.

Each command is a process of its own: its environment, folder, streams, signals and exit code are what the interpreter
would give it. What an interpreter's start itself does is not tried by it; `tests/cli/test_forked.py` holds it against
the true command.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from subprocess import DEVNULL, PIPE, TimeoutExpired
from typing import IO, Any, TextIO, cast

import pipeline
from pipeline.simulator.config import SimulatorConfig, make_config
from pipeline.simulator.serve import SimulatorDiedError, SimulatorProcess

CLOSED = -10
"""A stream that the command does not have, as a shell's `>&-` says."""
BESIDE = ("pyarrow.compute", "pyarrow.parquet", "pyreqwest.client", "uvloop", "counted")
"""What modules of the product import when they are called, and the tokenizers that they load."""
_LENGTH = struct.Struct("!I")


class Child:
    """A started command, handled like a Popen whose streams hold text or bytes."""

    def __init__(self, pid: int, status: int, streams: Sequence[IO[Any] | None]) -> None:
        """`status` is a pipe that gives the wait status once the command ended; `streams` are our ends of its three."""
        self.pid = pid
        self.returncode: int | None = None
        self._status = status
        self._close = weakref.finalize(self, os.close, status)
        self.stdin, self.stdout, self.stderr = streams

    def poll(self) -> int | None:
        """The exit code, minus the signal's number where one ended it; None while it runs."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit code. Raises subprocess.TimeoutExpired."""
        code = self._look(timeout)
        if code is None:
            raise TimeoutExpired(f"process {self.pid}", timeout or 0)
        return code

    def _look(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            with selectors.PollSelector() as selector:
                selector.register(self._status, selectors.EVENT_READ)
                if not selector.select(timeout):
                    return None
            self.returncode = os.waitstatus_to_exitcode(int(os.read(self._status, 20) or b"9"))
            self._close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, where it still runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and its server is about to say so
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Send it SIGKILL, where it still runs."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Send it SIGTERM, where it still runs."""
        self.send_signal(signal.SIGTERM)

    def communicate(self, timeout: float | None = None) -> tuple[Any, Any]:
        """Read both streams to their ends and wait for the command's. Raises subprocess.TimeoutExpired."""
        said: list[Any] = [None, None]

        def read(index: int, stream: IO[Any]) -> None:
            with stream:
                said[index] = stream.read()

        if self.stdin is not None:
            self.stdin.close()
        streams = [(index, one) for index, one in enumerate((self.stdout, self.stderr)) if one is not None]
        threads = [threading.Thread(target=read, args=one, daemon=True) for one in streams]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout)
        if any(thread.is_alive() for thread in threads):
            raise TimeoutExpired(f"process {self.pid}", timeout or 0)
        self.wait(timeout)
        return said[0], said[1]


def popen(
    module: str,
    *arguments: str | Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: int = DEVNULL,
    stdout: int = DEVNULL,
    stderr: int = DEVNULL,
    text: bool = False,
    start_new_session: bool = False,
    ignored: Sequence[signal.Signals] = (),
    gate: int | None = None,
) -> Child:
    """Start `python -m MODULE ARGUMENTS`, with streams as a Popen takes them.

    `ignored` are signals that the caller has ignored. With `gate`, the reading end of a pipe, the command begins once
    all writing ends are closed.
    """
    ours: list[IO[Any] | None] = []
    sent: list[int] = []
    numbers: list[int] = []
    with contextlib.ExitStack() as stack:
        for number, wanted in enumerate((stdin, stdout, stderr)):
            mine: int | None = None
            if wanted == CLOSED:
                ours.append(None)
                continue
            theirs = wanted
            if wanted == PIPE:
                theirs, mine = os.pipe() if number == 0 else os.pipe()[::-1]
            elif wanted == DEVNULL:
                theirs = os.open(os.devnull, os.O_RDWR)
            if wanted != theirs:
                stack.callback(os.close, theirs)
            sent.append(theirs)
            numbers.append(number)
            ours.append(None if mine is None else _stream(mine, writes=number == 0, text=text))
        status, tell = os.pipe()
        stack.callback(os.close, tell)
        order = _Order(
            module=module,
            arguments=tuple(map(str, arguments)),
            folder=str(cwd or Path.cwd()),
            environ=dict(os.environ if env is None else env),
            streams=tuple(numbers),
            session=start_new_session,
            ignored=tuple(map(int, ignored)),
            gated=gate is not None,
        )
        pid = _server().start(order, [*sent, tell, *([] if gate is None else [gate])])
    return Child(pid, status, ours)


def run(module: str, *arguments: str | Path, timeout: float = 60, **options: Any) -> subprocess.CompletedProcess[Any]:
    """Call a command and wait for its end, as subprocess.run does. Raises subprocess.TimeoutExpired."""
    child = popen(module, *arguments, **options)
    try:
        stdout, stderr = child.communicate(timeout)
    finally:
        child.kill()
    return subprocess.CompletedProcess([module, *map(str, arguments)], child.wait(timeout), stdout, stderr)


def start_simulator(
    config: SimulatorConfig | Mapping[str, Any], *, ledger: Path | None = None, timeout_s: float = 30.0
) -> SimulatorProcess:
    """Do by fork what `pipeline.simulator.serve.start` does. Raises ValueError for a bad configuration."""
    checked = config if isinstance(config, SimulatorConfig) else make_config(config)
    arguments = ["--port", "0", "--config", "-", "--exit-with-parent"]
    if ledger is not None:
        arguments += ["--ledger", str(ledger)]
    with tempfile.TemporaryFile() as errors:
        child = popen(
            "pipeline.simulator", *arguments, stdin=PIPE, stdout=PIPE, stderr=errors.fileno(), start_new_session=True
        )
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(checked.model_dump_json().encode() + b"\n")
        child.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            line = child.stdout.readline() if selector.select(timeout_s) else b""
        if not line:
            child.kill()
            errors.seek(0)
            raise SimulatorDiedError(errors.read().decode(errors="replace"))
    return SimulatorProcess(cast("subprocess.Popen[bytes]", child), int(json.loads(line)["port"]))


def _stream(descriptor: int, *, writes: bool, text: bool) -> IO[Any]:
    mode = "w" if writes else "r"
    return open(descriptor, mode, encoding="utf-8") if text else open(descriptor, f"{mode}b")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """What a server is asked to start."""

    module: str
    arguments: tuple[str, ...]
    folder: str
    environ: dict[str, str]
    streams: tuple[int, ...]
    session: bool
    ignored: tuple[int, ...]
    gated: bool


class _Server:
    """The process that forks; it ends with this one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, __file__, str(theirs.fileno())]
            buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
            self._process = subprocess.Popen(command, env=buffered, pass_fds=[theirs.fileno()], start_new_session=True)

    def start(self, order: _Order, descriptors: Sequence[int]) -> int:
        """Have it start a command; returns the process id."""
        words = json.dumps(asdict(order)).encode()
        with self._lock:
            socket.send_fds(self._socket, [_LENGTH.pack(len(words))], descriptors)
            self._socket.sendall(words)
            (pid,) = _LENGTH.unpack(_exactly(self._socket, _LENGTH.size))
        return int(pid)


@cache
def _server() -> _Server:
    return _Server()


def _exactly(connection: socket.socket, size: int) -> bytes:
    """Read so many bytes. Raises EOFError when the other side has gone."""
    read = b""
    while len(read) < size:
        piece = connection.recv(size - len(read))
        if not piece:
            raise EOFError
        read += piece
    return read


def _serve(connection: socket.socket) -> Callable[[], None]:
    """Start what is asked for until the tests have ended; in a child, return what it is to do."""
    _import_everything()
    assert threading.active_count() == 1, "only a process of one thread may be forked"
    gc.freeze()
    running: dict[int, int] = {}
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj == woken:
                    os.read(woken, 4_096)
                    _tell_who_ended(running)
                    continue
                try:
                    order, descriptors = _next(connection)
                except EOFError:
                    return lambda: None
                tell = descriptors[len(order.streams)]
                pid = os.fork()
                if pid == 0:
                    return lambda: _be(order, descriptors)
                running[pid] = tell
                for descriptor in descriptors:
                    if descriptor != tell:
                        os.close(descriptor)
                connection.sendall(_LENGTH.pack(pid))


def _import_everything() -> None:
    for found in pkgutil.walk_packages(pipeline.__path__, "pipeline."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    for name in BESIDE:
        importlib.import_module(name)


def _next(connection: socket.socket) -> tuple[_Order, list[int]]:
    head, descriptors, _, _ = socket.recv_fds(connection, _LENGTH.size, 8)
    if not head:
        raise EOFError
    (size,) = _LENGTH.unpack(head + _exactly(connection, _LENGTH.size - len(head)))
    return _Order(**json.loads(_exactly(connection, size))), descriptors


def _tell_who_ended(running: dict[int, int]) -> None:
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        with open(running.pop(pid), "wb") as tell, contextlib.suppress(BrokenPipeError):  # noqa: PTH123
            tell.write(str(status).encode())


def _be(order: _Order, descriptors: list[int]) -> None:
    """Be the command, as the interpreter would begin it."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if order.session:
        os.setsid()
    if order.gated:
        os.read(descriptors[-1], 1)
    moved = [os.dup2(descriptor, 100 + number) for number, descriptor in enumerate(descriptors[: len(order.streams)])]
    os.closerange(0, 100)
    for number, descriptor in zip(order.streams, moved, strict=True):
        os.dup2(descriptor, number)
    os.closerange(100, 200)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = _standard(number, getattr(sys, name)) if number in order.streams else None
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    for number in order.ignored:
        signal.signal(number, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(order.environ)
    os.chdir(order.folder)
    sys.path[0] = order.folder
    sys.argv = [order.module, *order.arguments]
    runpy.run_module(order.module, run_name="__main__", alter_sys=True)


def _standard(number: int, own: TextIO) -> TextIO:
    """A standard stream, set up as this interpreter set up its own."""
    raw = open(number, "rb" if number == 0 else "wb", closefd=False)  # noqa: SIM115
    lines = own.line_buffering if number == 2 else os.isatty(number)
    return io.TextIOWrapper(
        raw, encoding=own.encoding, errors=own.errors, line_buffering=lines, write_through=own.write_through
    )


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))()
