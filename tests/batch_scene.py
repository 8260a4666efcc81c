"""A job for the batch lane over a simulator in a process of its own, with the simulator's ledger as a witness."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pyarrow.parquet as pq
from forked import start_simulator

from pipeline.engines.again import Retry
from pipeline.job.load import load_job
from pipeline.operations import names
from pipeline.run import RunOptions, run_job
from pipeline.simulator.ledger import messages_key, read_notes, text_key
from pipeline.simulator.serve import SimulatorProcess
from pipeline.store.folder import Layout
from pipeline.store.journal import JournalReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.clock import Clock
    from pipeline.store.summary import Summary

MODELS = {"chat": "gpt-4o-mini", "responses": "gpt-4o-mini", "embeddings": "text-embedding-3-small"}


def text_of(ordinal: int) -> str:
    """The text of a row; no two are alike."""
    return f"Row {ordinal} speaks of the tide at quay {ordinal * 7919 % 100_003}."


def request_of(operation: str) -> dict[str, Any]:
    """What a job asks of a row."""
    match operation:
        case "chat":
            return {"messages": [{"role": "user", "content": "{{ text }}"}], "max_tokens": 40}
        case "responses":
            return {"input": "{{ text }}", "max_output_tokens": 40}
        case _:
            return {"input": "{{ text }}", "dimensions": 8}


def key_of(operation: str, ordinal: int) -> str:
    """The row's name in the ledger."""
    text = text_of(ordinal)
    match operation:
        case "chat":
            return messages_key([{"role": "user", "content": text}])
        case "responses":
            return messages_key(text)
        case _:
            return text_key(text)


@dataclass(slots=True, kw_only=True)
class BatchScene:
    """Input, job and output in a folder, and the simulator that the job asks."""

    folder: Path
    rows: int
    operation: str = "chat"
    api: str = "azure-v1"
    simulator: dict[str, Any] = field(default_factory=dict)
    deployment: dict[str, Any] = field(default_factory=dict)
    more: list[dict[str, Any]] = field(default_factory=list)
    run_keys: dict[str, Any] = field(default_factory=dict)
    url: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def served(self) -> Iterator[SimulatorProcess]:
        """Write the input, and serve."""
        lines = (json.dumps({"id": f"r{n}", "text": text_of(n), "n": n}) for n in range(self.rows))
        (self.folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
        deployment = {"model": MODELS[self.operation], **self.simulator.pop("deployment", {})}
        config = {"deployments": {"d": deployment}, "vectors": "hash", **self.simulator}
        with start_simulator(config, ledger=self.ledger) as process:
            self.url = process.url
            yield process

    @property
    def ledger(self) -> Path:
        """The simulator's ledger."""
        return self.folder / "ledger.jsonl"

    @property
    def layout(self) -> Layout:
        """The output folder."""
        return Layout(self.folder / "out")

    def _deployment(self, base: str) -> dict[str, Any]:
        return {
            "endpoint": base,
            "api": self.api,
            "deployment": "d",
            "model": MODELS[self.operation],
            "key": "${K}",
            **({"api_version": "2025-04-01-preview"} if self.api == "azure" else {}),
            **self.deployment,
        }

    def write_job(self, **keys: Any) -> Path:
        """Write the job file."""
        base = f"{self.url}/v1" if self.api == "openai" else self.url
        job = {
            "operation": self.operation,
            "input": {"path": "rows.jsonl", "id": "id"},
            "request": request_of(self.operation),
            "deployments": [self._deployment(base), *(self._deployment(base) | more for more in self.more)],
            "output": {"path": "out", "part_rows": 40},
            "run": {"lane": "batch", "poll": "20ms", **self.run_keys},
            **keys,
        }
        path = self.folder / "job.json"
        path.write_text(json.dumps(job))
        return path

    async def run(
        self,
        *,
        wait: bool = True,
        limit: int | None = None,
        retry: Retry | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Clock | None = None,
        watcher: Callable[[Summary], None] | None = None,
        **keys: Any,
    ) -> Summary:
        """Run the job, or continue it."""
        job = load_job(self.write_job(**keys), environ={**os.environ, "K": "k"}, operations=names())
        return await run_job(
            job,
            options=RunOptions(wait=wait, limit=limit, retry=retry),
            clock=clock,
            transport=transport,
            listener=lambda event: self.events.append(dict(event)),
            watcher=watcher,
            dice=lambda: 0.0,
        )

    def table(self, *columns: str) -> list[dict[str, Any]]:
        """The rows of the parts, in order."""
        parts = sorted(self.layout.root.glob("part-*.parquet"))
        return [row for part in parts for row in pq.read_table(part, columns=list(columns) or None).to_pylist()]

    def submitted(self) -> list[Mapping[str, Any]]:
        """The batches that the simulator took."""
        return [note.details for note in read_notes(self.ledger) if note.what == "batch.created"]

    def answered(self) -> Counter[str]:
        """How often each row's line was answered with success, by the row's name in the ledger."""
        lines = (note.details for note in read_notes(self.ledger) if note.what == "line")
        return Counter(key for line in lines if line["status"] == 200 for key in line["keys"])

    def journal(self) -> JournalReader:
        """The journal, to be read."""
        return JournalReader(self.layout.journal)

    def under_way(self) -> int:
        """How many batches the journal knows."""
        with self.journal() as reader:
            return len(reader.batches())

    def assert_each_row_once(self) -> None:
        """Every row is in the parts, ok, in order, with its own cells, and was answered by the service exactly once."""
        rows = self.table("ordinal", "id", "text", "n", "status")
        assert [row["ordinal"] for row in rows] == list(range(self.rows))
        assert all(row["status"] == "ok" for row in rows)
        assert all((row["id"], row["text"], row["n"]) == (f"r{n}", text_of(n), n) for n, row in enumerate(rows))
        assert self.answered() == Counter(key_of(self.operation, n) for n in range(self.rows))
        assert self.under_way() == 0
        assert not list(self.layout.batches.glob("*"))
