"""What `run.processes` is worth: one run, sent by 1, 2, … processes, against a server on the same machine.

    python benchmarks/processes.py [--processes 1 2] [--rows 20000] [--workers 200] [--rounds 3] [--json FILE]

Rounds are interleaved, medians are given. Rows a second are those of the run, from its first row; the whole command,
with its start and its report, is beside them. CPU is that of all its processes, per row. The server needs a core, too.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peers import INPUTS, machine, serving


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--operation", choices=["chat", "embeddings"], nargs="+", default=["chat", "embeddings"])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--latency-ms", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    options = parser.parse_args()
    os.environ["BENCHMARK_CORES"] = f"0,{(os.cpu_count() or 1) - 1}"  # the server has the last one
    found: dict[str, Any] = {"machine": machine(), "rows": options.rows, "workers": options.workers, "figures": []}
    print(json.dumps(found["machine"]))
    for operation in options.operation:
        runs: dict[int, list[dict[str, float]]] = {count: [] for count in options.processes}
        with serving(options.latency_ms) as base:
            for _ in range(options.rounds):
                for count, told in runs.items():
                    told.append(run(base, operation, count, options))
        for count, told in runs.items():
            figures = {name: round(statistics.median(one[name] for one in told), 1) for name in told[0]}
            found["figures"].append({"operation": operation, "processes": count, **figures})
            print(json.dumps(found["figures"][-1]), flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1))


def run(base: str, operation: str, processes: int, options: argparse.Namespace) -> dict[str, float]:
    """Run the command once; rows a second of the run and of the command, and CPU µs a row."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "rows.jsonl").open("w") as file:
            file.writelines(f'{{"text": "the text of row {number}"}}\n' for number in range(options.rows))
        request: dict[str, Any] = {"messages": [{"role": "user", "content": "{{ text }}"}], "max_tokens": 200}
        deployment: dict[str, Any] = {"model": "gpt-4o-mini"}
        if operation == "embeddings":
            request = {"input": "{{ text }}"}
            deployment = {"model": "text-embedding-3-small", "max_inputs": INPUTS}
        deployment |= {"endpoint": base, "api": "openai", "deployment": "d", "key": "${K}"}
        deployment |= {"requests_per_minute": 10_000_000, "tokens_per_minute": 10_000_000_000}
        job = {
            "operation": operation,
            "input": {"path": "rows.jsonl"},
            "request": request,
            "deployments": [deployment],
            "run": {"workers": options.workers, "processes": processes},
            "output": {"path": "out"},
        }
        (folder / "job.yaml").write_text(json.dumps(job))
        command = [sys.executable, "-m", "pipeline", "run", "job.yaml", "--progress", "none", "--log-level", "error"]
        began, used = time.perf_counter(), _cpu_s()
        subprocess.run(command, cwd=folder, env={**os.environ, "K": "k"}, stdout=subprocess.DEVNULL, check=True)
        took_s, cpu_s = time.perf_counter() - began, _cpu_s() - used
        summary = json.loads((folder / "out" / "_pipeline" / "summary.json").read_text())
        if summary["rows"]["ok"] != options.rows:
            raise SystemExit(f"not every row is ok: {summary['rows']}")
        return {
            "rows_per_second": summary["rows_per_second"],
            "rows_per_second_of_the_command": options.rows / took_s,
            "cpu_us_per_row": cpu_s / options.rows * 1e6,
        }


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
