"""Paths name a family, an operation and a deployment."""

from __future__ import annotations

import pytest

from pipeline.simulator.address import Address, find_address
from pipeline.simulator.base import Family
from pipeline.simulator.chat import Chat
from pipeline.simulator.embeddings import Embeddings
from pipeline.simulator.vectors import Vectors

OPERATIONS = {operation.path: operation for operation in (Chat(), Embeddings(Vectors("hash")))}


def found(path: str, query: str = "") -> Address:
    address = find_address(path, query, OPERATIONS)
    assert address is not None
    return address


@pytest.mark.parametrize("operation", list(OPERATIONS))
@pytest.mark.parametrize("resource", ["", "/sweden"])
def test_every_operation_is_found_in_every_family(operation: str, resource: str) -> None:
    classic = found(f"{resource}/openai/deployments/d/{operation}", "api-version=2024-10-21")
    assert (classic.family, classic.deployment, classic.api_version) == (Family.CLASSIC, "d", "2024-10-21")
    v1 = found(f"{resource}/openai/v1/{operation}")
    openai = found(f"{resource}/v1/{operation}")
    assert (v1.family, openai.family) == (Family.V1, Family.OPENAI)
    for address in (classic, v1, openai):
        assert address.operation.path == operation
        assert address.resource == resource.strip("/")
        assert address.refusal is None


@pytest.mark.parametrize("path", ["/", "/openai/deployments/d", "/openai/chat/completions", "/v2/embeddings", "/v1/x"])
def test_other_paths_are_nobodys(path: str) -> None:
    assert find_address(path, "api-version=2024-10-21", OPERATIONS) is None


@pytest.mark.parametrize("query", ["", "api-version=", "api-version=latest", "api-version=2024", "version=2024-10-21"])
def test_a_classic_path_needs_a_dated_version(query: str) -> None:
    refusal = found("/openai/deployments/d/embeddings", query).refusal
    assert refusal is not None
    assert refusal.status == 404


@pytest.mark.parametrize(
    ("query", "refused"), [("", False), ("api-version=preview", False), ("api-version=2024-10-21", True)]
)
def test_v1_knows_no_dated_version(query: str, *, refused: bool) -> None:
    assert (found("/openai/v1/embeddings", query).refusal is not None) is refused
