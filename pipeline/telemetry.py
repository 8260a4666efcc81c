"""What a run tells OpenTelemetry: a span and two measurements a request; the only importer of opentelemetry.

Names are those of the semantic conventions for generative AI as of version 1.41.0. No span holds a prompt, an answer, a
header or a message of the service.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import entry_points, version
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson

from pipeline.errors import JobFileError, Problem
from pipeline.model import Outcome

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricReader
    from opentelemetry.trace import Span, TracerProvider

    from pipeline.clock import Clock
    from pipeline.job.spec import DeploymentSpec, Job
    from pipeline.model import Attempt

FLUSH_S = 5.0
"""Seconds that a collector is waited for at a run's end."""
SPANS_A_MINUTE = 100.0
"""Requests that become spans where the environment names no sampler, and as many again of those that met trouble."""
MODELS = 20
"""Names of answering models that measurements tell apart; a service may invent them."""
PARSED_BYTES = 1 << 20
"""Bytes; the id of a longer reply is not looked for."""
DURATIONS_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
TOKENS = tuple(4**power for power in range(14))

_NAME = "pipeline"
_SCHEMA = "https://opentelemetry.io/schemas/1.41.0"
_OPERATIONS = {"completions": "text_completion", "responses": "chat"}
_OUTPUTS = {"image": "image", "speech": "speech"}
_PARAMETERS = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "seed": "gen_ai.request.seed",
    "n": "gen_ai.request.choice.count",
    "dimensions": "gen_ai.embeddings.dimension.count",
}
_PORTS = {"http": 80, "https": 443}
_AZURE = {"azure.resource_provider.namespace": "Microsoft.CognitiveServices"}
_FIRST_ERROR = 300
_NANO = 1_000_000_000
_SAMPLER = "OTEL_TRACES_SAMPLER"
_CREDENTIALS = re.compile(r"(?<=//)[^/\s@]*@|\?\S*")
_SAID_CHARS = 200


@dataclass(slots=True)
class Bucket:
    """So many a minute, of which none are wasted: as many at once at first, then as they come back."""

    per_minute: float
    left: float = field(init=False)
    at: float = float("-inf")

    def __post_init__(self) -> None:
        self.left = self.per_minute

    def take(self, now: float) -> bool:
        """Whether there is one more at `now`, in monotonic seconds."""
        if now > self.at:
            self.left = min(self.per_minute, self.left + (now - self.at) * self.per_minute / 60)
            self.at = now
        if self.left < 1:
            return False
        self.left -= 1
        return True


@dataclass(slots=True, kw_only=True)
class RequestTrace:
    """One request that is told of. `headers` go to the service with each of its attempts; `reply` is the last body."""

    headers: Mapping[str, str] = field(default_factory=dict)
    span: Span | None = None
    reply: bytes | None = None


