"""Refuses fields that a request must not hold, in the service's words: unknown names, wrong types, out of range."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pipeline.simulator.base import RefusedError, bad_request

Kinds = Mapping[str, type | tuple[type, ...]]
Ranges = Mapping[str, tuple[float | None, float | None]]

_KINDS = {
    bool: "a boolean",
    int: "an integer",
    float: "a decimal",
    str: "a string",
    list: "an array",
    dict: "an object",
}
_MOST_STOPS = 4


def check_fields(body: Mapping[str, Any], kinds: Kinds, ranges: Ranges) -> None:
    """Check every field's name, type and range; null is always allowed. Raises RefusedError for the first bad one."""
    for name, value in body.items():
        wanted = kinds.get(name)
        if wanted is None:
            raise bad_request(f"Unrecognized request argument supplied: {name}")
        if value is None:
            continue
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            raise _wrong_type(name, value, wanted)
        if name in ranges and isinstance(value, int | float):
            check_range(name, value, ranges[name], whole=wanted is int)


def check_range(name: str, value: float, bounds: tuple[float | None, float | None], *, whole: bool) -> None:
    """Check a number against its bounds, which are allowed. Raises RefusedError."""
    low, high = bounds
    kind = "integer" if whole else "decimal"
    if low is not None and value < low:
        raise bad_request(
            f"Invalid '{name}': {kind} below minimum value. Expected a value >= {low}, but got {value} instead.",
            param=name,
            code=f"{kind}_below_min_value",
        )
    if high is not None and not value <= high:
        raise bad_request(
            f"Invalid '{name}': {kind} above maximum value. Expected a value <= {high}, but got {value} instead.",
            param=name,
            code=f"{kind}_above_max_value",
        )


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Check that a value is one of a few; null is allowed. Raises RefusedError."""
    if value is None or (isinstance(value, str) and value in choices):
        return
    *first, last = [f"'{choice}'" for choice in choices]
    listed = f"{', '.join(first)}, and {last}" if len(first) > 1 else " and ".join([*first, last])
    raise bad_request(f"Invalid value: '{value}'. Supported values are: {listed}.", param=name, code="invalid_value")


def check_stops(stops: Any) -> None:
    """Check that a list of stops is short and holds strings alone. Raises RefusedError."""
    if isinstance(stops, list) and not (len(stops) <= _MOST_STOPS and all(isinstance(stop, str) for stop in stops)):
        raise bad_request(
            f"Invalid 'stop': expected at most {_MOST_STOPS} strings.", param="stop", code="invalid_value"
        )


def check_length(name: str, text: str, most: int) -> None:
    """Check that a text has no more than so many characters. Raises RefusedError."""
    if len(text) > most:
        raise bad_request(
            f"Invalid '{name}': string too long. Expected a string with maximum length {most}, but got a string with "
            f"length {len(text)} instead.",
            param=name,
            code="string_above_max_length",
        )


def _wrong_type(name: str, value: Any, wanted: type | tuple[type, ...]) -> RefusedError:
    expected = _KINDS[wanted] if isinstance(wanted, type) else " or ".join(_KINDS[kind] for kind in wanted)
    return bad_request(
        f"Invalid type for '{name}': expected {expected}, but got {_KINDS[type(value)]} instead.",
        param=name,
        code="invalid_type",
    )
