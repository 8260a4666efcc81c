"""F17: two runs of one folder. Exactly one of them runs, and the other changes no byte."""

from __future__ import annotations

import os
import signal
from hashlib import sha256
from pathlib import Path

import pytest
from chaos.counts import count
from chaos.forked import Forked
from chaos.harness import OPAQUE, Scene, assert_whole, calls_by_row, harm, wait_for_a_request
from chaos.mounts import read_only
from chaos.needs import need_mounts
from chaos.report import record
from forked import start_simulator

from pipeline.simulator.serve import SimulatorProcess

ROWS = 16
HELD = 75

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1_200)]


def _scene(folder: Path, simulator: SimulatorProcess, ledger: Path, forked: Forked, *, rows: int = ROWS) -> Scene:
    folder.mkdir()
    return Scene(folder=folder, operation="chat", rows=rows, simulator=simulator, ledger=ledger, forked=forked)


def test_of_two_runs_started_at_one_instant_exactly_one_runs(tmp_path: Path) -> None:
    pairs = count(quick=50, full=500)
    forked = Forked()
    lost = doubled = 0
    ledger = tmp_path / "ledger.jsonl"
    # Two rounds of replies: the winner is still at work when the loser comes, however late that starts.
    with start_simulator({**OPAQUE, "latency": {"median_ms": 150, "sigma": 0}}, ledger=ledger) as simulator:
        for number in range(pairs):
            scene = _scene(tmp_path / str(number), simulator, ledger, forked)
            before = scene.asked()
            gate, opens = os.pipe()
            errors = scene.folder / "stderr.txt"
            arguments = ("run", str(scene.job), "--progress", "none")
            both = [forked.start(*arguments, errors=errors, gate=gate) for _ in range(2)]
            os.close(opens)
            os.close(gate)
            codes = sorted(child.wait(60) for child in both)
            assert codes == [0, HELD], f"pair {number}: exit codes {codes}: {scene.said()}"
            found = harm(scene)
            lost, doubled = lost + found.lost, doubled + found.doubled
            assert_whole(scene)
            assert scene.asked() - before == ROWS
    record(
        fault="F17",
        what="two runs at one instant",
        tried=pairs,
        lost=lost,
        doubled=doubled,
        resent_max=0,
        notes="one exit 0, one exit 75, and every row asked once, each time",
    )


def _bytes_below(folder: Path) -> dict[str, tuple[int, str]]:
    """Every file below a folder with the time of its last change and a digest of its bytes.

    SQLite's `-shm` is no data: it is memory that readers and the writer share, made anew from the log.
    """
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith("-shm")
    }


@pytest.mark.parametrize("command", ["run", "run --fresh", "verify"])
def test_a_command_that_finds_the_folder_held_changes_no_byte_of_it(tmp_path: Path, command: str) -> None:
    ledger = tmp_path / "ledger.jsonl"
    forked = Forked()
    with start_simulator({**OPAQUE, "latency": {"median_ms": 100, "sigma": 0}}, ledger=ledger) as simulator:
        scene = _scene(tmp_path / "held", simulator, ledger, forked, rows=400)
        holder = scene.start()
        try:
            assert wait_for_a_request(scene, holder) is not None
            os.kill(holder.pid, signal.SIGSTOP)
            before = _bytes_below(scene.out)
            for _ in range(count(quick=3, full=20)):
                name, *options = command.split()
                second = forked.start(name, str(scene.job), *options, errors=tmp_path / "second.txt")
                assert second.wait(60) == HELD
                assert _bytes_below(scene.out) == before
                assert f"process {holder.pid}" in (tmp_path / "second.txt").read_text() or name == "verify"
            os.kill(holder.pid, signal.SIGCONT)
            assert holder.wait(120) == 0, scene.said()
        finally:
            holder.kill()
            holder.wait()
        assert_whole(scene)
        assert set(calls_by_row(scene).values()) == {1}
    record(fault="F17", what=f"`{command}` of a held folder", tried=count(quick=3, full=20), resent_max=0)


@pytest.mark.parametrize("begun", [False, True], ids=["empty", "begun"])
def test_a_run_on_a_folder_that_cannot_be_written_says_so_and_asks_nothing(tmp_path: Path, *, begun: bool) -> None:
    need_mounts("F17")
    ledger = tmp_path / "ledger.jsonl"
    forked = Forked()
    with start_simulator(OPAQUE, ledger=ledger) as simulator:
        scene = _scene(tmp_path / "locked", simulator, ledger, forked)
        scene.out.mkdir()
        if begun:
            arguments = ("run", str(scene.job), "--limit", "8", "--progress", "none")
            assert forked.start(*arguments, errors=tmp_path / "errors.txt").wait(60) == 0
        asked = calls_by_row(scene).total()
        before = _bytes_below(scene.out)
        with read_only(scene.out):
            assert scene.finish() == 5
            assert "ead-only" in scene.said()
            assert _bytes_below(scene.out) == before
            if begun:
                for command in ("verify", "status"):
                    child = forked.start(command, str(scene.out), errors=tmp_path / "errors.txt")
                    assert child.wait(60) == 0, (tmp_path / "errors.txt").read_text()
        assert calls_by_row(scene).total() == asked
        assert scene.finish() == 0, scene.said()
        assert_whole(scene)
    record(fault="F17", what=f"read-only folder, {'begun' if begun else 'empty'}", tried=1, resent_max=0)
