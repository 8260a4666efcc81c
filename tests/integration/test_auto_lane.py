"""Both lanes: batches while there is time, then one by one, and no row in two live places."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from batch_scene import BatchScene, key_of

from pipeline.lanes.auto import LOOK_S
from pipeline.simulator.ledger import Answered, Arrived, read_ledger

pytestmark = pytest.mark.anyio

ONLINE = {"name": "online", "lane": "online", "requests_per_minute": 60_000}


def scene(tmp_path: Path, rows: int = 100, *, deadline: str, **settings: Any) -> BatchScene:
    settings.setdefault("run_keys", {})
    settings["run_keys"] |= {"lane": "auto", "deadline": deadline}
    deployment = {"lane": "batch", "name": "batches", **settings.pop("deployment", {})}
    return BatchScene(folder=tmp_path, rows=rows, deployment=deployment, more=[ONLINE], **settings)


def answered_online(place: BatchScene) -> Counter[str]:
    calls: dict[tuple[int, int], tuple[str, ...]] = {}
    counted: Counter[str] = Counter()
    for entry in read_ledger(place.ledger):
        match entry:
            case Arrived(op="chat" | "embeddings"):
                calls[entry.session, entry.seq] = entry.keys
            case Answered(status=200) if (entry.session, entry.seq) in calls:
                counted.update(calls[entry.session, entry.seq])
    return counted


def assert_each_row_answered_once(place: BatchScene) -> None:
    both = place.answered() + answered_online(place)
    assert both == Counter(key_of("chat", n) for n in range(place.rows))
    rows = place.table("ordinal", "status", "text")
    assert [row["ordinal"] for row in rows] == list(range(place.rows))
    assert {row["status"] for row in rows} == {"ok"}
    assert place.under_way() == 0
    assert not list(place.layout.batches.glob("*"))


async def test_with_time_enough_everything_goes_in_batches(tmp_path: Path) -> None:
    place = scene(tmp_path, deadline="20h")
    with place.served():
        summary = await place.run()
    assert summary.exit_code == 0, summary.reason
    place.assert_each_row_once()
    assert not answered_online(place)
    assert summary.seconds < LOOK_S, "the run ends with its batches, not when it next looks at the time"


async def test_what_is_unfinished_near_the_deadline_is_pulled_back_and_sent_one_by_one(tmp_path: Path) -> None:
    """Batches would take an hour: those under way are cancelled, the others are never submitted."""
    place = scene(
        tmp_path,
        deadline="30s",
        deployment={"enqueued_tokens": 600},
        simulator={"offline": {"in_progress_s": 3_600.0}, "deployment": {"enqueued_tokens": 100_000}},
    )
    with place.served():
        summary = await place.run()
    assert summary.exit_code == 0, summary.reason
    assert place.submitted()
    assert_each_row_answered_once(place)
    assert sum(answered_online(place).values()) == 100
    assert {row["request"]["deployment"] for row in place.table("request")} == {"online"}


async def test_what_a_cancelled_batch_has_answered_is_kept_and_vectors_of_both_lanes_agree(tmp_path: Path) -> None:
    """A hundred lines are answered every twenty seconds; after twelve, the rest is pulled back."""
    place = scene(
        tmp_path,
        rows=250,
        deadline="40s",
        operation="embeddings",
        api="openai",
        deployment={"max_inputs": 1},
        simulator={"offline": {"lines_per_s": 5.0}},
    )
    place.more = [ONLINE | {"requests_per_minute": 1_000}]
    with place.served():
        summary = await place.run(request={"input": "{{ text }}"})
    assert summary.exit_code == 0, summary.reason
    rows = place.table("ordinal", "embedding", "request")
    assert [row["ordinal"] for row in rows] == list(range(250))
    assert {len(row["embedding"]) for row in rows} == {1536}
    assert Counter(row["request"]["deployment"] for row in rows) == {"batches": 100, "online": 150}
    assert place.answered() + answered_online(place) == Counter(key_of("embeddings", n) for n in range(250))


async def test_a_run_that_is_continued_pulls_back_batches_of_the_one_before(tmp_path: Path) -> None:
    place = scene(tmp_path, deadline="20h", simulator={"offline": {"in_progress_s": 3_600.0}})
    with place.served():
        assert (await place.run(wait=False)).exit_code == 4
        assert len(place.submitted()) == 1
        place.run_keys["deadline"] = "24s"
        summary = await place.run()
    assert summary.exit_code == 0, summary.reason
    assert_each_row_answered_once(place)
    assert len(place.submitted()) == 1
