"""`run.otel`: what OpenTelemetry is told, kept in memory by its own SDK, and received by OTLP over loopback."""

from __future__ import annotations

import gzip
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from in_memory import Bench, Said, Service, refusal
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from pipeline.errors import JobFileError
from pipeline.model import Attempt, ErrorInfo, ErrorType, Outcome, RequestInfo, RowResult
from pipeline.telemetry import FLUSH_S, SPANS_A_MINUTE, Bucket, Telemetry, open_telemetry
from pipeline.testing import ManualClock

SECRET = "k" * 32
DURATION, TOKENS = "gen_ai.client.operation.duration", "gen_ai.client.token.usage"


def bench_of(folder: Path, *, rows: int = 6, otel: str = "on", **request: Any) -> Bench:
    deployment = {"endpoint": "https://x.openai.azure.com", "deployment": "d", "model": "gpt-4o-mini", "api": "azure"}
    message = {"messages": [{"role": "user", "content": "{{ text }}"}], "max_tokens": 50}
    changes = {
        "deployments": [deployment],
        "run": {"workers": 1, "otel": otel, "fail_on": "never"},
        "request": {**message, **request},
    }
    return Bench(folder=folder, operation="chat", changes=changes).texts(*(f"Prompt {n}" for n in range(rows)))


def attempt(number: int = 0, *, status: int | None = 200, verdict: str = "answered", **changes: Any) -> Attempt:
    fields: dict[str, Any] = {
        "ordinals": (7,),
        "deployment": "d",
        "started_at": 1000.0 + number,
        "latency_ms": 250.0,
        "status": status,
        "verdict": verdict,
        "code": None if verdict == "answered" else "some_code",
        "client_request_id": f"client-{number}",
        "request_id": f"request-{number}",
        "apim_request_id": f"apim-{number}",
        "region": "Here",
        "estimated_tokens": 20,
        "input_tokens": 9 if verdict == "answered" else None,
        "output_tokens": 5 if verdict == "answered" else None,
        "retry_after_ms": None,
    }
    return Attempt(**{**fields, **changes})


def answered(model: str = "gpt-4o-mini-2024-07-18") -> Outcome:
    row = RowResult(ordinal=7, values={"output_text": "An answer", "finish_reason": "stop"})
    return Outcome(rows=(row,), request=RequestInfo(model=model))


def failed(type_: ErrorType) -> Outcome:
    error = ErrorInfo(type=type_, code="some_code", message="Prompt 7 is not liked")
    return Outcome(rows=(RowResult(ordinal=7, error=error),), request=RequestInfo(model="m"))


class Memory:
    """A telemetry whose spans and measurements stay here."""

    def __init__(self, folder: Path, *, limited: bool = False, otel: str = "on", **request: Any) -> None:
        self.exporter, self.reader, self.clock = InMemorySpanExporter(), InMemoryMetricReader(), ManualClock()
        tracers = TracerProvider(shutdown_on_exit=False)
        tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.telemetry = Telemetry(
            tracers=tracers,
            meters=MeterProvider(metric_readers=[self.reader], shutdown_on_exit=False),
            job=bench_of(folder, otel=otel, **request).job(),
            limited=limited,
            clock=self.clock,
        )

    def tell(self, *attempts: Attempt, outcome: Outcome | None, reply: bytes | None = None) -> None:
        request = self.telemetry.begin()
        request.reply = reply
        self.telemetry.end(request, attempts, outcome)

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    def points(self, name: str) -> list[Any]:
        data: Any = self.reader.get_metrics_data()
        scopes = [] if data is None else [scope for one in data.resource_metrics for scope in one.scope_metrics]
        metrics = [metric for scope in scopes for metric in scope.metrics]
        return [point for metric in metrics if metric.name == name for point in metric.data.data_points]


