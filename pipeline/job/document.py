"""A job file as plain values with the place of each: YAML 1.2, JSON or TOML, and `--set` on top."""

from __future__ import annotations

import json
import math
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import Problem

MAX_BYTES = 1_000_000
MAX_DEPTH = 32

FieldPath = tuple[str | int, ...]
Mark = tuple[int, int]

_UNMARKED = (0, 0)  # the place of a value that came from the command line
_TEMPLATE = re.compile(r"\s*\{[{%#]")
_INDEX = re.compile(r"[0-9]{1,9}")

_YAML_ADVICE = (
    (r"character '\t'", "indent with spaces"),
    ("mapping values", "a text with a colon stands in quotes, and the keys of a section begin in the same column"),
    (
        "but found '<scalar>'",
        "a text that begins with a quote or a brace stands in quotes as a whole, of the other kind",
    ),
    ("but found '<block mapping start>'", "the keys of a section begin in the same column"),
    ("cannot start any token", "a text that begins with this character stands in quotes"),
    ("unexpected end of stream", "a quote is not closed"),
)
"""What to do about YAML that cannot be read, by words of the parser."""

OVERRIDE = "--set"
"""What problems of a value that came from the command line name in the place of the job file."""


@dataclass(slots=True)
class Tree:
    """A document as plain values, with the places of its keys (`keys`) and values (`marks`)."""

    data: Any = None
    marks: dict[FieldPath, Mark] = field(default_factory=dict)
    keys: dict[FieldPath, Mark] = field(default_factory=dict)


class _Unreadable(Exception):  # noqa: N818 - it becomes a Problem
    """The document cannot be read further."""

    def __init__(self, message: str, mark: Mark | None = None) -> None:
        self.mark = mark
        super().__init__(message)


@dataclass(slots=True)
class Report:
    """Problems as they are found. Values are never quoted here: a caller does so only where none can be secret.

    `file` and `override` are the places that problems name: of the file's values, and of values from a command line.
    """

    file: str
    override: str = OVERRIDE
    tree: Tree = field(default_factory=Tree)
    problems: list[Problem] = field(default_factory=list)

    def add(self, path: FieldPath, message: str, *, at: Mark | None = None) -> None:
        """Note a problem at its value's place, or its nearest parent's; none for a value of the command line."""
        mark = at
        for length in range(len(path), 0, -1) if mark is None else ():
            mark = self.tree.marks.get(path[:length])
            if mark is not None:
                break
        line, column = (None, None) if mark is None or mark == _UNMARKED else mark
        name = ".".join(map(str, path))
        file = self.override if mark == _UNMARKED else self.file
        self.problems.append(Problem(file=file, line=line, column=column, path=name, message=message))


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema, without anchors, aliases, tags of a language or deep nesting."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own attribute
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuse what a job file has no use for before anything is built from it."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        mark = (event.start_mark.line + 1, event.start_mark.column + 1)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _Unreadable("anchors and aliases are not allowed: write the value out", mark)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _Unreadable(f"is nested more than {MAX_DEPTH} deep", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


_CORE = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_RESOLVERS = {
    "null": re.compile(r"~|null|Null|NULL|"),
    "bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    "int": _INT,
    "float": _FLOAT,
}
for _kind, _pattern in _RESOLVERS.items():
    # PyYAML tests by match(): the end must stand in the pattern.
    _Loader.add_implicit_resolver(_CORE + _kind, re.compile(rf"(?:{_pattern.pattern})\Z"), None)


def _scalar(node: yaml.ScalarNode) -> Any:
    """A scalar by YAML 1.2's core schema."""
    text, kind = node.value, node.tag.removeprefix(_CORE)
    if kind == "str":
        return text
    if kind not in _RESOLVERS:
        raise ValueError("has a tag, which a job file does not use")
    if not _RESOLVERS[kind].fullmatch(text):
        raise ValueError("is not what its tag says")
    match kind:
        case "null":
            return None
        case "bool":
            return text in ("true", "True", "TRUE")
        case "int":
            return _integer(text)
    number = float(text) if text.lower().lstrip("+-").lstrip(".") not in ("inf", "nan") else math.nan
    if not math.isfinite(number):
        raise ValueError("is no number that JSON knows: put it in quotes if it is text")
    return number


