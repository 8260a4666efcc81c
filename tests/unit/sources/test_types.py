from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from pipeline.sources import SourceError, open_source
from pipeline.sources.types import DECLARED, JSON, KIND, Column, Sample, declared_field

S, I, F, B = pa.string(), pa.int64(), pa.float64(), pa.bool_()  # noqa: E741 - a table reads better in one letter

SEEN = [
    (["x"], S),
    ([1], I),
    ([1.5], F),
    ([True], B),
    ([1, 1.5], F),
    ([None, 1], I),
    ([1, None, 1.5], F),
    (["x", None], S),
    ([True, None], B),
    ([None], S),
    ([["x"]], pa.list_(S)),
    ([[1]], pa.list_(I)),
    ([[1, 2.5]], pa.list_(F)),
    ([[1], [2.5]], pa.list_(F)),
    ([[True, None], None], pa.list_(B)),
    ([[], [1]], pa.list_(I)),
    ([[]], pa.list_(S)),
    ([[None]], pa.list_(S)),
    ([{}], None),
    ([{"a": 1}, None], None),
    ([1, "x"], None),
    ([1, True], None),
    ([1.5, "x"], None),
    ([[1], 1], None),
    ([[1], {}], None),
    ([[1, "x"]], None),
    ([[1], ["x"]], None),
    ([[[1]]], None),
    ([[{"a": 1}]], None),
]


@pytest.mark.parametrize(("values", "expected"), SEEN, ids=[json.dumps(values) for values, _ in SEEN])
@pytest.mark.parametrize("backwards", [False, True])
def test_what_is_seen_fixes_the_type(values: list[object], expected: pa.DataType | None, backwards: object) -> None:
    sample = Sample()
    for value in reversed(values) if backwards else values:
        sample.add({"a": value})
    field = sample.schema({}).field("a")
    assert field.type == (expected or pa.string())
    assert Column(field=field).is_json == (expected is None)


@pytest.mark.parametrize(("values", "expected"), SEEN, ids=[json.dumps(values) for values, _ in SEEN])
def test_every_sampled_value_fits_the_type_that_it_fixed(
    values: list[object], expected: object, jsonl: Callable[..., str], read_all: Callable[..., Any]
) -> None:
    read = read_all(open_source([jsonl(*(json.dumps({"a": value}) for value in values))]), carried=["a"])
    cells = read.carried.column("a").to_pylist()
    if expected is None:
        cells = [None if cell is None else json.loads(cell) for cell in cells]
    assert cells == values
    assert read.outline == [{"a": value} for value in values]


def test_columns_come_in_the_order_in_which_they_first_appear_then_the_declared() -> None:
    sample = Sample()
    sample.add({"b": 1})
    sample.add({"a": 1, "b": 1})
    assert sample.schema({"z": "date", "a": "int32"}).names == ["b", "a", "z"]
    assert sample.schema({"a": "int32"}).field("a").type == pa.int32()


@pytest.mark.parametrize(
    ("text", "type_"),
    [
        ("string", S),
        ("int8", pa.int8()),
        ("int16", pa.int16()),
        ("int32", pa.int32()),
        ("int64", I),
        ("float", pa.float32()),
        ("float32", pa.float32()),
        ("double", F),
        ("float64", F),
        ("bool", B),
        ("date", pa.date32()),
        ("timestamp", pa.timestamp("us", tz="UTC")),
        ("binary", pa.binary()),
        ("json", S),
        ("decimal(10,2)", pa.decimal128(10, 2)),
        ("decimal( 10 , 2 )", pa.decimal128(10, 2)),
        ("decimal(5)", pa.decimal128(5, 0)),
        ("decimal(76,76)", pa.decimal256(76, 76)),
        ("list<string>", pa.list_(S)),
        ("list<double>", pa.list_(F)),
    ],
)
def test_a_declared_type_is_read(text: str, type_: pa.DataType) -> None:
    field = declared_field("a", f" {text} ")
    assert field.type == type_
    assert field.metadata == {KIND: JSON if text == "json" else DECLARED}


@pytest.mark.parametrize(
    "text",
    ["", "strnig", "decimal", "decimal(0,0)", "decimal(77,1)", "decimal(2,3)", "list<date>", "list<list<int64>>"],
)
def test_an_unknown_type_is_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(SourceError, match=r"input\.columns\.price: .* use one of string, int8"):
        declared_field("price", text)


def test_only_the_sample_fixes_types(jsonl: Callable[..., str], read_all: Callable[..., Any]) -> None:
    lines = ['{"a": 1}'] * 10_000
    read = read_all(open_source([jsonl(*lines, '{"a": "late"}')]), values=frozenset({"a"}))
    assert read.outline[-1] == "column_type"
    early = open_source([jsonl(*lines[:-1], '{"a": "late"}')])
    assert Column(field=early.schema.field("a")).is_json
