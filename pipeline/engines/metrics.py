"""A run's figures for Prometheus: a file for the node exporter's textfile collector, replaced while the run goes on."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.engines.exposition import Family, Histogram, Labels, render, sample
from pipeline.errors import StorageError
from pipeline.log import Event, EventLog, Level, Listener
from pipeline.store.files import replace_text
from pipeline.store.summary import Summary
from pipeline.telemetry import Telemetry, open_telemetry

if TYPE_CHECKING:
    from pipeline.clock import Clock
    from pipeline.job.spec import Job
    from pipeline.store.summary import BudgetState, DeploymentUse

Watcher = Callable[[Summary], None]

EVERY_S = 15.0
"""Seconds between two writings; collectors look about as often."""
LAST_WRITE_S = 5.0
"""Seconds that the last writing is waited for."""
READABLE = 0o644
"""The collector is another user."""
STATES = ("running", "complete", "stopped", "refused", "interrupted")
LATENCIES_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)
_LAST_SUCCESS = "pipeline_last_success_timestamp_seconds"
_MOST_BYTES = 1 << 20


class MetricsFile:
    """Counts what a run says, and writes it with what it has come to, at most every `EVERY_S` seconds.

    A folder that takes no file is said once, and harms nothing; one that hangs holds nothing up.
    """

    def __init__(self, path: Path, *, job: Job, clock: Clock, say: Callable[..., None]) -> None:
        """`say` emits an event."""
        self._path = path
        self._clock = clock
        self._say = say
        self._own: Labels = {"job_name": job.name, "operation": job.operation}
        self._models = {spec.name: spec.model for spec in job.deployments}
        self._attempts: Counter[tuple[str, str]] = Counter()
        self._verdicts: Counter[tuple[str, str]] = Counter()
        self._retries: Counter[str] = Counter()
        self._latencies: dict[str, Histogram] = {}
        self._due = float("-inf")
        self._last: Summary | None = None
        self._said = False
        self._writer = _Writer(path, labels=self._own)

    def hear(self, event: Mapping[str, Any]) -> None:
        """Count an attempt."""
        if event["event"] != Event.ATTEMPT:
            return
        name, status = event["deployment"], event["status"]
        self._attempts[name, "none" if status is None else f"{status // 100}xx"] += 1
        self._verdicts[name, event["verdict"]] += 1
        self._retries[name] += event["number"] > 1
        self._latencies.setdefault(name, Histogram(LATENCIES_S)).add(event["latency_ms"] / 1000)

    def see(self, summary: Summary) -> None:
        """Write what the run has come to, where that is due; a stage that has ended is not the run's end."""
        self._last = summary
        now = self._clock.now()
        if summary.state == "running" and now >= self._due:
            self._due = now + EVERY_S
            self._writer.offer(self._text(summary))
        self._tell()

    def end(self, summary: Summary | None) -> None:
        """Write the end, if the run began: `summary`, or what it was last seen as where it ended by an exception."""
        last = summary or self._last
        if last is not None:
            if last.state == "running":
                last = replace(last, state="interrupted", in_flight=0, eta_seconds=None)
            well = last.state == "complete" and last.exit_code == 0
            self._writer.put(self._text(last), succeeded=self._clock.wall() if well else None)
        self._writer.close(LAST_WRITE_S)
        self._tell()

    def _tell(self) -> None:
        if self._writer.failure is not None and not self._said:
            self._said = True
            self._say(
                Event.METRICS_REFUSED,
                Level.WARNING,
                file=str(self._path),
                reason=self._writer.failure,
                advice="the run goes on without them; see that the folder of run.metrics_file can be written to",
            )

    def _text(self, summary: Summary) -> str:
        return render([*self._of_run(summary), *self._of_rows(summary), *self._of_deployments(summary)])

    def _of_run(self, summary: Summary) -> list[Family]:
        own = self._own
        states = [({**own, "state": state}, float(summary.state == state)) for state in STATES]
        return [
            _gauge("pipeline_info", "The version that runs the job.", {**own, "version": _version()}, 1),
            Family(name="pipeline_run_state", kind="gauge", help="1 for the state of the last run.", samples=states),
            _gauge("pipeline_run_exit_code", "What the last run ended with.", own, summary.exit_code),
            _gauge("pipeline_run_start_timestamp_seconds", "When the run began.", own, _seconds_of(summary.started_at)),
            _gauge(
                "pipeline_run_updated_timestamp_seconds",
                "When these figures were counted.",
                own,
                _seconds_of(summary.updated_at),
            ),
            _gauge("pipeline_run_duration_seconds", "How long the run has taken.", own, summary.seconds),
            _gauge("pipeline_eta_seconds", "How long the run will still take at its pace.", own, summary.eta_seconds),
            _gauge("pipeline_in_flight_requests", "Requests under way.", own, summary.in_flight),
        ]

    def _of_rows(self, summary: Summary) -> list[Family]:
        own, rows, tokens, rows_copied = self._own, summary.rows, summary.tokens, summary.copied
        counts = {"ok": rows.ok, "failed": rows.failed, "pending": rows.pending}
        by_type = {"input": tokens.input, "output": tokens.output}
        return [
            _of("pipeline_rows", "gauge", "Rows of the input by what they have come to.", own, "status", counts),
            _gauge("pipeline_rows_not_in_parts", "Finished rows that no part holds yet.", own, rows.not_in_parts),
            _gauge("pipeline_rows_copied", "Rows that were given the answer of another.", own, rows_copied),
            _counter("pipeline_requests_total", "Requests that were answered or given up.", own, summary.requests),
            _of("pipeline_tokens_total", "counter", "Tokens as the service counts them.", own, "type", by_type),
            _counter("pipeline_cached_input_tokens_total", "Input tokens from a cache.", own, tokens.cached),
            _counter("pipeline_cost_usd_total", "What the rows have cost, in US dollars.", own, summary.cost_usd),
            *_of_budget(own, summary.budget),
        ]

    def _of_deployments(self, summary: Summary) -> list[Family]:
        def labels(name: str) -> dict[str, str]:
            return {**self._own, "deployment": name, "model": self._models.get(name, "")}

        def each(name: str, help_: str, of: Callable[[DeploymentUse], float | None]) -> Family:
            found = [(labels(use.name), of(use)) for use in summary.deployments]
            return Family(name=name, kind="counter" if name.endswith("_total") else "gauge", help=help_, samples=found)

        def counted(name: str, help_: str, label: str, counts: Mapping[tuple[str, str], int]) -> Family:
            found = [({**labels(one), label: kind}, float(n)) for (one, kind), n in sorted(counts.items())]
            return Family(name=name, kind="counter", help=help_, samples=found)

        return [
            counted("pipeline_attempts_total", "HTTP attempts by class of status.", "status_class", self._attempts),
            counted("pipeline_verdicts_total", "HTTP attempts by what they came to.", "verdict", self._verdicts),
            each(
                "pipeline_retries_total",
                "HTTP attempts that were not their request's first.",
                lambda use: self._retries[use.name],
            ),
            each("pipeline_throttled_total", "HTTP attempts that were throttled.", lambda use: use.throttled),
            each(
                "pipeline_throttled_seconds_total",
                "How long nothing might be sent because the service said so.",
                lambda use: use.paused_s,
            ),
            each("pipeline_quota_requests_per_minute", "The limit in force.", lambda use: use.requests_per_minute),
            each("pipeline_quota_tokens_per_minute", "The limit in force.", lambda use: use.tokens_per_minute),
            each("pipeline_quota_used_ratio", "The share of the quota that is used.", lambda use: use.quota_used),
            each(
                "pipeline_sent_requests_per_minute", "What is sent of late.", lambda use: use.sent_requests_per_minute
            ),
            each("pipeline_sent_tokens_per_minute", "What is sent of late.", lambda use: use.sent_tokens_per_minute),
            each(
                "pipeline_deployment_set_aside", "1 while nothing is sent there.", lambda use: use.set_aside is not None
            ),
            Family(
                name="pipeline_attempt_duration_seconds",
                kind="histogram",
                help="How long HTTP attempts took, from connecting to the last byte.",
                suffixed=[one for name, seen in sorted(self._latencies.items()) for one in seen.samples(labels(name))],
            ),
        ]


