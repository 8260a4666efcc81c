"""Where a run's bytes go: to the hosts of its job file, each with its own credential, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from pipeline.service.address import Family, address
from pipeline.service.wire import HttpxTransport
from tests.cli.bench import JOB, Bench
from tests.security.raw_server import answer, raw_server

COMPLETION = (
    b'{"id":"c","object":"chat.completion","model":"m","choices":[{"index":0,"finish_reason":"stop",'
    b'"message":{"role":"assistant","content":"Yes."}}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}'
)
STATUSES = [301, 302, 303, 307, 308]


def bench_of(folder: Path, url: str, **environ: str) -> Bench:
    bench = Bench(folder=folder, environ={"TEST_ENDPOINT": url, "TEST_KEY": "key-of-one", "NO_COLOR": "1", **environ})
    bench.write(JOB)
    bench.rows(["one?", "two?", "three?"])
    return bench


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("command", ["run", "doctor"])
def test_a_redirect_ends_the_run_and_its_target_sees_nothing(tmp_path: Path, status: int, command: str) -> None:
    with raw_server(lambda request: answer(200, COMPLETION)) as elsewhere:
        location = f"location: {elsewhere.url}/openai/deployments/d/chat/completions"
        with raw_server(lambda request: answer(status, b"", location)) as server:
            said = bench_of(tmp_path, server.url).call(command, "job.yaml")
            assert server.requests
    assert said.exit_code == 3, said.output
    assert elsewhere.connections == 0


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_loopback_is_never_asked_through_a_proxy(tmp_path: Path, name: str) -> None:
    with (
        raw_server(lambda request: answer(200, COMPLETION)) as proxy,
        raw_server(lambda request: answer(200, COMPLETION)) as server,
    ):
        bench = bench_of(tmp_path, server.url, **{name: proxy.url, "NO_PROXY": "", "no_proxy": ""})
        assert bench.call("run", "job.yaml").exit_code == 0
        bench.call("doctor", "job.yaml")
        assert len(server.requests) >= 3
        assert proxy.connections == 0


def test_the_doctor_names_the_proxy_without_its_password(tmp_path: Path) -> None:
    with raw_server(lambda request: answer(502, b"")) as proxy:
        url = f"http://user:proxy-password@127.0.0.1:{proxy.port}"
        said = bench_of(tmp_path, "https://res.invalid", HTTPS_PROXY=url).call("doctor", "job.yaml").output
        assert f"127.0.0.1:{proxy.port}" in said
        assert "proxy-password" not in said


HOSTILE_NAMES = ["a?b", "a#b", "a%2f..", "a%2f", "a/b", "a b", "a\\b", "ä", "a;b", "a&b=c", "%00", "a:b@c"]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_deployments_name_is_one_segment_of_the_path(name: str) -> None:
    made = address(endpoint="https://x.openai.azure.com", deployment=name, api="azure", api_version="2024-10-21")
    url = httpx.URL(made.url("chat/completions"))
    assert url.host == "x.openai.azure.com"
    assert url.query == b"api-version=2024-10-21"
    before, _, behind = url.raw_path.partition(b"?")[0].partition(b"/openai/deployments/")
    assert before == b""
    assert behind.count(b"/") == 2
    assert behind.endswith(b"/chat/completions")


@pytest.mark.parametrize("name", ["../../x", "..", ".", "", " ", "a/../../b", "a\\..\\b", "../x"])
def test_a_deployments_name_that_climbs_is_refused(name: str) -> None:
    for family in Family:
        with pytest.raises(ValueError, match="deployment"):
            address(endpoint="https://x.openai.azure.com", deployment=name, api=family.value, api_version=None)


TWO = """\
  - endpoint: ${OTHER_ENDPOINT}
    deployment: gpt-4o-mini
    name: other
    api: azure
    key: ${OTHER_KEY}
output:"""


def test_each_host_sees_its_own_key_alone(tmp_path: Path) -> None:
    with (
        raw_server(lambda request: answer(200, COMPLETION)) as one,
        raw_server(lambda request: answer(200, COMPLETION)) as two,
    ):
        bench = bench_of(tmp_path, one.url, OTHER_ENDPOINT=two.url, OTHER_KEY="key-of-two")
        bench.write(JOB.replace("output:", TWO, 1))
        bench.rows([f"question {n}?" for n in range(40)])
        assert bench.call("run", "job.yaml").exit_code == 0
        assert bench.call("doctor", "job.yaml", "--probe").exit_code in {0, 1, 3}
    assert one.requests
    assert two.requests
    assert all(b"key-of-one" in request and b"key-of-two" not in request for request in one.requests)
    assert all(b"key-of-two" in request and b"key-of-one" not in request for request in two.requests)


@pytest.mark.parametrize(
    "endpoint", ["http://example.com", "http://10.0.0.1", "http://169.254.169.254", "ftp://x.test", "file:///etc"]
)
def test_plain_http_leaves_this_machine_never(tmp_path: Path, endpoint: str) -> None:
    said = bench_of(tmp_path, endpoint).call("run", "job.yaml")
    assert said.exit_code == 2
    assert "endpoint" in said.stderr


def test_no_key_of_a_job_file_turns_verification_off(tmp_path: Path) -> None:
    for key in ("verify", "verify_ssl", "ssl_verify", "insecure", "tls_verify", "follow_redirects"):
        bench = bench_of(tmp_path, "https://x.openai.azure.com")
        bench.write(JOB.replace("    api: azure\n", f"    api: azure\n    {key}: false\n"))
        said = bench.call("validate", "job.yaml")
        assert said.exit_code == 2
        assert "unknown key" in said.stderr


def test_no_row_and_no_reply_names_the_host_that_is_asked(tmp_path: Path) -> None:
    """Endpoints, base URLs and next links in rows and replies are text."""
    with raw_server(lambda request: answer(200, COMPLETION)) as elsewhere:
        hostile = COMPLETION.replace(
            b'"id":"c"',
            b'"id":"c","endpoint":"%b","next":"%b","url":"%b"' % ((elsewhere.url.encode(),) * 3),
        )
        headers = [
            f"{name}: {elsewhere.url}/"
            for name in ("location", "operation-location", "content-location", "link", "refresh")
        ]
        with raw_server(lambda request: answer(200, hostile, *headers)) as server:
            bench = bench_of(tmp_path, server.url)
            bench.rows([elsewhere.url, f"endpoint: {elsewhere.url}", "${TEST_ENDPOINT}"])
            assert bench.call("run", "job.yaml").exit_code == 0
            assert len(server.requests) == 3
    assert elsewhere.connections == 0


def test_both_transports_speak_tls_from_1_2_on_and_check_names() -> None:
    context = HttpxTransport(proxy=None, certificates=b"")._context
    assert context.minimum_version >= 0x0303
    assert context.check_hostname
    assert context.verify_mode.name == "CERT_REQUIRED"
