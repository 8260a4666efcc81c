"""What a fault needs of the machine. What cannot be tried is skipped, and the fault report says so.

With CI set, a tool that could be installed and is not there is a failure: only rights that the machine does not give
are a reason to skip.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from chaos.report import record_skip

_ADMIN = 1 << 21  # CAP_SYS_ADMIN, of linux/capability.h


def need_tool(fault: str, tool: str) -> None:
    """Skip the test where the tool is not installed; fail it on CI."""
    if shutil.which(tool) is None:
        _skip(fault, f"{tool} is not installed", could_run=True)


def need_library(fault: str, name: str) -> Path:
    """The path of a shared library below /usr/lib; skips the test where it is not installed, fails it on CI."""
    found = sorted(Path("/usr/lib").glob(f"**/{name}"))
    if not found:
        _skip(fault, f"{name} is not installed", could_run=True)
    return found[0]


def need_mounts(fault: str, *, loop: bool = False) -> None:
    """Skip the test where file systems may not be mounted, or there is no loop device."""
    if not _effective() & _ADMIN:
        _skip(fault, "file systems may not be mounted here: it needs root with CAP_SYS_ADMIN", could_run=False)
    if loop and not Path("/dev/loop-control").exists():
        _skip(fault, "there is no loop device here", could_run=False)


def _effective() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _skip(fault: str, why: str, *, could_run: bool) -> None:
    if could_run and os.environ.get("CI"):
        pytest.fail(f"{fault}: {why}, and CI must not pass without it")
    record_skip(fault=fault, why=why)
    pytest.skip(f"{fault} is NOT TESTED: {why}")
