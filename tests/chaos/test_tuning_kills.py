"""SIGKILL before and after each call of a training: one model comes of it, and no second job is created."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import pytest
from killer import between, run_to_the_end
from tuning_scene import CHAT, TuningScene

KILLS = int(os.environ.get("PIPELINE_TUNING_KILLS", "24"))
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1_800)]


def test_whatever_is_killed_one_job_is_created_and_its_model_is_named(tmp_path: Path) -> None:
    place = TuningScene(folder=tmp_path, rows=80, request={**CHAT, "validation": "20%"}, offline={"running_s": 0.5})
    with place.served() as simulator, between(simulator.port, kills=KILLS) as (killer, url):
        place.url = url
        codes = run_to_the_end(killer, place.write_job(), tmp_path / "stderr.txt")
        assert place.asked("files")["data"] == []
    assert len(place.created()) == 1
    assert len([row for row in place.table("events.parquet") if row["type"] == "metrics"]) == 30
    assert len(killer.points) == codes.count(-signal.SIGKILL)
    assert len(killer.points) >= min(KILLS, 20)
    print(f"{len(killer.points)} kills at {Counter(f'{moment} {kind}' for kind, _, moment in killer.points)}")
