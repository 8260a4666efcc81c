"""F1: SIGKILL at random times. No row is lost, none doubled, and at most a request a worker is sent again."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from chaos.harness import WORKERS, Scene, assert_whole, calls_by_row, kill_while_in_flight, resent_after

from pipeline.simulator.serve import start

KILLS = int(os.environ.get("PIPELINE_KILLS", "40"))
SEED = int(os.environ.get("PIPELINE_SEED", "20"))


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("operation", "rows", "latency_ms"), [("chat", 2_000, 60), ("embeddings", 24_000, 80)])
def test_sigkill_at_random_times_loses_nothing_and_resends_at_most_a_request_a_worker(
    tmp_path: Path, operation: str, rows: int, latency_ms: float
) -> None:
    dice = random.Random(SEED)
    ledger = tmp_path / "ledger.jsonl"
    config = {"latency": {"median_ms": latency_ms, "sigma": 0.4}, "vectors": "hash", "seed": SEED}
    with start(config, ledger=ledger) as simulator:
        scene = Scene(folder=tmp_path, operation=operation, rows=rows, simulator=simulator, ledger=ledger)
        kills = []
        while sum(kill.in_flight > 0 for kill in kills) < KILLS:
            kill = kill_while_in_flight(scene, dice, within_s=(0.0, 0.25))
            assert kill is not None, f"the run ended after {len(kills)} kills: give it more rows\n{scene.said()}"
            kills.append(kill)
        assert scene.finish() == 0, scene.said()
        assert_whole(scene)
        resent = resent_after(scene, kills)
        asked = calls_by_row(scene)
    print(
        f"\n{operation}: {len(kills)} kills, {KILLS} of them with requests in flight, seed {SEED}; "
        f"requests sent again a kill: {sorted(resent)} of {WORKERS} workers"
    )
    assert max(resent) <= WORKERS
    assert set(asked) == set(range(rows))
