"""Paths name a family, an operation and a deployment."""

from __future__ import annotations

import pytest

from pipeline.simulator.address import Address, find_address
from pipeline.simulator.base import Family
from pipeline.simulator.config import make_config
from pipeline.simulator.operations import find_operations

OPERATIONS = find_operations(make_config({"vectors": "hash", "audio": "tones"}))


def found(path: str, query: str = "") -> Address:
    address = find_address(path, query, OPERATIONS)
    assert address is not None
    return address


@pytest.mark.parametrize("operation", list(OPERATIONS))
@pytest.mark.parametrize("resource", ["", "/sweden"])
def test_every_operation_is_found_in_every_family(operation: str, resource: str) -> None:
    in_path = OPERATIONS[operation].deployment_in_path
    scope, deployment = ("deployments/d/", "d") if in_path else ("", None)
    classic = found(f"{resource}/openai/{scope}{operation}", "api-version=2025-04-01-preview")
    assert (classic.family, classic.deployment) == (Family.CLASSIC, deployment)
    assert classic.api_version == "2025-04-01-preview"
    v1 = found(f"{resource}/openai/v1/{operation}")
    openai = found(f"{resource}/v1/{operation}")
    assert (v1.family, openai.family) == (Family.V1, Family.OPENAI)
    for address in (classic, v1, openai):
        assert address.operation.path == operation
        assert address.resource == resource.strip("/")
        assert address.refusal is None


def test_all_operations_are_found() -> None:
    assert set(OPERATIONS) == {
        "audio/speech",
        "audio/transcriptions",
        "audio/translations",
        "chat/completions",
        "completions",
        "embeddings",
        "images/generations",
        "responses",
    }


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/openai/deployments/d",
        "/openai/chat/completions",
        "/openai/deployments/d/responses",
        "/openai/completions",
        "/v2/embeddings",
        "/v1/x",
    ],
)
def test_other_paths_are_nobodys(path: str) -> None:
    assert find_address(path, "api-version=2024-10-21", OPERATIONS) is None


@pytest.mark.parametrize("query", ["", "api-version=", "api-version=latest", "api-version=2024", "version=2024-10-21"])
def test_a_classic_path_needs_a_dated_version(query: str) -> None:
    refusal = found("/openai/deployments/d/embeddings", query).refusal
    assert refusal is not None
    assert refusal.status == 404


@pytest.mark.parametrize(
    ("operation", "since"), [("deployments/d/audio/speech", "2024-02-15-preview"), ("responses", "2025-03-01-preview")]
)
def test_previews_are_not_found_in_a_stable_version(operation: str, since: str) -> None:
    assert found(f"/openai/{operation}", f"api-version={since}").refusal is None
    refusal = found(f"/openai/{operation}", "api-version=2024-10-21").refusal
    assert refusal is not None
    assert (refusal.status, refusal.body) == (404, b'{"error":{"code":"404","message":"Resource not found"}}')


@pytest.mark.parametrize(
    ("query", "refused"), [("", False), ("api-version=preview", False), ("api-version=2024-10-21", True)]
)
def test_v1_knows_no_dated_version(query: str, *, refused: bool) -> None:
    assert (found("/openai/v1/embeddings", query).refusal is not None) is refused
