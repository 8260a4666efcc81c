import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.job.spec import (
    DeploymentSpec,
    InputSpec,
    Job,
    Origin,
    OutputSpec,
    RunSpec,
    Secret,
    default_api,
    is_azure,
    parse_duration,
    parse_fail_on,
    parse_size,
    pasted_api_version,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("300s", 300), ("10m", 600), ("2h", 7200), ("1d", 86400), ("1h30m", 5400), ("1.5h", 5400), (5, 5)],
)
def test_durations_are_seconds(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "10x", "s", "-5s", "5 minutes", None, True, [1]])
def test_other_durations_are_refused(text: object) -> None:
    with pytest.raises(ValueError, match="must be a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("512MB", 512_000_000), ("8GiB", 2**33), ("1.5 kB", 1500), ("1KiB", 1024), ("7", 7), ("7B", 7), (9, 9)],
)
def test_sizes_are_bytes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "5mb", "-1MB", "5 bytes", None, True, 1.5])
def test_other_sizes_are_refused(text: object) -> None:
    with pytest.raises(ValueError, match="must be a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "value"), [("any", "any"), ("never", "never"), ("5%", 0.05), ("0.5 %", 0.005), (1, 1.0)]
)
def test_fail_on_is_a_word_or_a_share(text: object, value: object) -> None:
    assert parse_fail_on(text) == value


@pytest.mark.parametrize("text", ["0%", "101%", "5", 5, 0, True, "some", None])
def test_other_shares_are_refused(text: object) -> None:
    with pytest.raises(ValueError, match="must be any, never or a share"):
        parse_fail_on(text)


SECRET = Secret("canary-7f3a")


@pytest.mark.parametrize(
    "shown",
    [
        str(SECRET),
        repr(SECRET),
        f"{SECRET}",
        f"{SECRET:>20}",
        repr(pickle.dumps(SECRET)),
        copy.copy(SECRET).reveal(),
        copy.deepcopy(SECRET).reveal(),
        repr([SECRET]),
        repr(DeploymentSpec(endpoint="https://x.openai.azure.com", deployment="d", key=SECRET)),
        DeploymentSpec(endpoint="https://x.openai.azure.com", deployment="d", key=SECRET).model_dump_json(),
        json.dumps(DeploymentSpec(endpoint="https://x.test", deployment="d", key=SECRET).model_dump(mode="json")),
        repr(pickle.dumps(DeploymentSpec(endpoint="https://x.test", deployment="d", headers={"X-Key": SECRET}))),
    ],
)
def test_a_secret_shows_itself_to_nobody(shown: str) -> None:
    assert "canary" not in shown
    assert "***" in shown


def test_a_secret_is_revealed_when_asked() -> None:
    assert SECRET.reveal() == "canary-7f3a"
    assert Secret("canary-7f3a") == SECRET != Secret("other")
    assert len({SECRET, Secret("canary-7f3a")}) == 1
    assert not hasattr(SECRET, "__dict__")


@pytest.mark.parametrize(
    ("endpoint", "api", "azure"),
    [
        ("https://x.openai.azure.com", "azure", True),
        ("https://x.openai.azure.com/", "azure", True),
        ("https://x.openai.azure.com/openai/deployments/d/chat/completions?api-version=2024-06-01", "azure", True),
        ("https://x.openai.azure.com/openai/v1/", "azure-v1", True),
        ("https://x.openai.azure.us", "azure", True),
        ("https://x.openai.azure.cn", "azure", True),
        ("https://x.cognitiveservices.azure.com", "azure", True),
        ("https://x.services.ai.azure.com/openai/v1", "azure-v1", True),
        ("https://api.openai.com/v1", "openai", False),
        ("http://127.0.0.1:8000/v1", "openai", False),
        ("https://gateway.test/openai/deployments/d", "azure", False),
        ("https://openai.azure.com.evil.test", "openai", False),
        ("https://[broken", "openai", False),
    ],
)
def test_the_url_family_is_read_from_the_endpoint(endpoint: str, api: str, azure: bool) -> None:  # noqa: FBT001 - a table
    assert default_api(endpoint) == api
    assert is_azure(endpoint) is azure


def test_a_pasted_api_version_is_found() -> None:
    assert pasted_api_version("https://x.test/a?api-version=2024-06-01&b=1") == "2024-06-01"
    assert pasted_api_version("https://x.test/a") is None
    assert pasted_api_version("https://[x") is None
    assert pasted_api_version(None) is None


