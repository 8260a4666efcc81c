from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from pipeline.model import ErrorType, Item, Reply, Row, RowResult
from pipeline.operations._schema import misfit

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 5},
        "age": {"type": ["integer", "null"], "minimum": 0, "exclusiveMaximum": 200},
        "role": {"enum": ["cook", "baker", None, 1]},
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 2},
        "child": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        "kind": {"const": True},
        "place": {"$ref": "#/$defs/pl~1ace"},
        "size": {"oneOf": [{"type": "number", "maximum": 10}, {"type": "number", "exclusiveMinimum": 5}]},
        "all": {"allOf": [{"type": "object", "minProperties": 1}, {"maxProperties": 1}]},
        "never": False,
    },
    "required": ["name"],
    "additionalProperties": False,
    "$defs": {"pl/ace": {"type": "object", "additionalProperties": {"type": "boolean"}}},
}


@pytest.mark.parametrize(
    "value",
    [
        {"name": "Ada"},
        {"name": "Ada", "age": None, "role": "cook", "tags": ["x"], "kind": True},
        {"name": "Ada", "age": 7.0, "child": {"name": "Bo", "child": None}, "role": None},
        {"name": "Ada", "place": {"x": True}, "size": 3, "all": {"x": 1}},
        {"name": "Ada", "size": 11, "role": 1},
    ],
)
def test_what_fits_fits(value: Any) -> None:
    assert misfit(json.dumps(value), PERSON) is None


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ([], "$: is no object"),
        ({}, "$: name is missing"),
        ({"name": ""}, "$.name: is beyond its minLength"),
        ({"name": "Adelheid"}, "$.name: is beyond its maxLength"),
        ({"name": 5}, "$.name: is no string"),
        ({"name": "Ada", "age": -1}, "$.age: is beyond its minimum"),
        ({"name": "Ada", "age": 200}, "$.age: is beyond its exclusiveMaximum"),
        ({"name": "Ada", "age": 1.5}, "$.age: is no integer or null"),
        ({"name": "Ada", "age": True}, "$.age: is no integer or null"),
        ({"name": "Ada", "role": True}, "$.role: is none of"),
        ({"name": "Ada", "kind": 1}, "$.kind: is not the one value"),
        ({"name": "Ada", "tags": []}, "$.tags: is beyond its minItems"),
        ({"name": "Ada", "tags": ["x", 5]}, "$.tags[1]: is no string"),
        ({"name": "Ada", "child": {}}, "$.child: fits none of anyOf"),
        ({"name": "Ada", "size": 7}, "$.size: fits more than one of oneOf"),
        ({"name": "Ada", "place": {"x": 1}}, "$.place.*: is no boolean"),
        ({"name": "Ada", "all": {"x": 1, "y": 2}}, "$.all: is beyond its maxProperties"),
        ({"name": "Ada", "never": 1}, "$.never: nothing may stand here"),
        ({"name": "Ada", "secret": 1}, "$.*: nothing may stand here"),
    ],
)
def test_what_does_not_fit_is_told_with_its_place_and_nothing_of_its_content(value: Any, place: str) -> None:
    why = misfit(json.dumps(value), PERSON)
    assert why is not None
    assert why.startswith(place)
    assert "secret" not in why


@pytest.mark.parametrize("text", [None, "", "{", '{"name": "Ad', "Sure! {}", "NaN"])
def test_what_is_no_json_does_not_fit(text: str | None) -> None:
    assert misfit(text, {}) is not None


@pytest.mark.parametrize(
    "schema",
    [
        None,
        True,
        {},
        5,
        "x",
        [],
        {"type": "of next year"},
        {"enum": 5},
        {"$ref": "https://example.org/x"},
        {"$ref": 5},
        {"$ref": "#/nothing"},
        {"required": 5},
        {"properties": 5},
        {"minimum": "x"},
        {"anyOf": [5]},
        {"format": "date"},
    ],
)
def test_a_schema_that_is_none_refuses_nothing(schema: Any) -> None:
    assert misfit("1", schema) is None
    misfit('{"a": 1}', schema)


