"""What the templates of one row may use of time and memory, reckoned before it is used.

Every list, filter, call, comparison and sum is measured first: its items at any depth, each counted as often as it
would be printed, and its characters. Work is counted in steps of about a microsecond. Nothing here knows of templates.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, ValuesView
from decimal import Decimal
from itertools import chain
from typing import Any, final

from jinja2.utils import Namespace

from pipeline.errors import TemplateError

MAX_TEXT = 32 * 2**20  # characters of one row's rendered text, and of any value on the way to it
MAX_STEPS = 1_000_000  # turns of all loops of one row
_ITEM = 32  # what an item of a container weighs, in characters: a million items at most
_STEPS_OF_A_CALL = 10  # a call takes as long as ten turns of a loop
_CHARACTERS_A_STEP = 512  # copied, searched, written in capitals
_PIECES_A_STEP = 2  # characters, where a text may be taken apart into words or letters
_ITEMS_COPIED_A_STEP = 16
_MAX_DEPTH = 200  # rows may be nested 64 deep
_MAX_PADDING = 1_000_000
_MAX_JSON_INDENT = 16
_MAX_BITS = 8192  # whole numbers beyond it are slow to reckon with, and Python prints none beyond 4,300 digits
_CONVERSION = re.compile(r"%(?:\([^)]*\))?([^a-zA-Z%(]*)")

_NUMBER = re.compile(r"\d+")

CHEAP_FILTERS = frozenset({"default", "d", "first", "last", "length", "count", "attr", "items", "random"})
"""Filters that give what was there before, or a number, without looking at all of it."""
EACH_FILTERS = frozenset({"map", "select", "reject", "selectattr", "rejectattr"})
"""Filters that do something with each item, again and again with the same arguments."""
_COPYING_FILTERS = frozenset(
    {"capitalize", "center", "e", "escape", "float", "format", "indent", "int", "join", "lower", "replace", "round"}
    | {"safe", "string", "tojson", "trim", "truncate", "upper"}
)
_PLAIN_FILTERS = frozenset({"capitalize", "lower", "string", "trim", "upper", "tojson"})
"""Filters that, given nothing but a text, take no longer than a copy."""
_CHEAP_METHODS = frozenset({"get", "items", "keys", "values"})
_COPYING_METHODS = frozenset(
    {"capitalize", "casefold", "center", "count", "endswith", "expandtabs", "find", "index", "join", "ljust", "lower"}
    | {"lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rjust", "rpartition"}
    | {"rstrip", "startswith", "strip", "swapcase", "upper", "zfill", "isalnum", "isalpha", "isascii", "isdecimal"}
    | {"isdigit", "islower", "isnumeric", "isprintable", "isspace", "istitle", "isupper"}
)
_PADDING_METHODS = frozenset({"center", "ljust", "rjust", "zfill"})


def too_long() -> TemplateError:
    """The error of a template that does too much."""
    return TemplateError(
        code="size", message=f"the template takes more than {MAX_STEPS:,} steps (turns of loops, work on long values)"
    )


def too_large() -> TemplateError:
    """The error of a template that makes too much."""
    return TemplateError(code="size", message=f"the rendered text is longer than {MAX_TEXT:,} characters")


@final
class Usage:
    """What one row has used of its limits."""

    __slots__ = ("characters", "steps")

    def __init__(self) -> None:
        self.characters = 0
        self.steps = 0

    def take(self, steps: int) -> None:
        """Count steps. Raises TemplateError, code `size`, when there were too many."""
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise too_long()

    def copied(self, value: Any) -> None:
        """Count a value that is made, copied or compared as a whole. Raises TemplateError, code `size`."""
        if type(value) is str:
            self.steps += 1 + len(value) // _CHARACTERS_A_STEP
            if self.steps > MAX_STEPS:
                raise too_long()
            return
        items, characters = measure(value)
        self.take(1 + items // _ITEMS_COPIED_A_STEP + characters // _CHARACTERS_A_STEP)

    def worked_on(self, value: Any, *, apart: bool) -> None:
        """Count a value that is worked on; `apart`: a text may become as many pieces as it has characters."""
        if type(value) in _TEXTS:
            self.take(1 + len(value) // (_PIECES_A_STEP if apart else _CHARACTERS_A_STEP))
        else:
            items, characters = measure(value)
            self.take(1 + items + characters // _CHARACTERS_A_STEP)

    def made(self, value: Any) -> None:
        """Count what was made. Raises TemplateError, code `size`, for what is beyond every use."""
        if type(value) is int and value.bit_length() > _MAX_BITS:
            raise too_large()
        if isinstance(value, _TEXTS) and len(value) > MAX_TEXT:
            raise too_large()
        self.copied(value)

    def each(self, values: Iterable[Any], steps: int = 1) -> Iterator[Any]:
        """Count the items of an iterable as they are taken."""
        for value in values:
            self.steps += steps
            if self.steps > MAX_STEPS:
                raise too_long()
            yield value


_TEXTS = (str, bytes, bytearray)
_PLAIN = frozenset({int, float, bool, type(None)})
_CONTAINERS = (list, tuple, dict, set, frozenset, ValuesView, Namespace)


def measure(value: Any) -> tuple[int, int]:
    """Give the items that a value holds at any depth, and their characters; shared ones count as often as they occur.

    Raises TemplateError, code `size`, for a value that is beyond every use. What is not a container has no items.
    """
    kind = type(value)
    if kind is str:
        return 0, len(value)
    if kind in _PLAIN:
        return 0, 0
    return _measure(value, {}, 0)


def _measure(value: Any, known: dict[int, tuple[int, int]], depth: int) -> tuple[int, int]:
    if isinstance(value, _TEXTS):
        return 0, len(value)
    if isinstance(value, Decimal):
        return 0, abs(value.adjusted()) + len(value.as_tuple().digits) if value.is_finite() else 0
    if not isinstance(value, _CONTAINERS):
        return 0, 0
    before = known.get(id(value))
    if before is not None:
        return before
    if depth > _MAX_DEPTH:
        raise TemplateError(code="size", message=f"a value of the template is nested more than {_MAX_DEPTH} deep")
    known[id(value)] = 0, 0  # a namespace may hold itself
    items = characters = 0
    for item in _inside(value):
        items += 1
        kind = type(item)
        if kind is str:
            characters += len(item)
        elif kind not in _PLAIN:
            more, longer = _measure(item, known, depth + 1)
            items += more
            characters += longer
        if items * _ITEM + characters > MAX_TEXT:
            raise too_large()
    known[id(value)] = items, characters
    return items, characters


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, Namespace):
        value = object.__getattribute__(value, "_Namespace__attrs")
    return chain(value, value.values()) if isinstance(value, dict) else value


def before_filter(usage: Usage, name: str, value: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Count what a filter is about to do, and give the value that it is to do it with.

    Raises TemplateError, code `size`, for what would take or make too much.
    """
    if name in CHEAP_FILTERS:
        usage.take(1)
        return value
    if type(value) is str and not args and not kwargs and name in _PLAIN_FILTERS:
        usage.copied(value)
        return value
    begun = usage.steps
    given = (*args, *kwargs.values())
    for argument in given:
        usage.copied(argument)
    if name in EACH_FILTERS:
        steps = max(1, usage.steps - begun)
        usage.copied(value)
        return usage.each(value, steps) if isinstance(value, Iterable) else value
    usage.worked_on(value, apart=name not in _COPYING_FILTERS)
    _check_filter(usage, name, value, given, kwargs)
    return usage.each(value) if isinstance(value, Iterator) else value


