"""The invocations of a folder, or of every folder beside it, for people."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.store.folder import Layout, is_running
from pipeline.store.history import Invocation, invocations
from pipeline.views.text import dollars, duration, plain, shortened, table

_HEAD = ("begun", "took", "state", "exit", "new rows", "ok", "failed", "cost", "")
_REASON_CHARS = 80
_MOVED_ASIDE = re.compile(r"\.before\.\d+$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An invocation and the folder that it held."""

    folder: str
    invocation: Invocation


def runs_of(root: Path) -> list[Found]:
    """The invocations of one output folder, in order. Raises FileNotFoundError where none is known."""
    layout = Layout(root)
    return [Found(folder=str(root), invocation=one) for one in invocations(layout, running=is_running(root))]


def each_once(found: Sequence[Found]) -> list[Found]:
    """Leave out what a folder that was moved aside for a changed input tells, where the one in its place does, too."""
    told = {(one.folder, one.invocation.begun) for one in found}
    return [
        one
        for one in found
        if (name := _MOVED_ASIDE.sub("", one.folder)) == one.folder or (name, one.invocation.begun) not in told
    ]


def outputs_below(folder: Path) -> list[Path]:
    """The output folders that lie directly in a folder, by name; those that were moved aside among them."""
    return sorted(path for path in folder.iterdir() if (path / "_pipeline").is_dir())


def run_lines(found: Sequence[Found], *, named: bool) -> list[str]:
    """Lay them out. `named`: each says its folder."""
    cells = [[*([plain(Path(one.folder).name)] if named else []), *_cells(one.invocation)] for one in found]
    return table(cells, head=["folder", *_HEAD] if named else _HEAD)


def _cells(one: Invocation) -> list[str]:
    cost = one.new_cost_usd
    return [
        plain(one.begun.replace("T", " ").removesuffix("+00:00")) or "-",
        "-" if one.seconds is None else duration(one.seconds),
        plain(one.state),
        "-" if one.exit_code is None else str(one.exit_code),
        "-" if one.new_rows is None else f"{one.new_rows:,}",
        f"{one.ok:,}",
        f"{one.failed:,}",
        "-" if cost is None else dollars(cost),
        shortened(one.reason or "", _REASON_CHARS),
    ]