class Telemetry:
    """Tells of requests. A collector that is slow, or gone, costs spans, never rows. Used from one event loop."""

    def __init__(
        self, *, tracers: TracerProvider, meters: MeterProvider, job: Job, limited: bool, clock: Clock
    ) -> None:
        """`limited`: at most `SPANS_A_MINUTE` requests become spans, else all that the provider's sampler takes."""
        self.trouble: str | None = None
        self._propagates = job.run.otel == "propagate"
        self._clock = clock
        self._well: Bucket | None = Bucket(SPANS_A_MINUTE) if limited else None
        self._badly: Bucket | None = Bucket(SPANS_A_MINUTE) if limited else None
        own = version("aoai-pipeline")
        self._tracer = tracers.get_tracer(_NAME, own, schema_url=_SCHEMA)
        meter = meters.get_meter(_NAME, own, schema_url=_SCHEMA)
        self._durations = meter.create_histogram(
            "gen_ai.client.operation.duration",
            unit="s",
            description="GenAI operation duration.",
            explicit_bucket_boundaries_advisory=DURATIONS_S,
        )
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage",
            unit="{token}",
            description="Number of input and output tokens used.",
            explicit_bucket_boundaries_advisory=TOKENS,
        )
        operation = _OPERATIONS.get(job.operation, job.operation)
        self._places = {spec.name: _place(spec, operation) for spec in job.deployments}
        self._asked = {**_parameters(job), "pipeline.job": job.name}
        self._models: set[str] = set()

    def begin(self) -> RequestTrace:
        """Note that a request is about to be sent."""
        if not self._propagates or not self._samples(self._well):
            return RequestTrace()
        from opentelemetry import trace  # noqa: PLC0415 - only for those who ask
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        # What it is of is known once it has a deployment; until then it has a name that no model has.
        span = self._tracer.start_span(_NAME, kind=trace.SpanKind.CLIENT, start_time=self._now())
        headers: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(headers, trace.set_span_in_context(span))
        return RequestTrace(headers=headers, span=span)

    def end(self, request: RequestTrace, attempts: Sequence[Attempt], outcome: Outcome | None) -> None:
        """Tell of a request and its attempts. `outcome` is None where it has none: a stop, or a pack that is cut."""
        if not attempts:
            if request.span is not None:
                request.span.end(self._now())
            return
        last = attempts[-1]
        error = _error_of(last, outcome)
        place = self._places.get(last.deployment, {})
        model = None if outcome is None or not _answered(outcome) else outcome.request.model
        self._measure(attempts, error, {**place, **self._counted(model)})
        span = request.span
        if span is None:
            in_trouble = error is not None or len(attempts) > 1
            if not self._samples(self._badly if in_trouble else self._well):
                return
            from opentelemetry.trace import SpanKind  # noqa: PLC0415 - only for those who ask

            span = self._tracer.start_span(_NAME, kind=SpanKind.CLIENT, start_time=_ns(attempts[0].started_at))
        if span.is_recording():
            self._describe(span, request, attempts, outcome, error=error, place=place, model=model)
        span.end(max(_ended(last), _ns(attempts[0].started_at)))

    def _samples(self, bucket: Bucket | None) -> bool:
        return bucket is None or bucket.take(self._clock.now())

    def _now(self) -> int:
        return _ns(self._clock.wall())

    def _counted(self, model: str | None) -> dict[str, str]:
        """The answering model, where it is one of the first few."""
        if model is None:
            return {}
        if model not in self._models:
            if len(self._models) >= MODELS:
                return {}
            self._models.add(model)
        return {"gen_ai.response.model": model}

    def _measure(self, attempts: Sequence[Attempt], error: str | None, labels: Mapping[str, Any]) -> None:
        first, last = attempts[0], attempts[-1]
        seconds = max(last.started_at - first.started_at, 0.0) + last.latency_ms / 1000
        self._durations.record(seconds, labels if error is None else {**labels, "error.type": error})
        for kind, tokens in (("input", _sum(attempts, "input_tokens")), ("output", _sum(attempts, "output_tokens"))):
            if tokens is not None:
                self._tokens.record(tokens, {**labels, "gen_ai.token.type": kind})

    def _describe(
        self,
        span: Span,
        request: RequestTrace,
        attempts: Sequence[Attempt],
        outcome: Outcome | None,
        *,
        error: str | None,
        place: Mapping[str, Any],
        model: str | None,
    ) -> None:
        """Give a span its name, its attributes, and an event for each attempt."""
        last = attempts[-1]
        span.update_name(f"{place.get('gen_ai.operation.name', _NAME)} {place.get('gen_ai.request.model', '')}".strip())
        found: dict[str, Any] = {
            **place,
            **self._asked,
            "pipeline.deployment": last.deployment,
            "pipeline.row": last.ordinals[0],
            "pipeline.rows": len(last.ordinals),
            "pipeline.attempts": len(attempts),
            "pipeline.client_request_id": last.client_request_id,
            "azure.service.request.id": last.apim_request_id or last.request_id,
            "gen_ai.response.model": model,
            "gen_ai.response.id": _reply_id(request.reply) if error is None else None,
            "gen_ai.response.finish_reasons": _finish_reasons(outcome),
            "gen_ai.usage.input_tokens": _sum(attempts, "input_tokens"),
            "gen_ai.usage.output_tokens": _sum(attempts, "output_tokens"),
            "error.type": error,
            "pipeline.error.code": None if error is None else last.code,
        }
        span.set_attributes({name: value for name, value in found.items() if value is not None})
        for attempt in attempts:
            said: dict[str, Any] = {
                "pipeline.verdict": attempt.verdict,
                "pipeline.deployment": attempt.deployment,
                "pipeline.latency_ms": attempt.latency_ms,
                "pipeline.error.code": attempt.code,
                "pipeline.client_request_id": attempt.client_request_id,
                "http.response.status_code": attempt.status,
                "azure.service.request.id": attempt.apim_request_id or attempt.request_id,
            }
            known = {name: value for name, value in said.items() if value is not None}
            span.add_event("pipeline.attempt", known, _ended(attempt))
        if error is not None:
            from opentelemetry.trace import Status, StatusCode  # noqa: PLC0415 - only for those who ask

            span.set_status(Status(StatusCode.ERROR))


