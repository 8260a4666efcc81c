"""A job with a budget over a service that keeps its own bill, and a process that is killed while it runs it."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
from in_memory import Bench

from pipeline.testing import MemoryTransport

PRICE = {"input": 100.0, "output": 2_000.0}
CAP = 500
DICE = random.Random(5)
LENGTHS = [min(CAP, round(DICE.lognormvariate(4, 1)) + 1) for _ in range(3_000)]
Spoil = Callable[[int, httpx.Response], httpx.Response | Exception]


class Biller(MemoryTransport):
    """Answers with as many tokens as the row says, and keeps what it bills; `spoil` makes of a reply what comes back.

    A prompt is billed for a token in four characters. What is spoilt after it was made was billed all the same.
    """

    def __init__(self, spoil: Spoil | None = None, *, latency_s: float = 0.0) -> None:
        super().__init__(self.answer, latency_s=latency_s)
        self.input = self.output = self.calls = 0
        self._spoil = spoil

    @property
    def dollars(self) -> float:
        return (self.input * PRICE["input"] + self.output * PRICE["output"]) / 1_000_000

    def answer(self, request: httpx.Request) -> httpx.Response | Exception:
        body = json.loads(request.content)
        text = body["messages"][-1]["content"]
        tokens = int(text.split()[0])
        self.calls += 1
        usage = {"prompt_tokens": len(text) // 4 + 7, "completion_tokens": tokens}
        choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
        reply = httpx.Response(200, json={"choices": [choice], "usage": {**usage, "total_tokens": sum(usage.values())}})
        said = reply if self._spoil is None else self._spoil(self.calls, reply)
        if not (isinstance(said, httpx.Response) and said.status_code == 429):
            self.input += usage["prompt_tokens"]
            self.output += usage["completion_tokens"]
        return said


class _Slow(MemoryTransport):
    """Bills a call when it comes in, and answers `after_s` later: when it is killed, all workers wait for answers."""

    after_s = 0.0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        reply = await super().handle_async_request(request)
        await anyio.sleep(self.after_s)
        return reply


def dollars_on(bill: Path) -> float:
    """What processes that were killed were billed, call by call."""
    return sum(map(float, bill.read_text().split()))


def _run_and_be_killed(folder: Path, most: float, last: int) -> None:
    """Run the job; each call is billed when it comes in, and the call `last` kills this process; 0: none does."""
    service = Biller()
    bill = os.open(folder / "bill", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def billed(request: httpx.Request) -> httpx.Response | Exception:
        before = service.dollars
        reply = service.answer(request)
        os.write(bill, f"{service.dollars - before!r}\n".encode())
        if service.calls == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return reply

    async def run() -> int | None:
        transport = _Slow(billed)
        transport.after_s = 0.1 if last else 0.0
        summary = await bench_of(folder, max_cost=most).run(transport)
        return summary.exit_code

    sys.exit(anyio.run(run))


def bench_of(tmp_path: Path, **run: Any) -> Bench:
    changes = {
        "request": {"messages": [{"role": "user", "content": "{{ text }}"}], "max_tokens": CAP},
        "run": {"workers": 8, **run},
        "output": {"part_rows": 500},
        "deployments": [
            {
                "endpoint": "https://x.openai.azure.com",
                "deployment": "d",
                "model": "unknown",
                "api": "azure",
                "price": PRICE,
            }
        ],
    }
    return Bench(folder=tmp_path, operation="chat", changes=changes).texts(
        *(f"{length} words about quay {n}" for n, length in enumerate(LENGTHS))
    )


if __name__ == "__main__":
    _run_and_be_killed(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
