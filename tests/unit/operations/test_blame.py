"""Which row of a refused pack an error names."""

from __future__ import annotations

import pytest

from pipeline.job.template import compile_request
from pipeline.model import ErrorInfo, ErrorType, Item
from pipeline.operations.base import PackLimits
from pipeline.operations.embeddings import EmbeddingsOperation, Text


@pytest.mark.parametrize(
    ("param", "message", "index"),
    [
        ("input[2]", "refused", 2),
        ("$.input[1]", "at index 0 or at index 2", 1),
        ("input", "Invalid 'input[2]': too long", 2),
        (None, "refused at index 1", 1),
        ("input", "refused", None),
        ("input[7]", "refused", None),
        (None, "input[0] and input[1]", None),
    ],
)
def test_the_param_names_the_row_before_the_message_does(param: str | None, message: str, index: int | None) -> None:
    items = [Item(ordinal=n, content=Text(pieces=(f"text {n}",), fields={}), tokens=2) for n in range(3)]
    error = ErrorInfo(type=ErrorType.BAD_REQUEST, code="c", message=message, http_status=400, param=param)
    operation = EmbeddingsOperation(
        template=compile_request({"input": "{{ text }}"}),
        constant={},
        limits=PackLimits(items=3),
        models=("text-embedding-3-small",),
        vector_size=8,
    )
    assert operation.blame(items, error) == index
