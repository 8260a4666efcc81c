"""F2: a retry that is killed at a system call that makes something durable. No row is lost, doubled or half replaced.

The calls of a whole retry are counted first; then it is killed at every one of them, or as many as are asked for, each
time in a copy of the same folder. `verify` must find nothing at that moment, and `retry` or `run`, in turns, go on.
"""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
from chaos.counts import SEED, count
from chaos.harness import OPAQUE, arrivals, deployment_of, read_parts
from chaos.injected import DURABLE, Injector
from chaos.needs import need_tool
from chaos.report import record

from pipeline.simulator.serve import SimulatorProcess, start
from pipeline.store.folder import Layout
from pipeline.store.journal import JournalReader
from pipeline.store.verify import verify_folder

ROWS = 40
PART_ROWS = 10
BAD = frozenset({1, 12, 13, 25, 38})
WORKERS = 2

pytestmark = pytest.mark.timeout(1_800)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A job, its input and its output, all below one folder that may be copied."""

    folder: Path

    @property
    def job(self) -> Path:
        return self.folder / "job.json"

    @property
    def layout(self) -> Layout:
        return Layout(self.folder / "out")

    def ask(self, simulator: SimulatorProcess) -> None:
        """Write the job file, which asks this simulator from now on."""
        job = {
            "operation": "chat",
            "input": {"path": "rows.jsonl", "id": "id"},
            "request": {"messages": [{"role": "user", "content": "{{ text }}"}]},
            "deployments": [deployment_of(simulator)],
            "output": {"path": "out", "part_rows": PART_ROWS},
            "run": {"workers": WORKERS},
        }
        self.job.write_text(json.dumps(job))

    def copied(self, to: Path) -> Place:
        shutil.copytree(self.folder, to)
        return Place(folder=to)


def prepared(folder: Path, injector: Injector, errors: Path) -> Place:
    """A complete run of which some rows failed."""
    folder.mkdir()
    place = Place(folder=folder)
    lines = [json.dumps({"id": f"r{n}", "text": f"question {n}{' bad' if n in BAD else ''}"}) for n in range(ROWS)]
    (folder / "rows.jsonl").write_text("".join(f"{line}\n" for line in lines))
    poison = [{"contains": "bad", "status": 400, "code": "content_filter"}]
    with start({**OPAQUE, "poison": poison}) as simulator:
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
            assert verify_folder(place.layout).findings == (), f"{group} {number}"
            seen = read_parts(place.layout.root)
            assert seen["ordinal"].to_pylist() == list(range(ROWS)), f"{group} {number}: readers lack rows"
            going_on = retries if index % 2 else runs
            assert going_on.run(place.job, inject=None, errors=errors) == (0 if begun(place) else 1)
            assert retries.run(place.job, inject=None, errors=errors) == 0, errors.read_text()
            resent.append(len(arrivals(ledger)) - asked - len(BAD))
            ordinals = read_parts(place.layout.root)["ordinal"].to_pylist()
            lost += len(set(range(ROWS)) - {*ordinals})
            doubled += len(ordinals) - len({*ordinals})
            assert_replaced(place, before)
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


def begun(place: Place) -> bool:
    """Whether what goes on leaves no failed row: the rows were chosen before the kill, or it chooses them itself."""
    with JournalReader(place.layout.journal) as reader:
        return reader.totals().failed == 0


def assert_replaced(place: Place, before: pa.Table) -> None:
    """The rows that failed are answered, the others are what they were, and `verify` finds nothing."""
    table = read_parts(place.layout.root)
    assert table["ordinal"].to_pylist() == list(range(ROWS))
    assert set(table["status"].to_pylist()) == {"ok"}
    kept = [n for n in range(ROWS) if n not in BAD]
    assert table.take(kept).to_pylist() == before.take(kept).to_pylist()
    with JournalReader(place.layout.journal) as reader:
        assert reader.counts() == (0, 0)
        assert not reader.asks_again
        assert (reader.totals().ok, reader.totals().failed) == (ROWS, 0)
        assert all(len(reader.replaced(n)) == 1 for n in BAD)
    assert verify_folder(place.layout).findings == ()
    assert not list(place.folder.rglob("*.tmp"))
