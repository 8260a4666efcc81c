"""Checks an answer against the JSON Schema that it was asked to fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import orjson

from pipeline.model import ErrorInfo, ErrorType, RowResult

_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "object": lambda value: type(value) is dict,
    "array": lambda value: type(value) is list,
    "string": lambda value: type(value) is str,
    "boolean": lambda value: type(value) is bool,
    "null": lambda value: value is None,
    "number": lambda value: type(value) in (int, float),
    "integer": lambda value: type(value) is int or (type(value) is float and value.is_integer()),
}
_BOUNDS: Mapping[str, Callable[[Any, Any], bool]] = {
    "minimum": lambda value, bound: value >= bound,
    "maximum": lambda value, bound: value <= bound,
    "exclusiveMinimum": lambda value, bound: value > bound,
    "exclusiveMaximum": lambda value, bound: value < bound,
}
_LENGTHS: Mapping[str, tuple[str, Callable[[int, Any], bool]]] = {
    "minItems": ("array", lambda length, bound: length >= bound),
    "maxItems": ("array", lambda length, bound: length <= bound),
    "minLength": ("string", lambda length, bound: length >= bound),
    "maxLength": ("string", lambda length, bound: length <= bound),
    "minProperties": ("object", lambda length, bound: length >= bound),
    "maxProperties": ("object", lambda length, bound: length <= bound),
}


def fitting(result: RowResult, schema: Any) -> RowResult:
    """The same result where its `output_text` fits the schema; else a failed one, with its usage and its response."""
    why = misfit((result.values or {}).get("output_text"), schema)
    if why is None:
        return result
    message = f"the answer does not fit the schema that it was asked for: {why}"
    error = ErrorInfo(type=ErrorType.REPLY, code="invalid_json", message=message, http_status=200)
    return replace(result, values=None, error=error)


def misfit(text: str | None, schema: Any) -> str | None:
    """Say why a text is not JSON that fits the schema; None where it is. Repeats nothing of the text.

    Knows the keywords of structured outputs and most others: type, enum, const, properties, required,
    additionalProperties, items, anyOf, oneOf, allOf, $ref into the schema itself, and bounds on numbers and lengths.
    Other keywords (pattern, format) are not checked, and a schema that is none refuses nothing.
    """
    if text is None:
        return "there is no text"
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return "it is not JSON"
    try:
        return next(_misfits(value, schema, schema, "$"), None)
    except RecursionError:
        return "it nests too deep to be checked"
    except (TypeError, ValueError, KeyError, AttributeError):
        return None


def _misfits(value: Any, schema: Any, root: Any, place: str) -> Iterator[str]:
    if schema is False:
        yield f"{place}: nothing may stand here"
    if type(schema) is not dict:
        return
    if "$ref" in schema:
        yield from _misfits(value, _resolved(schema["$ref"], root), root, place)
    kinds = schema.get("type", ())
    kinds = [kinds] if type(kinds) is str else kinds
    if kinds and not any(_TYPES[kind](value) for kind in kinds):
        yield f"{place}: is no {' or '.join(kinds)}"
    if "const" in schema and not _same(value, schema["const"]):
        yield f"{place}: is not the one value that it may have"
    if "enum" in schema and not any(_same(value, each) for each in schema["enum"]):
        yield f"{place}: is none of the values that it may have"
    yield from _combined(value, schema, root, place)
    yield from _bounds(value, schema, place)
    if type(value) is dict:
        yield from _members(value, schema, root, place)
    elif type(value) is list and "items" in schema:
        for index, item in enumerate(value):
            yield from _misfits(item, schema["items"], root, f"{place}[{index}]")


def _combined(value: Any, schema: Mapping[str, Any], root: Any, place: str) -> Iterator[str]:
    for part in schema.get("allOf", ()):
        yield from _misfits(value, part, root, place)
    for keyword, most in (("anyOf", None), ("oneOf", 1)):
        if keyword in schema:
            fitting = sum(next(_misfits(value, part, root, place), None) is None for part in schema[keyword])
            if fitting == 0 or (most is not None and fitting > most):
                yield f"{place}: fits {'none' if fitting == 0 else 'more than one'} of {keyword}"


def _bounds(value: Any, schema: Mapping[str, Any], place: str) -> Iterator[str]:
    if _TYPES["number"](value):
        for keyword, holds in _BOUNDS.items():
            if keyword in schema and not holds(value, schema[keyword]):
                yield f"{place}: is beyond its {keyword}"
    for keyword, (kind, fits) in _LENGTHS.items():
        if keyword in schema and _TYPES[kind](value) and not fits(len(value), schema[keyword]):
            yield f"{place}: is beyond its {keyword}"


def _members(value: dict[str, Any], schema: Mapping[str, Any], root: Any, place: str) -> Iterator[str]:
    known = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{place}: {name} is missing"
    for name, member in known.items():
        if name in value:
            yield from _misfits(value[name], member, root, f"{place}.{name}")
    others = schema.get("additionalProperties", True)
    for name in value.keys() - known.keys():
        yield from _misfits(value[name], others, root, f"{place}.*")


def _resolved(reference: Any, root: Any) -> Any:
    """Find what a `$ref` such as `#/$defs/step` names. Raises KeyError where it names nothing here."""
    base, _, path = reference.partition("#")
    if base:
        raise KeyError(reference)
    found = root
    for name in path.split("/")[1:]:
        found = found[name.replace("~1", "/").replace("~0", "~")]
    return found


def _same(value: Any, other: Any) -> bool:
    """JSON's equality: true is not 1."""
    return (type(value) is bool) == (type(other) is bool) and bool(value == other)