@contextmanager
def open_metrics(job: Job, *, clock: Clock, listener: Listener | None) -> Iterator[MetricsFile | None]:
    """The file that a job asks for, None where it asks for none; an exception within is the run's end."""
    path = job.run.metrics_file
    if path is None:
        yield None
        return
    log = EventLog(listener=listener, wall=clock.wall)
    metrics = MetricsFile(path, job=job, clock=clock, say=log.emit)
    try:
        yield metrics
    except BaseException:
        metrics.end(None)
        raise


@contextmanager
def told(job: Job, *, clock: Clock, listener: Listener | None) -> Iterator[Telemetry | None]:
    """What tells OpenTelemetry of a run, None where the job asks for none; says once, at the end, that it was refused.

    Raises JobFileError where it cannot be had.
    """
    telemetry = None
    try:
        with open_telemetry(job, clock=clock) as telemetry:
            yield telemetry
    finally:
        if telemetry is not None and telemetry.trouble is not None:
            EventLog(listener=listener, wall=clock.wall).emit(
                Event.TELEMETRY_REFUSED,
                Level.WARNING,
                reason=telemetry.trouble,
                advice="the run is none the worse; spans and measurements are missing at the collector",
            )


class _Writer:
    """Replaces the file in a thread of its own. It adds when the job last ended well, which the file remembers."""

    def __init__(self, path: Path, *, labels: Labels) -> None:
        self.failure: str | None = None
        self._path = path
        self._labels = labels
        self._texts: queue.SimpleQueue[tuple[str, float | None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="metrics", daemon=True)
        self._thread.start()

    def offer(self, text: str) -> None:
        """Have this written, unless the one before still waits."""
        if self._texts.empty():
            self.put(text, succeeded=None)

    def put(self, text: str, *, succeeded: float | None) -> None:
        """Have this written. `succeeded`: the job ended well then, in epoch seconds."""
        self._texts.put((text, succeeded))

    def close(self, wait_s: float) -> None:
        """Wait so long for what is to be written."""
        self._texts.put(None)
        self._thread.join(wait_s)
        if self._thread.is_alive():
            self.failure = self.failure or f"the disk did not answer for {wait_s:g} s"

    def _write(self) -> None:
        last = self._remembered()
        while (one := self._texts.get()) is not None:
            text, succeeded = one
            last = succeeded or last
            family = Family(
                name=_LAST_SUCCESS,
                kind="gauge",
                help="When the job last ended complete, with exit code 0.",
                samples=[(self._labels, last)],
            )
            try:
                replace_text(self._path, text + render([family]), durable=False, mode=READABLE)
            except (OSError, StorageError) as error:
                self.failure = getattr(error, "strerror", None) or str(error) or type(error).__name__

    def _remembered(self) -> float | None:
        """When the job last ended well, by the file that stands there."""
        begins = sample(_LAST_SUCCESS, self._labels) + " "
        with suppress(OSError, ValueError), self._path.open(encoding="utf-8") as file:
            for line in file.read(_MOST_BYTES).splitlines():
                if line.startswith(begins):
                    return float(line.removeprefix(begins))
        return None


def _of_budget(own: Labels, budget: BudgetState | None) -> list[Family]:
    units = {} if budget is None else {"usd": budget.dollars, "tokens": budget.tokens}
    return [
        family
        for unit, one in units.items()
        if one is not None
        for family in (
            _gauge(f"pipeline_budget_limit_{unit}", "What the folder may cost.", own, one.limit),
            _gauge(f"pipeline_budget_spent_{unit}", "What is spent, or may be.", own, one.spent),
            _gauge(f"pipeline_budget_reserved_{unit}", "The worst of what is under way.", own, one.reserved),
        )
    ]


def _gauge(name: str, help_: str, labels: Labels, value: float | None) -> Family:
    return Family(name=name, kind="gauge", help=help_, samples=[(labels, value)])


def _counter(name: str, help_: str, labels: Labels, value: float | None) -> Family:
    return Family(name=name, kind="counter", help=help_, samples=[(labels, value)])


def _of(name: str, kind: Any, help_: str, own: Labels, label: str, values: Mapping[str, float | None]) -> Family:
    found = [({**own, label: key}, value) for key, value in values.items()]
    return Family(name=name, kind=kind, help=help_, samples=found)


def _seconds_of(text: str | None) -> float | None:
    return None if text is None else datetime.fromisoformat(text).timestamp()


def _version() -> str:
    return version("aoai-pipeline")
