"""Tasks, outcomes and causes come through a channel between processes as they were."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import ormsgpack
import pytest

from pipeline import errors, operations
from pipeline.errors import DefectError, JobFileError, PipelineError
from pipeline.job.load import load_job
from pipeline.lanes.parcels import cause_of, cause_values, packed_of, task_of, task_values
from pipeline.lanes.stop import Interrupted
from pipeline.model import Attempt, Item, Outcome, RequestInfo, Row, RowResult, Usage
from pipeline.operations.base import Portable, Sizing
from pipeline.plan.work import Task
from pipeline.store.codec import decode_attempt, decode_outcome
from pipeline.store.journal import pack

REQUESTS: dict[str, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "{{ text }}"}], "max_tokens": 9, "stream": True},
    "completions": {"prompt": "{{ text }}", "max_tokens": 5},
    "responses": {"input": "{{ text }}", "max_output_tokens": 5},
    "embeddings": {"input": "{{ text }}", "dimensions": 8},
}
ATTEMPT = Attempt(
    ordinals=(3, 4), deployment="d", started_at=1.5, latency_ms=2.5, status=200, verdict="answered", code=None,
    client_request_id="c", request_id=None, apim_request_id=None, region=None, estimated_tokens=7, input_tokens=3,
    output_tokens=4, retry_after_ms=None,
)  # fmt: skip


def sent(value: Any) -> Any:
    return ormsgpack.unpackb(ormsgpack.packb(value))


def operation_of(name: str, tmp_path: Path) -> Portable:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    job = {
        "operation": name,
        "input": {"path": "rows.jsonl"},
        "request": REQUESTS[name],
        "deployments": [{"endpoint": "https://x.openai.azure.com", "deployment": "d", "key": "${K}"}],
        "output": {"path": "out"},
    }
    file = tmp_path / "job.json"
    file.write_text(json.dumps(job))
    operation = operations.get(name).factory(load_job(file, environ={"K": "k"}, operations=operations.names()))
    assert isinstance(operation, Portable)
    return operation


@pytest.mark.parametrize("name", sorted(REQUESTS))
def test_a_task_is_the_same_in_the_other_process(name: str, tmp_path: Path) -> None:
    operation = operation_of(name, tmp_path)
    rows = [Row(ordinal=ordinal, values={"text": f"tide {ordinal} \N{WATER WAVE}"}) for ordinal in (7, 8)]
    items = tuple(item for item in operation.prepare(rows) if isinstance(item, Item))
    assert len(items) == 2
    for given in (items, items[:1]):
        task = Task(span=5, items=given)
        assert task_of(sent(task_values(task, operation)), operation) == task


def test_an_item_with_a_smaller_bound_keeps_the_one_it_stands_for(tmp_path: Path) -> None:
    operation = operation_of("chat", tmp_path)
    (item,) = operation.prepare([Row(ordinal=1, values={"text": "tide"})])
    assert isinstance(item, Item)
    assert isinstance(operation, Sizing)
    smaller = operation.sized(item, 4)
    assert smaller is not None
    assert smaller.content.whole == item
    task = Task(span=0, items=(smaller,))
    assert task_of(sent(task_values(task, operation)), operation) == task


def test_an_outcome_is_packed_as_the_journal_keeps_it() -> None:
    outcome = Outcome(
        rows=(
            RowResult(ordinal=3, values={"a": b"\0\1"}, usage=Usage(input_tokens=3, output_tokens=4, total_tokens=7)),
            RowResult(ordinal=4, values={"a": None}, usage=Usage(input_tokens=1)),
        ),
        request=RequestInfo(attempts=1, deployment="d"),
        attempts=(ATTEMPT,),
    )
    packed = packed_of(sent(tuple(pack(outcome))))
    assert [tuple(row) for row in packed.rows] == [(3, True), (4, True)]
    assert packed.tokens == (4, 4, 7, 0)
    assert decode_outcome(packed.payload).rows == outcome.rows
    assert [(verdict, decode_attempt(blob)) for verdict, blob in packed.attempts] == [("answered", ATTEMPT)]


ERRORS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, PipelineError) and kind is not JobFileError
]


@pytest.mark.parametrize("kind", ERRORS)
def test_a_cause_ends_the_run_as_it_would_have_ended_the_sender(kind: type[PipelineError]) -> None:
    cause = cause_of(sent(cause_values(kind("what happened, and what to do"))))
    assert type(cause) is kind
    assert str(cause) == "what happened, and what to do"


def test_no_cause_is_none() -> None:
    assert cause_of(sent(cause_values(None))) is None


@pytest.mark.parametrize("cause", [Interrupted(15), JobFileError(())])
def test_a_cause_that_cannot_be_made_again_is_a_defect(cause: PipelineError) -> None:
    assert type(cause_of(sent(cause_values(cause)))) is DefectError


def test_a_defect_says_where_it_was_and_nothing_that_it_held() -> None:
    with pytest.raises(ValueError, match="a prompt") as caught:
        int("a prompt")
    cause = cause_of(sent(cause_values(caught.value)))
    assert isinstance(cause, DefectError)
    assert "ValueError" in str(cause)
    assert "test_a_defect_says_where_it_was" in str(cause)
    assert "a prompt" not in str(cause)
