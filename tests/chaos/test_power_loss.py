"""F4: power loss. What was acknowledged is there, the journal is whole, and the same command goes on.

An ext4 is shut down under the run, its own journal unflushed, and mounted again. Acknowledged is what a reader of the
journal saw committed just before; and since a worker takes no new row before its last one is committed, the ledger
would show more than a request a worker sent again if a commit had been told of too early.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from chaos.counts import SEED, count
from chaos.forked import Forked
from chaos.harness import (
    OPAQUE,
    WORKERS,
    Scene,
    assert_whole,
    harm,
    kept_rows,
    resent_after,
    wait_for_a_request,
)
from chaos.mounts import Disk, ext4
from chaos.needs import need_mounts, need_tool
from chaos.report import record
from forked import start_simulator

from pipeline.store.files import sha256_of
from pipeline.store.journal import JournalReader

ROWS_A_LOSS = 60

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1_800)]


@pytest.mark.parametrize("operation", ["chat", "speech"])
def test_after_power_loss_every_acknowledged_row_is_there(tmp_path: Path, operation: str) -> None:
    need_mounts("F4", loop=True)
    need_tool("F4", "mkfs.ext4")
    losses = count(quick=10, full=100)
    rows = losses * ROWS_A_LOSS
    dice = random.Random(SEED)
    ledger = tmp_path / "ledger.jsonl"
    with (
        start_simulator({**OPAQUE, "latency": {"median_ms": 40, "sigma": 0.4}}, ledger=ledger) as simulator,
        ext4(megabytes=512) as disk,
    ):
        scene = Scene(
            folder=tmp_path,
            operation=operation,
            rows=rows,
            simulator=simulator,
            ledger=ledger,
            part_rows=40,
            out=disk.root / "out",
            forked=Forked(),
        )
        first_s, witnessed = [], 0
        for _ in range(losses):
            acknowledged = _lose_power_in_a_run(scene, disk, dice, first_s)
            witnessed += len(acknowledged)
            _assert_the_disk_kept(scene, acknowledged)
        assert scene.finish() == 0, scene.said()
        resent = resent_after(scene)
        found = harm(scene)
        record(
            fault="F4",
            what=operation,
            tried=losses,
            lost=found.lost,
            doubled=found.doubled,
            resent_max=max(resent),
            recover_s_max=max(first_s),
            notes=f"{witnessed:,} rows seen acknowledged just before, all there after; seed {SEED}",
        )
        assert_whole(scene)
        assert witnessed > 0
        assert max(resent) <= WORKERS


def _lose_power_in_a_run(scene: Scene, disk: Disk, dice: random.Random, first_s: list[float]) -> set[int]:
    """Run, lose the power at a random time, come back; returns the rows that were acknowledged just before."""
    process = scene.start()
    try:
        begun_s = wait_for_a_request(scene, process)
        assert begun_s is not None, f"the run ended after {len(first_s)} losses: give it more rows\n{scene.said()}"
        first_s.append(begun_s)
        time.sleep(dice.uniform(0.0, 0.35))
        acknowledged = kept_rows(scene)
        disk.lose_power()
        os.killpg(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    disk.come_back()
    return acknowledged


def _assert_the_disk_kept(scene: Scene, acknowledged: set[int]) -> None:
    """Nothing acknowledged is gone; the journal is sound; the parts and files that it counts are what was written."""
    missing = acknowledged - kept_rows(scene)
    assert not missing, f"acknowledged and gone: {sorted(missing)[:20]}"
    if not scene.layout.journal.exists():
        return
    try:
        reader = JournalReader(scene.layout.journal)
    except FileNotFoundError:
        return  # the power went before its tables were made
    with reader:
        assert reader.problems() == []
        for part in reader.parts():
            assert sha256_of(scene.layout.part(part.name)) == part.sha256
        for file in reader.files():
            assert sha256_of(scene.out / file.name) == file.sha256
