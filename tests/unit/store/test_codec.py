"""Payloads: whatever an operation answers comes back as it was."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pipeline.model import ErrorInfo, ErrorType, Outcome, RequestInfo, RowResult, Usage
from pipeline.store.codec import decode_outcome, decode_rows, encode_outcome, kept, restored

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
COUNT = st.none() | st.integers(0, 2**63 - 1)
VALUE: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | TEXT | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
ERROR = st.builds(
    ErrorInfo, type=st.sampled_from(ErrorType), code=TEXT, message=TEXT, http_status=st.none() | st.integers(100, 599)
)
USAGE = st.builds(
    Usage, **{item.name: st.none() | st.floats(0, 1e9) if item.name == "seconds" else COUNT for item in fields(Usage)}
)
ROW = st.builds(
    RowResult,
    ordinal=st.integers(0, 2**63 - 1),
    values=st.none() | st.dictionaries(TEXT, VALUE, max_size=4),
    error=st.none() | ERROR,
    usage=st.none() | USAGE,
    response=st.none() | st.binary(),
)
NUMBERS = {
    "attempts": st.integers(0, 100),
    "latency_ms": st.none() | st.floats(0, 1e9),
    "finished_at": st.none() | st.floats(0, 4e9),
}
REQUEST = st.builds(
    RequestInfo, **{item.name: NUMBERS.get(item.name, st.none() | TEXT) for item in fields(RequestInfo)}
)


@given(st.builds(Outcome, rows=st.lists(ROW, max_size=4).map(tuple), request=REQUEST))
def test_an_outcome_comes_back_as_it_was(outcome: Outcome) -> None:
    assert decode_outcome(encode_outcome(outcome)) == outcome


@given(st.builds(Outcome, rows=st.lists(ROW, max_size=4).map(tuple), request=REQUEST))
def test_kept_rows_are_what_an_outcome_has_whether_they_come_from_a_payload_or_not(outcome: Outcome) -> None:
    whole = [(row, outcome.request) for row in outcome.rows]
    from_payload = decode_rows(encode_outcome(outcome))
    assert [restored(row) for row in from_payload] == whole
    assert [restored(kept(*one)) for one in whole] == whole
    assert [row.ok for row in from_payload] == [row.ok for row in outcome.rows]


def test_every_type_of_error_comes_back() -> None:
    for type_ in ErrorType:
        error = ErrorInfo(type=type_, code="c", message="m")
        outcome = Outcome(rows=(RowResult(ordinal=0, error=error),), request=RequestInfo())
        assert decode_outcome(encode_outcome(outcome)) == outcome
