"""Values fit their schemas."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.simulator.schema import fit

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 18, "maximum": 20}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TREE = {
    "type": "object",
    "properties": {"label": {"type": "string"}, "children": {"type": "array", "items": {"$ref": "#"}}},
    "required": ["label", "children"],
}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string"}, "text"),
        ({}, "text"),
        ({"type": "string", "maxLength": 2}, "te"),
        ({"type": "string", "minLength": 6}, "text.."),
        ({"type": "string", "format": "date"}, "2026-01-31"),
        ({"const": 5}, 5),
        ({"enum": ["only"]}, "only"),
        ({"type": "null"}, None),
        ({"type": ["null", "string"]}, "text"),
        ({"anyOf": [{"type": "null"}, {"type": "string"}]}, "text"),
        ({"type": "integer", "minimum": 3, "maximum": 3}, 3),
        ({"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 5}, 4),
        ({"type": "integer", "minimum": 3, "maximum": 8, "multipleOf": 5}, 5),
        ({"type": "number", "minimum": 1.5, "maximum": 1.5}, 1.5),
        ({"type": "array", "minItems": 3, "maxItems": 3, "items": {"const": 1}}, [1, 1, 1]),
        ({"type": "object"}, {}),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"const": "found"}}}, "found"),
        ({"allOf": [{"properties": {"a": {"const": 1}}}, {"properties": {"b": {"const": 2}}}]}, {"a": 1, "b": 2}),
    ],
)
def test_a_value_fits(schema: dict[str, Any], expected: object) -> None:
    assert fit(schema, text="text", key="key") == expected


def test_an_objects_fields_are_filled_in() -> None:
    value = fit(PERSON, text="text", key="key")
    assert value["name"] == "text"
    assert 18 <= value["age"] <= 20


def test_choices_fall_by_the_key() -> None:
    values = {fit({"enum": list(range(10))}, text="", key=str(number)) for number in range(200)}
    assert values == set(range(10))


def test_a_schema_within_itself_ends() -> None:
    assert fit(TREE, text="text", key="key")["label"] == "text"


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"properties": []},
        {"anyOf": [{"$ref": "#"}]},
        {"type": "array", "items": {"$ref": "#"}, "minItems": "x"},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    ],
)
def test_what_is_no_schema_is_an_error(schema: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no JSON Schema"):
        fit(schema, text="text", key="key")
