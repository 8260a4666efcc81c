"""The fault report: what each fault class was tried, and what it cost.

Tests call `record`; `python tests/chaos/report.py LINES --markdown OUT` makes one table of what they recorded, in which
a fault class that was not run is a row that says SKIP.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Figure = TypeVar("Figure", int, float)

LINES = "PIPELINE_FAULT_REPORT"
"""The environment variable that names the file of lines; nothing is recorded without it."""

FAULTS = {
    "F1": "SIGKILL at random times",
    "F2": "SIGKILL at every durable system call",
    "F3": "an error at every durable system call",
    "F4": "power loss",
    "F5": "a full disk",
    "F6": "SIGTERM, SIGINT, and twice",
    "F7": "429 with every kind of hint",
    "F8": "the quota halves; noisy 429",
    "F9": "408, 409 and 5xx at random",
    "F10": "an outage of 10 minutes",
    "F11": "broken, cut, endless and hostile replies",
    "F12": "401, and a token endpoint in trouble",
    "F13": "refusals of rows and of runs",
    "F14": "DNS, connections, TLS",
    "F15": "too few file descriptors",
    "F16": "clock jumps",
    "F17": "two runs at one instant",
    "F18": "job or input edited between kill and resume",
    "F19": "poison rows",
    "F20": "bit flips",
    "F21": "a slow disk",
    "F22": "a storm of cancels",
    "F23": "a long run",
    "F24": "the Batch API's own faults",
}
"""Every fault class, in the order of the table."""

NOT_RUN = "not run"
"""What the table says of a class without any line."""

HONEST = (
    "F2, F3 and F21 need strace and the right to trace; F4 needs root and a loop device; F5 needs the right to mount.",
    "F4 tests the logic of ext4, not a disk that lies about a flush.",
    "Network faults are made at the socket, not in the kernel.",
    "The simulator shares the machine with the run: speeds are ratios, not absolutes.",
)
"""What the table does not show, printed below it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What one test found: one line of the file."""

    fault: str
    what: str
    tried: int = 0
    lost: int = 0
    doubled: int = 0
    resent_max: int | None = None
    recover_s_max: float | None = None
    notes: str = ""
    skipped: str = ""


def record(
    *,
    fault: str,
    what: str,
    tried: int,
    lost: int = 0,
    doubled: int = 0,
    resent_max: int | None = None,
    recover_s_max: float | None = None,
    notes: str = "",
) -> None:
    """Append what a test found to the file that PIPELINE_FAULT_REPORT names; nothing when it is not set.

    `fault` is one of FAULTS, `what` the variant that was tried (lines of one fault and variant are merged), `tried` how
    often, `lost` and `doubled` rows, `resent_max` the most requests sent again after one event, `recover_s_max` the
    longest time in seconds from the event until the run went on or ended as it should. One write with O_APPEND a line,
    so that tests in several processes may record at once. ValueError for a fault class that is not in FAULTS.
    """
    _append(
        {
            "fault": _known(fault),
            "what": what,
            "tried": tried,
            "lost": lost,
            "doubled": doubled,
            "resent_max": resent_max,
            "recover_s_max": recover_s_max,
            "notes": notes,
        }
    )


def record_skip(*, fault: str, why: str) -> None:
    """Append that a fault class was not tried, and why; the table shows it. ValueError for an unknown class."""
    _append({"fault": _known(fault), "what": FAULTS[fault], "skipped": why})


def read(path: Path) -> list[Line]:
    """The lines of a file of records; none when there is no such file. ValueError for a line that is no record."""
    if not path.exists():
        return []
    lines = []
    for number, text in enumerate(path.read_text().splitlines(), start=1):
        try:
            lines.append(Line(**json.loads(text)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: this is no record of the fault report: {error}") from error
    return lines


def latest(files: Iterable[Sequence[Line]]) -> list[Line]:
    """The lines of all files; those of a class come from the last file that has any of it."""
    kept: list[Line] = []
    for lines in files:
        again = {line.fault for line in lines}
        kept = [line for line in kept if line.fault not in again] + list(lines)
    return kept


def merge(lines: Iterable[Line]) -> list[Line]:
    """One line a fault class and variant, in the order of FAULTS; a class without any is a line that was skipped."""
    merged: dict[tuple[str, str], Line] = {}
    for line in lines:
        place = (line.fault, line.what)
        merged[place] = _sum(merged[place], line) if place in merged else line
    table = list(merged.values())
    seen = {line.fault for line in table}
    table += [Line(fault=fault, what=what, skipped=NOT_RUN) for fault, what in FAULTS.items() if fault not in seen]
    order = list(FAULTS)
    return sorted(table, key=lambda line: order.index(line.fault))


def markdown(table: Sequence[Line], *, title: str = "Fault matrix", preface: str = "") -> str:
    """The table as a page of Markdown."""
    tried = {line.fault for line in table if not line.skipped}
    skipped = [fault for fault in FAULTS if fault not in tried]
    head = [f"# {title}", ""] + ([preface, ""] if preface else [])
    rows = [
        "| fault | what | tried | lost | doubled | re-sent an event, worst | worst time to recover | notes |",
        "|---|---|---:|---:|---:|---:|---:|---|",
        *(_row(line) for line in table),
    ]
    tail = ["", f"Fault classes run: {len(tried)} of {len(FAULTS)}."]
    tail += [f"**SKIPPED, so not tested here: {', '.join(skipped)}.**"] if skipped else []
    return "\n".join([*head, *rows, *tail, "", "What this table does not show:", "", *(f"- {text}" for text in HONEST)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print or write the table; 1 when a class of `--need` is not in it, or a row was lost or doubled."""
    parser = argparse.ArgumentParser(description="Make one table of what the fault tests recorded.")
    parser.add_argument(
        "lines",
        type=Path,
        nargs="*",
        metavar="LINES",
        help=f"files that {LINES} named; what a later one says of a class replaces what an earlier one says",
    )
    parser.add_argument("--markdown", type=Path, metavar="OUT", help="write the table here, too")
    parser.add_argument("--title", default="Fault matrix")
    parser.add_argument("--preface", default="", help="a paragraph above the table")
    parser.add_argument(
        "--need", default="", metavar="F1,F2", help="classes that must be there, if only as a skip with its reason"
    )
    options = parser.parse_args(arguments)
    table = merge(latest(read(path) for path in options.lines))
    page = markdown(table, title=options.title, preface=options.preface) + "\n"
    print(page, end="")
    if options.markdown is not None:
        options.markdown.write_text(page)
    needed = {_known(fault) for fault in options.need.split(",") if fault}
    missing = [fault for fault in FAULTS if fault in needed & {line.fault for line in table if line.skipped == NOT_RUN}]
    if missing:
        print(f"not run, and nothing says why: {', '.join(missing)}", file=sys.stderr)
    harmed = [line for line in table if line.lost or line.doubled]
    return 1 if missing or harmed else 0


