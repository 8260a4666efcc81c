"""What a process tree holds: memory, descriptors, connections."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

SAMPLED_EVERY_S = 0.05
CHILDREN_EVERY_S = 1.0
"""Seconds; to look for children costs more than to look at them."""


def start_run(
    job: Path, *, log: Path | None = None, environ: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start `pipeline run` with a key in its environment; `log` takes what it writes to stderr."""
    with (log or Path(os.devnull)).open("ab") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline", "run", str(job), "--progress", "none", "--json"],
            env={**os.environ, "AZURE_OPENAI_API_KEY": "0123456789abcdef", **(environ or {})},
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )


def peak_memory(process: subprocess.Popen[bytes], *, every_s: float = SAMPLED_EVERY_S) -> int:
    """Wait for a process to end; returns the most resident bytes that its tree held at once."""
    peak = 0

    def look(rss: int, _descriptors: int) -> None:
        nonlocal peak
        peak = max(peak, rss)

    watch(process, look, every_s=every_s)
    return peak


def watch(process: subprocess.Popen[bytes], look: Callable[[int, int], None], *, every_s: float) -> None:
    """Until a process ends, tell the resident bytes and the open descriptors of its tree."""
    root = psutil.Process(process.pid)
    tree, looked_at = [root], 0.0
    while process.poll() is None:
        try:
            if time.monotonic() - looked_at > CHILDREN_EVERY_S:
                tree, looked_at = [root, *root.children(recursive=True)], time.monotonic()
            look(sum(one.memory_info().rss for one in tree), sum(one.num_fds() for one in tree))
        except psutil.Error:
            looked_at = 0.0
        time.sleep(every_s)
