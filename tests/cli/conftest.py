"""A job, and a simulator to ask."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from forked import start_simulator

from pipeline.simulator.serve import SimulatorProcess
from tests.cli.bench import JOB, KEY, Bench, Serve


@pytest.fixture(scope="session")
def served() -> Iterator[Serve]:
    """Simulators by their configuration, each started once."""
    running: dict[str, SimulatorProcess] = {}

    def get(config: Mapping[str, Any]) -> SimulatorProcess:
        name = json.dumps(config, sort_keys=True)
        if name not in running:
            running[name] = start_simulator({"keys": [KEY], "vectors": "hash", **config})
        return running[name]

    yield get
    for process in running.values():
        process.stop()


@pytest.fixture
def simulator(served: Serve) -> SimulatorProcess:
    """One that answers at once and refuses what holds the word `poison`."""
    return served({"poison": [{"contains": "poison", "status": 400, "code": "content_filter"}]})


@pytest.fixture
def bench(tmp_path: Path, simulator: SimulatorProcess) -> Bench:
    """Twelve rows to ask the simulator."""
    bench = Bench(
        folder=tmp_path,
        environ={"TEST_ENDPOINT": simulator.url, "TEST_KEY": KEY, "NO_COLOR": "1"},
    )
    bench.write(JOB)
    bench.rows([f"question {number}?" for number in range(12)])
    return bench
