"""Text for people and terminals: nothing foreign moves a cursor, forges a line or turns the reading direction."""

from __future__ import annotations

import json
from collections.abc import Sequence

_MINUTE_S = 60
_HOUR_S = 3_600
_DAY_S = 86_400


def plain(text: str) -> str:
    """Escape what is not printable, line ends included."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape", "backslashreplace").decode() for one in text
    )


def shortened(text: str, most: int) -> str:
    """Escape, and cut to `most` characters with an ellipsis."""
    text = plain(text[: most + 1])
    return text if len(text) <= most else text[: most - 1] + "…"


def json_text(value: object, *, indent: int | None = 2) -> str:
    """JSON as text; characters that are not printable are escaped as JSON escapes them."""
    text = json.dumps(value, ensure_ascii=False, indent=indent, default=str)
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one == "\n" else json.dumps(one)[1:-1] for one in text)


def count(number: int, noun: str) -> str:
    """Say `1 row`, `2,000 rows`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(seconds: float) -> str:
    """Say `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`, `1 d 3 h`."""
    if seconds < 10:  # noqa: PLR2004 - two figures are enough
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _MINUTE_S:
        return f"{whole} s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S} min {whole % _MINUTE_S} s"
    if whole < _DAY_S:
        return f"{whole // _HOUR_S} h {whole % _HOUR_S // _MINUTE_S} min"
    return f"{whole // _DAY_S} d {whole % _DAY_S // _HOUR_S} h"


def size(count_bytes: float) -> str:
    """Say `512 B`, `1.2 MB`, by powers of a thousand."""
    for unit in ("B", "kB", "MB", "GB"):
        if count_bytes < 1000:  # noqa: PLR2004 - a unit's width
            return f"{count_bytes:.0f} {unit}" if unit == "B" else f"{count_bytes:.1f} {unit}"
        count_bytes /= 1000
    return f"{count_bytes:.1f} TB"


def dollars(amount: float) -> str:
    """Say `$0.0012` where cents say nothing, `$3.20` elsewhere."""
    return f"${amount:,.2f}" if amount >= 1 else f"${amount:.4f}"


def percent(share: float) -> str:
    """Say `42 %`, `3.1 %`, `<0.1 %`: a share that is there never reads as none."""
    if 0 < share < 0.001:  # noqa: PLR2004 - a tenth of a percent
        return "<0.1 %"
    return f"{share * 100:.0f} %" if share >= 0.1 or share == 0 else f"{share * 100:.1f} %"  # noqa: PLR2004 - two figures


def table(rows: Sequence[Sequence[str]], *, head: Sequence[str] = ()) -> list[str]:
    """Lay cells out in columns, two spaces apart; the last column keeps its length."""
    lines = [list(head), *map(list, rows)] if head else [list(row) for row in rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]) - 1)] if lines else []
    return [
        "  ".join([*[cell.ljust(width) for cell, width in zip(line, widths, strict=False)], line[-1]]).rstrip()
        for line in lines
    ]
