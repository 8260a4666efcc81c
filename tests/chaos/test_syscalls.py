"""F2 and F3: killed at, or refused by, the system calls that make things durable.

The calls of a whole run are counted first; then every one of them, or as many as are asked for, is tried. A run that
was hit goes on, and is hit again where that is still to come, until it ends by itself.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from chaos.counts import FULL, SEED, count
from chaos.harness import OPAQUE, Scene, assert_whole, harm
from chaos.injected import DURABLE, Injector
from chaos.needs import need_tool
from chaos.report import record
from forked import start_simulator

from pipeline.simulator.serve import SimulatorProcess

ROWS = 240
FEW_ROWS = 48
A_CHAIN = 10
IN_MAKE_TEST = ("chat", "embeddings")
ERRORS = ("ENOSPC", "EIO", "EDQUOT")

# Every call of a run is some hundreds of processes under strace.
pytestmark = pytest.mark.timeout(7_200 if FULL else 1_800)
beside = pytest.mark.chaos


def _scenes(folder: Path, simulator: SimulatorProcess, ledger: Path, operation: str) -> Iterator[Scene]:
    """One scene after another, each with an input and an output of its own."""
    for number in range(10**6):
        place = folder / str(number)
        place.mkdir()
        # Every call of a short run can be tried; a longer one makes more of the same.
        rows = ROWS if operation in IN_MAKE_TEST and not FULL else FEW_ROWS
        yield Scene(
            folder=place,
            operation=operation,
            rows=rows,
            simulator=simulator,
            ledger=ledger,
            part_rows=rows // 4,
            pack=4,
        )


@dataclass(slots=True, kw_only=True)
class Tried:
    """What came of the points that were tried."""

    hit: Counter[str] = field(default_factory=Counter)
    unreached: int = 0
    scenes: int = 0
    lost: int = 0
    doubled: int = 0


def _try_points(
    folder: Path, operation: str, groups: tuple[str, ...], what: str, *, wanted: int, ends_with: int
) -> Tried:
    """Let `what` of strace's happen at `wanted` points of runs, which must then end with this exit code."""
    dice = random.Random(f"{SEED} {operation} {what}")
    ledger = folder / "ledger.jsonl"
    errors = folder / "errors.txt"
    injector = Injector()
    tried = Tried()
    with start_simulator(OPAQUE, ledger=ledger) as simulator:
        scenes = _scenes(folder, simulator, ledger, operation)
        calls = injector.most_calls(next(scenes).job, errors=errors, trace=folder / "trace.txt")
        points = _in_turns({group: calls[group] for group in groups}, dice)
        while points and tried.hit.total() < wanted:
            scene = next(scenes)
            tried.scenes += 1
            for hits in range(A_CHAIN):
                if not points or tried.hit.total() == wanted:
                    break
                group, number = points.pop()
                inject = f"{group}:{what}:when={number}"
                code = injector.run(scene.job, inject=inject, errors=errors)
                assert code in {0, ends_with}, f"{inject}: exit {code}: {errors.read_text()}"
                if code == ends_with:
                    tried.hit[group.partition(",")[0]] += 1
                elif hits == 0:
                    tried.unreached += 1  # a whole run does not always make the busiest thread's last calls
                else:
                    points.insert(0, (group, number))  # little was left to do: it is tried on a run of its own
                if code == 0:
                    break
            assert injector.run(scene.job, inject=None, errors=errors) == 0, errors.read_text()
            found = harm(scene)
            tried.lost, tried.doubled = tried.lost + found.lost, tried.doubled + found.doubled
            assert_whole(scene)
            assert not list(scene.out.rglob("*.tmp"))
    return tried


def _in_turns(calls: dict[str, int], dice: random.Random) -> list[tuple[str, int]]:
    """Every call of every group as (group, number), in an order drawn by lot in which groups take turns at the end."""
    turns = []
    for group, most in calls.items():
        numbers = list(range(1, most + 1))
        dice.shuffle(numbers)
        turns += [(-turn, group, number) for turn, number in enumerate(numbers)]
    return [(group, number) for _, group, number in sorted(turns)]


def _record(fault: str, what: str, tried: Tried) -> None:
    calls = ", ".join(f"{name} {number}" for name, number in sorted(tried.hit.items()))
    record(
        fault=fault,
        what=what,
        tried=tried.hit.total(),
        lost=tried.lost,
        doubled=tried.doubled,
        notes=f"{calls}; {tried.scenes} runs continued to their end; {tried.unreached} points never came; seed {SEED}",
    )
    print(f"\n{fault} {what}: {tried}, seed {SEED}")


@pytest.mark.parametrize(
    "operation", ["chat", "embeddings", *(pytest.param(name, marks=beside) for name in ("speech", "image"))]
)
def test_killed_at_every_kind_of_durable_system_call_nothing_is_lost(tmp_path: Path, operation: str) -> None:
    need_tool("F2", "strace")
    wanted = count(quick=50 if operation in IN_MAKE_TEST else 12, full=10**6)
    tried = _try_points(tmp_path, operation, DURABLE, "signal=KILL", wanted=wanted, ends_with=-9)
    _record("F2", operation, tried)
    assert tried.hit.total() >= min(wanted, 50)


@pytest.mark.parametrize("operation", ["embeddings", pytest.param("speech", marks=beside)])
@pytest.mark.parametrize("error", ERRORS)
def test_an_error_at_a_durable_system_call_ends_with_exit_5_and_can_be_continued(
    tmp_path: Path, error: str, operation: str
) -> None:
    need_tool("F3", "strace")
    groups = tuple(group for group in DURABLE if not group.startswith("unlink"))
    wanted = count(quick=20 if operation in IN_MAKE_TEST else 5, full=100 if operation in IN_MAKE_TEST else 50)
    tried = _try_points(tmp_path, operation, groups, f"error={error}", wanted=wanted, ends_with=5)
    _record("F3", f"{error}, {operation}", tried)
    assert tried.hit.total() >= min(wanted, 20)
