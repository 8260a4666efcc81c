"""`pipeline doctor`: each thing that may be wrong is one line, and nothing billable is sent unasked."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any, cast

import pytest
from forked import start_simulator

from pipeline.job.spec import DeploymentSpec
from pipeline.model import Reply, Target
from pipeline.service.headers import RateLimits
from pipeline.views.doctor import (
    Finding,
    Status,
    advice_on,
    clock_finding,
    finding_lines,
    quota_finding,
    tiny_call,
    version_finding,
)
from tests.cli.bench import JOB, KEY, Bench, Serve

OTHER = "canary-key-2d91e"
ENTRA = "auth: entra\n    credential: {type: managed-identity}"


def findings(bench: Bench, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    result = bench.call("doctor", "job.yaml", "--json", *arguments)
    said = json.loads(result.stdout)
    assert said["ok"] == (result.exit_code == 0)
    return result.exit_code, said["findings"]


def one(found: list[dict[str, Any]], check: str) -> dict[str, Any]:
    (finding,) = [finding for finding in found if finding["check"] == check]
    return finding


def test_a_job_that_can_run_is_ok_line_by_line(bench: Bench) -> None:
    result = bench.call("doctor", "job.yaml")

    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["ok", "output"],
        ["ok", "network"],
        ["ok", "api-version"],
        ["ok", "credentials"],
        ["ok", "service"],
        ["ok", "quota"],
    ]
    assert all("gpt-4o-mini" in line for line in lines[1:])
    assert not bench.output.exists()


@pytest.mark.parametrize("probe", [False, True])
def test_nothing_is_asked_of_a_deployment_without_probe(bench: Bench, tmp_path: Path, probe: bool) -> None:  # noqa: FBT001 - a case
    ledger = tmp_path / "ledger.jsonl"
    process = start_simulator({"keys": [KEY], "vectors": "hash"}, ledger=ledger)
    bench.environ["TEST_ENDPOINT"] = process.url
    try:
        code, found = findings(bench, *(["--probe"] if probe else []))
    finally:
        process.stop()
    calls = [json.loads(line) for line in ledger.read_text().splitlines()]
    asked = [call for call in calls if "chat" in json.dumps(call)]
    assert code == 0
    assert len(asked) == (1 if probe else 0)
    assert len([finding for finding in found if finding["check"] == "service"]) == (2 if probe else 1)


def test_a_probe_shows_the_quota_and_a_job_that_states_more_is_warned(bench: Bench, served: Serve) -> None:
    quota = {"requests_per_minute": 300, "tokens_per_minute": 50_000}
    bench.environ["TEST_ENDPOINT"] = served({"deployments": {"gpt-4o-mini": {"model": "gpt-4o-mini", **quota}}}).url

    code, found = findings(bench, "--probe")
    assert code == 0
    assert one(found, "clock")["status"] == "ok"
    assert one(found, "quota")["message"] == "300 requests and 50,000 tokens a minute, as the service says"

    code, found = findings(bench, "--probe", "--set", "deployments.0.tokens_per_minute=90000")
    assert code == 0
    warned = one(found, "quota")
    assert (warned["status"], warned["deployment"]) == ("warn", "gpt-4o-mini")
    assert "90,000 tokens" in warned["message"]


def test_a_wrong_key_fails_and_is_not_shown(bench: Bench) -> None:
    bench.environ["TEST_KEY"] = OTHER
    result = bench.call("doctor", "job.yaml")

    assert result.exit_code == 3
    assert OTHER not in result.output
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("fail")]
    assert "401" in line
    assert "good for one resource alone" in line


def test_a_deployment_that_does_not_exist_shows_with_probe(bench: Bench, served: Serve) -> None:
    bench.environ["TEST_ENDPOINT"] = served({"deployments": {"another": {}}}).url

    assert findings(bench)[0] == 0
    code, found = findings(bench, "--probe")
    assert code == 3
    (failed,) = [finding for finding in found if finding["status"] == "fail"]
    assert "404" in failed["message"]
    assert "deployment" in failed["advice"]


def test_a_host_that_is_not_there_fails_and_nothing_rests_on_it(bench: Bench) -> None:
    bench.environ["TEST_ENDPOINT"] = "http://127.0.0.1:9"
    code, found = findings(bench, "--probe")

    assert code == 3
    assert one(found, "network")["status"] == "fail"
    assert {finding["check"] for finding in found} == {"output", "network", "api-version", "credentials"}


def test_a_model_that_a_compatible_service_does_not_list_is_warned_of(bench: Bench, served: Serve) -> None:
    bench.environ["TEST_ENDPOINT"] = f"{served({'deployments': {'another': {}}}).url}/v1"
    bench.write(JOB.replace("api: azure", "api: openai"))

    _, found = findings(bench)
    assert one(found, "service")["status"] == "warn"
    assert "does not hold gpt-4o-mini" in one(found, "service")["message"]


def test_an_output_folder_of_somebody_else_fails(bench: Bench) -> None:
    bench.output.mkdir()
    (bench.output / "thesis.txt").write_text("mine")
    code, found = findings(bench)

    assert code == 3
    assert "holds files that are not a run's" in one(found, "output")["message"]


def test_a_job_file_that_is_wrong_has_the_exit_code_of_usage(bench: Bench) -> None:
    bench.write(JOB.replace("operation: chat", "operation: chatt"))
    result = bench.call("doctor", "job.yaml")

    assert result.exit_code == 2
    assert "job.yaml:2:" in result.stderr
    assert result.stdout == ""


def test_an_input_that_is_not_there_is_a_problem_of_the_job_file(bench: Bench) -> None:
    (bench.folder / "rows.jsonl").unlink()
    result = bench.call("doctor", "job.yaml")

    assert result.exit_code == 2
    assert "input.path" in result.stderr
    assert result.stdout == ""


@contextmanager
def identity_endpoint(bench: Bench, token: str) -> Iterator[None]:
    """A managed identity endpoint as App Service has one."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(
                {
                    "access_token": token,
                    "expires_on": str(int(time.time()) + 3600),
                    "resource": "r",
                    "token_type": "Bearer",
                }
            ).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    bench.environ.update(
        {
            "IDENTITY_ENDPOINT": f"http://127.0.0.1:{server.server_port}/msi/token",
            "IDENTITY_HEADER": "canary-header",
            "NO_PROXY": "127.0.0.1",
        }
    )
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("let_in", [True, False])
def test_an_identity_is_named_with_its_audience_and_expiry(bench: Bench, let_in: bool) -> None:  # noqa: FBT001 - a case
    bench.write(JOB.replace("key: ${TEST_KEY}", ENTRA))
    with identity_endpoint(bench, KEY if let_in else OTHER):
        code, found = findings(bench)

    credential = one(found, "credentials")
    assert credential["status"] == "ok"
    said = "ManagedIdentityCredential, for https://cognitiveservices.azure.com/.default, expires in 59 min"
    assert credential["message"].startswith(said) or "1 h 0 min" in credential["message"]
    assert code == (0 if let_in else 3)
    assert ("Cognitive Services OpenAI User" in (one(found, "service")["advice"] or "")) != let_in
    assert OTHER not in json.dumps(found)
    assert "canary-header" not in json.dumps(found)


