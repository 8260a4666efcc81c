"""F1: SIGKILL at random times. No row is lost, none doubled, and at most a request a worker is sent again."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from statistics import fmean

import pytest
from chaos.counts import SEED, count
from chaos.forked import Forked
from chaos.harness import (
    OPAQUE,
    WORKERS,
    Scene,
    arrivals,
    assert_whole,
    calls_by_row,
    harm,
    kill_while_in_flight,
    read_parts,
    resent_after,
)
from chaos.kinds import KINDS, PIECES, SPLIT, Kind
from chaos.report import record
from forked import start_simulator

from pipeline.store.verify import verify_folder

IN_MAKE_TEST = ("chat", "embeddings")
TRULY_STARTED = 10
"""One in so many runs is the installed command, with its imports; the others are forked."""
LATENCY_MS = 60
ROWS_A_KILL = 50
TEXTS_A_KILL = 600


def _operations() -> list[object]:
    """Every operation: two of them in `make test`, the others beside it."""
    return [
        pytest.param(operation, marks=() if operation in IN_MAKE_TEST else pytest.mark.chaos) for operation in KINDS
    ]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("operation", _operations())
def test_sigkill_at_random_times_loses_nothing_and_resends_at_most_a_request_a_worker(
    tmp_path: Path, operation: str
) -> None:
    wanted = count(quick=40 if operation in IN_MAKE_TEST else 8, full=63)
    rows = wanted * (TEXTS_A_KILL if operation == "embeddings" else ROWS_A_KILL)
    dice = random.Random(SEED)
    ledger = tmp_path / "ledger.jsonl"
    config = {**OPAQUE, "latency": {"median_ms": LATENCY_MS, "sigma": 0.4}, "seed": SEED}
    with start_simulator(config, ledger=ledger) as simulator:
        scene = Scene(folder=tmp_path, operation=operation, rows=rows, simulator=simulator, ledger=ledger)
        forked = Forked()
        kills = []
        while sum(kill.in_flight > 0 for kill in kills) < wanted:
            scene.forked = None if len(kills) % TRULY_STARTED == 0 else forked
            kill = kill_while_in_flight(scene, dice, within_s=(0.0, 0.25))
            assert kill is not None, f"the run ended after {len(kills)} kills: give it more rows\n{scene.said()}"
            kills.append(kill)
        assert scene.finish() == 0, scene.said()
    resent = resent_after(scene)
    found = harm(scene)
    record(
        fault="F1",
        what=operation,
        tried=len(kills),
        lost=found.lost,
        doubled=found.doubled,
        resent_max=max(resent),
        recover_s_max=max(kill.first_s for kill in kills),
        notes=f"re-sent a kill {fmean(resent):.1f} of {WORKERS} workers on average; {rows:,} rows; seed {SEED}",
    )
    print(f"\n{operation}: {len(kills)} kills, seed {SEED}; requests sent again a kill: {sorted(resent)}")
    assert_whole(scene)
    assert max(resent) <= WORKERS
    assert set(calls_by_row(scene)) == set(range(rows))


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("operation", "asking", "columns"),
    [
        pytest.param("transcription", PIECES, ("ordinal", "output_text", "segments"), id="recordings"),
        pytest.param("embeddings", SPLIT, ("ordinal", "chunk", "embedding"), id="texts"),
    ],
)
def test_sigkill_costs_rows_in_pieces_at_most_a_piece_a_worker_and_changes_no_result(
    tmp_path: Path, operation: str, asking: Kind, columns: tuple[str, ...]
) -> None:
    wanted = count(quick=4, full=30)
    rows = wanted * 8
    dice = random.Random(SEED)
    forked = Forked()
    config = {**OPAQUE, "latency": {"median_ms": 150, "sigma": 0.4}}
    results, asked = [], []
    for name in ("whole", "killed"):
        ledger = tmp_path / f"{name}.jsonl"
        (tmp_path / name).mkdir()
        with start_simulator(OPAQUE if name == "whole" else config, ledger=ledger) as simulator:
            scene = Scene(
                folder=tmp_path / name,
                operation=operation,
                rows=rows,
                simulator=simulator,
                ledger=ledger,
                part_rows=20,
                pack=2,
                asking=asking,
                forked=forked,
            )
            kills = []
            while name == "killed" and len(kills) < wanted:
                kill = kill_while_in_flight(scene, dice, within_s=(0.0, 0.4))
                assert kill is not None, f"the run ended after {len(kills)} kills: give it more rows\n{scene.said()}"
                kills.append(kill)
            assert scene.finish() == 0, scene.said()
        results.append(read_parts(scene.out).select(columns).to_pylist())
        asked.append({key for call in arrivals(ledger) for key in call.keys})
    resent = resent_after(scene)
    counted = [Counter(json.dumps(row) for row in table) for table in results]
    record(
        fault="F1",
        what=f"{operation} in pieces",
        tried=len(kills),
        lost=(counted[0] - counted[1]).total(),
        doubled=(counted[1] - counted[0]).total(),
        resent_max=max(resent),
        recover_s_max=max(kill.first_s for kill in kills),
        notes=f"re-sent a kill {fmean(resent):.1f} of {WORKERS} workers on average; {len(asked[0])} asked; seed {SEED}",
    )
    assert results[0] == results[1]
    assert len(asked[0]) > 1.5 * rows
    assert asked[0] == asked[1]
    assert max(resent) <= WORKERS
    assert verify_folder(scene.layout).findings == ()
