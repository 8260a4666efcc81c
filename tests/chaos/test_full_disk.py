"""F5: a disk that is really full. The run ends with exit 5, nothing that was kept is lost, and it goes on later."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from chaos.counts import FULL, SEED, count
from chaos.forked import Forked
from chaos.harness import (
    OPAQUE,
    PACK,
    Harm,
    Scene,
    answered_rows,
    assert_whole,
    harm,
    kept_rows,
    resent_after,
    wait_for_a_request,
)
from chaos.kinds import KINDS
from chaos.mounts import fill, grow, tmpfs
from chaos.needs import need_mounts
from chaos.report import record
from forked import start_simulator

ROWS = 700
OPERATIONS = tuple(KINDS) if FULL else ("chat", "speech", "embeddings")

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """What came of one disk. `unkept` are the rows that were answered and not kept when the disk was full."""

    ended_s: float
    unkept: int
    resent: int
    harm: Harm


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_full_disk_ends_the_run_with_exit_5_and_more_room_lets_it_go_on(tmp_path: Path, operation: str) -> None:
    need_mounts("F5")
    dice = random.Random(f"{SEED} {operation}")
    forked = Forked()
    filled = [
        _fill_and_go_on(tmp_path / str(number), operation, dice, forked) for number in range(count(quick=1, full=3))
    ]
    record(
        fault="F5",
        what=operation,
        tried=len(filled),
        lost=sum(one.harm.lost for one in filled),
        doubled=sum(one.harm.doubled for one in filled),
        resent_max=max(one.resent for one in filled),
        recover_s_max=max(one.ended_s for one in filled),
        notes=f"time until exit 5; answered and not kept when full: {[one.unkept for one in filled]}; seed {SEED}",
    )
    # What was in flight was kept all the same: the run had set space aside.
    assert max(one.resent for one in filled) == 0


def _fill_and_go_on(folder: Path, operation: str, dice: random.Random, forked: Forked) -> Filled:
    folder.mkdir()
    ledger = folder / "ledger.jsonl"
    disk = folder / "disk"
    config = {**OPAQUE, "latency": {"median_ms": 40, "sigma": 0.4}}
    with start_simulator(config, ledger=ledger) as simulator, tmpfs(disk, megabytes=dice.randint(24, 64)):
        scene = Scene(
            folder=folder,
            operation=operation,
            rows=ROWS * (PACK if operation == "embeddings" else 1),
            simulator=simulator,
            ledger=ledger,
            part_rows=50,
            out=disk / "out",
            forked=forked,
        )
        ended_s = _fill_during_a_run(scene, disk, dice)
        unkept = len(answered_rows(scene) - kept_rows(scene))
        _assert_no_half_part(scene)
        assert scene.finish() == 5, f"the disk is still full: {scene.said()}"
        grow(disk, megabytes=256)
        assert scene.finish() == 0, scene.said()
        found = harm(scene)
        resent = resent_after(scene)[0]
        assert_whole(scene)
    return Filled(ended_s=ended_s, unkept=unkept, resent=resent, harm=found)


def _fill_during_a_run(scene: Scene, disk: Path, dice: random.Random) -> float:
    """Fill the disk at a random time of a run; returns the seconds until the run ended, with exit 5."""
    process = scene.start()
    try:
        assert wait_for_a_request(scene, process) is not None, scene.said()
        time.sleep(dice.uniform(0.0, 1.0))
        fill(disk)
        began = time.monotonic()
        code = process.wait(60)
    finally:
        process.kill()
        process.wait()
    assert code == 5, f"exit {code}: {scene.said()}"
    return time.monotonic() - began


def _assert_no_half_part(scene: Scene) -> None:
    for path in scene.out.glob("part-*.parquet"):
        pq.read_table(path)
