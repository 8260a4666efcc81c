"""What of a job decides its results, as canonical JSON: to tell a changed job from the same one, and say how."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.job.spec import Job, Section

_ABSENT = object()
_SHOWN = 100  # characters of a value in a line of difference


def semantic(job: Job) -> dict[str, Any]:
    """Give the semantic keys of a job, as JSON: two jobs with the same ones may write into the same folder.

    Paths of the input are as written, so that a folder may move with its job. Deployments count by the set of their
    models. `on_too_long: fail`, which is the default, is left out, as is `input.incremental` where there is none.
    """
    keys = _semantic(job, (), job.origin.written)
    if keys["request"].get("on_too_long") == "fail":
        keys["request"] = {name: value for name, value in keys["request"].items() if name != "on_too_long"}
    if keys["input"].get("incremental") is None:
        keys["input"] = {name: value for name, value in keys["input"].items() if name != "incremental"}
    return keys


def _semantic(section: Section, path: tuple[str, ...], written: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        where = (*path, str(info.validation_alias or name))
        if isinstance(value, Section):
            if inner := _semantic(value, where, written):
                found[where[-1]] = inner
        elif isinstance(value, tuple) and value and isinstance(value[0], Section):
            parts = [_semantic(item, where, written) for item in value]
            found[where[-1]] = {key: sorted({part[key] for part in parts}) for key in parts[0]}
        elif isinstance(info.json_schema_extra, dict) and info.json_schema_extra["x-class"] == "semantic":
            found[where[-1]] = _json(written.get(where, value))
    return found


def _json(value: Any) -> Any:
    match value:
        case Path():
            return str(value)
        case Mapping():
            return {name: _json(item) for name, item in value.items()}
        case list() | tuple():
            return [_json(item) for item in value]
    return value


def canonical(value: Any) -> bytes:
    """One spelling of a JSON value: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def fingerprint(job: Job) -> str:
    """SHA-256, in hex, of the semantic keys."""
    return hashlib.sha256(canonical(semantic(job))).hexdigest()


def variant(job: Job) -> str:
    """Twelve hex digits that name the wording of the request: operation, body and models."""
    keys = semantic(job)
    wording = {name: keys[name] for name in ("operation", "request", "deployments")}
    return hashlib.sha256(canonical(wording)).hexdigest()[:12]


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say field by field how two answers of `semantic` differ: `path: before -> after`; empty when they do not."""
    return list(_differences(old, new, ""))


def _differences(old: Any, new: Any, path: str) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in dict.fromkeys((*old, *new)):
            inner = f"{path}.{name}" if path else str(name)
            yield from _differences(old.get(name, _ABSENT), new.get(name, _ABSENT), inner)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _differences(before, after, f"{path}.{index}")
    elif old is _ABSENT or new is _ABSENT or canonical(old) != canonical(new):
        before, after = _shown(old, new), _shown(new, old)
        yield f"{path}: {before} -> {after}"


def _shown(value: Any, other: Any) -> str:
    """A value on one line; a long one is cut to the neighbourhood of its first difference."""
    if value is _ABSENT:
        return "(absent)"
    text = json.dumps(value, ensure_ascii=False)
    if len(text) <= _SHOWN:
        return text
    against = "" if other is _ABSENT else json.dumps(other, ensure_ascii=False)
    pairs = enumerate(zip(text, against, strict=False))
    first = next((index for index, (a, b) in pairs if a != b), min(len(text), len(against)))
    start = max(0, min(first - _SHOWN // 4, len(text) - _SHOWN))
    cut = text[start : start + _SHOWN]
    return ("…" if start else "") + cut + ("…" if start + _SHOWN < len(text) else "")