def _known(fault: str) -> str:
    if fault not in FAULTS:
        raise ValueError(f"there is no fault class {fault!r}; there are {', '.join(FAULTS)}")
    return fault


def _append(line: dict[str, object]) -> None:
    path = os.environ.get(LINES)
    if not path:
        return
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, json.dumps(line).encode() + b"\n")
    finally:
        os.close(file)


def _sum(one: Line, other: Line) -> Line:
    notes = [note for note in dict.fromkeys((one.notes, other.notes)) if note]
    return Line(
        fault=one.fault,
        what=one.what,
        tried=one.tried + other.tried,
        lost=one.lost + other.lost,
        doubled=one.doubled + other.doubled,
        resent_max=_most(one.resent_max, other.resent_max),
        recover_s_max=_most(one.recover_s_max, other.recover_s_max),
        notes="; ".join(notes),
        skipped="" if one.tried or other.tried else one.skipped or other.skipped,
    )


def _most(one: Figure | None, other: Figure | None) -> Figure | None:
    return max((figure for figure in (one, other) if figure is not None), default=None)


def _row(line: Line) -> str:
    if line.skipped:
        cells = [line.fault, line.what, "**SKIP**", "", "", "", "", line.skipped]
    else:
        resent = "" if line.resent_max is None else str(line.resent_max)
        recover = "" if line.recover_s_max is None else f"{line.recover_s_max:.1f} s"
        figures = [f"{line.tried:,}", str(line.lost), str(line.doubled), resent, recover]
        cells = [line.fault, line.what, *figures, line.notes]
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