def _integer(text: str) -> int:
    if len(text) > 20:  # noqa: PLR2004 - more digits than 64 bits have
        raise ValueError("is a whole number beyond 64 bits: put it in quotes if it is text")
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _read_yaml(text: str, report: Report) -> Tree:
    """Compose the document and turn its nodes into values, noting each place."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
    finally:
        loader.dispose()
    tree = report.tree
    if node is not None:
        tree.data = _value(node, (), report)
    return tree


def _value(node: yaml.Node, path: FieldPath, report: Report) -> Any:
    mark = (node.start_mark.line + 1, node.start_mark.column + 1)
    report.tree.marks[path] = mark
    match node:
        case yaml.SequenceNode() if node.tag == f"{_CORE}seq":
            return [_value(item, (*path, index), report) for index, item in enumerate(node.value)]
        case yaml.MappingNode() if node.tag == f"{_CORE}map":
            return _mapping(node, path, report)
        case yaml.ScalarNode():
            try:
                return _scalar(node)
            except ValueError as error:
                report.add(path, str(error), at=mark)
        case _:
            report.add(path, "has a tag, which a job file does not use", at=mark)
    return None


def _mapping(node: yaml.MappingNode, path: FieldPath, report: Report) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key_node, value_node in node.value:
        mark = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
        if not isinstance(key_node, yaml.ScalarNode):
            report.add(path, 'has a key that is no text: a template must stand in quotes, "{{ column }}"', at=mark)
            continue
        name = key_node.value
        if name in found:
            report.add((*path, name), "is given twice", at=mark)
            continue
        report.tree.keys[(*path, name)] = mark
        found[name] = _value(value_node, (*path, name), report)
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number that JSON knows")


def _read_json(text: str, report: Report) -> Tree:
    """Values by the JSON parser; places, depth and double keys by the YAML one, whose language holds JSON's."""
    places = _read_yaml(text.replace("\t", " "), report)
    try:
        places.data = json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise _Unreadable(f"is no JSON: {error.msg}", (error.lineno, error.colno)) from error
    return places


_TOML_PLACE = re.compile(r" \(at line (\d+), column (\d+)\)$")
_TOML_HEADER = re.compile(r"\s*(\[\[?)\s*([A-Za-z0-9_.\- ]+?)\s*\]")
_TOML_KEY = re.compile(r"\s*(\"[^\"]*\"|'[^']*'|[A-Za-z0-9_-]+(?:\s*\.\s*[A-Za-z0-9_-]+)*)\s*=\s*")


