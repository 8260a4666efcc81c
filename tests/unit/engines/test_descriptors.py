from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from in_memory import Bench

from pipeline.engines.descriptors import OWN, descriptors_needed, ensure_descriptors
from pipeline.job.spec import Job

IN_A_PROCESS = """
import resource, sys
from pipeline.engines.descriptors import ensure_descriptors
from pipeline.errors import JobFileError
from types import SimpleNamespace
resource.setrlimit(resource.RLIMIT_NOFILE, (900, 900))
try:
    ensure_descriptors(SimpleNamespace(file=sys.argv[1], run=SimpleNamespace(workers=1000), deployments=(1,)))
except JobFileError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.fixture(autouse=True)
def _limits() -> Iterator[None]:
    """Give the soft limit back."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def job(folder: Path, workers: int) -> Job:
    return Bench(folder=folder, changes={"run": {"workers": workers}}).texts("a").job()


def test_a_worker_needs_a_connection_to_each_deployment_and_a_file(tmp_path: Path) -> None:
    assert descriptors_needed(job(tmp_path, 10)) == OWN + 2 * 10


def test_a_soft_limit_that_is_too_low_is_raised_and_the_hard_one_left_alone(tmp_path: Path) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    ensure_descriptors(job(tmp_path, 96))
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (256, hard)
    ensure_descriptors(job(tmp_path, 97))
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (258, hard)


def test_a_hard_limit_that_is_too_low_is_an_error_that_names_the_number(tmp_path: Path) -> None:
    asked = job(tmp_path, 1_000)
    command = [sys.executable, "-c", IN_A_PROCESS, str(asked.file)]
    # A hard limit that was lowered stays low: it is done in a process of its own.
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert f"1000 workers need {OWN + 2_000} open files and connections, and this process may have 900" in done.stderr
    assert f"ulimit -n {OWN + 2_000}" in done.stderr
