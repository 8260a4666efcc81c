"""Runs a job in a forked child under strace, which kills it or fails its system calls where it is told to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import anyio
from forked import Child, popen

from pipeline import operations
from pipeline.engines.again import Retry
from pipeline.errors import PipelineError
from pipeline.job.load import load_job
from pipeline.run import RunOptions, run_job

TESTS = Path(__file__).parents[1]
AGAIN = "again"
DURABLE = ("fdatasync,fsync", "pwrite64", "rename,renameat,renameat2", "unlink,unlinkat")
"""System calls that make things durable, in groups that one injection counts together."""


def run_to_the_end(job: Path, *, again: bool) -> int:
    """Be the child: wait to be traced, run the job; returns its exit code."""
    os.kill(os.getpid(), signal.SIGSTOP)
    try:
        loaded = load_job(job, environ={"SIMULATOR_KEY": "k"}, operations=operations.names())
        options = RunOptions(retry=Retry() if again else None)
        summary = anyio.run(lambda: run_job(loaded, options=options), backend_options={"use_uvloop": True})
    except PipelineError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if summary.exit_code:
        print(summary.reason, file=sys.stderr)
    return summary.exit_code or 0


class Injector:
    """Starts runs by fork, so that one costs no start-up."""

    def __init__(self, *, again: bool = False) -> None:
        """`again`: each sends failed rows again, as `pipeline retry` does."""
        self._again = again

    def run(self, job: Path, *, inject: str | None, errors: Path, timeout_s: float = 120.0) -> int:
        """Run the job, with an injection of strace's if one is given; returns the exit code, -9 when it was killed."""
        if inject is None:
            return self._run(job, errors, None, timeout_s)
        options = ["-o", "/dev/null", "-e", f"trace={inject.partition(':')[0]}", "-e", f"inject={inject}"]
        return self._run(job, errors, options, timeout_s)

    def most_calls(self, job: Path, *, errors: Path, trace: Path) -> dict[str, int]:
        """Run the job to exit code 0; returns how many calls of each group of DURABLE the busiest thread made.

        A number of a call is counted by strace for each thread on its own.
        """
        options = ["-o", str(trace), "-e", f"trace={','.join(DURABLE)}"]
        assert self._run(job, errors, options, 120.0) == 0, errors.read_text()
        most = {}
        for group in DURABLE:
            names = group.split(",")
            threads: Counter[str] = Counter()
            for line in trace.read_text().splitlines():
                thread, _, call = line.partition(" ")
                threads[thread] += call.strip().partition("(")[0] in names
            most[group] = max(threads.values(), default=0)
        return most

    def _run(self, job: Path, errors: Path, options: list[str] | None, timeout_s: float) -> int:
        with errors.open("ab") as said:
            arguments = [AGAIN] if self._again else []
            child = popen("chaos.injected", job, *arguments, cwd=TESTS, stderr=said.fileno())
        try:
            return _end(child, options, timeout_s)
        finally:
            child.kill()


def _end(child: Child, options: list[str] | None, timeout_s: float) -> int:
    """Let a stopped child go, under strace if it has options; returns its exit code."""
    _wait_until_stopped(child.pid)
    tracer = None
    if options is not None:
        command = ["strace", "-f", "-qq", *options, "-p", str(child.pid)]
        tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        _wait_until_traced(child.pid)
    os.kill(child.pid, signal.SIGCONT)
    try:
        return child.wait(timeout_s)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"the run did not end within {timeout_s} s under {options}") from None
    finally:
        child.kill()
        if tracer is not None:
            tracer.wait(10)


def _wait_until_stopped(pid: int) -> None:
    _poll(pid, "State:", "T")


def _wait_until_traced(pid: int) -> None:
    _poll(pid, "TracerPid:", None)


def _poll(pid: int, name: str, wanted: str | None) -> None:
    """Look at /proc until the process is as wanted (None: until the figure is not 0)."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        value = _status(pid, name)
        if (wanted is None and value != "0") or (wanted is not None and value.upper().startswith(wanted)):
            return
        time.sleep(0.002)
    raise TimeoutError(f"process {pid}: {name} never became {wanted or 'non-zero'}")


def _status(pid: int, name: str) -> str:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return line.split()[1]
    raise LookupError(name)


if __name__ == "__main__":
    _ended = run_to_the_end(Path(sys.argv[1]), again=AGAIN in sys.argv[2:])
    sys.stderr.flush()
    os._exit(_ended)
