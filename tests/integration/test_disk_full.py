"""A disk that fills up for real, under a run of its own process: every answer that was paid for is kept."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from chaos.forked import Forked
from chaos.harness import Scene, assert_whole
from forked import start_simulator

from pipeline.simulator.ledger import Answered, Arrived, read_ledger

MIB = 1 << 20
ROWS = 600

pytestmark = [
    pytest.mark.skipif(
        not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a tmpfs takes root: a full disk is NOT TESTED"
    ),
]


@contextmanager
def small_disk(folder: Path, *, size: int) -> Iterator[None]:
    """A file system of so many bytes at the folder."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, *, leave: int) -> Path:
    """Take all room but `leave` bytes."""
    filler = disk / "filler"
    found = os.statvfs(disk)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - leave)
    return filler


@pytest.fixture
def scene(tmp_path: Path, operation: str) -> Iterator[Scene]:
    """A run whose output lies on a disk of 40 MiB: room enough for the journal's 16 MiB of unchecked pages."""
    ledger = tmp_path / "ledger.jsonl"
    config = {"vectors": "hash", "latency": {"median_ms": 30, "sigma": 0.5}}
    with small_disk(tmp_path / "disk", size=40 * MIB), start_simulator(config, ledger=ledger) as simulator:
        scene = Scene(
            folder=tmp_path,
            operation=operation,
            rows=ROWS,
            simulator=simulator,
            ledger=ledger,
            part_rows=150,
            pack=4,
            forked=Forked(),
        )
        job = json.loads(scene.job.read_text())
        job["output"]["path"] = "disk/out"
        scene.job.write_text(json.dumps(job))
        (tmp_path / "out").symlink_to(tmp_path / "disk" / "out")
        yield scene


def answered(scene: Scene) -> Counter[int]:
    """How often the ledger shows each row answered to somebody who was there."""
    ordinals = {scene.kind.key(ordinal): ordinal for ordinal in range(scene.rows)}
    calls: dict[tuple[int, int], list[int]] = {}
    counted: Counter[int] = Counter()
    for line in read_ledger(scene.ledger):
        match line:
            case Arrived():
                calls[line.session, line.seq] = [ordinals[key] for key in line.keys]
            case Answered() if line.status == 200 and line.fault is None:
                counted.update(calls[line.session, line.seq])
    return counted


# The pages of a journal of vectors are eight times as large.
@pytest.mark.parametrize(
    ("operation", "room"), [("chat", 300_000), ("chat", 500_000), ("embeddings", 1_500_000), ("embeddings", 3_000_000)]
)
def test_what_was_answered_when_the_disk_filled_up_is_there_after_the_next_run_and_not_asked_again(
    scene: Scene, room: int
) -> None:
    disk = scene.folder / "disk"
    filler = fill(disk, leave=4 * MIB + room)

    code = scene.finish()

    before = answered(scene)
    assert code == 5, scene.said()
    assert 0 < len(before) < ROWS
    assert not list(disk.rglob("ballast"))
    filler.unlink()
    assert scene.finish() == 0, scene.said()
    assert_whole(scene)
    twice = sorted(ordinal for ordinal, times in answered(scene).items() if times > 1)
    assert not twice, f"rows that were paid for twice: {twice}; {scene.said()}"


@pytest.mark.parametrize("operation", ["chat"])
def test_a_disk_that_is_full_at_the_start_is_refused_with_figures_before_anything_is_sent(scene: Scene) -> None:
    filler = fill(scene.folder / "disk", leave=2 * MIB)

    assert scene.finish() == 5

    said = scene.said()
    assert "a run sets 4 MiB aside" in said
    assert "free some space" in said
    assert "Traceback" not in said
    assert not answered(scene)
    filler.unlink()
    assert scene.finish() == 0, scene.said()
    assert_whole(scene)
