"""Which operation, deployment and URL family a path names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs

from pipeline.simulator import refusals
from pipeline.simulator.base import Family, Operation, RefusedError

_V1_VERSIONS = frozenset({None, "v1", "preview", "latest"})
_PATHS = (
    (Family.CLASSIC, re.compile(r"(?P<resource>.*?)/openai/deployments/(?P<deployment>[^/]+)/(?P<operation>.+)")),
    (Family.V1, re.compile(r"(?P<resource>.*?)/openai/v1/(?P<operation>.+)")),
    (Family.CLASSIC, re.compile(r"(?P<resource>.*?)/openai/(?P<operation>.+)")),
    (Family.OPENAI, re.compile(r"(?P<resource>.*?)/v1/(?P<operation>.+)")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """What a path and its query name. `refusal` is why nothing can be asked there, though the path is right.

    `resource` is the path before the family's own, so that one simulator can play several resources; mostly empty.
    `deployment` is None where the body names it.
    """

    family: Family
    operation: Operation
    resource: str
    deployment: str | None
    api_version: str | None
    refusal: RefusedError | None


def find_address(path: str, query: str, operations: Mapping[str, Operation]) -> Address | None:
    """Read a path, already unquoted, and its query; None when it is no operation's."""
    for family, pattern in _PATHS:
        match = pattern.fullmatch(path)
        operation = operations.get(match["operation"]) if match else None
        if match is None or operation is None:
            continue
        deployment = match.groupdict().get("deployment")
        if family is Family.CLASSIC and operation.deployment_in_path is (deployment is None):
            continue
        version = parse_qs(query).get("api-version", [None])[-1]
        refusal = None
        if family is Family.CLASSIC and not operation.versions.serve(version):
            refusal = refusals.not_found()
        elif family is Family.V1 and version not in _V1_VERSIONS:
            refusal = refusals.unsupported_version()
        return Address(
            family=family,
            operation=operation,
            resource=match["resource"].strip("/"),
            deployment=deployment,
            api_version=version,
            refusal=refusal,
        )
    return None
