"""A run while it goes on: a status line on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.log import Event, Level
from pipeline.views.text import duration, plain, shortened

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.store.summary import DeploymentUse, Summary, TrainingState
    from pipeline.views.console import Screen

PLAIN_EVERY_S = 5.0
_BAR = 20
_CENT = 0.01
_MOST_SHOWN = 6
_LEAST_NAME = 8


class Progress(Protocol):
    """What is told how far a run is, about each second."""

    def update(self, summary: Summary) -> None:
        """Show it."""


@contextmanager
def open_progress(kind: str, screen: Screen, *, wall: Callable[[], float]) -> Iterator[Progress]:
    """Show progress for the length of the block. `kind` is auto, rich, plain or none; auto is rich on a terminal."""
    if kind == "auto":
        kind = "rich" if screen.is_terminal and not screen.as_json else "plain"
    match kind:
        case "rich":
            with _StatusLine.shown(screen) as line:
                yield line
        case "plain":
            yield _Lines(screen, wall)
        case _:
            yield _Nothing()


class _Nothing:
    def update(self, summary: Summary) -> None:
        """Show nothing."""


class _Lines:
    """An event every few seconds, as long as the run goes on."""

    def __init__(self, screen: Screen, wall: Callable[[], float]) -> None:
        self._screen = screen
        self._wall = wall
        self._due_s = PLAIN_EVERY_S

    def update(self, summary: Summary) -> None:
        """Print a line when it is time."""
        if summary.state != "running" or summary.seconds < self._due_s:
            return
        self._due_s = summary.seconds + PLAIN_EVERY_S
        at = datetime.fromtimestamp(self._wall(), UTC)
        self._screen.say(
            {"at": at, "level": Level.INFO.name.lower(), "event": Event.PROGRESS.value, **progress_fields(summary)}
        )


class _StatusLine:
    """One line at the bottom of the terminal, redrawn in place; other lines go above it."""

    def __init__(self, live: Any) -> None:
        self._live = live
        self._drawn: list[str] = []
        self._width = 0

    @classmethod
    @contextmanager
    def shown(cls, screen: Screen) -> Iterator[_StatusLine]:
        """Keep the bottom line for the length of the block."""
        from rich.console import Console  # noqa: PLC0415 - only a terminal pays for it
        from rich.live import Live  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        console = Console(file=screen.stream, highlight=False, no_color=not screen.in_color)
        before = screen.write
        live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False)

        shown = cls(live)

        def write(line: str) -> None:
            with suppress(OSError, ValueError):
                shown._unwrap()
                console.print(Text.from_ansi(line), soft_wrap=True)

        with suppress(OSError, ValueError):
            live.start()
            console.show_cursor(show=True)  # a second Ctrl-C leaves no time to bring it back
        screen.write = write
        try:
            yield shown
        finally:
            screen.write = before
            with suppress(OSError, ValueError):
                shown._unwrap()
                live.stop()

    def update(self, summary: Summary) -> None:
        """Redraw the line; a terminal that went away is no reason to stop a run."""
        from rich.text import Text  # noqa: PLC0415 - loaded already

        with suppress(OSError, ValueError):
            self._unwrap()
            width = self._live.console.width
            lines = [status_line(summary, width=width), *deployment_lines(summary, width=width)]
            self._live.update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"), refresh=True)
            self._drawn, self._width = lines, width

    def _unwrap(self) -> None:
        """Erase the rows that our lines have more of since the terminal became narrower and wrapped them.

        What draws next erases as many rows as it drew. A terminal that cuts lines off instead loses rows above them.
        """
        from rich.cells import cell_len  # noqa: PLC0415 - loaded already
        from rich.control import Control  # noqa: PLC0415
        from rich.segment import ControlType  # noqa: PLC0415

        width = self._live.console.width
        if not 0 < width < self._width:
            return
        more = sum((max(1, min(cell_len(line), self._width)) - 1) // width for line in self._drawn)
        self._live.console.control(*[Control((ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1))] * more)
        self._width = width


def status_line(summary: Summary, *, width: int | None = None) -> str:
    """Say in one line how far a run is; of `width` columns, if given: what matters least is left out first."""
    if summary.training is not None:
        return _training_line(summary, summary.training)
    name, parts = plain(summary.job), _parts(summary, bar=True)
    if width is not None and len(_joined(name, parts)) > width:
        parts = _parts(summary, bar=False)
    while width is not None and len(parts) > 1 and len(_joined(name, parts)) > width:
        parts.remove(max(parts))
    if width is not None and len(_joined(name, parts)) > width:
        name = shortened(name, max(_LEAST_NAME, width - len(_joined("", parts))))
    return _joined(name, parts)


def _joined(name: str, parts: Sequence[tuple[int, str]]) -> str:
    return f"{name}  {' · '.join(text for _, text in parts)}"


def _bar(done: int, of: int) -> str:
    filled = done * _BAR // of
    return f"{'━' * filled}{'╌' * (_BAR - filled)} "


def _parts(summary: Summary, *, bar: bool) -> list[tuple[int, str]]:
    """What there is to say, each with how soon it may be left out: the highest number first."""
    rows = summary.rows
    done = rows.ok + rows.failed
    parts = []
    if rows.total:
        parts.append((0, f"{_bar(done, rows.total) if bar else ''}{done * 100 // rows.total}%"))
        parts.append((3, f"{done:,}/{rows.total:,} rows"))
    elif summary.rows_expected and summary.state == "running":
        about = max(done, summary.rows_expected)
        parts.append((0, f"{_bar(done, about) if bar else ''}~{done * 100 // about}%"))
        parts.append((3, f"{done:,}/~{about:,} rows"))
    else:
        parts.append((0, f"{done:,} rows"))
    paused_s = paused_for_s(summary)
    parts.append(
        (2, f"{summary.rows_per_second:,.1f}/s") if paused_s is None else (0, f"paused for {duration(paused_s)}")
    )
    parts.append((6, f"{summary.in_flight} in flight"))
    if summary.throttled:
        parts.append((5, f"{summary.throttled:,} throttled"))
    if rows.failed:
        parts.append((1, f"{rows.failed:,} failed"))
    if summary.cost_usd:
        cost = f"${summary.cost_usd:,.2f}" if summary.cost_usd >= _CENT else f"${summary.cost_usd:.4f}"
        parts.append((4, cost))
    if summary.eta_seconds is not None:
        parts.append((1, f"{duration(summary.eta_seconds)} left"))
    if summary.waits_for is not None:
        parts.append((7, f"waits for row {summary.waits_for:,}"))
    return parts


def paused_for_s(summary: Summary) -> float | None:
    """For how many seconds a run was paused when it said so; None where it was not."""
    if summary.paused_since is None or summary.updated_at is None:
        return None
    since, now = (datetime.fromisoformat(text) for text in (summary.paused_since, summary.updated_at))
    return max(0.0, (now - since).total_seconds())


def deployment_lines(summary: Summary, *, width: int | None = None) -> list[str]:
    """Say for each deployment what is sent of late beside its quota, and how long it was told to wait.

    Of `width` columns, if given: all lines are said as fully as the longest of them may be.
    """
    if summary.training is not None:
        return []
    shown = summary.deployments[:_MOST_SHOWN]
    names = max((len(plain(use.name)) for use in shown), default=0)
    for form in _Form:
        used = [use for use in shown if use.requests or use.set_aside]
        lines = [f"  {plain(use.name):<{names}}  {' · '.join(_use(use, form))}" for use in used]
        if width is None or all(len(line) <= width for line in lines):
            break
    more = len(summary.deployments) - len(shown)
    return [*lines, f"  and {more} more"] if more else lines


class _Form(Enum):
    """How fully a deployment is described."""

    FULL = "full"
    SHARES = "shares"
    SHORT = "short"
    SHORTEST = "shortest"


def _use(use: DeploymentUse, form: _Form) -> list[str]:
    parts = [
        _beside(use.sent_requests_per_minute, use.requests_per_minute, "requests", form),
        _beside(use.sent_tokens_per_minute, use.tokens_per_minute, "tokens", form),
    ]
    if use.set_aside and form is not _Form.FULL:
        parts.clear()  # it is sent nothing, and the reason needs the room
    if use.throttled and form is not _Form.SHORTEST:
        parts.append(f"{use.throttled:,} throttled")
    if use.paused_s >= 1 and form in {_Form.FULL, _Form.SHARES}:
        parts.append(f"paused {duration(use.paused_s)} in all")
    if use.set_aside:
        parts.append(f"set aside: {plain(use.set_aside)}")
    return parts


def _beside(sent: float, limit: float | None, unit: str, form: _Form) -> str:
    """What is sent, and the share of the limit that it is."""
    match form:
        case _Form.FULL if limit:
            return f"{sent:,.0f} of {limit:,.0f} {unit}/min ({sent / limit:.0%})"
        case _Form.SHARES if limit:
            return f"{sent / limit:.0%} of {limit:,.0f} {unit}/min"
        case _Form.SHORT if limit:
            return f"{sent / limit:.0%} of {unit}"
        case _Form.SHORTEST:
            return f"{unit[:3]} {f'{sent / limit:.0%}' if limit else f'{sent:,.0f}'}"
    return f"{sent:,.0f} {unit}/min"


def _training_line(summary: Summary, training: TrainingState) -> str:
    parts = [plain(training.job), plain(training.state or "")] if training.job is not None else ["no training yet"]
    parts.append(f"{training.examples:,} examples")
    return f"{plain(summary.job)}  {' · '.join(parts)}"


def progress_fields(summary: Summary) -> dict[str, Any]:
    """Give the same as fields of an event."""
    rows = summary.rows
    return {
        "done": rows.ok + rows.failed,
        "total": rows.total,
        "expected": summary.rows_expected,
        "failed": rows.failed,
        "rows_per_second": summary.rows_per_second,
        "in_flight": summary.in_flight,
        "throttled": summary.throttled,
        "eta_seconds": summary.eta_seconds,
        "waits_for": summary.waits_for,
        "paused_since": summary.paused_since,
    }
