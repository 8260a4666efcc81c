"""In which order a file comes to its name: the system calls themselves, as strace sees them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PUBLISH = """
import sys
from pathlib import Path
from pipeline.store.files import publish
folder = Path(sys.argv[1])
(folder / "a.tmp").write_bytes(b"whole")
publish(folder / "a.tmp", folder / "a")
"""
CALL = re.compile(r"(fsync|rename)[a-z0-9]*\((.*)\) += 0")


@pytest.mark.chaos
@pytest.mark.skipif(
    shutil.which("strace") is None and not os.environ.get("CI"),
    reason="strace is not installed: the order of fsync and rename is NOT TESTED",
)
def test_a_file_is_flushed_before_it_has_its_name_and_its_name_after_that(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    trace = tmp_path / "trace"
    strace = ["strace", "-f", "-y", "-e", "trace=fsync,fdatasync,/^rename", "-o", str(trace)]
    subprocess.run([*strace, sys.executable, "-c", PUBLISH, str(folder)], check=True)
    calls = [(found[1], found[2]) for found in map(CALL.search, trace.read_text().splitlines()) if found]
    ours = [(name, said) for name, said in calls if str(folder) in said]
    assert [name for name, _ in ours] == ["fsync", "rename", "fsync"]
    content, _, names = (said for _, said in ours)
    assert content.endswith(f"<{folder}/a.tmp>")
    assert names.endswith(f"<{folder}>")
    assert (folder / "a").read_bytes() == b"whole"