def test_a_deployment_fills_in_what_its_endpoint_says() -> None:
    spec = DeploymentSpec(endpoint="https://x.openai.azure.com?api-version=2024-06-01", deployment="d")
    assert (spec.name, spec.model, spec.api, spec.api_version, spec.auth) == ("d", "d", "azure", "2024-06-01", "entra")
    spec = DeploymentSpec(endpoint="https://api.openai.com/v1", deployment="d", key=Secret("k"), model="m")
    assert (spec.name, spec.model, spec.api, spec.api_version, spec.auth) == ("d", "m", "openai", None, "key")


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ("x.openai.azure.com", "must be a URL"),
        ("ftp://x.test", "must be a URL"),
        ("https://", "must be a URL"),
        ("https://x.test:99999", "must be a URL"),
        ("https://<your-resource>.openai.azure.com", "no usable host name"),
        ("http://x.openai.azure.com", "must be https"),
        ("http://127.0.0.1.evil.test", "must be https"),
        ("https://user:canary@x.test", "user name or password"),
        ("https://x.test?api-key=canary", "key in its query"),
        ("https://x.test?code=canary", "key in its query"),
        ("https://x.test?sig=canary", "key in its query"),
        ("https://x.test?subscription-key=canary", "key in its query"),
        ("https://x.test?access_token=canary", "key in its query"),
    ],
)
def test_an_endpoint_that_is_none_is_refused_and_not_repeated(endpoint: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        DeploymentSpec(endpoint=endpoint, deployment="d")
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("endpoint", ["http://localhost:1/v1", "http://127.9.9.9/v1", "http://[::1]:8000/v1"])
def test_plain_http_is_for_loopback(endpoint: str) -> None:
    assert DeploymentSpec(endpoint=endpoint, deployment="d").endpoint == endpoint


@pytest.mark.parametrize(
    ("headers", "auth", "message"),
    [
        ({f"X-{number}": "v" for number in range(5)}, "key", "at most 4"),
        ({"User-Agent": "v"}, "none", "set by the pipeline"),
        ({"x-ms-client-request-id": "v"}, "none", "set by the pipeline"),
        ({"a b": "v"}, "none", "no header's"),
        ({"a:": "v"}, "none", "no header's"),
        ({"Authorization": "v"}, "entra", "auth: none"),
        ({"api-key": "v"}, "entra", "auth: none"),
    ],
)
def test_headers_that_cannot_be_sent_are_refused(headers: dict[str, Any], auth: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DeploymentSpec(endpoint="https://x.test", deployment="d", headers=headers, auth=auth)


def test_values_are_frozen_and_unknown_names_refused() -> None:
    spec = RunSpec(timeout_s=5)
    with pytest.raises(ValidationError):
        spec.workers = 3
    with pytest.raises(ValidationError):
        RunSpec.model_validate({"timeoutt": 3})


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (RunSpec, {"workers": "32"}),
        (RunSpec, {"workers": True}),
        (RunSpec, {"workers": 1.0}),
        (RunSpec, {"workers": 0}),
        (RunSpec, {"timeout": "0s"}),
        (RunSpec, {"max_cost": -1}),
        (OutputSpec, {"path": "x", "part_rows": 0}),
        (OutputSpec, {"path": "x", "part_bytes": 0}),
        (OutputSpec, {"path": "x", "columns": "some"}),
        (InputSpec, {"path": []}),
        (InputSpec, {"path": ""}),
        (InputSpec, {"path": "x", "columns": {"a": "varchar"}}),
        (InputSpec, {"path": "x", "columns": {"a": "list<list<string>>"}}),
        (InputSpec, {"path": "x", "columns": {"a": "list<json>"}}),
        (InputSpec, {"path": "x", "columns": {"a": "decimal(77,2)"}}),
        (InputSpec, {"path": "x", "columns": {"a": "decimal(2,3)"}}),
        (DeploymentSpec, {"endpoint": "https://x.test", "deployment": "d", "requests_per_minute": 0}),
        (DeploymentSpec, {"endpoint": "https://x.test", "deployment": "d", "tokens_per_minute": float("inf")}),
        (DeploymentSpec, {"endpoint": "https://x.test", "deployment": "d\n"}),
        (DeploymentSpec, {"endpoint": "https://x.test", "deployment": "d", "api_version": 2024}),
        (DeploymentSpec, {"endpoint": "https://x.test", "deployment": "d", "auth": "none", "key": Secret("k")}),
    ],
)
def test_wrong_types_and_figures_are_refused(section: Any, values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        section.model_validate(values)


def test_where_a_job_stands_is_no_part_of_what_it_is() -> None:
    job = Job(
        name="n",
        operation="chat",
        input=InputSpec(path=("a.jsonl",)),
        request={},
        deployments=(DeploymentSpec(endpoint="https://x.test", deployment="d"),),
        output=OutputSpec(path=Path("out")),
    )
    placed = job.with_origin(Origin(marks={("name",): (1, 1)}))
    assert placed == job
    assert placed.origin.marks
    assert not job.origin.marks
