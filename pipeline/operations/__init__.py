"""What is asked: one file an operation, each a set of pure functions; the registry finds them by themselves."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.operations.base import OperationFactory

_CONTRACT = "base"


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationEntry:
    """One operation, as its module's `OPERATION` declares it.

    `name` is what a job file says under `operation`: the module's name with hyphens for underscores.
    `description` is one line. `starter` is the commented job file that `pipeline init` writes; it reads
    `rows.jsonl` beside it, for which `starter_rows` are lines that fit, and `starter_files` the files that they name:
    a path beside the job file and its content. `large_answers`: what is kept of one has tens of kilobytes.
    """

    name: str
    factory: OperationFactory
    description: str
    starter: str
    starter_rows: str
    starter_files: Callable[[], Mapping[str, bytes]] = dict
    large_answers: bool = False


def names(package: str = __name__) -> tuple[str, ...]:
    """List the operations that a package holds, sorted. Imports none; modules that begin with `_` are helpers."""
    folders = importlib.import_module(package).__path__
    modules = (module.name for module in pkgutil.iter_modules(folders))
    return tuple(sorted(name.replace("_", "-") for name in modules if name != _CONTRACT and not name.startswith("_")))


def get(name: str, package: str = __name__) -> OperationEntry:
    """Find one operation of a package. Raises LookupError when it holds none of that name."""
    known = names(package)
    if name not in known:
        raise LookupError(f"no operation named {name!r}; there are: {', '.join(known)}")
    entry: OperationEntry = importlib.import_module(f"{package}.{name.replace('-', '_')}").OPERATION
    return entry
