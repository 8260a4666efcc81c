"""report.html: one page that says the next morning whether a run worked, what it cost, what failed and what to do."""

from __future__ import annotations

import base64
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.clock import utc
from pipeline.errors import DamageError
from pipeline.store.disk import file_system
from pipeline.store.files import TEMPORARY_SUFFIX, replace_text, storage
from pipeline.store.folder import Layout, is_running
from pipeline.store.history import Invocation, invocations
from pipeline.store.journal import BatchRecord, JournalReader
from pipeline.store.training import EVENTS, METRICS
from pipeline.views.advice import advice
from pipeline.views.attempts import Attempts, Kind, all_attempts
from pipeline.views.charts import (
    Chart,
    Slot,
    curve_chart,
    in_steps,
    latency_chart,
    milliseconds,
    outcomes_chart,
    pace_chart,
    pace_of,
    slots_of,
    steps_of,
)
from pipeline.views.closing import Step, headline, next_steps
from pipeline.views.kinds import FailedKinds, failed_kinds
from pipeline.views.status import read_status
from pipeline.views.text import count, dollars, duration, percent, plain, shortened, size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.store.summary import Summary

MOST_POINTS = 300
"""Points of a curve that are drawn; longer ones are thinned."""
MOST_CHECKPOINTS = 20
MOST_INVOCATIONS = 20
_ID_CHARS = 60
_NONE = "\N{EN DASH}"
_SMALL = 0.005
_PACKAGES = ("anyio", "httpx", "pyarrow", "pyreqwest", "uvloop")
_CURVES = {"train_loss": "training loss", "valid_loss": "validation loss", "full_valid_loss": "full validation loss"}
_STATES = {
    "complete": ("good", "Complete"),
    "running": ("info", "Running"),
    "stopped": ("warn", "Stopped"),
    "interrupted": ("warn", "Interrupted"),
    "refused": ("bad", "Refused"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Percentiles of how long answers took, milliseconds; right within 0.6 %, `least` and `most` exactly."""

    deployment: str | None
    answers: int
    least: float
    p50: float
    p90: float
    p95: float
    p99: float
    most: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentFigures:
    """One deployment over the folder's life, and its quota in the last invocation; None where there is none."""

    name: str
    attempts: int = 0
    answered: int = 0
    throttled: int = 0
    told_to_wait_s: float = 0.0
    tokens: int = 0
    most_requests_a_minute: float = 0.0
    most_tokens_a_minute: float = 0.0
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    set_aside: str | None = None

    @property
    def failed(self) -> int:
        """Attempts that were neither answered nor throttled."""
        return self.attempts - self.answered - self.throttled

    @property
    def busiest(self) -> float | None:
        """The share of the tighter quota that the busiest minute took; None where no quota is known."""
        pairs = (
            (self.most_requests_a_minute, self.requests_per_minute),
            (self.most_tokens_a_minute, self.tokens_per_minute),
        )
        return max((most / quota for most, quota in pairs if quota), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """One figure that was predicted, and what it came to; both as text, and by how much it was missed."""

    name: str
    predicted: str
    actual: str
    off: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint of a training."""

    step: int | None
    train_loss: float | None
    valid_loss: float | None
    name: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that the page says. `unread` are files that could not be read; the figures are without them."""

    summary: Summary
    written_at: str
    steps: Sequence[Step]
    attempts: Attempts
    failed: FailedKinds
    deployments: Sequence[DeploymentFigures]
    latencies: Sequence[Latency]
    slots: Sequence[Slot]
    charts: Sequence[Chart] = ()
    pace_charts: Mapping[str, Sequence[Chart]] = field(default_factory=dict)
    latency: Chart | None = None
    loss: Chart | None = None
    checkpoints: Sequence[Checkpoint] = ()
    batches: Sequence[BatchRecord] = ()
    forecasts: Sequence[Forecast] = ()
    invocations: Sequence[Invocation] = ()
    environment: Sequence[tuple[str, str]] = ()
    active_s: int = 0
    idle_s: int = 0
    unread: Sequence[str] = ()

    def as_json(self) -> dict[str, Any]:
        """The page's figures as plain values, for a machine."""
        return {
            "summary": self.summary.as_json(),
            "written_at": self.written_at,
            "active_seconds": self.active_s,
            "idle_seconds": self.idle_s,
            "deployments": [{**asdict(one), "failed": one.failed} for one in self.deployments],
            "latency_ms": [asdict(one) for one in self.latencies],
            "histogram_ms": [asdict(one) for one in self.slots],
            "failed_rows": [asdict(one) for one in self.failed.kinds],
            "failed_attempts": [asdict(one) for one in failed_attempts(self.attempts)],
            "predicted": self.summary.as_json().get("predicted"),
            "invocations": [asdict(one) for one in self.invocations],
            "checkpoints": [asdict(one) for one in self.checkpoints],
            "environment": dict(self.environment),
            "unread": list(self.unread),
        }


def write_report(root: Path, *, now: float, path: Path | None = None) -> Path:
    """Write the page of the run in a folder, by default to `_pipeline/report.html`; returns where it is.

    `now` is in epoch seconds. Raises FileNotFoundError where no run wrote a summary, DamageError for one that cannot be
    read, StorageError when the disk refuses.
    """
    page = render(read_report(root, now=now))
    own = Layout(root).report
    with storage(f"writing {path or own}"):
        if path is None or path == own:
            replace_text(own, page, durable=False)
            return own
        # The user's to share: the umask decides who may read it.
        temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(path)
    return path


def read_report(root: Path, *, now: float) -> Report:
    """Gather what the page says, also while the run goes on, or after it was killed. Raises as `write_report`."""
    layout = Layout(root)
    summary = read_status(root)
    attempts, failed = Attempts(), FailedKinds()
    batches: tuple[BatchRecord, ...] = ()
    unread: list[str] = []
    try:
        attempts = all_attempts(layout)
        failed = failed_kinds(layout)
        with JournalReader(layout.journal) as reader:
            batches = tuple(reader.batches())
    except (FileNotFoundError, DamageError):
        unread.append(layout.inside(layout.journal))
    latencies = attempts.all_latencies
    timeline, steps = attempts.timeline, steps_of(attempts.timeline)
    figures = _deployments(summary, attempts)
    charts, pace_charts = _pace_charts(figures, attempts) if latencies.count else ((), {})
    slots = slots_of(latencies)
    loss, checkpoints = _training(layout, unread)
    return Report(
        summary=summary,
        written_at=utc(now),
        steps=next_steps(summary, reader=shlex.quote(str(root.absolute()))),
        attempts=attempts,
        failed=failed,
        deployments=figures,
        latencies=_latencies(attempts),
        slots=slots,
        charts=charts,
        pace_charts=pace_charts,
        latency=latency_chart(latencies, slots) if slots else None,
        loss=loss,
        checkpoints=checkpoints,
        batches=batches,
        forecasts=forecasts(summary.as_json()),
        invocations=invocations(layout, running=is_running(root))[-MOST_INVOCATIONS:],
        environment=_environment(root),
        active_s=steps.active_s if timeline.moments else 0,
        idle_s=steps.idle_s,
        unread=(*unread, *attempts.unread, *failed.unread),
    )


def render(report: Report) -> str:
    """Make the page: whole in itself, without scripts, everything foreign escaped. Pure."""
    from jinja2 import Environment, StrictUndefined  # noqa: PLC0415 - for commands that write a page

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown
    )
    environment.filters |= {
        "duration": duration,
        "dollars": dollars,
        "ms": milliseconds,
        "moment": _moment,
        "figure": _figure,
        "share": _share,
        "cut": lambda value: shortened(str(value), _ID_CHARS),
        "many": count,
    }
    style = _beside("report.css")
    page = environment.from_string(_beside("report.html.jinja"))
    kind, word = _STATES.get(report.summary.state, ("info", report.summary.state))
    if report.summary.state == "complete" and report.summary.rows.failed:
        kind = "bad" if report.summary.exit_code else "warn"
    return page.render(
        report=report,
        summary=report.summary,
        badge=(kind, word),
        outcome=outcome(report.summary),
        failed_attempts=failed_attempts(report.attempts),
        advice=advice,
        style=style,
        # The one style that may apply is this page's own, and nothing is loaded from anywhere.
        style_hash=base64.b64encode(sha256(style.encode()).digest()).decode(),
    )


def outcome(summary: Summary) -> str:
    """Say in a sentence or two what the run came to."""
    rows, training = summary.rows, summary.training
    if training is not None:
        return _trained(summary)
    done = rows.ok + rows.failed
    total = f"{done:,} of {count(rows.total, 'row')}" if rows.total is not None else count(done, "row")
    took = f" in {duration(summary.seconds)}" if summary.seconds else ""
    cost = "" if summary.cost_usd is None else f" It has cost {dollars(summary.cost_usd)} so far."
    done_so_far = f"{total} done{took}, {rows.failed:,} of them failed."
    match summary.state:
        case "complete":
            return _completed(summary)
        case "running":
            left = "" if summary.eta_seconds is None else f" About {duration(summary.eta_seconds)} are left."
            return f"The run goes on: {done_so_far}{left}{cost}"
        case "refused":
            return f"The service refused to go on: {done_so_far}{cost}"
    waits = "" if rows.pending is None else f" {count(rows.pending, 'row')} still to be asked."
    return f"It ended before its rows did: {done_so_far}{waits}{cost}"


def _completed(summary: Summary) -> str:
    ok, failed = summary.rows.ok, summary.rows.failed
    cost = "" if summary.cost_usd is None else f" It cost {dollars(summary.cost_usd)}."
    again = not summary.rows_per_second and ok + failed > 0
    took = "" if again else f" in {duration(summary.seconds)}"
    said = (
        f"All {count(ok, 'row')} were answered"
        if not failed
        else f"{count(ok, 'row')} were answered, {failed:,} failed"
    )
    return f"{said}{took}.{cost}{' Nothing was left for the last invocation to do.' if again else ''}"


def failed_attempts(attempts: Attempts) -> list[Kind]:
    """The kinds of attempts that were no answer, the most frequent first."""
    kinds = [kind for kind in attempts.kinds.values() if kind.verdict != "answered"]
    return sorted(kinds, key=lambda kind: (-kind.attempts, kind.deployment, kind.verdict))


def _trained(summary: Summary) -> str:
    training = summary.training
    assert training is not None  # noqa: S101 - the caller looked
    examples = count(training.examples, "example")
    if summary.fine_tuned_model is not None and summary.state == "complete":
        return f"{training.model} was trained on {examples}: the model is {summary.fine_tuned_model}."
    if training.job is None:
        return f"No training of {training.model} was begun. {headline(summary).capitalize()}."
    return f"The training of {training.model} on {examples} is {training.state or 'under way'} ({training.job})."


def _deployments(summary: Summary, attempts: Attempts) -> list[DeploymentFigures]:
    """What each deployment did: those of the summary in their order, then those that only attempts name."""
    uses = {use.name: use for use in summary.deployments}
    names = [*uses, *sorted({kind.deployment for kind in attempts.kinds.values()} - set(uses))]
    steps = steps_of(attempts.timeline)
    found = []
    for name in names:
        kinds = [kind for kind in attempts.kinds.values() if kind.deployment == name]
        moments = attempts.timeline.moments.get(name, {})
        width = attempts.timeline.width_s
        requests = {number: moment.requests for number, moment in moments.items()}
        tokens = {number: moment.tokens for number, moment in moments.items()}
        use = uses.get(name)
        found.append(
            DeploymentFigures(
                name=name,
                attempts=sum(kind.attempts for kind in kinds),
                answered=sum(kind.attempts for kind in kinds if kind.verdict == "answered"),
                throttled=sum(kind.attempts for kind in kinds if kind.verdict == "throttled"),
                told_to_wait_s=round(attempts.told_to_wait_s(name), 1),
                tokens=sum(tokens.values()),
                most_requests_a_minute=pace_of(steps, requests, width_s=width).most,
                most_tokens_a_minute=pace_of(steps, tokens, width_s=width).most,
                requests_per_minute=None if use is None else use.requests_per_minute,
                tokens_per_minute=None if use is None else use.tokens_per_minute,
                set_aside=None if use is None else use.set_aside,
            )
        )
    return found


def _pace_charts(
    deployments: Sequence[DeploymentFigures], attempts: Attempts
) -> tuple[tuple[Chart, ...], dict[str, tuple[Chart, ...]]]:
    """The chart of all attempts, and those of each deployment against its quotas."""
    timeline, steps = attempts.timeline, steps_of(attempts.timeline)
    together = in_steps(steps, {}, width_s=timeline.width_s)
    by_deployment: dict[str, tuple[Chart, ...]] = {}
    for one in deployments:
        moments = timeline.moments.get(one.name, {})
        if not moments:
            continue
        for whole, part in zip(together, in_steps(steps, moments, width_s=timeline.width_s), strict=True):
            whole.add(part)
        figures = [("requests", {n: moment.requests for n, moment in moments.items()}, one.requests_per_minute)]
        if one.tokens:
            figures.insert(0, ("tokens", {n: moment.tokens for n, moment in moments.items()}, one.tokens_per_minute))
        by_deployment[one.name] = tuple(
            pace_chart(steps, pace_of(steps, values, width_s=timeline.width_s), noun=noun, quota=quota)
            for noun, values, quota in figures
        )
    return (outcomes_chart(steps, together),), by_deployment


def _latencies(attempts: Attempts) -> list[Latency]:
    """Percentiles of each deployment; of all of them first where there are several."""
    named: list[tuple[str | None, Any]] = sorted(attempts.latencies.items())
    if len(named) > 1:
        named.insert(0, (None, attempts.all_latencies))
    return [
        Latency(
            deployment=name,
            answers=one.count,
            least=one.least,
            p50=one.percentile(0.5),
            p90=one.percentile(0.9),
            p95=one.percentile(0.95),
            p99=one.percentile(0.99),
            most=one.most,
        )
        for name, one in named
    ]


def _training(layout: Layout, unread: list[str]) -> tuple[Chart | None, list[Checkpoint]]:
    """The loss curve and the checkpoints of a training, as far as its tables are there."""
    curves: dict[str, list[tuple[float, float]]] = {}
    checkpoints: list[Checkpoint] = []
    for row in _rows(layout.root / METRICS, ("step", *_CURVES), unread):
        for name, said in _CURVES.items():
            if row.get("step") is not None and row.get(name) is not None:
                curves.setdefault(said, []).append((row["step"], row[name]))
    for row in _rows(layout.root / EVENTS, ("type", "step", *_CURVES, "checkpoint"), unread):
        if row.get("type") == "checkpoint":
            valid = row.get("full_valid_loss")
            checkpoints.append(
                Checkpoint(
                    step=row.get("step"),
                    train_loss=row.get("train_loss"),
                    valid_loss=row.get("valid_loss") if valid is None else valid,
                    name=row.get("checkpoint"),
                )
            )
    thinned = {name: _thinned(curve) for name, curve in curves.items()}
    return curve_chart("Loss by step", thinned, noun="step") if thinned else None, checkpoints[-MOST_CHECKPOINTS:]


def _rows(path: Path, columns: Sequence[str], unread: list[str]) -> Iterator[dict[str, Any]]:
    import pyarrow as pa  # noqa: PLC0415 - for commands that read rows
    import pyarrow.parquet as pq  # noqa: PLC0415

    if not path.is_file():
        return
    try:
        with pq.ParquetFile(path) as file:
            names = [name for name in columns if name in file.schema_arrow.names]
            for batch in file.iter_batches(columns=names):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException):
        unread.append(path.name)


def _thinned(curve: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """At most `MOST_POINTS` of a curve's points, evenly, its last one among them."""
    every = -(-len(curve) // MOST_POINTS)
    return [*curve[:-1:every], curve[-1]]


def _off(share: float) -> str:
    """How far a figure is from what was predicted; a difference is never called none."""
    if not share:
        return "0%"
    return f"{share:+.0%}" if abs(share) >= _SMALL else "<1%"


def forecasts(summary: Mapping[str, Any]) -> list[Forecast]:
    """What a summary says was predicted (`predicted`) beside what it came to; nothing where nothing was. Pure."""
    predicted = summary.get("predicted")
    if not isinstance(predicted, dict):
        return []
    tokens = predicted.get("tokens") or {}
    pairs = (
        ("requests", predicted.get("requests"), summary["requests"], _figure),
        ("tokens in", tokens.get("input"), summary["tokens"]["input"], _figure),
        ("tokens out", tokens.get("output"), summary["tokens"]["output"], _figure),
        ("cost", predicted.get("cost_usd"), summary["cost_usd"], dollars),
        ("time", predicted.get("seconds"), summary["seconds"], duration),
    )
    return [
        Forecast(
            name=name,
            predicted=say(before),
            actual="unknown" if after is None else say(after),
            off=_NONE if not before or after is None else _off(after / before - 1),
        )
        for name, before, after, say in pairs
        if before is not None
    ]


def _environment(root: Path) -> list[tuple[str, str]]:
    """Versions, and what kind of machine this is; no names of it, of its users or of its network."""
    facts = [("pipeline", _version("aoai-pipeline")), ("Python", platform.python_version())]
    facts += [(name, found) for name in _PACKAGES if (found := _version(name))]
    facts.append(("system", f"{platform.system()} {platform.release()}, {platform.machine()}"))
    facts.append(("processors", str(os.cpu_count() or "unknown")))
    with suppress(ValueError, OSError):
        facts.append(("memory", size(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))))
    facts.append(("output's file system", file_system(root) or "unknown"))
    return facts


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _shown(value: object) -> object:
    """Nothing foreign moves a cursor or turns the reading direction; jinja escapes what is HTML."""
    if value is None:
        return _NONE
    if type(value) is str:
        return "\n".join(map(plain, value.split("\n")))
    return value.isoformat(timespec="milliseconds") if isinstance(value, datetime) else value


def _moment(value: str | datetime) -> str:
    """Say `23 Nov 2026, 10:36:33 UTC`."""
    try:
        at = datetime.fromisoformat(value) if isinstance(value, str) else value
        return f"{at.astimezone(UTC):%d %b %Y, %H:%M:%S} UTC".lstrip("0")
    except ValueError:
        return str(value)


def _figure(value: float | None) -> str:
    return _NONE if value is None else f"{value:,.0f}"


def _share(part: float | None, whole: float | None) -> str:
    return _NONE if not whole or part is None else percent(part / whole)
