"""Which operation exists in which API family and version, as Azure's own API descriptions say.

Source: the inference descriptions of Azure's REST API (Azure/azure-rest-api-specs, stable and preview folders of
AzureOpenAI/inference, and OpenAI.v1), read in November 2026; docs/azure-api-versions.md is the same as a table. A
version later than all of these is taken to have everything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import date

DEFAULT_API_VERSION = "2024-10-21"
"""The last generally available version of the classic API."""

LAST_PREVIEW = "2025-04-01-preview"
"""The last dated version of the classic API."""

GENERAL: Mapping[str, frozenset[str]] = {
    "2022-12-01": frozenset({"completions", "embeddings"}),
    "2023-05-15": frozenset({"completions", "embeddings", "chat"}),
    **dict.fromkeys(
        ("2024-02-01", "2024-06-01", "2024-10-21"),
        frozenset({"completions", "embeddings", "chat", "transcription", "translation", "image"}),
    ),
}
"""The generally available versions of the classic API, with the operations that each has."""

PREVIEW_SINCE: Mapping[str, str] = {
    "completions": "2022-03-01-preview",
    "embeddings": "2022-03-01-preview",
    "chat": "2023-03-15-preview",
    "transcription": "2023-09-01-preview",
    "translation": "2023-09-01-preview",
    "image": "2023-12-01-preview",
    "speech": "2024-02-15-preview",
    "responses": "2025-03-01-preview",
}
"""The first preview of the classic API that has an operation; later ones have it too."""

PREVIEW_FIELDS: Mapping[str, frozenset[str]] = {"transcription": frozenset({"timestamp_granularities"})}
"""Fields of an operation's request that no generally available version of the classic API has."""

BATCHED: Mapping[str, frozenset[str]] = {
    "azure": frozenset({"chat", "responses"}),
    "azure-v1": frozenset({"chat", "responses"}),
    "openai": frozenset({"chat", "responses", "completions", "embeddings"}),
}
"""The operations that go through each family's Batch API (Azure's how-to page of 2026-03, OpenAI's Batch API guide)."""

_DATED = re.compile(r"(\d{4}-\d{2}-\d{2})(-preview)?")


def default_api_version(operation: str | None, fields: Iterable[str] = ()) -> str:
    """The version of the classic API that an operation with these fields is sent to when the job names none."""
    return LAST_PREVIEW if absence(operation, DEFAULT_API_VERSION, fields) else DEFAULT_API_VERSION


def absence(operation: str | None, api_version: str, fields: Iterable[str] = ()) -> str | None:
    """Say what a version of the classic API lacks of an operation with these fields, and which ones have it.

    None where it lacks nothing, or where the version or the operation is not known.
    """
    since = PREVIEW_SINCE.get(operation or "")
    if operation is None or since is None:
        return None
    general = tuple(version for version, held in GENERAL.items() if operation in held)
    if not _has(api_version, since, general):
        versions = (*general, f"{since} and later previews (the last is {LAST_PREVIEW})")
        return f"has no {operation}: use one of {', '.join(versions)}, or `api: azure-v1`"
    lacking = PREVIEW_FIELDS.get(operation, frozenset()).intersection(fields)
    if lacking and api_version in GENERAL:
        return f"has no request.{min(lacking)}: use a preview such as {LAST_PREVIEW}, or `api: azure-v1`"
    return None


def batch_lack(operation: str | None, api: str) -> str | None:
    """Say that an operation cannot go through a family's Batch API; None where it can, or is not known."""
    offered = BATCHED[api]
    if operation is None or operation in offered:
        return None
    where = "Azure's Batch API" if api != "openai" else "the Batch API"
    return f"{where} does not take {operation}, only {', '.join(sorted(offered))}: use `run: {{lane: online}}`"


def _has(api_version: str, since: str, general: tuple[str, ...]) -> bool:
    """Whether a version has what previews have since one, and these generally available versions."""
    found = _DATED.fullmatch(api_version)
    if found is None or not _is_date(found[1]) or found[1] > LAST_PREVIEW:
        return True
    if found[2]:
        return found[1] >= since.removesuffix("-preview")
    return api_version in general or api_version not in GENERAL


def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True
