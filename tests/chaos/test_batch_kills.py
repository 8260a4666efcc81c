"""F24: SIGKILL before and after each call of the batch lane: no batch is submitted twice, no result stays unread."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import pytest
from batch_scene import BatchScene
from chaos.counts import count
from chaos.report import record
from killer import between, run_to_the_end

KILLS = int(os.environ.get("PIPELINE_BATCH_KILLS", count(quick=24, full=150)))
EACH = max(4, KILLS // 15)
"""How many calls of a kind are tried."""
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1_800)]


def test_no_batch_is_submitted_twice_and_no_result_stays_unread(tmp_path: Path) -> None:
    offline = {"in_progress_s": 0.05, "ends": ["completed", "expired", "completed", "cancelled"], "done_share": 0.5}
    place = BatchScene(
        folder=tmp_path, rows=40 * EACH, deployment={"enqueued_tokens": 800}, simulator={"offline": offline}
    )
    with place.served() as simulator, between(simulator.port, kills=KILLS, each=EACH) as (killer, url):
        place.url = url
        codes = run_to_the_end(killer, place.write_job(), tmp_path / "stderr.txt")
    place.assert_each_row_once()
    assert len(killer.points) == codes.count(-signal.SIGKILL)
    assert len(killer.points) >= min(KILLS, 100)
    record(
        fault="F24",
        what="SIGKILL before and after each call of the batch lane",
        tried=len(killer.points),
        notes=f"{len({(kind, moment) for kind, _, moment in killer.points})} kinds of moments",
    )
    print(f"{len(killer.points)} kills at {Counter(f'{moment} {kind}' for kind, _, moment in killer.points)}")
