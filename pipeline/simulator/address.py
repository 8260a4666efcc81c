"""Which operation, deployment and URL family a path names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs

from pipeline.simulator import refusals
from pipeline.simulator.base import Family, Operation, RefusedError

_DATED_VERSION = re.compile(r"\d{4}-\d{2}-\d{2}(-preview)?")
_V1_VERSIONS = frozenset({None, "v1", "preview", "latest"})
_PATHS = (
    (Family.CLASSIC, re.compile(r"(?P<resource>.*?)/openai/deployments/(?P<deployment>[^/]+)/(?P<operation>.+)")),
    (Family.V1, re.compile(r"(?P<resource>.*?)/openai/v1/(?P<operation>.+)")),
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
        version = parse_qs(query).get("api-version", [None])[-1]
        refusal = None
        if family is Family.CLASSIC and not _DATED_VERSION.fullmatch(version or ""):
            refusal = refusals.not_found()
        elif family is Family.V1 and version not in _V1_VERSIONS:
            refusal = refusals.unsupported_version()
        return Address(
            family=family,
            operation=operation,
            resource=match["resource"].strip("/"),
            deployment=match["deployment"] if family is Family.CLASSIC else None,
            api_version=version,
            refusal=refusal,
        )
    return None
