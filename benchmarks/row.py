"""What Python itself costs a row: CPU of each thread, over a transport that answers at once, without a network.

    python benchmarks/row.py [--operation chat] [--rows 20000] [--workers 100] [--rounds 3] [--deployments 1]
                             [--profile] [--json FILE]

Embeddings are asked for by 16 a request, and have 1,536 floats, as base64.
`--profile` prints where the main thread's time goes, by cProfile, which makes small functions look dearer than they
are. Two revisions are compared by interleaving rounds of both: PYTHONPATH says which package is measured.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import cProfile
import gc
import json
import os
import platform
import pstats
import resource
import statistics
import struct
import tempfile
import threading
import time
from pathlib import Path

import httpx
import uvloop

from pipeline import operations
from pipeline.job.load import load_job
from pipeline.memory import collect_seldom
from pipeline.run import run_job
from pipeline.service.wire import Whole

ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": "The tide turns twice a day. " * 18},
            }
        ],
        "usage": {"prompt_tokens": 60, "completion_tokens": 130, "total_tokens": 190},
    }
).encode()
INPUTS, FLOATS = 16, 1536
MARK = b" speaks of the tide at quay "
REPEATED = 12
HEADERS = [
    (b"content-type", b"application/json"),
    (b"x-request-id", b"12345678-1234-1234-1234-123456789012"),
    (b"apim-request-id", b"12345678-1234-1234-1234-123456789012"),
    (b"x-ms-region", b"East US 2"),
    (b"x-ratelimit-limit-requests", b"100000000"),
    (b"x-ratelimit-remaining-requests", b"99999999"),
    (b"x-ratelimit-limit-tokens", b"10000000000"),
]
SAMPLED_EVERY = 50


def vectors(count: int) -> bytes:
    """An answer of so many vectors."""
    text = base64.b64encode(struct.pack(f"<{FLOATS}f", *(1 / (n + 1) for n in range(FLOATS)))).decode()
    data = [{"object": "embedding", "index": index, "embedding": text} for index in range(count)]
    usage = {"prompt_tokens": 150 * count, "total_tokens": 150 * count}
    return json.dumps({"object": "list", "data": data, "model": "text-embedding-3-small", "usage": usage}).encode()


class Instant(httpx.AsyncBaseTransport):
    """Answers every request at once, and notes from time to time what CPU each thread has used."""

    def __init__(self, operation: str) -> None:
        self.used_s: dict[str, float] = {}
        self._asked = 0
        self._answers = {} if operation == "chat" else {count: vectors(count) for count in range(1, INPUTS + 1)}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._asked += 1
        if self._asked % SAMPLED_EVERY == 0:
            for thread in threading.enumerate():
                if thread.ident is not None:
                    self.used_s[thread.name] = time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
        answer = ANSWER
        if self._answers:
            answer = self._answers[(await request.aread()).count(MARK) // REPEATED]
        length = (b"content-length", str(len(answer)).encode())
        return httpx.Response(200, headers=[*HEADERS, length], stream=Whole(answer), request=request)


REQUESTS = {
    "chat": {"messages": [{"role": "user", "content": "{{ text }}"}], "max_tokens": 200},
    "embeddings": {"input": "{{ text }}"},
}
MODELS = {"chat": "gpt-4o-mini", "embeddings": "text-embedding-3-small"}


def write_job(folder: Path, operation: str, rows: int, workers: int, deployments: int = 1) -> Path:
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(rows):
            text = f"Row {number} speaks of the tide at quay {number * 7919 % 100_003}. " * REPEATED
            file.write(json.dumps({"id": f"r{number}", "text": text}) + "\n")
    job = {
        "operation": operation,
        "input": {"path": "rows.jsonl", "id": "id"},
        "request": REQUESTS[operation],
        "deployments": [
            {
                "name": f"d{number}",
                "endpoint": f"http://127.0.0.1:{number + 1}",
                "api": "azure",
                "deployment": "d",
                "key": "${K}",
                "model": MODELS[operation],
                "max_inputs": INPUTS,
            }
            for number in range(deployments)
        ],
        "run": {"workers": workers},
        "output": {"path": "out"},
    }
    path = folder / "job.yaml"
    path.write_text(json.dumps(job))
    return path


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measure(
    operation: str, rows: int, workers: int, deployments: int = 1, *, profiled: bool = False
) -> dict[str, float]:
    """CPU µs a row of the whole process, of the main thread, of the journal's writer, and of all others."""
    with tempfile.TemporaryDirectory() as name:
        file = write_job(Path(name), operation, rows, workers, deployments)
        job = load_job(file, environ={"K": "k"}, operations=operations.names())
        transport = Instant(operation)
        gc.collect()
        before, main_before, began = cpu_s(), time.thread_time(), time.perf_counter()
        with cProfile.Profile() if profiled else contextlib.nullcontext() as profile:
            summary = uvloop.run(run_job(job, transport=transport))
        total, main_s = cpu_s() - before, time.thread_time() - main_before
        if summary.rows.ok != rows:
            raise SystemExit(f"{summary.rows.ok} of {rows} rows are ok: {summary.reason}")
        if profile is not None:
            pstats.Stats(profile).sort_stats("tottime").print_stats(45)
    journal_s = transport.used_s["journal"]
    return {
        "process": total / rows * 1e6,
        "main": main_s / rows * 1e6,
        "journal": journal_s / rows * 1e6,
        "others": (total - main_s - journal_s) / rows * 1e6,
        "rows_per_second": rows / (time.perf_counter() - began),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operation", choices=sorted(REQUESTS), default="chat")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--deployments", type=int, default=1)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json")
    options = parser.parse_args()
    measure(options.operation, 1_000, options.workers, options.deployments)
    collect_seldom()  # as the command does
    rounds = [
        measure(options.operation, options.rows, options.workers, options.deployments, profiled=options.profile)
        for _ in range(1 if options.profile else options.rounds)
    ]
    medians = {name: round(statistics.median(found[name] for found in rounds), 1) for name in rounds[0]}
    load = f"load {os.getloadavg()[0]:.1f}"
    machine = f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores, {load}"
    print(machine)
    print(", ".join(f"{name} {figure}" for name, figure in medians.items()), "(CPU µs a row; medians)")
    if options.json:
        Path(options.json).write_text(json.dumps({"machine": machine, "rounds": rounds, "medians": medians}, indent=1))


if __name__ == "__main__":
    main()
