"""Makes a JSON value that fits a JSON Schema, for structured answers and tool calls."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

_DEEPEST = 12  # beyond it only what is required is filled in
_FORMATS = {
    "date-time": "2026-01-31T12:00:00Z",
    "date": "2026-01-31",
    "time": "12:00:00Z",
    "duration": "PT1H",
    "email": "someone@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "uri": "https://example.com/",
}


def fit(schema: Mapping[str, Any], *, text: str, key: str) -> Any:
    """Make a value: strings are `text` where nothing else is asked, choices fall by `key` and the place in the schema.

    Understands type, enum, const, properties, required, items, anyOf, oneOf, allOf, $ref into the schema itself,
    format, and the bounds on lengths and numbers; not pattern. Raises ValueError for what is no schema.
    """
    try:
        return _fit(schema, schema, text, key, 0)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"this is no JSON Schema that a value could fit: {error}") from error


def _fit(schema: Any, root: Mapping[str, Any], text: str, key: str, depth: int) -> Any:  # noqa: PLR0911 - a keyword each
    if not isinstance(schema, Mapping):
        return text
    if "$ref" in schema:
        return _fit(_resolve(schema["$ref"], root), root, text, key, depth + 1)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][_draw(key, len(schema["enum"]))]
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices:
        return _fit(_pick(choices, key, depth), root, text, key, depth + 1)
    if schema.get("allOf"):
        return _fit(_merge(schema, root), root, text, key, depth + 1)
    match _kind(schema, depth):
        case "object":
            return _object(schema, root, text, key, depth)
        case "array":
            return _array(schema, root, text, key, depth)
        case kind:
            return _scalar(kind, schema, text, key)


def _kind(schema: Mapping[str, Any], depth: int) -> str:
    kinds = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kinds, str):
        return kinds
    if depth > _DEEPEST and "null" in kinds:
        return "null"
    return next((kind for kind in kinds if kind != "null"), "null")


def _scalar(kind: str, schema: Mapping[str, Any], text: str, key: str) -> str | float | bool | None:
    match kind:
        case "integer" | "number":
            return _number(schema, key, whole=kind == "integer")
        case "boolean":
            return _draw(key, 2) == 1
        case "null":
            return None
        case _:
            return _string(schema, text)


def _object(schema: Mapping[str, Any], root: Mapping[str, Any], text: str, key: str, depth: int) -> dict[str, Any]:
    properties = schema.get("properties", {})
    required = schema.get("required", ())
    return {
        name: _fit(part, root, text, f"{key}/{name}", depth + 1)
        for name, part in properties.items()
        if depth < _DEEPEST or name in required
    }


def _array(schema: Mapping[str, Any], root: Mapping[str, Any], text: str, key: str, depth: int) -> list[Any]:
    least = int(schema.get("minItems", 0))
    most = int(schema.get("maxItems", max(least, 2)))
    length = least if depth >= _DEEPEST else min(most, max(least, 1 + _draw(key, 2)))
    return [_fit(schema.get("items", {}), root, text, f"{key}/{index}", depth + 1) for index in range(length)]


def _number(schema: Mapping[str, Any], key: str, *, whole: bool) -> int | float:
    low = schema.get("minimum")
    high = schema.get("maximum")
    step = schema.get("multipleOf")
    if low is None and "exclusiveMinimum" in schema:
        low = schema["exclusiveMinimum"] + 1 if whole else _above(schema["exclusiveMinimum"], high)
    if high is None and "exclusiveMaximum" in schema:
        high = schema["exclusiveMaximum"] - 1 if whole else _below(schema["exclusiveMaximum"], low)
    if low is None:
        low = 0 if high is None or high >= 0 else high - 100
    if high is None:
        high = low + 100
    if step:
        first = -(-low // step)
        return _cast((first + _draw(key, max(1, int(high // step - first) + 1))) * step, whole=whole)
    if whole:
        first = -(-low // 1)
        return int(first + _draw(key, max(1, int(high // 1 - first) + 1)))
    return float(low + (high - low) * _draw(key, 101) / 100)


def _above(bound: float, high: float | None) -> float:
    return bound + (1 if high is None else (high - bound) / 2)


def _below(bound: float, low: float | None) -> float:
    return bound - (1 if low is None else (bound - low) / 2)


def _cast(number: float, *, whole: bool) -> int | float:
    return int(number) if whole else number


def _string(schema: Mapping[str, Any], text: str) -> str:
    value = _FORMATS.get(schema.get("format", ""), text)
    value = value.ljust(int(schema.get("minLength", 0)), ".")
    return value[: int(schema["maxLength"])] if "maxLength" in schema else value


def _pick(choices: list[Any], key: str, depth: int) -> Any:
    if depth > _DEEPEST:
        for choice in choices:
            if isinstance(choice, Mapping) and choice.get("type") in ("null", "string", "number", "integer", "boolean"):
                return choice
    whole = [choice for choice in choices if not (isinstance(choice, Mapping) and choice.get("type") == "null")]
    return (whole or choices)[_draw(key, len(whole or choices))]


def _merge(schema: Mapping[str, Any], root: Mapping[str, Any]) -> dict[str, Any]:
    merged: dict[str, Any] = {name: value for name, value in schema.items() if name != "allOf"}
    for part in schema["allOf"]:
        resolved = _resolve(part["$ref"], root) if isinstance(part, Mapping) and "$ref" in part else part
        for name, value in resolved.items():
            if name == "properties":
                merged["properties"] = {**merged.get("properties", {}), **value}
            elif name == "required":
                merged["required"] = [*merged.get("required", ()), *value]
            else:
                merged.setdefault(name, value)
    return merged


def _resolve(reference: str, root: Mapping[str, Any]) -> Any:
    found: Any = root
    for part in reference.removeprefix("#").strip("/").split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        if name:
            found = found.get(name, {}) if isinstance(found, Mapping) else {}
    return found


def _draw(key: str, among: int) -> int:
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest()) % among
