"""A complete run of which some rows failed, for faults in the middle of their retry; and what must come of that."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
from chaos.harness import deployment_of, read_parts

from pipeline.simulator.serve import SimulatorProcess
from pipeline.store.folder import Layout
from pipeline.store.journal import JournalReader
from pipeline.store.verify import verify_folder

POISON = [{"contains": "bad", "status": 400, "code": "content_filter"}]
"""What a simulator is told, so that the bad rows fail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A job, its input of so many rows and its output, all below one folder that may be copied. `bad` rows fail."""

    folder: Path
    rows: int
    bad: frozenset[int]
    part_rows: int
    workers: int

    @property
    def job(self) -> Path:
        return self.folder / "job.json"

    @property
    def layout(self) -> Layout:
        return Layout(self.folder / "out")

    def written(self) -> Place:
        """Make the folder, with the input."""
        self.folder.mkdir()
        with (self.folder / "rows.jsonl").open("w") as file:
            for n in range(self.rows):
                text = f"question {n}{' bad' if n in self.bad else ''}"
                file.write(json.dumps({"id": f"r{n}", "text": text}) + "\n")
        return self

    def ask(self, simulator: SimulatorProcess) -> None:
        """Write the job file, which asks this simulator from now on."""
        job = {
            "operation": "chat",
            "input": {"path": "rows.jsonl", "id": "id"},
            "request": {"messages": [{"role": "user", "content": "{{ text }}"}]},
            "deployments": [deployment_of(simulator)],
            "output": {"path": "out", "part_rows": self.part_rows},
            "run": {"workers": self.workers},
        }
        self.job.write_text(json.dumps(job))

    def copied(self, to: Path) -> Place:
        shutil.copytree(self.folder, to)
        return replace(self, folder=to)

    def has_failed_rows(self) -> bool:
        with JournalReader(self.layout.journal) as reader:
            return reader.totals().failed > 0

    def kept(self, table: pa.Table) -> pa.Table:
        """The rows of the parts that did not fail."""
        return table.take([n for n in range(self.rows) if n not in self.bad]).combine_chunks()

    def assert_whole_in_the_middle(self, before: pa.Table) -> None:
        """`verify` finds nothing, and readers see every row, those that did not fail as they were."""
        assert verify_folder(self.layout).findings == ()
        seen = read_parts(self.layout.root)
        assert seen["ordinal"].to_pylist() == list(range(self.rows)), "readers lack rows"
        assert self.kept(seen).equals(self.kept(before))

    def assert_replaced(self, before: pa.Table) -> None:
        """The rows that failed are answered, the others are what they were, and nothing is left over."""
        self.assert_whole_in_the_middle(before)
        assert set(read_parts(self.layout.root)["status"].to_pylist()) == {"ok"}
        with JournalReader(self.layout.journal) as reader:
            assert reader.counts() == (0, 0)
            assert not reader.asks_again
            assert (reader.totals().ok, reader.totals().failed) == (self.rows, 0)
            assert all(len(reader.replaced(n)) == 1 for n in self.bad)
        assert not list(self.folder.rglob("*.tmp"))
