from __future__ import annotations

import datetime as dt
from decimal import Decimal
from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sources.digest import RangeDigest, plain_array, plain_type

STRUCT = pa.struct([("x", pa.int64()), ("y", pa.list_(pa.string()))])
CELLS: list[tuple[pa.DataType, list[object]]] = [
    (pa.int64(), [1, None, -5, 0]),
    (pa.float32(), [1.5, None, 0.0]),
    (pa.bool_(), [True, False, None]),
    (pa.string(), ["", "a", None, "ab", "b"]),
    (pa.large_string(), ["", "a", None]),
    (pa.binary(), [b"", b"\x00", None]),
    (pa.binary(2), [b"ab", None]),
    (pa.date32(), [dt.date(2024, 1, 1), None]),
    (pa.timestamp("us", tz="UTC"), [dt.datetime(2024, 1, 1, tzinfo=dt.UTC), None]),
    (pa.decimal128(5, 2), [Decimal("1.25"), None]),
    (pa.null(), [None]),
    (pa.list_(pa.int64()), [[], [1], None, [None, 2]]),
    (pa.large_list(pa.string()), [[], ["a"], None, [None, ""]]),
    (pa.list_(pa.float32(), 2), [[1.0, 2.0], None, [None, 3.0]]),
    (STRUCT, [{"x": 1, "y": ["a"]}, None, {"x": None, "y": None}]),
    (pa.list_(STRUCT), [[{"x": 1, "y": []}], None, [None], []]),
    (pa.map_(pa.string(), pa.int64()), [[("a", 1)], [], None, [("b", None), ("c", 2)]]),
]
BY_NAME = {str(type_): (type_, cells) for type_, cells in CELLS}


def digest(*batches: pa.RecordBatch) -> str:
    whole = RangeDigest()
    for batch in batches:
        whole.columns(batch)
    return whole.hexdigest()


def batch(type_: pa.DataType, cells: list[object], name: str = "a") -> pa.RecordBatch:
    return pa.record_batch([pa.array(cells, type_)], names=[name])


@pytest.mark.parametrize("name", BY_NAME)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_no_cutting_of_the_rows_changes_the_digest(name: str, data: st.DataObject) -> None:
    type_, choices = BY_NAME[name]
    cells = data.draw(st.lists(st.sampled_from(choices), max_size=12))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(cells)), max_size=4)))
    bounds = list(zip([0, *cuts], [*cuts, len(cells)], strict=True))
    whole = batch(type_, cells)
    expected = digest(whole)
    assert digest(*(whole.slice(start, end - start) for start, end in bounds)) == expected
    assert digest(*(batch(type_, cells[start:end]) for start, end in bounds)) == expected


@pytest.mark.parametrize("name", BY_NAME)
def test_any_two_different_columns_have_different_digests(name: str) -> None:
    type_, choices = BY_NAME[name]
    columns = [[], *([cell] for cell in choices), *([a, b] for a in choices for b in choices)]
    assert len({digest(batch(type_, column)) for column in columns}) == len(columns)


def test_boundaries_between_cells_count() -> None:
    assert digest(batch(pa.string(), ["ab", "c"])) != digest(batch(pa.string(), ["a", "bc"]))
    lists = pa.list_(pa.int64())
    assert digest(batch(lists, [[1, 2], [3]])) != digest(batch(lists, [[1], [2, 3]]))
    assert digest(batch(lists, [[None], []])) != digest(batch(lists, [[], [None]]))


def test_names_and_types_count_and_the_order_of_columns_does_not() -> None:
    assert digest(batch(pa.int64(), [1], "a")) != digest(batch(pa.int64(), [1], "b"))
    assert digest(batch(pa.int64(), [1])) != digest(batch(pa.int32(), [1]))
    a, b = pa.array([1]), pa.array(["x"])
    assert digest(pa.record_batch([a, b], names=["a", "b"])) == digest(pa.record_batch([b, a], names=["b", "a"]))


def test_what_a_null_cell_hides_does_not_count() -> None:
    hidden = pa.Array.from_buffers(
        pa.int64(), 2, [pa.py_buffer(b"\x01"), pa.py_buffer((1).to_bytes(8, "little") + b"\xff" * 8)]
    )
    assert hidden.to_pylist() == [1, None]
    assert digest(pa.record_batch([hidden], names=["a"])) == digest(batch(pa.int64(), [1, None]))


def test_encodings_of_the_same_values_do_not_count() -> None:
    values = pa.array(["x", "y", None, "x"])
    for encoded in (values.dictionary_encode(), values.cast(pa.string_view())):
        assert plain_type(encoded.type) == pa.string()
        assert plain_array(encoded).to_pylist() == values.to_pylist()
        assert digest(pa.record_batch([encoded], names=["a"])) == digest(pa.record_batch([values], names=["a"]))


@given(content=st.binary(max_size=30), cuts=st.lists(st.integers(0, 30), max_size=4))
def test_raw_bytes_count_by_their_concatenation(content: bytes, cuts: list[int]) -> None:
    whole, cut = RangeDigest(), RangeDigest()
    whole.raw(content)
    bounds = sorted({0, len(content), *(bound for bound in cuts if bound < len(content))})
    for start, end in pairwise(bounds):
        cut.raw(content[start:end])
    assert whole.hexdigest() == cut.hexdigest()


def test_a_digest_may_be_asked_and_go_on() -> None:
    asked, plain = RangeDigest(), RangeDigest()
    asked.raw(b"a")
    assert asked.hexdigest() != plain.hexdigest()
    asked.raw(b"b")
    plain.raw(b"ab")
    assert asked.hexdigest() == plain.hexdigest()
    assert len(asked.hexdigest()) == 64
