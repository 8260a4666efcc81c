"""Two runs on one deployment: how they share its quota, and how soon one takes over when the other is killed.

`python benchmarks/neighbours.py --seconds 60`: one run begins, the second after 15 s; both go on for so long; then
the first is killed. 600 requests a minute, judged in slices of 1 s by the simulator, whose ledger is the witness.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline.simulator.ledger import Answered, read_ledger
from pipeline.simulator.serve import start

PER_MINUTE = 600
ALONE_S = 15.0
SETTLED_S = 5.0
AFTER_S = 25.0
WINDOW_S = 5.0


def run(folder: Path, name: str, url: str) -> subprocess.Popen[bytes]:
    """Begin a run with an output folder of its own."""
    place = {"endpoint": url, "api": "azure", "deployment": "d", "model": "gpt-4o-mini", "key": "${K}"}
    job = {
        "operation": "chat",
        "input": {"path": "rows.jsonl"},
        "request": {"messages": [{"role": "user", "content": f"{name} {{{{ text }}}}"}], "max_tokens": 20},
        "deployments": [place | {"requests_per_minute": PER_MINUTE}],
        "output": {"path": name, "columns": "none", "raw": "none"},
    }
    file = folder / f"{name}.json"
    file.write_text(json.dumps(job))
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", "run", str(file), "--progress", "none"],
        env={**os.environ, "K": "k"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def main() -> None:
    """Run it and print what the ledger says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, ledger = Path(name), Path(name) / "ledger.jsonl"
        with (folder / "rows.jsonl").open("w") as file:
            for number in range(20_000):
                file.write(json.dumps({"text": f"row {number}"}) + "\n")
        config = {"deployments": {"d": {"requests_per_minute": PER_MINUTE}}, "latency": {"median_ms": 200}}
        with start(config, ledger=ledger) as simulator:
            first = run(folder, "first", simulator.url)
            time.sleep(ALONE_S)
            second = run(folder, "second", simulator.url)
            joined = time.time()
            time.sleep(SETTLED_S + options.seconds)
            first.send_signal(signal.SIGKILL)
            killed = time.time()
            time.sleep(AFTER_S)
            second.send_signal(signal.SIGTERM)  # SIGINT may be ignored by who was begun in the background
            for one in (first, second):
                one.wait()
        replies = [line for line in read_ledger(ledger) if isinstance(line, Answered)]
    together = [line for line in replies if joined + SETTLED_S <= line.t < killed]
    used = sum(line.status == 200 for line in together) / (PER_MINUTE / 60 * (killed - joined - SETTLED_S))
    refused = sum(line.status == 429 for line in together) / max(1, len(together))
    refused_joining = sum(line.status == 429 for line in replies if joined <= line.t < joined + SETTLED_S)
    moments = sorted(line.t for line in replies if line.status == 200 and line.t >= killed)
    taken_over = next(
        at - killed
        for at in moments
        if sum(at <= other < at + WINDOW_S for other in moments) >= 0.95 * WINDOW_S * PER_MINUTE / 60
    )
    print(
        f"together {used:.2%} of the quota, {refused:.2%} of calls answered 429 "
        f"({refused_joining} in the {SETTLED_S:g} s after the second began); "
        f"after the kill the other uses 95 % from {taken_over:.1f} s on"
    )
    sys.exit(0 if used >= 0.95 and refused < 0.005 and taken_over <= 10 else 1)


if __name__ == "__main__":
    main()