def _read_toml(text: str, report: Report) -> Tree:
    """Values by tomllib; places by a look at the lines, for keys that begin one."""
    tree = report.tree
    try:
        tree.data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = _TOML_PLACE.search(str(error))
        mark = (int(place[1]), int(place[2])) if place else None
        raise _Unreadable("is no TOML: " + _TOML_PLACE.sub("", str(error)), mark) from error
    prefix: FieldPath = ()
    counts: dict[FieldPath, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if header := _TOML_HEADER.match(line):
            prefix = tuple(part.strip() for part in header[2].split("."))
            if header[1] == "[[":
                counts[prefix] = counts.get(prefix, -1) + 1
                prefix = (*prefix, counts[prefix])
            elif prefix[:1] in counts:
                prefix = (prefix[0], counts[prefix[:1]], *prefix[1:])
            tree.marks.setdefault(prefix, (number, 1))
        elif key := _TOML_KEY.match(line):
            raw = key[1]
            names = (raw[1:-1],) if raw[0] in "\"'" else tuple(part.strip() for part in raw.split("."))
            tree.keys.setdefault((*prefix, *names), (number, key.start(1) + 1))
            tree.marks.setdefault((*prefix, *names), (number, key.end() + 1))
    tree.data = _json_values(tree.data, (), report)
    return tree


def _json_values(value: Any, path: FieldPath, report: Report) -> Any:
    """TOML knows dates, NaN and deep nesting; a job file, which is JSON at heart, does not."""
    if len(path) > MAX_DEPTH:
        raise _Unreadable(f"is nested more than {MAX_DEPTH} deep")
    if isinstance(value, dict):
        return {name: _json_values(item, (*path, name), report) for name, item in value.items()}
    if isinstance(value, list):
        return [_json_values(item, (*path, index), report) for index, item in enumerate(value)]
    if isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    report.add(path, "is a date or no number that JSON knows: put it in quotes")
    return None


def read(path: Path, report: Report) -> None:
    """Read and parse the file into the report's tree; what cannot be read is a problem."""
    data = b""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        _parse(data, path.suffix.lower(), report)
    except OSError as error:
        report.add((), f"cannot be read: {error.strerror or type(error).__name__}")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        report.add((), "is not UTF-8", at=(line, error.start - data.rfind(b"\n", 0, error.start)))
    except _Unreadable as error:
        report.add((), str(error), at=error.mark)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = (mark.line + 1, mark.column + 1) if mark else None
        problem = str(error.problem or error.context)
        advice = next((f" ({said})" for words, said in _YAML_ADVICE if words in problem), "")
        report.add((), f"is no YAML: {problem}{advice}", at=where)
    except yaml.YAMLError:
        report.add((), "holds control characters that YAML does not allow")
    except (RecursionError, ValueError):
        report.add((), "cannot be read as a job file")


def _parse(data: bytes, suffix: str, report: Report) -> None:
    if len(data) > MAX_BYTES:
        raise _Unreadable(f"is larger than {MAX_BYTES:,} bytes")
    reader = {".json": _read_json, ".toml": _read_toml}.get(suffix, _read_yaml)
    reader(data.decode("utf-8-sig"), report)
    if not isinstance(report.tree.data, dict):
        raise _Unreadable("holds no job: a mapping with `operation`, `input`, `request` … is expected", (1, 1))


def override(data: dict[str, Any], name: str, text: str, report: Report) -> None:
    """Put one `--set` into the document; `deployments.sweden.x` reaches a deployment by its name.

    The value is read as YAML, unless it begins with a template's braces. It is never quoted in a problem.
    """
    path = _override_path(data, name)
    report.tree.marks = {known: mark for known, mark in report.tree.marks.items() if known[: len(path)] != path}
    report.tree.marks[path] = report.tree.keys[path] = _UNMARKED
    scratch = Report(file="")
    try:
        value = text if _TEMPLATE.match(text) else _read_yaml(text, scratch).data
    except (yaml.YAMLError, _Unreadable):
        report.add(path, "the value given by --set is no YAML: put it in quotes")
        return
    for problem in scratch.problems:
        report.add(path, f"the value given by --set {problem.message}")
    if not _put(data, path, value):
        report.add(path, "there is nothing of this name to set")


def _put(data: dict[str, Any], path: FieldPath, value: Any) -> bool:
    """Set a value by its path, making the mappings that are missing on the way; False where the path leads nowhere."""
    node: Any = data
    for part in path[:-1]:
        if isinstance(node, dict):
            if node.get(str(part)) is None:
                node[str(part)] = {}
            node = node[str(part)]
        elif isinstance(node, list) and isinstance(part, int) and part < len(node):
            node = node[part]
        else:
            return False
    last = path[-1]
    if isinstance(node, dict):
        node[str(last)] = value
    elif isinstance(node, list) and isinstance(last, int) and last <= len(node):
        node[last : last + 1] = [value]
    else:
        return False
    return True


def _override_path(data: dict[str, Any], name: str) -> FieldPath:
    parts: list[str | int] = [int(part) if _INDEX.fullmatch(part) else part for part in name.split(".")]
    deployments = data.get("deployments")
    if len(parts) > 1 and parts[0] == "deployments" and isinstance(parts[1], str) and isinstance(deployments, list):
        for index, deployment in enumerate(deployments):
            if isinstance(deployment, dict) and parts[1] in (deployment.get("name"), deployment.get("deployment")):
                parts[1] = index
                break
    return tuple(parts)
