"""A pytest plugin that notes how every test ended, for `run.py`: node id, phase and outcome as JSON, a line each."""

from __future__ import annotations

import json
import os
from pathlib import Path

import hypothesis
import pytest

# The first example that fails is enough: nobody reads the smallest one.
hypothesis.settings.register_profile(
    "mutants", phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate), database=None, derandomize=True
)
hypothesis.settings.load_profile("mutants")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note one phase of one test."""
    with Path(os.environ["MUTANTS_OUTCOMES"]).open("a") as file:
        file.write(json.dumps([report.nodeid, report.when, report.outcome]) + "\n")
