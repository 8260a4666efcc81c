"""What grows with the rows: memory and cost at a million and at ten million, and the way back into a killed run.

    python benchmarks/size.py [--rows 1000000 10000000] [--input jsonl parquet] [--floats 32] [--json FILE]

Rows are embedded, 256 a request, as vectors of 32 floats, so that ten million fit the disk. The server stops answering
when less than a part is left, the run is then killed, and started again: the time from the start of the command to its
first request is what it took to find the place. Peak memory is that of the whole first invocation, sampled twenty times
a second.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from peers import Requests, machine

INPUTS = 256
WORKERS = 16
LEFT = 20_000
"""Rows that are not answered before the kill: more than are in flight, and less than a part."""
MARK = b" turns twice a day."
WRITTEN_AT_ONCE = 100_000
SAMPLED_EVERY_S = 0.05


class Server(Requests):
    """Answers with a vector for each text, until `most` are answered; notes when the first request came."""

    most = 0
    answered = 0
    vector = ""
    first_at: float | None = None

    def asked(self, head: bytes, request: bytearray) -> None:  # noqa: ARG002 - all requests are alike
        if Server.first_at is None:
            Server.first_at = time.monotonic()
        texts = request.count(MARK)
        if Server.answered + texts <= Server.most:
            Server.answered += texts
            self.answer(reply(texts))


def reply(texts: int) -> bytes:
    """The whole reply."""
    data = [{"object": "embedding", "index": index, "embedding": Server.vector} for index in range(texts)]
    usage = {"prompt_tokens": 12 * texts, "total_tokens": 12 * texts}
    body = json.dumps({"object": "list", "data": data, "model": "text-embedding-3-small", "usage": usage}).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body


def serving() -> int:
    """Serve from a thread, for as long as this process lives; returns the port."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(loop.create_server(Server, "127.0.0.1", 0, backlog=1024))
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return int(server.sockets[0].getsockname()[1])


def write_input(folder: Path, rows: int, form: str) -> str:
    """Write so many rows; returns the file's name."""
    path = folder / f"rows.{form}"
    schema = pa.schema([("id", pa.string()), ("text", pa.string())])
    jsonl = path.open("w") if form == "jsonl" else None
    parquet = pq.ParquetWriter(path, schema) if form == "parquet" else None
    for first in range(0, rows, WRITTEN_AT_ONCE):
        numbers = range(first, min(rows, first + WRITTEN_AT_ONCE))
        texts = [f"The tide at quay {number * 7919 % 100_003}{MARK.decode()}" for number in numbers]
        if jsonl is not None:
            lines = (f'{{"id": "r{number}", "text": "{text}"}}\n' for number, text in zip(numbers, texts, strict=True))
            jsonl.writelines(lines)
        if parquet is not None:
            parquet.write_table(pa.table([[f"r{number}" for number in numbers], texts], schema=schema))
    for file in (jsonl, parquet):
        if file is not None:
            file.close()
    return path.name


def measure(port: int, rows: int, form: str, floats: int) -> dict[str, Any]:
    """Run, kill, run again; what was seen."""
    Server.vector = base64.b64encode(struct.pack(f"<{floats}f", *(1 / (n + 1) for n in range(floats)))).decode()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        deployment = {"endpoint": f"http://127.0.0.1:{port}", "api": "openai", "deployment": "d", "key": "${K}"}
        limits = {"requests_per_minute": 10_000_000, "tokens_per_minute": 10_000_000_000}
        job = {
            "operation": "embeddings",
            "input": {"path": write_input(folder, rows, form), "id": "id"},
            "request": {"input": "{{ text }}", "dimensions": floats},
            "deployments": [deployment | limits | {"model": "text-embedding-3-small", "max_inputs": INPUTS}],
            "run": {"workers": WORKERS},
            "output": {"path": "out"},
        }
        (folder / "job.json").write_text(json.dumps(job))
        Server.most, Server.answered, Server.first_at = rows - LEFT, 0, None
        began = time.monotonic()
        process = start(folder)
        peak, cpu_s = watch(process)
        took_s = time.monotonic() - began
        process.send_signal(signal.SIGKILL)
        process.wait()
        answered = Server.answered
        Server.most, Server.first_at = 2 * rows, None
        began = time.monotonic()
        process = start(folder)
        code = process.wait()
        assert Server.first_at is not None  # noqa: S101 - rows were left
        summary = json.loads((folder / "out" / "_pipeline" / "summary.json").read_text())
        if code or summary["rows"]["ok"] != rows:
            raise SystemExit(f"exit {code}, {summary['rows']}")
        return {
            "rows": rows,
            "input": form,
            "floats": floats,
            "rows_per_second": round(answered / took_s),
            "cpu_us_per_row": round(cpu_s / answered * 1e6, 1),
            "peak_mb": round(peak / 1e6, 1),
            "first_request_again_s": round(Server.first_at - began, 2),
            "sent_again": Server.answered - rows,
            "parts_bytes": sum(part.stat().st_size for part in (folder / "out").glob("*.parquet")),
        }


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Start the run of a folder's job."""
    command = [sys.executable, "-m", "pipeline", "run", "job.json", "--progress", "none", "--log-level", "error"]
    return subprocess.Popen(command, cwd=folder, env={**os.environ, "K": "k"}, stdout=subprocess.DEVNULL)


def watch(process: subprocess.Popen[bytes]) -> tuple[int, float]:
    """Wait until nothing is answered any more; returns the peak resident bytes of the tree, and its CPU seconds."""
    root = psutil.Process(process.pid)
    peak, cpu_s, answered, at = 0, 0.0, 0, time.monotonic()
    while time.monotonic() - at < 5:  # seconds without an answer
        tree = [root, *root.children(recursive=True)]
        peak = max(peak, sum(one.memory_info().rss for one in tree))
        cpu_s = sum(sum(one.cpu_times()[:2]) for one in tree)
        if Server.answered != answered or not answered:
            answered, at = Server.answered, time.monotonic()
        if process.poll() is not None:
            raise SystemExit(f"the run ended by itself, with {process.returncode}")
        time.sleep(SAMPLED_EVERY_S)
    return peak, cpu_s


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--input", choices=["jsonl", "parquet"], nargs="+", default=["jsonl", "parquet"])
    parser.add_argument("--floats", type=int, default=32)
    parser.add_argument("--json")
    options = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(), "figures": []}
    print(json.dumps(found["machine"]))
    port = serving()
    for form in options.input:
        for rows in options.rows:
            found["figures"].append(measure(port, rows, form, options.floats))
            print(json.dumps(found["figures"][-1]), flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
