"""Repairs copies of a folder, and dies in each of them one step later: `python crashing_repair.py FOLDER JOB OUT`.

A step is whatever Python tells its audit hooks of a change to files. Copies are left as `OUT/0`, `OUT/1` and so on, up
to the first one in which the repair came to its end.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.compute
import pyarrow.parquet  # noqa: F401

from pipeline.store.folder import Layout
from pipeline.store.repair import repair_folder

NOW = datetime(2026, 1, 1, tzinfo=UTC)
STEPS = frozenset({"os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "sqlite3.connect"})
DIED = 9


def is_step(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether an event changes files; an `open` does where it may write."""
    return event in STEPS or (event == "open" and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR)))


def repair_and_die(layout: Layout, job: dict[str, Any], *, step: int) -> None:
    """In a process of its own: repair, and end without a word before a step."""
    left = step

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if is_step(event, arguments):
            left -= 1
            if left < 0:
                os._exit(DIED)

    sys.addaudithook(count)
    repair_folder(layout, job=job, now=NOW)
    os._exit(0)


def main() -> None:
    """Die at every step, one copy each."""
    pristine, job, out = Path(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
    step = 0
    while True:
        copy = out / str(step)
        shutil.copytree(pristine, copy)
        child = os.fork()
        if not child:
            try:
                repair_and_die(Layout(copy), job, step=step)
            finally:
                os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code != DIED:
            sys.exit(code)
        step += 1


if __name__ == "__main__":
    main()
