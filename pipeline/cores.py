"""Keeps a busy process's main threads on one core, so that the interpreter's lock is not handed from core to core."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

LOOK_S = 1.0
"""Seconds between two looks."""
BUSY = 0.5
"""Share of a core from which on a process is kept to one; below, nothing waits for the lock for long."""
IDLE = 0.25
"""Share of a core below which it is let go again."""
CROWDED = 0.25
"""Share that others may take of its core."""
BETTER = 0.2
"""By how much less others take of another core, for a move to be worth it."""
MOVES = 0.5
"""How likely it moves when it should: two processes that share a core do not both leave it for the same other one."""
RESTS = 30
"""Looks without a core of its own after none was free enough: the system spreads threads better then."""
AS_FAST = 0.9
"""Share of the fastest core's pace from which on another is as good."""

_WORKER = "AnyIO worker"
"""How the names of anyio's worker threads begin."""


class Machine(Protocol):
    """What this process and its cores did so far, and where its main threads may run."""

    def now(self) -> float:
        """Seconds on a clock that only rises."""

    def own_s(self) -> float:
        """CPU seconds of this process, on whichever cores."""

    def busy_s(self) -> Mapping[int, float]:
        """For each core that may be used, the CPU seconds that it worked, for whomever. Raises OSError."""

    def last_core(self) -> int:
        """The core that the main thread ran on last. Raises OSError."""

    def keep_to(self, core: int | None) -> None:
        """Let the main threads run on this core alone; None for all that they might use before. Raises OSError."""


class OneCore:
    """Decides, look by look, which core a process is kept to; `core` is None while it may use all.

    Threads of one interpreter take turns, so that a second core gives them little, and each turn that goes from core to
    core costs a wake-up and a cold cache (`benchmarks/peers.py --spread` has the figures). A process that waits, most
    of all one bound by its quota, is left alone, and so is one whose core others need.
    """

    def __init__(self, machine: Machine, *, dice: Callable[[], float] = random.random) -> None:
        self.core: int | None = None
        self._machine = machine
        self._dice = dice
        self._rest = 0
        self._now, self._own_s = machine.now(), machine.own_s()
        self._busy_s = machine.busy_s()

    def look(self) -> None:
        """See what was done since the last look, and act on it. Raises OSError where the system refuses."""
        now, own_s = self._machine.now(), self._machine.own_s()
        span, own = now - self._now, own_s - self._own_s
        self._now, self._own_s = now, own_s
        self._rest = max(0, self._rest - 1)
        if self.core is None:
            if own >= BUSY * span and not self._rest:
                self._busy_s = self._machine.busy_s()
                last = self._machine.last_core()
                self._keep_to(last if last in self._busy_s else min(self._busy_s))
            return
        busy_s, before = self._machine.busy_s(), self._busy_s
        self._busy_s = busy_s
        if own < IDLE * span:
            self.let_go()
            return
        others = {core: (used - before.get(core, used)) / span for core, used in busy_s.items()}
        others[self.core] = others.get(self.core, 0.0) - own / span  # at least: workers may have run elsewhere
        best = min(others, key=others.__getitem__)
        if others[self.core] <= CROWDED:
            self._keep_to(self.core)  # threads that began meanwhile, too
        elif others[best] > CROWDED:
            self._rest = RESTS
            self.let_go()
        elif others[self.core] - others[best] > BETTER and self._dice() < MOVES:
            self._keep_to(best)

    def let_go(self) -> None:
        """Have the process use all of its cores again. Raises OSError."""
        if self.core is not None:
            self._machine.keep_to(None)
            self.core = None

    def _keep_to(self, core: int) -> None:
        self._machine.keep_to(core)
        self.core = core


class Linux:
    """This process, by /proc. Slower cores of a mixed processor are not used for one of its own."""

    def __init__(self) -> None:
        """Raises OSError where /proc cannot be read."""
        self._tick_s = 1 / os.sysconf("SC_CLK_TCK")
        self._allowed = self._kept = os.sched_getaffinity(0)
        pace = {core: _pace(core) for core in self._allowed}
        self.fast = {core for core in self._allowed if pace[core] >= AS_FAST * max(pace.values())}

    def now(self) -> float:
        """See Machine."""
        return time.monotonic()

    def own_s(self) -> float:
        """See Machine."""
        return time.process_time()

    def busy_s(self) -> dict[int, float]:
        """User, nice and system time: what interrupts take is not somebody's who could be made room for."""
        busy = {}
        for line in Path("/proc/stat").read_text().splitlines()[1:]:
            if not line.startswith("cpu"):
                break
            name, *ticks = line.split()
            if (core := int(name[3:])) in self.fast:
                busy[core] = sum(map(int, ticks[:3])) * self._tick_s
        return busy

    def last_core(self) -> int:
        """The 39th field of the main thread's state, by proc(5)."""
        return int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[36])

    def keep_to(self, core: int | None) -> None:
        """See Machine. Raises OSError where somebody else has said by now where this process may run."""
        if os.sched_getaffinity(os.getpid()) not in (self._allowed, self._kept):
            raise PermissionError("the process was given other cores")
        self._kept = self._allowed if core is None else {core}
        # Workers off the event loop compress, hash and read files: they seldom need the lock.
        workers = {one.native_id for one in threading.enumerate() if one.name.startswith(_WORKER)}
        for thread in map(int, os.listdir("/proc/self/task")):  # noqa: PTH208 - their numbers are all that is wanted
            with suppress(ProcessLookupError):  # it has ended
                os.sched_setaffinity(thread, self._allowed if thread in workers else self._kept)


def _pace(core: int) -> int:
    """How fast a core is beside the others of this machine; the same for all where the system does not say."""
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        with suppress(OSError, ValueError):
            return int(Path(f"/sys/devices/system/cpu/cpu{core}/{name}").read_text())
    return 1


@contextmanager
def on_one_core() -> Iterator[None]:
    """While in here, keep the process to one core whenever it is busy; see OneCore.

    Does nothing where there is nothing to choose: no Linux, one core, an interpreter without its lock; or where /proc
    tells of other cores than the process has, as some containers' does.
    """
    keeper = None
    if sys.platform == "linux" and getattr(sys, "_is_gil_enabled", lambda: True)():
        with suppress(OSError):
            machine = Linux()
            keeper = OneCore(machine) if len(machine.fast) > 1 and set(machine.busy_s()) == machine.fast else None
    if keeper is None:
        yield
        return
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(LOOK_S):
            with suppress(OSError):  # all stays as it is, and the next look may be luckier
                keeper.look()

    watcher = threading.Thread(target=watch, name="cores", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        with suppress(OSError):
            keeper.let_go()