def test_credentials_that_are_not_to_be_had_say_what_was_tried(bench: Bench) -> None:
    chain = "auth: entra\n    credential: {type: chained, sources: [{type: azure-cli}, {type: azure-developer-cli}]}"
    bench.write(JOB.replace("key: ${TEST_KEY}", chain))
    bench.environ["PATH"] = "/nowhere"
    code, found = findings(bench)

    assert code == 3
    message = one(found, "credentials")["message"]
    assert "AzureCliCredential: Azure CLI not found on path" in message
    assert "AzureDeveloperCliCredential: " in message
    assert not [finding for finding in found if finding["check"] == "service"]


def _token(expires_in_s: float) -> str:
    claims = base64.urlsafe_b64encode(json.dumps({"exp": time.time() + expires_in_s}).encode()).decode().rstrip("=")
    return f"e30.{claims}.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    ("expires_in_s", "status"), [(-60.0, "fail"), (300.0, "warn"), (7200.0, "ok")], ids=["expired", "soon", "later"]
)
def test_a_token_of_the_environment_is_judged_by_its_expiry(bench: Bench, expires_in_s: float, status: str) -> None:
    bench.write(JOB.replace("key: ${TEST_KEY}", "auth: token"))
    token = bench.environ["AZURE_OPENAI_AD_TOKEN"] = _token(expires_in_s)
    _, found = findings(bench)

    assert one(found, "credentials")["status"] == status
    assert "bearer token" in one(found, "credentials")["message"]
    assert token not in json.dumps(found)


def _reply(headers: Mapping[str, str]) -> Reply:
    return Reply(status=200, headers=headers, body=b"", latency_ms=1.0)


