"""Runs a job in a process of its own, against a simulator in another, and holds the three witnesses against each other.

The simulator's ledger says what was asked, the journal what was kept, the Parquet what a user reads.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from bisect import bisect_right
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from chaos.forked import Child, Forked
from chaos.kinds import KINDS, SOUNDS, Kind, text_of

from pipeline.simulator.ledger import Arrived, read_ledger
from pipeline.simulator.serve import SimulatorProcess
from pipeline.store.folder import Layout
from pipeline.store.journal import JournalReader
from pipeline.store.verify import verify_folder

WORKERS = 8
PACK = 16
Popen = subprocess.Popen[bytes] | Child
OPAQUE = {"vectors": "hash", "audio": "opaque"}
"""A simulator that answers by its request, without a model."""


def deployment_of(
    simulator: SimulatorProcess, name: str = "gpt-4o-mini", *, model: str = "gpt-4o-mini"
) -> dict[str, Any]:
    """How a job file names a deployment of the simulator."""
    return {
        "endpoint": simulator.url,
        "api": "azure",
        "deployment": name,
        "model": model,
        "key": "${SIMULATOR_KEY}",
    }


@dataclass(slots=True, kw_only=True)
class Scene:
    """A job, its input and its simulator, in a folder of their own. `begun` tells, in epoch seconds, when runs were."""

    folder: Path
    operation: str
    rows: int
    simulator: SimulatorProcess
    ledger: Path
    part_rows: int = 100
    pack: int = PACK
    environ: dict[str, str] = field(default_factory=dict)
    forked: Forked | None = None
    wrap: tuple[str, ...] = ()
    asking: Kind | None = None
    asked_before: int = 0
    begun: list[float] = field(default_factory=list)
    out: Path = field(default=Path())
    run: dict[str, Any] = field(default_factory=dict)
    deployment: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Write the input and the job file. `out` is below the folder unless it is given."""
        if self.out == Path():
            self.out = self.folder / "out"
        with (self.folder / "rows.jsonl").open("w") as file:
            for ordinal in range(self.rows):
                file.write(json.dumps({"id": f"r{ordinal}", "text": text_of(ordinal), "price": ordinal / 4}) + "\n")
        if self.kind.prepare is not None:
            self.kind.prepare(self.folder, self.rows)
        self.ask(self.simulator)

    def ask(self, simulator: SimulatorProcess) -> None:
        """Write the job file, which asks this simulator from now on."""
        self.simulator = simulator
        kind = self.kind
        deployment = deployment_of(simulator, kind.deployment, model=kind.model)
        if kind.api_version is not None:
            deployment["api_version"] = kind.api_version
        if self.operation == "embeddings":
            deployment["max_inputs"] = self.pack
        job = {
            "operation": self.operation,
            "input": {"path": "rows.jsonl", "id": "id"},
            "request": kind.request,
            "deployments": [deployment | self.deployment],
            "output": {"path": str(self.out), "part_rows": self.part_rows, **kind.output},
            "run": {"workers": WORKERS, "timeout": "20s", **self.run},
        }
        if kind.prepare is not None:
            job["input"]["media_root"] = SOUNDS
        self.job.write_text(json.dumps(job))

    @property
    def kind(self) -> Kind:
        """How its operation is asked."""
        return self.asking or KINDS[self.operation]

    @property
    def job(self) -> Path:
        """The job file."""
        return self.folder / "job.json"

    @property
    def layout(self) -> Layout:
        """The output folder's places."""
        return Layout(self.out)

    def start(self) -> Popen:
        """Start `pipeline run` in a process group of its own."""
        self.asked_before = self.asked()
        self.begun.append(time.time())
        arguments = ["run", str(self.job), "--progress", "none", "--json"]
        errors = self.folder / "stderr.txt"
        if self.forked is not None:
            return self.forked.start(*arguments, errors=errors)
        with errors.open("ab") as file:
            return subprocess.Popen(
                [*self.wrap, sys.executable, "-m", "pipeline", *arguments],
                stdout=subprocess.DEVNULL,
                stderr=file,
                env={**os.environ, "SIMULATOR_KEY": "k", **self.environ},
                start_new_session=True,
            )

    def finish(self) -> int:
        """Run to the end; returns the exit code."""
        process = self.start()
        try:
            return process.wait(300)
        finally:
            process.kill()
            process.wait()

    def in_flight(self) -> int:
        """How many requests the simulator holds right now, those of runs that are gone among them."""
        return int(self._stats()["in_flight"])

    def asked(self) -> int:
        """How many requests the simulator was sent since it started."""
        stats = self._stats()
        return int(stats["in_flight"]) + int(stats["answered"])

    def _stats(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.simulator.url}/_simulator/stats", timeout=30) as reply:
            return dict(json.load(reply))

    def said(self) -> str:
        """What the runs wrote to stderr."""
        return (self.folder / "stderr.txt").read_text(errors="replace")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One SIGKILL: how many requests the simulator held just before.

    `first_s` is the time in seconds from the start of the run that it ended to that run's first request.
    """

    in_flight: int
    first_s: float


def kill_while_in_flight(scene: Scene, dice: random.Random, *, within_s: tuple[float, float]) -> Kill | None:
    """Start a run and kill it at a random time with requests in flight; None when the run ended before."""
    process = scene.start()
    try:
        first_s = wait_for_a_request(scene, process)
        if first_s is None:
            return None
        time.sleep(dice.uniform(*within_s))
        until = time.monotonic() + 5
        while (in_flight := scene.in_flight()) == 0 and time.monotonic() < until:
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    _settle(scene)
    return Kill(in_flight=in_flight, first_s=first_s)


def _settle(scene: Scene) -> None:
    """Wait until the simulator has taken in what a run that is gone had left in its sockets."""
    before = -1
    while (asked := scene.asked()) != before:
        before = asked
        time.sleep(0.02)


def wait_for_a_request(scene: Scene, process: Popen) -> float | None:
    """Wait for the first request of the run that was just started; returns the seconds it took, None when it ended."""
    began = time.monotonic()
    while scene.asked() == scene.asked_before:
        if process.poll() is not None:
            return None
        time.sleep(0.01)
    return time.monotonic() - began


def resent_after(scene: Scene) -> list[int]:
    """For each run of the scene but its last, in their order, how many of its requests later runs sent again.

    A request counts when a later run sent it whole or in part. It is the run's that had begun last when it came in: a
    service reads what was sent to it just before a kill just after, a large body more so.
    """
    last_sent: dict[str, tuple[int, tuple[int, int]]] = {}
    blamed: dict[int, set[tuple[int, int]]] = defaultdict(set)
    for call in arrivals(scene.ledger):
        run = bisect_right(scene.begun, call.t)
        for key in call.keys:
            before = last_sent.get(key)
            if before is not None and before[0] < run:
                blamed[before[0]].add(before[1])
            last_sent[key] = (run, (call.session, call.seq))
    return [len(blamed[run]) for run in range(1, len(scene.begun))]


def calls_by_row(scene: Scene) -> Counter[int]:
    """How often each row was asked for, by the ledger."""
    ordinals = {scene.kind.key(ordinal): ordinal for ordinal in range(scene.rows)}
    counted: Counter[int] = Counter()
    for call in arrivals(scene.ledger):
        counted.update(ordinals[key] for key in call.keys)
    return counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Harm:
    """Rows that are not in the parts, and rows that are there more than once."""

    lost: int
    doubled: int


def harm(scene: Scene, *, rows: int | None = None) -> Harm:
    """Count the rows that the parts have lost or doubled; all are lost where there are no parts."""
    counted = Counter(read_parts(scene.out)["ordinal"].to_pylist()) if list(scene.out.glob("part-*")) else Counter()
    wanted = range(scene.rows if rows is None else rows)
    return Harm(lost=sum(not counted[ordinal] for ordinal in wanted), doubled=sum(n - 1 for n in counted.values()))


def assert_whole(scene: Scene, *, rows: int | None = None) -> pa.Table:
    """Every row once, in order, with its own answer and its own columns, by all three witnesses; returns the table.

    Files of rows are among them: as many as rows, none half. `verify` must find nothing.
    """
    table = read_parts(scene.out)
    count = scene.rows if rows is None else rows
    assert table["ordinal"].to_pylist() == list(range(count))
    assert table["id"].to_pylist() == [f"r{ordinal}" for ordinal in range(count)]
    assert table["text"].to_pylist() == [text_of(ordinal) for ordinal in range(count)]
    assert table["price"].to_pylist() == [ordinal / 4 for ordinal in range(count)]
    assert set(table["status"].to_pylist()) == {"ok"}
    assert scene.kind.wrong(scene.out, table) == [], "rows hold other rows' answers"
    if scene.kind.files:
        assert len(list(scene.layout.media.iterdir())) == count
    with JournalReader(scene.layout.journal) as reader:
        assert reader.counts() == (0, 0)
        assert sum(part.ok for part in reader.parts()) == count
    assert verify_folder(scene.layout).findings == ()
    return table


def read_parts(folder: Path) -> pa.Table:
    """All parts, in the order of their names."""
    return pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("part-*.parquet")))


def answered_rows(scene: Scene) -> set[int]:
    """The rows that the simulator answered with status 200, by its ledger."""
    ordinals = {scene.kind.key(ordinal): ordinal for ordinal in range(scene.rows)}
    asked: dict[tuple[int, int], tuple[str, ...]] = {}
    answered: set[int] = set()
    for line in read_ledger(scene.ledger):
        if isinstance(line, Arrived):
            asked[line.session, line.seq] = line.keys
        elif line.status == 200 and line.fault is None:
            answered.update(ordinals[key] for key in asked[line.session, line.seq])
    return answered


def kept_rows(scene: Scene) -> set[int]:
    """The rows that are committed: in the journal, or in a part that it counts. None where there is no journal yet."""
    try:
        with JournalReader(scene.layout.journal) as reader:
            parts = reader.parts()
            flags = reader.done(0, scene.rows - 1)
    except FileNotFoundError:
        return set()
    kept = {ordinal for ordinal, flag in enumerate(flags) if flag}
    return kept.union(*(range(part.first, part.last + 1) for part in parts))


def arrivals(ledger: Path) -> list[Arrived]:
    """The requests that came in, in their order."""
    return [line for line in read_ledger(ledger) if isinstance(line, Arrived)]