@contextmanager
def open_telemetry(job: Job, *, clock: Clock, environ: Mapping[str, str] = os.environ) -> Iterator[Telemetry | None]:
    """What the job asks for, None where it asks for none; at the end what is left is sent, for `FLUSH_S` at most.

    A program that has set providers of its own keeps them, its sampler and its exporters. Else they are made as the
    environment says (`OTEL_…`), for this run alone. Raises JobFileError where packages are missing, or the environment
    names what is not there.
    """
    if job.run.otel == "off" or environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        yield None
        return
    try:
        from opentelemetry import metrics, trace  # noqa: PLC0415 - only for those who ask
        from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    except ImportError as error:
        raise _refused(job, "needs packages that are not installed: pip install 'aoai-pipeline[otel]'") from error
    if isinstance(trace.get_tracer_provider(), TracerProvider):
        yield Telemetry(
            tracers=trace.get_tracer_provider(),
            meters=metrics.get_meter_provider(),
            job=job,
            limited=False,
            clock=clock,
        )
        return
    with _heard() as heard:
        try:
            tracers, meters = _tracers(environ), _meters(environ)
        except (LookupError, ValueError) as error:
            raise _refused(job, f"cannot be had as the environment says: {error.args[0]}") from error
        assert isinstance(tracers, TracerProvider)  # noqa: S101 - made here
        assert isinstance(meters, MeterProvider)  # noqa: S101 - likewise
        telemetry = Telemetry(
            tracers=tracers, meters=meters, job=job, limited=not environ.get(_SAMPLER, "").strip(), clock=clock
        )
        heard.telemetry = telemetry
        try:
            yield telemetry
        finally:
            _within(FLUSH_S, (tracers.shutdown, meters.shutdown), telemetry)


def _tracers(environ: Mapping[str, str]) -> TracerProvider:
    """Spans, as the environment says: sampler and limits are the SDK's to read."""
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - only for those who ask
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    provider = TracerProvider(resource=_resource(environ), shutdown_on_exit=False)
    for exporter in _exporters("traces", environ):
        provider.add_span_processor(BatchSpanProcessor(exporter()))
    return provider


def _meters(environ: Mapping[str, str]) -> MeterProvider:
    """Measurements, likewise."""
    from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415 - only for those who ask
    from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader  # noqa: PLC0415

    readers: list[MetricReader] = []
    for exporter in _exporters("metrics", environ):
        made = exporter()
        readers.append(made if isinstance(made, MetricReader) else PeriodicExportingMetricReader(made))
    return MeterProvider(metric_readers=readers, resource=_resource(environ), shutdown_on_exit=False)


def _resource(environ: Mapping[str, str]) -> Any:
    """What sends: `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES`, else our own name."""
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - only for those who ask

    named = environ.get("OTEL_SERVICE_NAME") or "service.name=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return Resource.create({} if named else {"service.name": "aoai-pipeline"})


def _exporters(signal: str, environ: Mapping[str, str]) -> list[Callable[[], Any]]:
    """What `OTEL_TRACES_EXPORTER` or `OTEL_METRICS_EXPORTER` names; OTLP over HTTP by default. Raises LookupError."""
    names = environ.get(f"OTEL_{signal.upper()}_EXPORTER", "").strip() or "otlp"
    found: list[Callable[[], Any]] = []
    for name in (part.strip() for part in names.split(",")):
        if name in ("", "none"):
            continue
        known = _otlp(signal, environ) if name == "otlp" else name
        points = entry_points(group=f"opentelemetry_{signal}_exporter", name=known)
        if not points:
            raise LookupError(f"no installed package has the exporter {known!r} for {signal}: install the one that has")
        found.append(next(iter(points)).load())
    return found


