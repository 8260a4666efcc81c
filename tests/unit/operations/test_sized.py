"""Right-sizing: a smaller bound on the answer, and the job's own for the answers that it cuts."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from pipeline.model import Item, Reply, Row, Target
from pipeline.operations.base import Sizing

TARGET = Target(deployment="d", model="m", body_model="m", api="openai")
MESSAGES = {"messages": [{"role": "user", "content": "{{ q }}"}]}
CASES: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("chat", {**MESSAGES, "max_completion_tokens": 4096}, ("max_completion_tokens",)),
    ("chat", {**MESSAGES, "max_tokens": 4096, "n": 3}, ("max_tokens",)),
    ("chat", {**MESSAGES, "max_tokens": 4096, "max_completion_tokens": 4096}, ("max_tokens", "max_completion_tokens")),
    ("completions", {"prompt": "{{ q }}", "max_tokens": 4096}, ("max_tokens",)),
    ("responses", {"input": "{{ q }}", "max_output_tokens": 4096}, ("max_output_tokens",)),
]
ANSWERS: dict[str, Any] = {
    "chat": {"choices": [{"index": 0, "message": {"content": "Onc"}, "finish_reason": "length"}]},
    "completions": {"choices": [{"index": 0, "text": "Onc", "finish_reason": "length"}]},
    "responses": {
        "status": "incomplete",
        "incomplete_details": {"reason": "max_output_tokens"},
        "output": [{"type": "message", "content": [{"type": "output_text", "text": "Onc"}]}],
    },
}


def item(operation: Any) -> Item:
    (one,) = operation.prepare([Row(ordinal=7, values={"q": "hi"})])
    assert isinstance(one, Item), one
    return one


def sent(operation: Any, asked: Item) -> Any:
    return json.loads(operation.build([asked], TARGET).body)


@pytest.mark.parametrize(("name", "request_", "bounds"), CASES)
def test_a_smaller_bound_reserves_less_and_changes_nothing_else(
    make: Any, name: str, request_: dict[str, Any], bounds: tuple[str, ...]
) -> None:
    operation = make(name, request_)
    assert isinstance(operation, Sizing)
    whole = item(operation)
    smaller = operation.sized(whole, 200)
    assert smaller is not None
    assert sent(operation, smaller) == {**sent(operation, whole), **dict.fromkeys(bounds, 200)}
    assert whole.tokens - smaller.tokens == (4096 - 200) * request_.get("n", 1)
    assert operation.build([smaller], TARGET).tokens == smaller.tokens


@pytest.mark.parametrize("policy", ["keep", "fail", "retry"])
@pytest.mark.parametrize(("name", "request_", "bounds"), CASES)
def test_an_answer_that_it_cuts_is_asked_for_as_the_job_wants_it(
    make: Any, name: str, request_: dict[str, Any], bounds: tuple[str, ...], policy: str
) -> None:
    operation = make(name, request_, run={"on_truncated": policy})
    whole = item(operation)
    smaller = operation.sized(whole, 200)
    reply = Reply(status=200, headers={}, body=orjson.dumps(ANSWERS[name]), latency_ms=1)
    (result,) = operation.parse([smaller], reply)
    assert result.error is None
    assert result.again is whole


@pytest.mark.parametrize("most", [4096, 5000])
@pytest.mark.parametrize(("name", "request_", "bounds"), CASES)
def test_a_bound_is_never_raised(
    make: Any, name: str, request_: dict[str, Any], bounds: tuple[str, ...], most: int
) -> None:
    operation = make(name, request_)
    whole = item(operation)
    assert operation.sized(whole, most) is None
    smaller = operation.sized(whole, 200)
    assert operation.sized(smaller, 100) is None
    without = make(name, {key: value for key, value in request_.items() if key not in bounds})
    assert without.sized(item(without), 200) is None
