"""Lines made for the Batch API are asked as they are, but for what the deployment and the run decide."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.model import ErrorInfo, Item, Row, Target

OPENAI = Target(deployment="d", model="m", body_model="ours", api="openai")
LINES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "{{ not a template }}"}]}),
    "completions": ("/v1/completions", {"prompt": "{{ not a template }}"}),
    "responses": ("/v1/responses", {"input": "{{ not a template }}"}),
}


@pytest.mark.parametrize("name", LINES)
def test_a_lines_body_is_sent_with_our_model_and_in_one_piece(make: Any, name: str) -> None:
    url, body = LINES[name]
    operation = make(name, {}, source={"format": "openai-batch"})
    others = {"model": "theirs", "stream": True, "stream_options": {"include_usage": True}, "temperature": 0}
    line = {"custom_id": "a", "method": "POST", "url": url, "body": {**others, **body}}
    (item,) = operation.prepare([Row(ordinal=0, values=line)])
    assert isinstance(item, Item), item
    call = operation.build([item], OPENAI)
    assert json.loads(call.body) == {"model": "ours", "temperature": 0, **body}
    assert not call.stream


@pytest.mark.parametrize("name", LINES)
def test_a_line_for_another_operation_is_a_failed_row(make: Any, name: str) -> None:
    _, body = LINES[name]
    operation = make(name, {}, source={"format": "openai-batch"})
    line = {"method": "POST", "url": "/v1/embeddings", "body": body}
    (one,) = operation.prepare([Row(ordinal=0, values=line)])
    assert isinstance(one, ErrorInfo)
    assert one.code == "url"