@pytest.mark.parametrize(
    ("skew_s", "status", "word"),
    [(0, "ok", "within"), (29, "ok", "within"), (60, "warn", "ahead of"), (-3600, "warn", "behind")],
)
def test_the_clock_is_compared_with_the_services(skew_s: float, status: str, word: str) -> None:
    wall = 1_800_000_000.0
    finding = clock_finding(_reply({"date": formatdate(wall - skew_s, usegmt=True)}), wall)
    assert finding is not None
    assert finding.status == status
    assert word in finding.message


@pytest.mark.parametrize("date", ["", "yesterday", "Mon, 99 Nov 2026 05:05:55 GMT"])
def test_a_date_that_says_nothing_is_no_finding(date: str) -> None:
    assert clock_finding(_reply({"date": date}), 0.0) is None


def _spec(**fields: Any) -> DeploymentSpec:
    return DeploymentSpec(**{"endpoint": "https://r.openai.azure.com", "deployment": "d", "key": "k", **fields})


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"api_version": "2024-10-21"}, Status.OK),
        ({"api_version": "2025-04-01-preview"}, Status.OK),
        ({"api_version": "2024-02-15-preview"}, Status.WARN),
        ({"api_version": "2031-01-01"}, Status.WARN),
        ({"api": "azure-v1"}, Status.OK),
        ({"api": "openai", "endpoint": "https://h.example/v1"}, Status.OK),
    ],
)
def test_versions_that_will_go_away_are_warned_of(fields: dict[str, str], status: Status) -> None:
    assert version_finding(_spec(**fields)).status is status


@pytest.mark.parametrize(
    ("stated", "named", "status"),
    [
        (None, None, Status.OK),
        (300.0, None, Status.OK),
        (300.0, 300.0, Status.OK),
        (301.0, 300.0, Status.WARN),
        (None, 300.0, Status.OK),
    ],
)
def test_a_quota_above_the_services_is_warned_of(stated: float | None, named: float | None, status: Status) -> None:
    limits = None if named is None else RateLimits(limit_requests=named)
    assert quota_finding(_spec(requests_per_minute=stated), limits, probed=True).status is status


@pytest.mark.parametrize(
    ("status", "code", "auth", "word"),
    [
        (401, "401", "entra", "Cognitive Services OpenAI User"),
        (401, "401", "key", "one resource"),
        (403, "forbidden", "key", "network rules"),
        (404, "DeploymentNotFound", "key", "`deployment`"),
        (404, "not_found", "key", "`endpoint`"),
        (307, "redirected", "key", "never followed"),
        (429, "rate_limit_exceeded", "key", "quota"),
        (503, "service_unavailable", "key", "try again"),
        (400, "unsupported_parameter", "key", "docs/operations.md"),
    ],
)
def test_every_refusal_has_its_advice(status: int, code: str, auth: str, word: str) -> None:
    assert word in advice_on(status, code, auth=auth)


@pytest.mark.parametrize(
    ("operation", "request_", "body"),
    [
        ("chat", {"max_tokens": 900}, {"messages": [{"role": "user", "content": "ping"}], "max_tokens": 16}),
        ("chat", {}, {"messages": [{"role": "user", "content": "ping"}]}),
        ("embeddings", {"dimensions": 256}, {"input": ["ping"], "dimensions": 256}),
        ("responses", {}, {"input": "ping", "max_output_tokens": 16}),
        ("completions", {}, {"prompt": "ping", "max_tokens": 1}),
        ("speech", {"voice": "nova"}, {"input": "ping", "voice": "nova"}),
        ("speech", {"voice": "{{ voice }}"}, {"input": "ping", "voice": "alloy"}),
        ("image", {}, None),
        ("transcription", {}, None),
    ],
)
def test_what_is_asked_by_a_probe_is_tiny(
    operation: str, request_: dict[str, Any], body: dict[str, Any] | None
) -> None:
    job = cast("Any", SimpleNamespace(operation=operation, request=request_))
    call = tiny_call(job, Target(deployment="d", model="m", body_model="d"))
    assert (None if call is None else json.loads(call.body)) == (None if body is None else {**body, "model": "d"})


def test_foreign_words_forge_no_line() -> None:
    foreign = Finding(status=Status.FAIL, check="service", message="a\nok  network\x1b[2J\u202e", advice="x")
    (line,) = finding_lines([foreign])
    assert line.isprintable()