def test_a_request_is_one_span_with_its_attempts_as_events(tmp_path: Path) -> None:
    memory = Memory(tmp_path, temperature=0.5, n=1)
    memory.tell(
        attempt(0, status=429, verdict="throttled"),
        attempt(2),
        outcome=answered(),
        reply=b'{"id": "chatcmpl-1", "choices": []}',
    )
    (span,) = memory.spans
    assert (span.name, span.kind, span.status.status_code) == ("chat gpt-4o-mini", SpanKind.CLIENT, StatusCode.UNSET)
    assert (span.start_time, span.end_time) == (1000_000_000_000, 1002_250_000_000)
    assert dict(span.attributes or {}) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "azure.ai.openai",
        "gen_ai.request.model": "gpt-4o-mini",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.response.model": "gpt-4o-mini-2024-07-18",
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 9,
        "gen_ai.usage.output_tokens": 5,
        "server.address": "x.openai.azure.com",
        "server.port": 443,
        "azure.resource_provider.namespace": "Microsoft.CognitiveServices",
        "azure.service.request.id": "apim-2",
        "pipeline.job": "job",
        "pipeline.deployment": "d",
        "pipeline.row": 7,
        "pipeline.rows": 1,
        "pipeline.attempts": 2,
        "pipeline.client_request_id": "client-2",
    }
    assert [(event.name, (event.attributes or {})["http.response.status_code"]) for event in span.events] == [
        ("pipeline.attempt", 429),
        ("pipeline.attempt", 200),
    ]
    assert (span.events[0].attributes or {})["pipeline.error.code"] == "some_code"


@pytest.mark.parametrize(
    ("last", "outcome", "error"),
    [
        pytest.param(attempt(status=400, verdict="row_refused"), failed(ErrorType.BAD_REQUEST), "400", id="refused"),
        pytest.param(attempt(status=None, verdict="transient"), failed(ErrorType.API_TIMEOUT), None, id="no reply"),
        pytest.param(attempt(status=200, verdict="bad_reply"), failed(ErrorType.REPLY), None, id="no answer"),
        pytest.param(attempt(status=503, verdict="transient"), None, "503", id="stopped"),
        pytest.param(attempt(status=None, verdict="transient"), None, "transient", id="stopped without a reply"),
    ],
)
def test_what_failed_has_a_word_of_a_closed_set(
    tmp_path: Path, last: Attempt, outcome: Outcome | None, error: str | None
) -> None:
    memory = Memory(tmp_path)
    memory.tell(last, outcome=outcome)
    (span,) = memory.spans
    wanted = error or (outcome.rows[0].error.type.value if outcome and outcome.rows[0].error else None)
    attributes = span.attributes or {}
    assert span.status.status_code is StatusCode.ERROR
    assert (attributes["error.type"], attributes["pipeline.error.code"]) == (wanted, "some_code")
    assert "gen_ai.response.model" not in attributes
    (point,) = memory.points(DURATION)
    assert point.attributes["error.type"] == wanted