def test_a_schema_that_goes_round_in_circles_ends() -> None:
    assert misfit("1", {"$ref": "#"}) is not None


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["", "a", "b"]) | st.floats(-9, 9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
KINDS = st.sampled_from(["object", "array", "string", "boolean", "null", "number", "integer"])
SCHEMAS = st.recursive(
    st.booleans()
    | st.fixed_dictionaries({}, optional={"type": KINDS, "enum": st.lists(VALUES, min_size=1, max_size=3)}),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "type": KINDS | st.lists(KINDS, min_size=1, max_size=2, unique=True),
            "const": VALUES,
            "properties": st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
            "required": st.lists(st.sampled_from("abc"), max_size=2, unique=True),
            "additionalProperties": inner,
            "items": inner,
            "anyOf": st.lists(inner, min_size=1, max_size=2),
            "oneOf": st.lists(inner, min_size=1, max_size=2),
            "allOf": st.lists(inner, min_size=1, max_size=2),
            "minimum": st.integers(-3, 3),
            "exclusiveMaximum": st.integers(-3, 3),
            "minLength": st.integers(0, 2),
            "maxItems": st.integers(0, 2),
        },
    ),
    max_leaves=6,
)


@settings(deadline=None, max_examples=300)
@given(schema=SCHEMAS, value=VALUES)
def test_it_says_what_a_full_validator_says(schema: Any, value: Any) -> None:
    validator = Draft202012Validator(schema)
    assert (misfit(orjson.dumps(value).decode(), schema) is None) == validator.is_valid(value)


WANTED = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
REQUESTS: dict[str, dict[str, Any]] = {
    "chat": {
        "messages": [{"role": "user", "content": "{{ q }}"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": WANTED}},
    },
    "responses": {"input": "{{ q }}", "text": {"format": {"type": "json_schema", "name": "x", "schema": WANTED}}},
}


STRICT = {"on_invalid_json": "fail"}


def reply(name: str, text: str | None, *, refusal: str | None = None, cut: bool = False) -> bytes:
    if name == "chat":
        message = {"content": text, "refusal": refusal}
        return orjson.dumps({"choices": [{"message": message, "finish_reason": "length" if cut else "stop"}]})
    parts = [{"type": "output_text", "text": text}] if text is not None else [{"type": "refusal", "refusal": refusal}]
    body = {"status": "completed", "output": [{"type": "message", "content": parts}]}
    if cut:
        body |= {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    return orjson.dumps({**body, "usage": {"total_tokens": 5}})


def answered(operation: Any, body: bytes) -> RowResult:
    (item,) = operation.prepare([Row(ordinal=0, values={"q": "hi"})])
    assert isinstance(item, Item)
    (result,) = operation.parse([item], Reply(status=200, headers={}, body=body, latency_ms=1))
    return result


@pytest.mark.parametrize("name", REQUESTS)
def test_an_answer_that_does_not_fit_fails_only_where_that_is_asked_for(make: Any, name: str) -> None:
    operation = make(name, REQUESTS[name])
    strict = make(name, REQUESTS[name], run=STRICT)
    body = reply(name, '{"a": "x"}')
    assert answered(operation, body).ok
    failed = answered(strict, body)
    assert failed.error is not None
    assert (failed.error.type, failed.error.code) == (ErrorType.REPLY, "invalid_json")
    assert "$.a: is no integer" in failed.error.message
    assert (failed.values, failed.response) == (None, body)
    assert answered(strict, reply(name, '{"a": 1}')).ok


@pytest.mark.parametrize("name", REQUESTS)
def test_refusals_and_cut_answers_stay_what_they_are(make: Any, name: str) -> None:
    strict = make(name, REQUESTS[name], run=STRICT)
    assert answered(strict, reply(name, None, refusal="No.")).ok
    assert answered(strict, reply(name, '{"a": ', cut=True)).ok


@pytest.mark.parametrize("name", REQUESTS)
def test_without_a_schema_any_text_is_an_answer(make: Any, name: str) -> None:
    request = {key: value for key, value in REQUESTS[name].items() if key not in ("response_format", "text")}
    strict = make(name, request, run=STRICT)
    assert answered(strict, reply(name, "Hello.")).ok
