"""The types of JSONL columns: seen in a sample or declared by the job, then fixed; and cells turned into arrays."""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from itertools import chain
from typing import Any

import orjson
import pyarrow as pa

from pipeline.sources.errors import SourceError

KIND = b"pipeline.kind"
"""The key of a field's metadata that says how its cells are read; absent where the type says all."""
JSON = b"json"
DECLARED = b"declared"

MAX_DEPTH = 200
"""Lists and objects within each other in one cell; the JSON encoder stops at 254, and a request wraps a few more."""

_EXACT_IN_DOUBLE = 2**53

_SIMPLE: dict[str, pa.DataType] = {
    "string": pa.string(),
    "int8": pa.int8(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float": pa.float32(),
    "float32": pa.float32(),
    "double": pa.float64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "binary": pa.binary(),
    "json": pa.string(),
}
_DECIMAL = re.compile(r"decimal\(\s*(\d{1,2})\s*(?:,\s*(\d{1,2})\s*)?\)")
_LIST = re.compile(r"list<\s*(\w+)\s*>")
_LISTED = ("string", "int8", "int16", "int32", "int64", "float", "float32", "double", "float64", "bool")
_MAX_PRECISION = 76
_PRECISION_128 = 38


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why a cell cannot be in its column. `reason` completes "column NAME: …" and quotes no content."""

    code: str
    reason: str


class CellError(Exception):
    """A cell cannot be in its column."""

    def __init__(self, code: str, reason: str) -> None:
        self.fault = Fault(code=code, reason=reason)
        super().__init__(reason)


def declared_field(name: str, text: str) -> pa.Field[Any]:
    """Read a type as `input.columns` writes it: `int64`, `decimal(10,2)`, `list<string>`, `json` or another.

    Raises SourceError for an unknown type.
    """
    text = text.strip()
    kind = JSON if text == "json" else DECLARED
    return pa.field(name, _parse(name, text), metadata={KIND: kind})


def _parse(name: str, text: str) -> pa.DataType:
    if text in _SIMPLE:
        return _SIMPLE[text]
    if match := _DECIMAL.fullmatch(text):
        precision, scale = int(match[1]), int(match[2] or 0)
        if 1 <= precision <= _MAX_PRECISION and scale <= precision:
            return (pa.decimal128 if precision <= _PRECISION_128 else pa.decimal256)(precision, scale)
    if (match := _LIST.fullmatch(text)) and match[1] in _LISTED:
        return pa.list_(_SIMPLE[match[1]])
    known = ", ".join([*_SIMPLE, "decimal(PRECISION,SCALE)", "list<TYPE>"])
    raise SourceError(f"input.columns.{name}: {text!r} is no type; use one of {known}")


class Sample:
    """What the sampled rows hold: the kinds of value seen in each column, in order of first appearance."""

    def __init__(self) -> None:
        self._kinds: dict[str, set[str]] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        """Take one parsed row into account."""
        for name, value in row.items():
            kinds = self._kinds.get(name)
            if kinds is None:
                kinds = self._kinds[name] = set()
            if type(value) is list:
                kinds.add("list")
                kinds.update({f"list:{_kind(item)}" for item in value})
            else:
                kinds.add(_kind(value))

    def schema(self, declared: Mapping[str, str]) -> pa.Schema:
        """Fix the types: a declared one wins, a declared column that no row holds comes last.

        Raises SourceError for an unknown declared type.
        """
        names = dict.fromkeys([*self._kinds, *declared])
        return pa.schema(
            [
                declared_field(name, declared[name]) if name in declared else _seen_field(name, self._kinds[name])
                for name in names
            ]
        )


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _seen_field(name: str, kinds: set[str]) -> pa.Field[Any]:
    kinds = kinds - {"null"}
    items = {kind.removeprefix("list:") for kind in kinds if kind.startswith("list:")} - {"null"}
    outer = {kind for kind in kinds if not kind.startswith("list:")}
    if outer == {"list"}:
        if (type_ := _scalar(items)) is not None:
            return pa.field(name, pa.list_(type_))
    elif (type_ := _scalar(outer)) is not None:
        return pa.field(name, type_)
    return pa.field(name, pa.string(), metadata={KIND: JSON})


def _scalar(kinds: set[str]) -> pa.DataType | None:
    """One type for all scalars seen; text where nothing but null was seen; None for objects and mixtures."""
    match sorted(kinds):
        case [] | ["str"]:
            return pa.string()
        case ["bool"]:
            return pa.bool_()
        case ["int"]:
            return pa.int64()
        case ["float"] | ["float", "int"]:
            return pa.float64()
        case _:
            return None


def record_batch(arrays: Sequence[pa.Array[Any]], schema: pa.Schema, *, rows: int) -> pa.RecordBatch:
    """Make a batch that has `rows` rows even where it has no columns."""
    if arrays:
        return pa.RecordBatch.from_arrays(list(arrays), schema=schema)
    empty: Any = pa.array([{}] * rows, pa.struct([]))
    return pa.RecordBatch.from_struct_array(empty)


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One JSONL column with its fixed type."""

    field: pa.Field[Any]

    @property
    def name(self) -> str:
        """The key in the line's object."""
        return str(self.field.name)

    @property
    def is_json(self) -> bool:
        """True where any JSON value fits and is carried as text."""
        return (self.field.metadata or {}).get(KIND) == JSON

    @property
    def is_declared(self) -> bool:
        """True where the job, not the sample, gave the type."""
        return (self.field.metadata or {}).get(KIND) == DECLARED

    @property
    def takes_numbers(self) -> bool:
        """False where no number can be changed by parsing: text that the sample gave, booleans."""
        type_ = self.field.type
        return self.is_json or self.is_declared or not (pa.types.is_string(type_) or pa.types.is_boolean(type_))

    def coercion(self) -> Callable[[Any], Any] | None:
        """Give what turns a JSON value into one of the declared type; None where JSON has the type itself."""
        if not self.is_declared:
            return None
        type_ = self.field.type
        types = pa.types
        if types.is_decimal(type_):
            return lambda value: _to_decimal(value, type_.precision, type_.scale)
        for is_type, convert in (
            (types.is_string, _to_text),
            (types.is_date, _to_date),
            (types.is_timestamp, _to_timestamp),
            (types.is_binary, _to_binary),
        ):
            if is_type(type_):
                return convert
        return None

    def array(self, cells: Sequence[Any]) -> tuple[pa.Array[Any], dict[int, Fault]]:
        """Make the column of these cells. A cell that does not fit is null and named, by index, with its fault.

        Cells of a coerced column have been through `coercion` before; none is nested deeper than `MAX_DEPTH`.
        """
        if self.is_json:
            return pa.array([None if cell is None else orjson.dumps(cell).decode() for cell in cells], pa.string()), {}
        allowed, listed = _allowed(self.field.type)
        if _types_fit(cells, allowed, listed=listed):
            try:
                return pa.array(cells, self.field.type), {}
            except (pa.ArrowException, OverflowError, UnicodeError, ValueError):
                pass
        return self._each(cells)

    def _each(self, cells: Sequence[Any]) -> tuple[pa.Array[Any], dict[int, Fault]]:
        kept: list[Any] = []
        faults: dict[int, Fault] = {}
        for index, cell in enumerate(cells):
            try:
                kept.append(None if cell is None else self._fit(cell))
            except CellError as error:
                kept.append(None)
                faults[index] = error.fault
        return pa.array(kept, self.field.type), faults

    def _fit(self, cell: Any) -> Any:
        type_ = self.field.type
        if pa.types.is_list(type_):
            if type(cell) is not list:
                raise _mismatch(type_, cell)
            return [None if item is None else _fit_scalar(type_.value_type, item) for item in cell]
        return _fit_scalar(type_, cell)


_NONE = type(None)


def _allowed(type_: pa.DataType) -> tuple[frozenset[type], bool]:
    """Name the Python types that go into a column unseen, and whether they are items of lists."""
    types = pa.types
    if types.is_list(type_):
        return _allowed(type_.value_type)[0], True
    if types.is_integer(type_):
        return frozenset({int, _NONE}), False
    if types.is_floating(type_):
        return frozenset({int, float, _NONE}), False
    if types.is_boolean(type_):
        return frozenset({bool, _NONE}), False
    if types.is_string(type_):
        return frozenset({str, _NONE}), False
    return frozenset({Decimal, date, datetime, bytes, _NONE}), False


def _types_fit(cells: Sequence[Any], allowed: frozenset[type], *, listed: bool) -> bool:
    if not listed:
        return allowed.issuperset(map(type, cells))
    lists = [cell for cell in cells if cell is not None]
    return set(map(type, lists)) <= {list} and allowed.issuperset(map(type, chain.from_iterable(lists)))


def _fit_scalar(type_: pa.DataType, cell: Any) -> Any:
    types = pa.types
    seen = type(cell)
    if types.is_integer(type_) and seen in {int, float}:
        return _fit_integer(type_, cell)
    if types.is_floating(type_) and seen in {int, float}:
        return _fit_float(type_, cell)
    if seen in _allowed(type_)[0]:
        try:
            pa.scalar(cell, type_)
        except (pa.ArrowException, OverflowError, UnicodeError, ValueError):
            raise CellError("column_type", f"the value does not fit the column's type {type_}") from None
        return cell
    raise _mismatch(type_, cell)


def _fit_integer(type_: pa.DataType, cell: float) -> int:
    if isinstance(cell, float):
        if not cell.is_integer() or abs(cell) > _EXACT_IN_DOUBLE:
            raise _mismatch(type_, cell)
        cell = int(cell)
    limit = 1 << (type_.bit_width - 1)
    if not -limit <= cell < limit:
        raise CellError(
            "integer_range", f"the integer does not fit {type_}; declare the column as decimal(PRECISION,0) or string"
        )
    return cell


def _fit_float(type_: pa.DataType, cell: float) -> float:
    if isinstance(cell, int) and abs(cell) > _EXACT_IN_DOUBLE and int(float(cell)) != cell:
        raise CellError(
            "integer_range", f"the integer has no exact {type_}; declare the column as decimal(PRECISION,0) or string"
        )
    number = float(cell)
    if type_ == pa.float32() and math.isfinite(number) and math.isinf(pa.scalar(number, type_).as_py()):
        raise CellError("column_type", f"the number does not fit the column's type {type_}")
    return number


_JSON_NAMES: dict[type, str] = {
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
    _NONE: "null",
}


def _mismatch(expected: pa.DataType | str, cell: Any) -> CellError:
    actual = _JSON_NAMES.get(type(cell), type(cell).__name__)
    return CellError("column_type", f"expected {expected}, found {actual}; input.columns can declare another type")


def _to_text(value: Any) -> str:
    match value:
        case str():
            return value
        case bool() | float():
            return orjson.dumps(value).decode()
        case int() | Decimal():
            return str(value)
        case _:
            raise _mismatch("text", value)


def _to_decimal(value: Any, precision: int, scale: int) -> Decimal:
    if type(value) not in {int, float, str, Decimal}:
        raise _mismatch(f"decimal({precision},{scale})", value)
    try:
        number = Decimal(repr(value) if isinstance(value, float) else value)
    except InvalidOperation:
        raise CellError("column_type", f"expected decimal({precision},{scale}), found other text") from None
    if not number.is_finite():
        raise CellError("column_type", f"expected decimal({precision},{scale}), found a number without end")
    sign, digits, exponent = number.as_tuple()
    places = int(exponent)
    text = "".join(map(str, digits)).lstrip("0")
    stripped = text.rstrip("0")
    places += len(text) - len(stripped)
    if not stripped:
        return Decimal((sign, (0,), -scale))
    if places < -scale or len(stripped) + places > precision - scale:
        raise CellError("column_type", f"the number does not fit decimal({precision},{scale}) exactly")
    shifted = int(stripped) * 10 ** (places + scale)
    return Decimal((sign, tuple(map(int, str(shifted))), -scale))


def _to_date(value: Any) -> date:
    if type(value) is not str:
        raise _mismatch("a date such as 2024-10-21", value)
    try:
        return date.fromisoformat(value)
    except ValueError:
        raise CellError("column_type", "expected a date such as 2024-10-21, found other text") from None


def _to_timestamp(value: Any) -> datetime:
    if type(value) is not str:
        raise _mismatch("a time such as 2024-10-21T12:30:00Z", value)
    try:
        moment = datetime.fromisoformat(value)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise CellError("column_type", "expected a time such as 2024-10-21T12:30:00Z, found other text") from None


def _to_binary(value: Any) -> bytes:
    if type(value) is not str:
        raise _mismatch("base64 text", value)
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise CellError("column_type", "expected base64 text, found other text") from None
