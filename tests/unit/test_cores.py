"""One core for a busy process: which, from when, until when, and what others need of it."""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import dataclass, field

import pytest

from pipeline import cores
from pipeline.cores import RESTS, Linux, OneCore, on_one_core

needs_cores = pytest.mark.skipif(
    sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2, reason="needs two cores of Linux"
)


@dataclass
class Fake:
    """Cores on which a second passes as it is told."""

    ran_on: int = 0
    time_s: float = 0.0
    used_s: float = 0.0
    cores_s: dict[int, float] = field(default_factory=lambda: {0: 100.0, 1: 50.0, 2: 70.0})
    kept: list[int | None] = field(default_factory=list)

    def now(self) -> float:
        return self.time_s

    def own_s(self) -> float:
        return self.used_s

    def busy_s(self) -> dict[int, float]:
        return dict(self.cores_s)

    def last_core(self) -> int:
        return self.ran_on

    def keep_to(self, core: int | None) -> None:
        self.kept.append(core)


def second(machine: Fake, keeper: OneCore, own: float, others: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> None:
    """Let a second pass, in which the process and others take these shares of cores; then look."""
    machine.time_s += 1
    machine.used_s += own
    for core, share in enumerate(others):
        machine.cores_s[core] += share
    machine.cores_s[machine.ran_on if keeper.core is None else keeper.core] += own
    keeper.look()


def kept(machine: Fake, *, dice: float = 0.0) -> OneCore:
    """One that has just begun to keep its process to core 0."""
    keeper = OneCore(machine, dice=lambda: dice)
    second(machine, keeper, 0.9)
    assert keeper.core == 0
    return keeper


@pytest.mark.parametrize(("own", "core"), [(0.0, None), (0.49, None), (0.5, 2), (1.4, 2)])
def test_a_busy_process_is_kept_to_the_core_it_ran_on(own: float, core: int | None) -> None:
    machine = Fake(ran_on=2)
    keeper = OneCore(machine)
    second(machine, keeper, own)
    assert keeper.core == core
    assert machine.kept == ([] if core is None else [core])


def test_a_core_that_is_too_slow_is_not_one_to_be_kept_to() -> None:
    machine = Fake(ran_on=0)
    del machine.cores_s[0]
    keeper = OneCore(machine)
    machine.time_s, machine.used_s = 1.0, 1.0
    keeper.look()
    assert keeper.core == 1


def test_it_is_let_go_when_it_waits_again() -> None:
    machine = Fake()
    keeper = kept(machine)
    second(machine, keeper, 0.3)
    assert keeper.core == 0
    second(machine, keeper, 0.2)
    assert keeper.core is None
    assert machine.kept[-1] is None
    second(machine, keeper, 0.9)
    assert keeper.core == 0


def test_its_own_work_is_not_taken_for_that_of_others() -> None:
    machine = Fake()
    keeper = kept(machine)
    for _ in range(5):
        second(machine, keeper, 1.0, (0.0, 0.9, 0.9))
    assert keeper.core == 0
    assert set(machine.kept) == {0}


def test_it_moves_to_the_core_of_which_others_take_least() -> None:
    machine = Fake()
    keeper = kept(machine)
    second(machine, keeper, 0.6, (0.4, 0.3, 0.1))
    assert keeper.core == 2


@pytest.mark.parametrize("others", [(0.24, 0.0, 0.0), (0.3, 0.15, 0.2)], ids=["little", "no better elsewhere"])
def test_it_stays_where_a_move_is_not_worth_it(others: tuple[float, float, float]) -> None:
    machine = Fake()
    keeper = kept(machine)
    second(machine, keeper, 0.7, others)
    assert keeper.core == 0


def test_two_that_share_a_core_do_not_both_leave_it() -> None:
    machine = Fake()
    keeper = kept(machine, dice=0.5)
    second(machine, keeper, 0.5, (0.5, 0.0, 0.0))
    assert keeper.core == 0


def test_where_no_core_is_free_enough_it_has_none_for_a_while() -> None:
    machine = Fake()
    keeper = kept(machine)
    second(machine, keeper, 0.6, (0.4, 0.5, 0.6))
    assert keeper.core is None
    for _ in range(RESTS - 1):
        second(machine, keeper, 0.9)
        assert keeper.core is None
    second(machine, keeper, 0.9)
    assert keeper.core == 0


def burning(_: float = 0.0) -> None:
    """Work for a twentieth of a second."""
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass


class Always(Linux):
    """Linux, for a process that is always busy."""

    def now(self) -> float:
        return time.process_time()


@needs_cores
def test_threads_are_kept_to_one_core_but_workers_and_all_are_let_go() -> None:
    allowed = os.sched_getaffinity(0)
    seen: dict[str, set[int]] = {}
    ready, ended = threading.Event(), threading.Event()

    def wait(name: str) -> None:
        ready.wait(10)
        seen[name] = os.sched_getaffinity(threading.get_native_id())
        ended.wait(10)

    threads = [threading.Thread(target=wait, args=(name,), name=name) for name in ("journal", "AnyIO worker thread")]
    for thread in threads:
        thread.start()
    keeper = OneCore(Always())
    try:
        burning()
        keeper.look()
        mine = os.sched_getaffinity(0)
        ready.set()
    finally:
        ended.set()
        for thread in threads:
            thread.join()
        keeper.let_go()
    assert keeper.core is None
    assert len(mine) == 1
    assert seen == {"journal": mine, "AnyIO worker thread": allowed}
    assert os.sched_getaffinity(0) == allowed


class Alone(Always):
    """Linux, for a busy process beside which nobody else does anything, whatever runs beside the tests."""

    def busy_s(self) -> dict[int, float]:
        return dict.fromkeys(self.fast, 0.0)


@needs_cores
def test_cores_given_by_somebody_else_are_not_changed() -> None:
    allowed = os.sched_getaffinity(0)
    keeper = OneCore(Alone())
    try:
        burning()
        keeper.look()
        assert keeper.core is not None
        given = min(allowed - {keeper.core})
        os.sched_setaffinity(0, {given})
        burning()
        with pytest.raises(OSError, match="other cores"):
            keeper.look()
        with pytest.raises(OSError, match="other cores"):
            keeper.let_go()
        assert os.sched_getaffinity(0) == {given}
    finally:
        os.sched_setaffinity(0, allowed)


@needs_cores
def test_the_watch_keeps_a_busy_process_to_a_core_and_lets_it_go_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "LOOK_S", 0.02)
    monkeypatch.setattr(cores, "BUSY", 0.01)
    monkeypatch.setattr(cores, "IDLE", 0.0)
    monkeypatch.setattr(cores, "CROWDED", 100.0)  # other tests may take all that they want
    allowed = os.sched_getaffinity(0)
    until = time.monotonic() + 20
    with on_one_core():
        while len(os.sched_getaffinity(0)) > 1 and time.monotonic() < until:
            burning()
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == allowed
    assert "cores" not in [thread.name for thread in threading.enumerate()]


@needs_cores
def test_a_core_may_run_every_thread_where_proc_tells_of_other_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Linux, "busy_s", lambda _: {4_000: 1.0, 4_001: 1.0})
    with on_one_core():
        assert "cores" not in [thread.name for thread in threading.enumerate()]
