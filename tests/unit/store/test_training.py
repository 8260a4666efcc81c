from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.service.tuning_api import seconds_of
from pipeline.store.training import TrainingRecord, TrainingStep, event_rows, write_events, write_metrics


def event(at: Any, step: int | None = None, **fields: Any) -> dict[str, Any]:
    data = None if step is None else {"step": step, "train_loss": 1.5, "valid_mean_token_accuracy": 0.5}
    kind = "message" if step is None else "metrics"
    return {"created_at": at, "level": "info", "type": kind, "message": f"at {at}", "data": data, **fields}


def checkpoint(at: Any, step: Any) -> dict[str, Any]:
    metrics = {"step": step, "train_loss": 1.0, "full_valid_loss": 2}
    return {"created_at": at, "step_number": step, "fine_tuned_model_checkpoint": f"m:{step}", "metrics": metrics}


def test_a_checkpoint_follows_the_event_of_its_step_within_a_second_and_the_time_elsewhere() -> None:
    events = [event(5), event(6, 1), event(6, 2), event(6), event(9)]
    rows = event_rows(events, [checkpoint(6, 1), checkpoint(8, 2)], seconds=seconds_of)
    assert [(row["created_at"] // 1_000_000, row["type"], row["step"]) for row in rows] == [
        (5, "message", None),
        (6, "metrics", 1),
        (6, "checkpoint", 1),
        (6, "metrics", 2),
        (6, "message", None),
        (8, "checkpoint", 2),
        (9, "message", None),
    ]
    assert [row["ordinal"] for row in rows] == list(range(7))


@pytest.mark.parametrize(("said", "level"), [("warning", "warn"), ("WARN", "warn"), ("error", "error"), (None, "info")])
def test_levels_have_one_spelling(said: str | None, level: str) -> None:
    (row,) = event_rows([event(1, level=said)], [], seconds=seconds_of)
    assert row["level"] == level


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"created_at": None, "data": [], "message": 7},
        {"created_at": "2026-05-01T10:00:00Z", "data": {"step": "3", "train_loss": "nan", "valid_loss": ""}},
        {"created_at": True, "data": {"step": 1e300, "train_loss": {}}, "level": 4, "id": "\ud800"},
    ],
)
def test_whatever_the_service_says_can_be_written(tmp_path: Path, odd: dict[str, Any]) -> None:
    rows = event_rows([odd, event(4, 1)], [odd], seconds=seconds_of)
    write_events(tmp_path / "events.parquet", rows, compression="zstd")
    assert pq.read_table(tmp_path / "events.parquet").num_rows == 3


CSV = b"step,train_loss,validation_mean_token_accuracy,other\n1,0.5,,7\n2,0.25,0.75,x\n"


@pytest.mark.parametrize("content", [CSV, b"\xef\xbb\xbf" + CSV, base64.b64encode(CSV), CSV.replace(b"\n", b"\r\n")])
def test_figures_are_read_in_every_spelling(tmp_path: Path, content: bytes) -> None:
    write_metrics(tmp_path / "metrics.parquet", content, compression="zstd")
    assert pq.read_table(tmp_path / "metrics.parquet").to_pylist() == [
        {"step": 1, "train_loss": 0.5, "valid_mean_token_accuracy": None, "other": 7.0},
        {"step": 2, "train_loss": 0.25, "valid_mean_token_accuracy": 0.75, "other": None},
    ]


@pytest.mark.parametrize(
    "content", [b"", b"\x00\xff", b"<html>", b"step", b"a,b\n1,2\n", b"step,a\n1\n", b"step\n1,2,3"]
)
def test_a_result_file_that_is_none_gives_a_table_all_the_same(tmp_path: Path, content: bytes) -> None:
    write_metrics(tmp_path / "metrics.parquet", content, compression="zstd")
    assert "step" in pq.read_table(tmp_path / "metrics.parquet").column_names


@pytest.mark.parametrize("step", TrainingStep)
@pytest.mark.parametrize("state", [None, "running", "succeeded", "failed", "cancelled"])
def test_a_training_counts_from_when_it_may_be_there_unless_it_came_to_nothing(step: TrainingStep, state: str) -> None:
    record = TrainingRecord(tag="t", deployment="d", step=step, since=0.0, files=(), state=state)
    begun = step not in {TrainingStep.WRITTEN, TrainingStep.UPLOADED}
    assert record.counts is (begun and state not in {"failed", "cancelled"})
