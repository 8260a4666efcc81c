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
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.simulator.ledger import Answered, Arrived, messages_key, read_ledger, text_key
from pipeline.simulator.serve import SimulatorProcess
from pipeline.simulator.vectors import hash_vector

WORKERS = 8
PACK = 16
DIMENSIONS = 8
SYSTEM = "Say it in one sentence."


def text_of(ordinal: int) -> str:
    """The text of a row; no two are alike, and the answer shows which it was."""
    return f"Row {ordinal} speaks of the tide at quay {ordinal * 7919 % 100_003}. It turns twice a day."


def messages_of(ordinal: int) -> list[dict[str, str]]:
    """The messages that the chat job renders for a row."""
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text_of(ordinal)}]


def key_of(operation: str, ordinal: int) -> str:
    """The row's name in the simulator's ledger."""
    return messages_key(messages_of(ordinal)) if operation == "chat" else text_key(text_of(ordinal))


@dataclass(slots=True, kw_only=True)
class Scene:
    """A job, its input and its simulator, in a folder of their own."""

    folder: Path
    operation: str
    rows: int
    simulator: SimulatorProcess
    ledger: Path
    part_rows: int = 100
    pack: int = PACK
    environ: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Write the input and the job file."""
        with (self.folder / "rows.jsonl").open("w") as file:
            for ordinal in range(self.rows):
                file.write(json.dumps({"id": f"r{ordinal}", "text": text_of(ordinal), "price": ordinal / 4}) + "\n")
        request: dict[str, Any] = {
            "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "{{ text }}"}],
            "max_tokens": 60,
        }
        if self.operation == "embeddings":
            request = {"input": "{{ text }}", "dimensions": DIMENSIONS}
        job = {
            "operation": self.operation,
            "input": {"path": "rows.jsonl", "id": "id"},
            "request": request,
            "deployments": [
                {
                    "endpoint": self.simulator.url,
                    "api": "azure",
                    "deployment": "d",
                    "model": "gpt-4o-mini" if self.operation == "chat" else "text-embedding-3-small",
                    "key": "${SIMULATOR_KEY}",
                    "max_inputs": self.pack,
                }
            ],
            "output": {"path": "out", "part_rows": self.part_rows},
            "run": {"workers": WORKERS, "timeout": "20s"},
        }
        self.job.write_text(json.dumps(job))

    @property
    def job(self) -> Path:
        """The job file."""
        return self.folder / "job.json"

    @property
    def out(self) -> Path:
        """The output folder."""
        return self.folder / "out"

    def start(self, *, wrap: Sequence[str] = (), log: Path | None = None) -> subprocess.Popen[bytes]:
        """Start `pipeline run` in a process group of its own."""
        command = [*wrap, sys.executable, "-m", "pipeline", "run", str(self.job), "--progress", "none", "--json"]
        errors = (log or self.folder / "stderr.txt").open("ab")
        with errors:
            return subprocess.Popen(
                command,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env={**os.environ, "SIMULATOR_KEY": "k", **self.environ},
                start_new_session=True,
            )

    def finish(self) -> int:
        """Run to the end; returns the exit code."""
        return self.start().wait(120)

    def in_flight(self) -> int:
        """How many requests the simulator holds right now."""
        with urllib.request.urlopen(f"{self.simulator.url}/_simulator/stats", timeout=5) as reply:
            return int(json.load(reply)["in_flight"])

    def said(self) -> str:
        """What the runs wrote to stderr."""
        return (self.folder / "stderr.txt").read_text(errors="replace")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One SIGKILL: when, and how many requests the ledger showed in flight at that moment."""

    at: float
    in_flight: int


def kill_while_in_flight(scene: Scene, dice: random.Random, *, within_s: tuple[float, float]) -> Kill | None:
    """Start a run and kill it at a random time with requests in flight; None when the run ended before."""
    process = scene.start()
    try:
        while scene.in_flight() == 0:
            if process.poll() is not None:
                return None
            time.sleep(0.005)
        time.sleep(dice.uniform(*within_s))
        until = time.monotonic() + 5
        while scene.in_flight() == 0 and time.monotonic() < until:
            time.sleep(0.002)
        at = time.time()
        os.killpg(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    calls, answers = _calls(scene.ledger)
    held = sum(call.t <= at and answers.get((call.session, call.seq), at + 1) > at for call in calls)
    return Kill(at=at, in_flight=held)


def resent_after(scene: Scene, kills: Sequence[Kill]) -> list[int]:
    """For each kill, how many requests of the run that it ended were sent again, whole or in part, by a later one."""
    calls, _ = _calls(scene.ledger)
    ends = [kill.at for kill in kills]
    last_sent: dict[str, tuple[int, tuple[int, int]]] = {}
    blamed: dict[int, set[tuple[int, int]]] = defaultdict(set)
    for call in calls:
        run = sum(end < call.t for end in ends)
        for key in call.keys:
            before = last_sent.get(key)
            if before is not None and before[0] < run:
                blamed[before[0]].add(before[1])
            last_sent[key] = (run, (call.session, call.seq))
    return [len(blamed[index]) for index in range(len(kills))]


def calls_by_row(scene: Scene) -> Counter[int]:
    """How often each row was asked for, by the ledger."""
    ordinals = {key_of(scene.operation, ordinal): ordinal for ordinal in range(scene.rows)}
    counted: Counter[int] = Counter()
    for call in _calls(scene.ledger)[0]:
        counted.update(ordinals[key] for key in call.keys)
    return counted


def assert_whole(scene: Scene, *, rows: int | None = None) -> pa.Table:
    """Every row once, in order, with its own answer and its own columns; returns the table."""
    table = read_parts(scene.out)
    count = scene.rows if rows is None else rows
    assert table["ordinal"].to_pylist() == list(range(count))
    assert table["id"].to_pylist() == [f"r{ordinal}" for ordinal in range(count)]
    assert table["text"].to_pylist() == [text_of(ordinal) for ordinal in range(count)]
    assert table["price"].to_pylist() == [ordinal / 4 for ordinal in range(count)]
    assert set(table["status"].to_pylist()) == {"ok"}
    if scene.operation == "chat":
        for ordinal, answer in enumerate(table["output_text"].to_pylist()):
            assert f"Row {ordinal} speaks" in answer, f"row {ordinal} holds another row's answer: {answer!r}"
    else:
        vectors = table["embedding"].combine_chunks()
        flat = vectors.flatten().buffers()[1].to_pybytes()
        for ordinal in range(count):
            assert flat[ordinal * 4 * DIMENSIONS :][: 4 * DIMENSIONS] == hash_vector(text_of(ordinal), DIMENSIONS)
    return table


def read_parts(folder: Path) -> pa.Table:
    """All parts, in the order of their names."""
    return pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("part-*.parquet")))


def _calls(ledger: Path) -> tuple[list[Arrived], dict[tuple[int, int], float]]:
    calls: list[Arrived] = []
    answers: dict[tuple[int, int], float] = {}
    for line in read_ledger(ledger):
        match line:
            case Arrived():
                calls.append(line)
            case Answered():
                answers[line.session, line.seq] = line.t
    return calls, answers