def _otlp(signal: str, environ: Mapping[str, str]) -> str:
    names = (f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    protocol = next((value for name in names if (value := environ.get(name, "").strip())), "http/protobuf")
    return "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"


class _Heard(logging.Handler):
    """Hears what the SDK complains of, which else went to stderr between our lines: the first word is kept."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.telemetry: Telemetry | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the first complaint, without what might be a credential of the collector."""
        if self.telemetry is not None and self.telemetry.trouble is None:
            self.telemetry.trouble = _CREDENTIALS.sub("", record.getMessage().splitlines()[0])[:_SAID_CHARS]


@contextmanager
def _heard() -> Iterator[_Heard]:
    logger, handler = logging.getLogger("opentelemetry"), _Heard()
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


def _within(seconds: float, endings: Sequence[Callable[[], None]], telemetry: Telemetry) -> None:
    """Do these in a thread, and wait for it so long; what does not end by then ends with the process."""

    def work() -> None:
        try:
            for end in endings:
                end()
        except Exception as error:  # noqa: BLE001 - what a collector does is no failure of the run
            telemetry.trouble = telemetry.trouble or type(error).__name__

    thread = threading.Thread(target=work, name="telemetry", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        telemetry.trouble = telemetry.trouble or f"the collector took more than {seconds:g} s at the end"


def _refused(job: Job, message: str) -> JobFileError:
    line, column = job.origin.marks.get(("run", "otel")) or (None, None)
    return JobFileError((Problem(file=str(job.file), line=line, column=column, path="run.otel", message=message),))


def _place(spec: DeploymentSpec, operation: str) -> dict[str, Any]:
    """What every request to a deployment says."""
    url = urlsplit(spec.endpoint)
    azure = spec.api != "openai"
    return {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "azure.ai.openai" if azure else "openai",
        "gen_ai.request.model": spec.model,
        "server.address": url.hostname or "",
        "server.port": url.port or _PORTS.get(url.scheme, 443),
        **(_AZURE if azure else {}),
    }


def _parameters(job: Job) -> dict[str, Any]:
    """What every request of a job says, where that is a number in its file."""
    found: dict[str, Any] = {
        attribute: value
        for name, attribute in _PARAMETERS.items()
        if type(value := job.request.get(name)) in (int, float) and not (name == "n" and value == 1)
    }
    output = _OUTPUTS.get(job.operation)
    return found if output is None else {**found, "gen_ai.output.type": output}


def _answered(outcome: Outcome) -> bool:
    return any(row.ok for row in outcome.rows)


def _error_of(last: Attempt, outcome: Outcome | None) -> str | None:
    """A word of a closed set for why a request has no answer; None where it has one."""
    if outcome is not None and _answered(outcome):
        return None
    if last.status is not None and last.status >= _FIRST_ERROR:
        return str(last.status)
    error = None if outcome is None else outcome.rows[0].error
    return last.verdict if error is None else error.type.value


def _reply_id(body: bytes | None) -> str | None:
    """The `id` of a reply, streamed or not; None where it has none, or is too long to look."""
    if body is None or len(body) > PARSED_BYTES:
        return None
    text = body if body.lstrip()[:1] == b"{" else body.partition(b"data:")[2].partition(b"\n")[0]
    with suppress(orjson.JSONDecodeError, RecursionError):
        match orjson.loads(text):
            case {"id": str(found)} | {"response": {"id": str(found)}}:
                return found[:_SAID_CHARS]
    return None


def _finish_reasons(outcome: Outcome | None) -> list[str] | None:
    reason = None if outcome is None else (outcome.rows[0].values or {}).get("finish_reason")
    return [reason] if isinstance(reason, str) else None


def _sum(attempts: Sequence[Attempt], name: str) -> int | None:
    counts = [count for attempt in attempts if (count := getattr(attempt, name)) is not None]
    return sum(counts) if counts else None


def _ns(seconds: float) -> int:
    return int(seconds * _NANO)


def _ended(attempt: Attempt) -> int:
    return _ns(attempt.started_at + attempt.latency_ms / 1000)
