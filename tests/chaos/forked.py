"""Starts `pipeline run` from a server that has everything imported, so that a start costs no imports."""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier as BarrierType
from pathlib import Path
from subprocess import TimeoutExpired

PRELOAD = (
    "pipeline.cli.run",
    "pipeline.run",
    "pipeline.views.closing",
    "pipeline.views.console",
    "pipeline.views.progress",
    "pipeline.operations.chat",
    "pipeline.operations.embeddings",
    "pipeline.operations.speech",
    "pyarrow.parquet",
    "pyarrow.compute",
    "pyreqwest.client",
    "uvloop",
)


def _be_the_command(arguments: list[str], errors: str, barrier: BarrierType | None) -> None:
    """Be the child: a process group of its own, the command's words in a file, the command's exit code."""
    os.setsid()
    file = os.open(errors, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    os.dup2(file, 2)
    os.environ["SIMULATOR_KEY"] = "k"
    sys.argv = ["pipeline", *arguments]
    from pipeline.cli import main  # noqa: PLC0415 - only the child needs it

    code: object = 0
    try:
        if barrier is not None:
            barrier.wait(60)
        main()
    except SystemExit as end:
        code = end.code
    finally:
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


class Child:
    """A started command, handled like a Popen."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process
        assert process.pid is not None
        self.pid = process.pid

    def poll(self) -> int | None:
        """The exit code, minus the signal's number where one ended it; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit code. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise TimeoutExpired("pipeline", timeout or 0)
        return code

    def kill(self) -> None:
        """Send it SIGKILL, where it still runs."""
        self._process.kill()


class Forked:
    """The server of children."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(PRELOAD))

    def barrier(self, parties: int) -> BarrierType:
        """A barrier that children can be given."""
        return self._context.Barrier(parties)

    def start(self, *arguments: str, errors: Path, barrier: BarrierType | None = None) -> Child:
        """Start `pipeline` with these arguments; it begins once the barrier, if there is one, lets it."""
        process = self._context.Process(target=_be_the_command, args=(list(arguments), str(errors), barrier))
        process.start()
        return Child(process)