def test_what_was_never_sent_is_not_told(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    memory.tell(outcome=failed(ErrorType.ROW))
    assert (memory.spans, memory.points(DURATION)) == ((), [])


def test_measurements_have_the_names_units_and_bounds_of_the_conventions(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    for number in range(3):
        memory.tell(attempt(number, status=503, verdict="transient"), attempt(number + 1), outcome=answered())
    (duration,) = memory.points(DURATION)
    assert (duration.count, duration.sum, duration.explicit_bounds[0]) == (3, pytest.approx(3.75), 0.01)
    tokens = {point.attributes["gen_ai.token.type"]: point for point in memory.points(TOKENS)}
    assert {kind: (point.count, point.sum) for kind, point in tokens.items()} == {"input": (3, 27), "output": (3, 15)}
    assert tokens["input"].explicit_bounds[:3] == (1, 4, 16)
    assert dict(duration.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "azure.ai.openai",
        "gen_ai.request.model": "gpt-4o-mini",
        "gen_ai.response.model": "gpt-4o-mini-2024-07-18",
        "server.address": "x.openai.azure.com",
        "server.port": 443,
        "azure.resource_provider.namespace": "Microsoft.CognitiveServices",
    }


def test_models_that_a_service_invents_do_not_multiply_measurements(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    for number in range(100):
        memory.tell(attempt(), outcome=answered(f"model-{number}"))
    assert len(memory.points(DURATION)) == 21
    assert sum(point.count for point in memory.points(DURATION)) == 100


def test_a_million_rows_are_a_few_spans_and_trouble_is_not_crowded_out(tmp_path: Path) -> None:
    memory = Memory(tmp_path, limited=True)
    for number in range(1000):
        memory.tell(attempt(), outcome=answered())
        if number % 10 == 0:
            memory.tell(attempt(status=400, verdict="row_refused"), outcome=failed(ErrorType.BAD_REQUEST))
    bad = [span for span in memory.spans if span.status.status_code is StatusCode.ERROR]
    assert (len(memory.spans) - len(bad), len(bad)) == (SPANS_A_MINUTE, 100)
    assert sum(point.count for point in memory.points(DURATION)) == 1100


def test_a_bucket_fills_up_again_and_no_further() -> None:
    bucket = Bucket(60.0)
    assert [bucket.take(0.0) for _ in range(61)] == [True] * 60 + [False]
    assert [bucket.take(2.0) for _ in range(3)] == [True, True, False]
    assert [bucket.take(1.0), bucket.take(2.5), bucket.take(3.0)] == [False, False, True]
    assert [bucket.take(10_000.0) for _ in range(61)] == [True] * 60 + [False]


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        (b'{"id": "a"}', "a"),
        (b'data: {"id": "b", "choices": []}\n\ndata: [DONE]\n\n', "b"),
        (b'event: response.created\ndata: {"response": {"id": "c"}}\n\n', "c"),
        (b'{"id": 7}', None),
        (b"{", None),
        (b"", None),
        (b"RIFF\x00\xff", None),
        (b"[" * 100_000, None),
        (b'{"id": "' + b"d" * 500 + b'"}', "d" * 200),
    ],
)
def test_the_id_of_an_answer_is_read_where_it_has_one(tmp_path: Path, reply: bytes, wanted: str | None) -> None:
    memory = Memory(tmp_path)
    memory.tell(attempt(), outcome=answered(), reply=reply)
    assert (memory.spans[0].attributes or {}).get("gen_ai.response.id") == wanted


# -- a collector on loopback -------------------------------------------------------------------------------------------


@dataclass
class Collector:
    """Takes OTLP over HTTP, and parses what comes. `status` is what it answers."""

    status: int = 200
    spans: list[Any] = field(default_factory=list)
    metrics: list[Any] = field(default_factory=list)
    resources: list[dict[str, str]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    url: str = ""

    def take(self, path: str, body: bytes) -> None:
        self.bodies.append(body)
        if path == "/v1/traces":
            for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.resources.append({one.key: one.value.string_value for one in group.resource.attributes})
                self.spans += [span for scope in group.scope_spans for span in scope.spans]
        elif path == "/v1/metrics":
            for group in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                self.metrics += [metric for scope in group.scope_metrics for metric in scope.metrics]


@contextmanager
def collector(status: int = 200) -> Iterator[Collector]:
    took = Collector(status=status)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            took.take(self.path, gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
            self.send_response(took.status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    took.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield took
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def hanging() -> Iterator[str]:
    """A collector that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def environment() -> Iterator[Callable[..., None]]:
    """Sets variables of the environment, which the SDK reads by itself, and puts the old ones back."""
    before = dict(os.environ)

    def set_(**variables: str) -> None:
        os.environ.update(variables)

    yield set_
    os.environ.clear()
    os.environ.update(before)


def judge(_: list[str], call: int) -> Said:
    return refusal(503, message="Prompt 0 is not liked now") if call == 1 else None


@pytest.mark.anyio
async def test_a_collector_gets_the_spans_and_measurements_of_a_run(
    tmp_path: Path, environment: Callable[..., None]
) -> None:
    with collector() as took:
        environment(
            OTEL_EXPORTER_OTLP_ENDPOINT=took.url,
            OTEL_SERVICE_NAME="nightly",
            OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20collector-key",
        )
        bench = bench_of(tmp_path)
        summary = await bench.run(Service(judge))
    assert (summary.state, summary.exit_code) == ("complete", 0)
    assert [span.name for span in took.spans] == ["chat gpt-4o-mini"] * 6
    assert [len(span.events) for span in took.spans] == [2, 1, 1, 1, 1, 1]
    assert took.resources[0]["service.name"] == "nightly"
    assert {DURATION, TOKENS} <= {metric.name for metric in took.metrics}
    everything = b"".join(took.bodies)
    for secret in (SECRET, "collector-key", "Prompt", "answer to", "not liked", "r0"):
        assert secret.encode() not in everything, secret
    assert "telemetry_refused" not in {event["event"] for event in bench.events}


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["hangs", "refuses", "is not there"])
async def test_a_collector_that_does_not_take_them_harms_no_run(
    tmp_path: Path, environment: Callable[..., None], kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with collector(status=401) as refusing, hanging() as silent:
        url = {"hangs": silent, "refuses": refusing.url, "is not there": "http://127.0.0.1:1"}[kind]
        # It would wait for minutes by itself.
        environment(
            OTEL_EXPORTER_OTLP_ENDPOINT=url.replace("//", "//user:hidden-word@"), OTEL_EXPORTER_OTLP_TIMEOUT="300"
        )
        bench = bench_of(tmp_path)
        began = time.monotonic()
        summary = await bench.run(Service())
        took_s = time.monotonic() - began
        assert (summary.state, summary.exit_code, summary.rows.ok) == ("complete", 0, 6)
        assert took_s < FLUSH_S + 30
    (said,) = [event for event in bench.events if event["event"] == "telemetry_refused"]
    assert said["level"] == "warning"
    assert "hidden-word" not in str(said)
    assert capfd.readouterr().err == ""


@pytest.mark.anyio
@pytest.mark.parametrize(("otel", "sent"), [("propagate", 7), ("on", 0), ("off", 0)])
async def test_the_service_gets_a_traceparent_only_where_that_is_asked_for(
    tmp_path: Path, environment: Callable[..., None], otel: str, sent: int
) -> None:
    with collector() as took:
        environment(OTEL_EXPORTER_OTLP_ENDPOINT=took.url)
        service = Service(judge)
        await bench_of(tmp_path, otel=otel).run(service)
    headers = [request.headers.get("traceparent") for request in service.requests]
    assert all(request.headers.get("baggage") is None for request in service.requests)
    assert [header is None for header in headers].count(False) == sent
    found = [re.fullmatch(r"00-([0-9a-f]{32})-([0-9a-f]{16})-0[13]", header or "") for header in headers]
    assert [match[2] for match in found if match] == (
        [] if not sent else [span.span_id.hex() for span in took.spans for _ in span.events]
    )


@pytest.mark.anyio
async def test_a_job_that_does_not_ask_tells_nothing(tmp_path: Path, environment: Callable[..., None]) -> None:
    with collector() as took:
        environment(OTEL_EXPORTER_OTLP_ENDPOINT=took.url)
        await bench_of(tmp_path, otel="off").run(Service())
        environment(OTEL_SDK_DISABLED="true")
        await bench_of(tmp_path, otel="on").run(Service(), fresh=True)
    assert took.bodies == []


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"OTEL_TRACES_EXPORTER": "carrier-pigeon"}, "no installed package has the exporter 'carrier-pigeon'"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "'otlp_proto_grpc' for traces"),
    ],
)
def test_an_exporter_that_is_not_there_is_said_before_anything_is_sent(
    tmp_path: Path, variables: dict[str, str], words: str
) -> None:
    job = bench_of(tmp_path).job()
    with pytest.raises(JobFileError, match=words), open_telemetry(job, clock=ManualClock(), environ=variables):
        raise AssertionError


def test_what_the_sdk_complains_of_is_kept_without_the_collectors_credentials(tmp_path: Path) -> None:
    none = {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"}
    with open_telemetry(bench_of(tmp_path).job(), clock=ManualClock(), environ=none) as telemetry:
        assert telemetry is not None
        said = logging.getLogger("opentelemetry.exporter")
        said.warning("no answer from %s\nat all", "https://user:hidden-word@collector.example/v1?key=hidden-word")
        said.error("and another")
        assert telemetry.trouble == "no answer from https://collector.example/v1"


def test_no_exporter_at_all_is_possible(tmp_path: Path) -> None:
    none = {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"}
    with open_telemetry(bench_of(tmp_path).job(), clock=ManualClock(), environ=none) as telemetry:
        assert telemetry is not None
        telemetry.end(telemetry.begin(), [attempt()], answered())
    assert telemetry.trouble is None


def test_without_the_packages_the_command_says_what_to_install(tmp_path: Path) -> None:
    bench_of(tmp_path).job()
    without = "import sys; sys.modules['opentelemetry.sdk'] = None; from pipeline.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", without, "run", str(tmp_path / "job.json")],
        env={**os.environ, "AZURE_OPENAI_API_KEY": SECRET},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "run.otel: needs packages that are not installed: pip install 'aoai-pipeline[otel]'" in done.stderr
    assert not (tmp_path / "out").exists()
