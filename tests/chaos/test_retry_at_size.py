"""F1: SIGKILL in a retry of one row in a hundred, at as many points of its way. No row that did not fail is touched.

PIPELINE_RETRY_ROWS says how many rows there are. Each kill is in a copy of the same folder: after so many requests, or
when so many parts are replaced. `verify` must find nothing at that moment, and `retry` or `run`, in turns, go on.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from chaos.counts import SEED, count
from chaos.forked import Child, Forked
from chaos.harness import OPAQUE, arrivals, read_parts
from chaos.report import record
from chaos.retried import POISON, Place
from forked import start_simulator

from pipeline.simulator.ledger import messages_key
from pipeline.simulator.serve import SimulatorProcess
from pipeline.store.files import sha256_of

ROWS = int(os.environ.get("PIPELINE_RETRY_ROWS", count(quick=4_000, full=100_000)))
PARTS = 40
WORKERS = 8
LATENCY_MS = 20
"""So long takes an answer of the retry, so that there is time to kill it between any two."""

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3_600)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """Starts retries of a place, and kills them."""

    simulator: SimulatorProcess
    errors: Path

    def end(self, place: Place, command: str) -> int:
        """Let a command run to its end; returns the exit code."""
        child = self._start(place, command)
        try:
            return child.wait(1_200)
        finally:
            child.kill()

    def kill(self, place: Place, *, asked: int, replaced: int) -> bool:
        """Begin a retry, and kill it after so many requests and parts; False where it ended before."""
        before, parts = self._asked(), stamps(place)
        reached: list[Callable[[], bool]] = [lambda: self._asked() - before >= asked]
        if replaced:
            reached.append(lambda: sum(parts[name] != now for name, now in stamps(place).items()) >= replaced)
        child = self._start(place, "retry")
        try:
            while child.poll() is None and not all(is_so() for is_so in reached):
                time.sleep(0.002)
            child.send_signal(signal.SIGKILL)
        finally:
            child.kill()
        return child.wait(60) == -signal.SIGKILL

    def _start(self, place: Place, command: str) -> Child:
        return Forked().start(command, str(place.job), "--progress", "none", errors=self.errors)

    def _asked(self) -> int:
        with urllib.request.urlopen(f"{self.simulator.url}/_simulator/stats", timeout=30) as reply:
            stats = json.load(reply)
        return int(stats["in_flight"]) + int(stats["answered"])


def stamps(place: Place) -> dict[str, tuple[int, int]]:
    """Which file each part is."""
    found = {path.name: path.stat() for path in place.layout.root.glob("part-*.parquet")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}


def bad_rows(dice: random.Random) -> frozenset[int]:
    """One row in a hundred, all of them in every second part."""
    part_rows = ROWS // PARTS
    return frozenset(
        first + n for first in range(0, ROWS, 2 * part_rows) for n in dice.sample(range(part_rows), part_rows // 50)
    )


def test_a_retry_killed_anywhere_sends_the_failed_rows_alone_and_leaves_all_others_as_they_were(tmp_path: Path) -> None:
    kills, dice, errors = count(quick=8, full=40), random.Random(SEED), tmp_path / "errors.txt"
    bad = bad_rows(dice)
    pristine = Place(
        folder=tmp_path / "pristine", rows=ROWS, bad=bad, part_rows=ROWS // PARTS, workers=WORKERS
    ).written()
    with start_simulator({**OPAQUE, "poison": POISON}) as simulator:
        pristine.ask(simulator)
        assert Retries(simulator=simulator, errors=errors).end(pristine, "run") == 1, errors.read_text()
    before, sums = read_parts(pristine.layout.root), checksums(pristine)
    untouched = {name for name in sums if not bad & rows_of(name)}
    assert (len(bad), len(sums), len(untouched)) == (ROWS // 100, PARTS, PARTS // 2)
    config = {**OPAQUE, "latency": {"median_ms": LATENCY_MS, "sigma": 0.5}, "seed": SEED}
    ledger = tmp_path / "ledger.jsonl"
    points = [(0, dice.randint(1, PARTS // 2)) if n % 2 else (dice.randint(0, len(bad)), 0) for n in range(kills)]
    killed, resent = 0, []
    with start_simulator(config, ledger=ledger) as simulator:
        pristine.ask(simulator)
        retries = Retries(simulator=simulator, errors=errors)
        for index, (asked, replaced) in enumerate([(0, 0), *points]):
            place, calls = pristine.copied(tmp_path / str(index)), len(arrivals(ledger))
            if index:
                killed += retries.kill(place, asked=asked, replaced=replaced)
                place.assert_whole_in_the_middle(before)
                if index % 2:
                    assert retries.end(place, "run") == int(place.has_failed_rows()), errors.read_text()
            assert retries.end(place, "retry") == 0, errors.read_text()
            place.assert_replaced(before)
            now = checksums(place)
            assert {name for name in sums if sums[name] == now[name]} == untouched
            sent = Counter(key for call in arrivals(ledger)[calls:] for key in call.keys)
            assert set(sent) == {messages_key(message_of(n)) for n in bad}
            resent.append(sent.total() - len(bad))
            shutil.rmtree(place.folder)
    record(
        fault="F1",
        what="retry of one row in a hundred",
        tried=killed,
        resent_max=max(resent),
        notes=f"{ROWS:,} rows, {len(bad):,} of them sent again; {PARTS // 2} of {PARTS} parts replaced; seed {SEED}",
    )
    print(f"\n{ROWS:,} rows, {len(bad):,} failed: {resent[0] + len(bad):,} calls of a retry that nobody killed")
    print(f"{killed} kills of {len(points)} points, seed {SEED}; sent again {sorted(resent[1:])}")
    assert resent[0] == 0
    assert max(resent) <= WORKERS
    assert killed >= kills * 3 // 4


def checksums(place: Place) -> dict[str, str]:
    """The SHA-256 of each part."""
    return {path.name: sha256_of(path) for path in place.layout.root.glob("part-*.parquet")}


def rows_of(part: str) -> frozenset[int]:
    """The ordinals that a part's name promises."""
    first, last = part.removeprefix("part-").partition(".")[0].split("-")
    return frozenset(range(int(first), int(last) + 1))


def message_of(ordinal: int) -> list[dict[str, str]]:
    """What the job asks for a bad row."""
    return [{"role": "user", "content": f"question {ordinal} bad"}]
