"""A recording of hours against a simulator that hears it: pieces, their times, and a SIGKILL in the middle.

`python benchmarks/recording.py 3` makes three hours of words as tones (about 60 MB an hour), kills the first run once
some pieces are answered, and runs again. The simulator's ledger says what was sent.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import wave
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.simulator.ledger import Answered, Arrived, read_ledger
from pipeline.simulator.serve import start
from pipeline.simulator.tones import encode_pieces, schedule

RATE = 8_000
WORKERS = 4
LIMIT_BYTES = 26_214_400
KILLED_AFTER = 6
TOLERANCE_S = 0.25
PLACES = ("quay", "mast", "tide", "hull", "rope", "sail", "keel", "oar")


def words_for(seconds: float) -> list[str]:
    """Words that last so long; no ten in a row come twice, and every twelfth ends a sentence."""

    def endless() -> Iterator[str]:
        for number in itertools.count():
            yield f"{PLACES[number % len(PLACES)]}{number}" + ("." if number % 12 == 11 else "")

    return [spoken.word for spoken in itertools.takewhile(lambda spoken: spoken.end_s < seconds, schedule(endless()))]


def answered(ledger: Path) -> int:
    """How many pieces the simulator has answered so far."""
    if not ledger.exists():
        return 0
    return sum(isinstance(line, Answered) and line.status == 200 for line in read_ledger(ledger))


def main() -> None:
    """Make it, run it, kill it, run it again, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hours", type=float, nargs="?", default=3.0)
    options = parser.parse_args()
    words = words_for(options.hours * 3600)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sound").mkdir()
        with wave.open(str(folder / "sound" / "long.wav"), "wb") as out:
            out.setparams((1, 2, RATE, 0, "NONE", ""))
            for piece in encode_pieces(words, RATE):
                out.writeframes(piece)
        size = (folder / "sound" / "long.wav").stat().st_size
        (folder / "rows.jsonl").write_text(json.dumps({"file": "long.wav"}) + "\n")
        ledger = folder / "ledger.jsonl"
        with start({"audio": "tones", "latency": {"median_ms": 500}}, ledger=ledger) as simulator:
            deployment = {"endpoint": simulator.url, "api": "azure", "api_version": "2025-04-01-preview", "key": "${K}"}
            job: dict[str, Any] = {
                "operation": "transcription",
                "input": {"path": "rows.jsonl", "media_root": "sound"},
                "request": {"file": "{{ file }}", "timestamp_granularities": ["word", "segment"]},
                "deployments": [deployment | {"deployment": "whisper", "model": "whisper-1"}],
                "output": {"path": "out"},
                "run": {"workers": WORKERS, "timeout": "600s"},
            }
            (folder / "job.json").write_text(json.dumps(job))
            command = [sys.executable, "-m", "pipeline", "run", str(folder / "job.json"), "--progress", "none"]
            began = time.monotonic()
            first = subprocess.Popen(command, env={**os.environ, "K": "k"}, stdout=subprocess.DEVNULL)
            while answered(ledger) < KILLED_AFTER and first.poll() is None:
                time.sleep(0.2)
            first.send_signal(signal.SIGKILL)
            first.wait()
            subprocess.run(command, env={**os.environ, "K": "k"}, stdout=subprocess.DEVNULL, check=True)
            wall = time.monotonic() - began
        arrived = Counter(line.keys for line in read_ledger(ledger) if isinstance(line, Arrived))
        (row,) = pq.read_table(next((folder / "out").glob("*.parquet"))).to_pylist()
    heard = row["words"]
    starts = [word["start_s"] for word in heard]
    truth = list(schedule(words))
    late = max(abs(word["start_s"] - spoken.start_s) for word, spoken in zip(heard, truth, strict=False))
    checks = {
        "text complete": row["output_text"].split() == words,
        "words complete": [word["word"].strip() for word in heard] == words,
        "words monotonic in time": starts == sorted(starts),
        f"every word within {TOLERANCE_S} s of its place": late < TOLERANCE_S,
        f"pieces sent again after SIGKILL at most {WORKERS}": sum(arrived.values()) - len(arrived) <= WORKERS,
    }
    print(
        f"{options.hours:g} hours, {size / 1e6:.0f} MB, {len(words)} words: {len(arrived)} pieces, "
        f"{sum(arrived.values())} requests, {sum(arrived.values()) - len(arrived)} sent again after SIGKILL, "
        f"words at most {late:.3f} s off, {wall:.0f} s"
    )
    for what, held in checks.items():
        print(f"  {'yes' if held else 'NO '}  {what}")
    sys.exit(0 if all(checks.values()) else 1)


if __name__ == "__main__":
    main()
