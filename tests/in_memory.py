"""A service in memory and a job that asks it: the whole story without sockets, for tests of what comes of it."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pybase64

from pipeline import operations
from pipeline.engines.again import Retry
from pipeline.job.load import load_job
from pipeline.job.spec import Job
from pipeline.run import RunOptions, run_job
from pipeline.store.folder import Layout
from pipeline.store.journal import JournalReader
from pipeline.store.summary import Summary
from pipeline.testing import MemoryTransport

SIZE = 4
Said = httpx.Response | Exception | None
Judge = Callable[[list[str], int], Said]


def vector_of(text: str, size: int = SIZE) -> list[float]:
    """The vector of a text: no two texts share one."""
    return [float(byte) for byte in hashlib.shake_128(text.encode()).digest(size)]


def answer_of(text: str) -> str:
    """What chat answers to a text."""
    return f"answer to {text}"


def refusal(
    status: int, code: str = "bad", message: str = "no", headers: Mapping[str, str] | None = None
) -> httpx.Response:
    """A reply with an error body."""
    return httpx.Response(status, headers=headers, json={"error": {"code": code, "message": message}})


class Service(MemoryTransport):
    """Answers embeddings and chat by a function of the text.

    `judge` is asked first, with the texts of a call and the number of calls so far; it may answer otherwise.
    `calls` keeps the texts of every call.
    """

    def __init__(
        self, judge: Judge | None = None, *, size: Callable[[int], int] = lambda _: SIZE, latency_s: float = 0.0
    ) -> None:
        super().__init__(self._answer, latency_s=latency_s)
        self.calls: list[list[str]] = []
        self._judge = judge
        self._size = size

    def _answer(self, request: httpx.Request) -> httpx.Response | Exception:
        body = json.loads(request.content)
        texts = body["input"] if "input" in body else [body["messages"][-1]["content"]]
        self.calls.append(texts)
        said = self._judge(texts, len(self.calls)) if self._judge is not None else None
        if said is not None:
            return said
        headers = {"x-request-id": f"request-{len(self.calls)}", "x-ms-region": "Here"}
        usage = {"prompt_tokens": sum(map(len, texts)), "total_tokens": sum(map(len, texts))}
        if "input" not in body:
            message = {"role": "assistant", "content": answer_of(texts[0])}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            return httpx.Response(200, headers=headers, content=orjson.dumps({"choices": [choice], "usage": usage}))
        size = self._size(len(self.calls))
        data = [
            {"index": n, "embedding": pybase64.b64encode(struct.pack(f"<{size}f", *vector_of(text, size))).decode()}
            for n, text in enumerate(texts)
        ]
        return httpx.Response(200, headers=headers, content=orjson.dumps({"data": data, "usage": usage}))


@dataclass(slots=True, kw_only=True)
class Bench:
    """A job in a folder of its own. `request` and `model` leave the vector size known unless told otherwise."""

    folder: Path
    operation: str = "embeddings"
    max_inputs: int = 4
    rows: list[dict[str, Any]] = field(default_factory=list)
    changes: dict[str, Any] = field(default_factory=dict)
    events: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def layout(self) -> Layout:
        return Layout(self.out)

    def texts(self, *texts: str) -> Bench:
        """Make the input of these texts, with an id and a number beside each."""
        self.rows = [{"id": f"r{n}", "text": text, "n": n} for n, text in enumerate(texts)]
        return self

    def job(self) -> Job:
        """Write input and job file, and load the job. `changes` hold sections that are merged into the usual ones."""
        (self.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        request: dict[str, Any] = {"input": "{{ text }}", "dimensions": SIZE}
        if self.operation == "chat":
            request = {"messages": [{"role": "user", "content": "{{ text }}"}]}
        deployment = {"endpoint": "https://x.openai.azure.com", "deployment": "d", "model": "unknown", "api": "azure"}
        job: dict[str, Any] = {
            "operation": self.operation,
            "input": {"path": "rows.jsonl", "id": "id"},
            "request": request,
            "deployments": [{**deployment, "max_inputs": self.max_inputs}],
            "output": {"path": "out", "part_rows": 10},
            "run": {"workers": 4, "grace": "0s"},
        }
        for name, change in self.changes.items():
            merges = isinstance(change, Mapping) and name != "request"
            job[name] = {**job[name], **change} if merges else change
        file = self.folder / "job.json"
        file.write_text(json.dumps(job))
        return load_job(
            file,
            environ={"AZURE_OPENAI_API_KEY": "k" * 32, "AZURE_OPENAI_AD_TOKEN": "t" * 32},
            operations=operations.names(),
        )

    async def run(
        self,
        service: httpx.AsyncBaseTransport,
        *,
        limit: int | None = None,
        fresh: bool = False,
        repair: bool = False,
        retry: Retry | None = None,
    ) -> Summary:
        """Run, or continue, with no chance in back-offs."""
        return await run_job(
            self.job(),
            options=RunOptions(limit=limit, fresh=fresh, repair=repair, retry=retry),
            dice=lambda: 0.0,
            transport=service,
            listener=self.events.append,
        )

    def parts(self) -> list[Path]:
        return sorted(self.out.glob("part-*.parquet"))

    def table(self) -> list[dict[str, Any]]:
        """Every row of every part, in the order of names."""
        rows: list[dict[str, Any]] = []
        for path in self.parts():
            rows += pq.read_table(path).to_pylist()
        return rows

    def schemas(self) -> list[pa.Schema]:
        return [pq.read_schema(path) for path in self.parts()]

    def failed(self) -> dict[int, tuple[str, str]]:
        """Type and code of the failed rows that are in parts."""
        return {
            row["ordinal"]: (row["error"]["type"], row["error"]["code"])
            for row in self.table()
            if row["status"] == "failed"
        }

    def journal(self) -> JournalReader:
        return JournalReader(self.layout.journal)

    def attempts(self) -> list[dict[str, Any]]:
        """Every attempt in the files of attempts."""
        rows: list[dict[str, Any]] = []
        for path in sorted(self.layout.attempts.glob("*.parquet")):
            rows += pq.read_table(path).to_pylist()
        return rows

    def assert_rows(self, ordinals: Iterable[int]) -> None:
        """The parts hold these ordinals, each once and in order, with their own cells and their own answers."""
        table = self.table()
        assert [row["ordinal"] for row in table] == list(ordinals)
        for row in table:
            given = self.rows[row["ordinal"]]
            assert {name: row[name] for name in given} == given
            assert (row["status"] == "ok") == (row["error"] is None)
            expected: Any = None
            if row["status"] == "ok":
                expected = answer_of(given["text"]) if self.operation == "chat" else vector_of(given["text"])
            assert row["output_text" if self.operation == "chat" else "embedding"] == expected
        for path in self.parts():
            first, last = (int(number) for number in path.stem.split("-")[1:])
            assert pq.read_table(path).column("ordinal").to_pylist() == list(range(first, last + 1))
