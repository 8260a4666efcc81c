"""The cookbook's page of results, with pandas, polars and LanceDB, run on what the cookbook's first job writes.

`results.py write FOLDER` runs that job against the simulator, `results.py read FOLDER` the page's Python, each block,
in an environment that has those packages and needs nothing of ours.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
COOKBOOK = ROOT / "docs" / "cookbook"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str) -> list[str]:
    """The blocks of a page in a language."""
    return [text for kind, text in _BLOCK.findall((COOKBOOK / page).read_text()) if kind == language]


def write(folder: Path) -> None:
    """Run the job."""
    import anyio  # noqa: PLC0415 - who reads needs neither

    from pipeline import load_job, run_job, simulated  # noqa: PLC0415

    shutil.copytree(ROOT / "sample_data", folder / "sample_data")
    (folder / "jobs").mkdir()
    (folder / "jobs" / "corpus.yaml").write_text(blocks("embed-a-corpus.md", "yaml")[0])
    with simulated(load_job(folder / "jobs" / "corpus.yaml", simulate=True), speed=600) as job:
        summary = anyio.run(run_job, job)
    assert summary.exit_code == 0, summary.reason
    (folder / "out" / "corpus.simulated").rename(folder / "out" / "corpus")


def read(folder: Path) -> None:
    """Run the page's Python as it stands."""
    os.chdir(folder)
    for block in blocks("results.md", "python"):
        exec(compile(block, "results.md", "exec"), {})  # noqa: S102 - our own documentation


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](Path(sys.argv[2]))