def before_call(usage: Usage, call: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Count what a call is about to do, and give the arguments that it is to do it with.

    Raises TemplateError, code `size`, for what would take or make too much.
    """
    usage.take(_STEPS_OF_A_CALL)
    given = (*args, *kwargs.values())
    for argument in given:
        usage.copied(argument)
    subject, name = getattr(call, "__self__", None), getattr(call, "__name__", "")
    if isinstance(subject, _TEXTS):
        usage.worked_on(subject, apart=name not in _COPYING_METHODS)
        if name == "join" and len(args) == 1:
            return (_joinable(usage, subject, args[0]),)
        _check_method(name, subject, given)
    elif isinstance(subject, _CONTAINERS) and name not in _CHEAP_METHODS:
        usage.copied(subject)
    return tuple(args)


def gives_what_was_there(call: Any) -> bool:
    """True for a method of a container that gives what the container holds, without a copy."""
    return getattr(call, "__name__", "") in _CHEAP_METHODS


def before_sum(usage: Usage, operator: str, left: Any, right: Any) -> None:
    """Count what `+ * ** %` are about to do. Raises TemplateError, code `size`, for what would make too much."""
    if type(left) in _PLAIN and type(right) in _PLAIN:
        _check_numbers(operator, left, right)
        usage.take(1)
        return
    if operator == "%" and isinstance(left, _TEXTS):
        usage.worked_on(left, apart=True)
        usage.copied(right)
        check_format(left, right)
        return
    usage.copied(left)
    usage.copied(right)
    grown = _size(left) + _size(right)
    if operator == "*":
        times = right if isinstance(right, int) else left
        grown = max(_size(left), _size(right)) * times if isinstance(times, int) else grown
    if grown > MAX_TEXT:
        raise too_large()


def _check_numbers(operator: str, left: Any, right: Any) -> None:
    bits = _bits(left) + _bits(right)
    if operator == "**" and isinstance(left, int):
        bits = _bits(left) * abs(right) if isinstance(right, int) else 0
    if bits > _MAX_BITS:
        raise too_large()


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _size(value: Any) -> int:
    items, characters = measure(value)
    return items * _ITEM + characters


def check_replace(subject: Any, old: Any, new: Any) -> None:
    """Refuse to replace short texts by long ones too often."""
    text, old, new = (value if isinstance(value, _TEXTS) else str(value) for value in (subject, old, new))
    times = text.count(old) if old else len(text) + 1
    if times * len(new) > MAX_TEXT:
        raise too_large()


def check_format(text: Any, values: Any) -> None:
    """Refuse a format that pads, or names its values, beyond the bound."""
    if not isinstance(text, str):
        raise TemplateError(code="security", message="% is for texts and numbers, not for binary values")
    widths = values_named = 0
    for conversion in _CONVERSION.finditer(text):
        if "*" in conversion[1]:
            raise too_large()
        numbers = _NUMBER.findall(conversion[1])
        if any(len(number) > len(str(_MAX_PADDING)) for number in numbers):
            raise too_large()
        widths += sum(map(int, numbers))
        values_named += 1
    if isinstance(values, Mapping):
        widths += values_named * max((_size(value) for value in values.values()), default=0)
    if widths > MAX_TEXT:
        raise too_large()


def _check_filter(usage: Usage, name: str, value: Any, given: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    match name:
        case "replace" if len(given) > 1:
            check_replace(value, given[0], given[1])
        case "e" | "escape":
            _check_escape(str(value))
        case "format":
            check_format(str(value), kwargs or tuple(given))
        case "indent":
            _check_indent(str(value), given)
        case "tojson" if given:
            _check_json(usage, value, given[0])
        case "wordwrap":
            _check_wrapping(usage, str(value), given)
        case "sum" if any(isinstance(start, _CONTAINERS) for start in given):
            raise TemplateError(code="type", message="sum is for numbers: use + for lists")
        case "center" | "batch" | "slice" | "round":
            _check_padding(given)
            usage.take(sum(abs(number) for number in given if type(number) is int) // _CHARACTERS_A_STEP)
        case _:
            pass


def _check_escape(text: str) -> None:
    if len(text) + 4 * sum(map(text.count, "&<>'\"")) > MAX_TEXT:
        raise too_large()


def _check_indent(text: str, given: Sequence[Any]) -> None:
    widths = [len(n) if isinstance(n, str) else abs(n) for n in given if isinstance(n, (int, str))]
    _check_padding(widths)
    if max(widths, default=4) * (text.count("\n") + 1) > MAX_TEXT:
        raise too_large()


def _check_padding(numbers: Sequence[Any]) -> None:
    if any(isinstance(number, int) and abs(number) > _MAX_PADDING for number in numbers):
        raise too_large()


def _check_json(usage: Usage, value: Any, indent: Any) -> None:
    if indent is None:
        return
    if not isinstance(indent, int) or not 0 <= indent <= _MAX_JSON_INDENT:
        raise TemplateError(code="size", message=f"tojson: indent must be a whole number up to {_MAX_JSON_INDENT}")
    items, _characters = measure(value)
    usage.take(4 * items)


def _check_wrapping(usage: Usage, text: str, given: Sequence[Any]) -> None:
    width = next((number for number in given if type(number) is int), 79)
    lines = text.count("\n") + 1 + 2 * len(text) // max(1, width)
    if lines * max((len(mark) for mark in given if isinstance(mark, str)), default=1) > MAX_TEXT:
        raise too_large()
    # A long word is copied for each line that is cut off it.
    usage.take(len(text) + lines * len(text) // (_CHARACTERS_A_STEP * _ITEMS_COPIED_A_STEP))


def _check_method(name: str, subject: Any, given: Sequence[Any]) -> None:
    if name == "replace" and len(given) > 1:
        check_replace(subject, given[0], given[1])
    elif name in _PADDING_METHODS:
        _check_padding(given)
    elif name == "expandtabs":
        tab = "\t" if isinstance(subject, str) else b"\t"
        width = max((abs(number) for number in given if isinstance(number, int)), default=8)
        if width * subject.count(tab) > MAX_TEXT:
            raise too_large()


def _joinable(usage: Usage, mark: Any, values: Any) -> Any:
    """What a text's own `join` is to join."""
    if not isinstance(values, Iterable):
        return values
    pieces: list[Any] = []
    size = 0
    for piece in usage.each(values):
        pieces.append(piece)
        size += len(mark) + (len(piece) if isinstance(piece, _TEXTS) else 0)
        if size > MAX_TEXT:
            raise too_large()
    return pieces
