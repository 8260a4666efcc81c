"""The URL of a call, from everything that people paste."""

from __future__ import annotations

import pytest

from pipeline.service.address import address, is_loopback, target

HOST = "https://res.openai.azure.com"
ENDPOINTS = [
    "chat/completions", "completions", "embeddings", "audio/transcriptions", "audio/translations", "audio/speech",
    "images/generations",
]  # fmt: skip


@pytest.mark.parametrize(
    "pasted",
    [
        HOST, f"{HOST}/", f" {HOST}/ ", f"{HOST}/openai", f"{HOST}/openai/", f"{HOST}//openai",
        "https://RES.openai.azure.com", f"{HOST}/openai/deployments/other/chat/completions", f"{HOST}/openai/v1",
        f"{HOST}/openai/v1/chat/completions", f"{HOST}/openai/deployments/x/embeddings?", f"{HOST}/#top",
    ],
)  # fmt: skip
@pytest.mark.parametrize("api", ["azure", "azure-v1"])
def test_every_pasted_form_gives_the_same_url(pasted: str, api: str) -> None:
    place = address(endpoint=pasted, deployment="d", api=api, api_version="v")
    path = "openai/deployments/d" if api == "azure" else "openai/v1"
    assert place.url("chat/completions") == f"{HOST}/{path}/chat/completions?api-version=v"


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_each_family_has_its_path(endpoint: str) -> None:
    def url(api: str, base: str) -> str:
        return address(endpoint=base, deployment="d", api=api, api_version=None).url(endpoint)

    assert url("azure", HOST) == f"{HOST}/openai/deployments/d/{endpoint}?api-version=2024-10-21"
    preview = "?api-version=preview" if endpoint.startswith(("audio/", "images/")) else ""
    assert url("azure-v1", HOST) == f"{HOST}/openai/v1/{endpoint}{preview}"
    assert url("openai", "https://api.openai.com/v1") == f"https://api.openai.com/v1/{endpoint}"


@pytest.mark.parametrize("version", ["v1", "preview", "2030-01-01"])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_version_that_the_job_names_is_asked_for_everywhere(version: str, endpoint: str) -> None:
    place = address(endpoint=HOST, deployment="d", api="azure-v1", api_version=version)
    assert place.url(endpoint) == f"{HOST}/openai/v1/{endpoint}?api-version={version}"


def test_responses_files_and_batches_are_not_scoped_to_a_deployment() -> None:
    place = address(endpoint=HOST, deployment="d", api="azure", api_version="v")
    for endpoint in ("responses", "files", "batches", "fine_tuning/jobs"):
        assert place.url(endpoint) == f"{HOST}/openai/{endpoint}?api-version=v"


def test_a_gateways_own_path_is_kept() -> None:
    place = address(endpoint="https://apim.example/team/a", deployment="d", api="azure", api_version="v")
    assert place.url("embeddings") == "https://apim.example/team/a/openai/deployments/d/embeddings?api-version=v"
    project = "https://a.services.ai.azure.com/api/projects/p"
    place = address(endpoint=f"{project}/openai/v1/", deployment="d", api="azure-v1", api_version=None)
    assert place.url("responses") == f"{project}/openai/v1/responses"


@pytest.mark.parametrize("pasted", ["https://h/v1/chat/completions", "https://h/v1/responses", "https://h/v1/"])
def test_a_pasted_call_is_cut_from_an_openai_base(pasted: str) -> None:
    place = address(endpoint=pasted, deployment="m", api="openai", api_version=None)
    assert place.url("embeddings") == "https://h/v1/embeddings"


def test_a_pasted_version_is_taken_when_none_is_given() -> None:
    pasted = f"{HOST}/openai/deployments/x/chat/completions?api-version=2025-01-01-preview"
    assert address(endpoint=pasted, deployment="d", api="azure", api_version=None).query.endswith("2025-01-01-preview")
    assert address(endpoint=pasted, deployment="d", api="azure", api_version="v").query == "api-version=v"


@pytest.mark.parametrize(
    ("name", "encoded"),
    [("a b", "a%20b"), ("a/b", "a%2Fb"), ("a?b#c", "a%3Fb%23c"), ("a%2f", "a%252f"), ("é", "%C3%A9")],
)
def test_a_deployment_is_one_path_segment(name: str, encoded: str) -> None:
    url = address(endpoint=HOST, deployment=name, api="azure", api_version="v").url("embeddings")
    assert url == f"{HOST}/openai/deployments/{encoded}/embeddings?api-version=v"


@pytest.mark.parametrize("name", ["", " ", ".", "..", "../../x", "a/../b", "a\\..\\b"])
def test_a_deployment_that_climbs_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="deployment's name"):
        address(endpoint=HOST, deployment=name, api="azure", api_version="v")


@pytest.mark.parametrize(
    "endpoint",
    [
        "", "res.openai.azure.com", "ftp://x", "https://", "https://user:secret@h", "https://h/../x", "https://h/%2e%2E/x",
        "https://h/a%2f..", "http://res.openai.azure.com", "http://10.0.0.1", "https://h\\x", "https://h x",
    ],
)  # fmt: skip
def test_an_endpoint_that_cannot_be_used_is_refused_without_being_quoted(endpoint: str) -> None:
    with pytest.raises(ValueError, match=r"endpoint|http") as caught:
        address(endpoint=endpoint, deployment="d", api="azure", api_version="v")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "127.9.9.9", "a.localhost"])
def test_plain_http_is_for_loopback(host: str) -> None:
    assert is_loopback(host)
    assert address(endpoint=f"http://{host}:8080", deployment="d", api="azure-v1", api_version=None).url("x") == (
        f"http://{host}:8080/openai/v1/x"
    )


def test_the_body_names_the_deployment_only_where_the_path_does_not() -> None:
    for api, body_model in (("azure", None), ("azure-v1", "d"), ("openai", "d")):
        found = target(address(endpoint=HOST, deployment="d", api=api, api_version=None), model="m")
        assert (found.deployment, found.model, found.body_model) == ("d", "m", body_model)
