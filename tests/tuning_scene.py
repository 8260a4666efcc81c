"""A job that trains a model over a simulator in a process of its own, with the simulator's ledger as a witness."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
from forked import start_simulator

from pipeline.job.load import load_job
from pipeline.operations import names
from pipeline.run import RunOptions, run_job
from pipeline.simulator.ledger import read_notes
from pipeline.simulator.serve import SimulatorProcess
from pipeline.store.folder import Layout

if TYPE_CHECKING:
    import httpx

    from pipeline.store.summary import Summary

WAIT = RunOptions()
MODEL = "gpt-4o-mini-2024-07-18"


def row_of(number: int) -> dict[str, Any]:
    """A row; no two are alike."""
    return {
        "id": f"r{number}",
        "question": f"When is low tide at quay {number * 7919 % 100_003}?",
        "answer": "At nine.",
    }


CHAT = {"messages": [{"role": "user", "content": "{{ question }}"}, {"role": "assistant", "content": "{{ answer }}"}]}
PAIRS = {
    "input": {"messages": [{"role": "user", "content": "{{ question }}"}]},
    "preferred_output": [{"role": "assistant", "content": "{{ answer }}"}],
    "non_preferred_output": [{"role": "assistant", "content": "No idea."}],
    "method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.1}}},
}


@dataclass(slots=True, kw_only=True)
class TuningScene:
    """Input, job and output in a folder, and the simulator that the job asks."""

    folder: Path
    rows: int = 30
    api: str = "azure-v1"
    request: dict[str, Any] = field(default_factory=lambda: dict(CHAT))
    offline: dict[str, Any] = field(default_factory=dict)
    quirks: list[str] = field(default_factory=list)
    run_keys: dict[str, Any] = field(default_factory=dict)
    url: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def served(self) -> Iterator[SimulatorProcess]:
        """Write the input, and serve."""
        self.write_rows([row_of(number) for number in range(self.rows)])
        with start_simulator(
            {"quirks": self.quirks, "offline": {"most_steps": 30, **self.offline}}, ledger=self.ledger
        ) as process:
            self.url = process.url
            yield process

    def write_rows(self, rows: list[Any], name: str = "rows.jsonl") -> None:
        """Write an input; text is a line as it is."""
        lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
        (self.folder / name).write_text("".join(f"{line}\n" for line in lines))

    @property
    def ledger(self) -> Path:
        """The simulator's ledger."""
        return self.folder / "ledger.jsonl"

    @property
    def layout(self) -> Layout:
        """The output folder."""
        return Layout(self.folder / "out")

    def write_job(self, **keys: Any) -> Path:
        """Write the job file."""
        version = {"api_version": "2025-04-01-preview"} if self.api == "azure" else {}
        endpoint = f"{self.url}/v1" if self.api == "openai" else self.url
        job = {
            "operation": "fine-tuning",
            "input": {"path": "rows.jsonl", "id": "id"},
            "request": self.request,
            "deployments": [{"endpoint": endpoint, "api": self.api, "deployment": MODEL, "key": "${K}", **version}],
            "output": {"path": "out"},
            "run": {"poll": "20ms", **self.run_keys},
            **keys,
        }
        path = self.folder / "job.json"
        path.write_text(json.dumps(job))
        return path

    async def run(
        self,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        options: RunOptions = WAIT,
        watcher: Callable[[Summary], None] | None = None,
        **keys: Any,
    ) -> Summary:
        """Run the job, or continue it."""
        job = load_job(self.write_job(**keys), environ={**os.environ, "K": "k"}, operations=names())
        return await run_job(
            job,
            options=options,
            transport=transport,
            listener=lambda event: self.events.append(dict(event)),
            watcher=watcher,
            dice=lambda: 0.0,
        )

    def created(self) -> list[str]:
        """The tags of the jobs that the simulator took."""
        notes = read_notes(self.ledger)
        return [note.details["metadata"]["pipeline_tag"] for note in notes if note.what == "fine_tuning.created"]

    def table(self, name: str) -> list[dict[str, Any]]:
        """The rows of a Parquet file of the output."""
        rows: list[dict[str, Any]] = pq.read_table(self.layout.root / name).to_pylist()
        return rows

    def asked(self, path: str) -> Any:
        """What the service answers to a GET of a path of the v1 family."""
        request = urllib.request.Request(f"{self.url}/openai/v1/{path}", headers={"api-key": "k"})
        with urllib.request.urlopen(request) as reply:
            return json.load(reply)
