"""F2: a retry that is killed at a system call that makes something durable. No row is lost, doubled or half replaced.

The calls of a whole retry are counted first; then it is killed at every one of them, or as many as are asked for, each
time in a copy of the same folder. `verify` must find nothing at that moment, and `retry` or `run`, in turns, go on.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from chaos.counts import SEED, count
from chaos.harness import OPAQUE, arrivals, read_parts
from chaos.injected import DURABLE, Injector
from chaos.needs import need_tool
from chaos.report import record
from chaos.retried import POISON, Place

from pipeline.simulator.serve import start

ROWS = 40
PART_ROWS = 10
BAD = frozenset({1, 12, 13, 25, 38})
WORKERS = 2

pytestmark = pytest.mark.timeout(1_800)


def prepared(folder: Path, injector: Injector, errors: Path) -> Place:
    """A complete run of which some rows failed."""
    place = Place(folder=folder, rows=ROWS, bad=BAD, part_rows=PART_ROWS, workers=WORKERS).written()
    with start({**OPAQUE, "poison": POISON}) as simulator:
        place.ask(simulator)
        assert injector.run(place.job, inject=None, errors=errors) == 1, errors.read_text()
    return place


@pytest.mark.chaos
def test_a_retry_killed_at_every_durable_call_replaces_each_row_once_and_is_whole_at_every_moment(
    tmp_path: Path,
) -> None:
    need_tool("F2", "strace")
    wanted = count(quick=12, full=10**6)
    errors, ledger = tmp_path / "errors.txt", tmp_path / "ledger.jsonl"
    runs, retries = Injector(), Injector(again=True)
    pristine = prepared(tmp_path / "pristine", runs, errors)
    before = read_parts(pristine.layout.root)
    with start(OPAQUE, ledger=ledger) as simulator:
        pristine.ask(simulator)
        whole = pristine.copied(tmp_path / "whole")
        calls = retries.most_calls(whole.job, errors=errors, trace=tmp_path / "trace.txt")
        points = [(group, number) for group in DURABLE for number in range(1, calls[group] + 1)]
        random.Random(SEED).shuffle(points)
        killed = lost = doubled = 0
        resent = []
        for index, (group, number) in enumerate(points):
            if killed == wanted:
                break
            place = pristine.copied(tmp_path / str(index))
            asked = len(arrivals(ledger))
            code = retries.run(place.job, inject=f"{group}:signal=KILL:when={number}", errors=errors)
            assert code in {0, -9}, errors.read_text()
            killed += code == -9
            place.assert_whole_in_the_middle(before)
            going_on = retries if index % 2 else runs
            # The rows were chosen before the kill, or it chooses them itself; else the others' failures stand.
            assert going_on.run(place.job, inject=None, errors=errors) == int(place.has_failed_rows())
            assert retries.run(place.job, inject=None, errors=errors) == 0, errors.read_text()
            resent.append(len(arrivals(ledger)) - asked - len(BAD))
            ordinals = read_parts(place.layout.root)["ordinal"].to_pylist()
            lost += len(set(range(ROWS)) - {*ordinals})
            doubled += len(ordinals) - len({*ordinals})
            place.assert_replaced(before)
            shutil.rmtree(place.folder)
    record(
        fault="F2",
        what="retry",
        tried=killed,
        lost=lost,
        doubled=doubled,
        resent_max=max(resent),
        notes=f"{len(points)} durable calls of a retry of {len(BAD)} rows in {ROWS // PART_ROWS} parts; seed {SEED}",
    )
    print(f"\nretry: {killed} kills of {len(points)} points, seed {SEED}; sent again {sorted(resent)}")
    assert killed >= min(wanted, len(points) // 2)
    assert max(resent) <= WORKERS
