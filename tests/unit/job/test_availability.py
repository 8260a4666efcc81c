"""Which operation exists in which version of the classic API."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.job.availability import (
    DEFAULT_API_VERSION,
    GENERAL,
    LAST_PREVIEW,
    PREVIEW_SINCE,
    absence,
    default_api_version,
)

PREVIEWS = sorted(set(PREVIEW_SINCE.values()) | {"2024-05-01-preview", "2025-01-01-preview", LAST_PREVIEW})
PAGE = Path(__file__).parents[3] / "docs" / "azure-api-versions.md"


@pytest.mark.parametrize("operation", sorted(PREVIEW_SINCE))
@pytest.mark.parametrize("version", sorted(GENERAL))
def test_a_generally_available_version_has_what_its_description_lists(operation: str, version: str) -> None:
    assert (absence(operation, version) is None) == (operation in GENERAL[version])


@pytest.mark.parametrize("operation", sorted(PREVIEW_SINCE))
@pytest.mark.parametrize("version", PREVIEWS)
def test_a_preview_has_what_an_earlier_one_had(operation: str, version: str) -> None:
    assert (absence(operation, version) is None) == (version >= PREVIEW_SINCE[operation])


@pytest.mark.parametrize("operation", [*sorted(PREVIEW_SINCE), "two-words", None])
@pytest.mark.parametrize("version", ["2025-04-02-preview", "2026-01-01", "2031-12-31-preview", "v1", "latest", ""])
def test_a_version_that_is_later_or_unknown_is_taken_to_have_everything(operation: str | None, version: str) -> None:
    assert absence(operation, version, ["timestamp_granularities"]) is None


@pytest.mark.parametrize("version", ["2024-99-99", "2024-10-22", "0000-00-00-preview"])
def test_a_version_that_never_was_is_left_to_the_service(version: str) -> None:
    assert absence("speech", version) is None


def test_timestamps_of_words_need_a_preview() -> None:
    said = absence("transcription", "2024-10-21", ["file", "timestamp_granularities"])
    assert said is not None
    assert said.startswith("has no request.timestamp_granularities: use a preview such as 2025-04-01-preview")
    assert absence("transcription", "2024-10-21", ["file", "language"]) is None
    assert absence("transcription", LAST_PREVIEW, ["timestamp_granularities"]) is None


def test_what_has_the_operation_is_named() -> None:
    said = absence("image", "2023-05-15")
    assert said is not None
    assert "2024-02-01, 2024-06-01, 2024-10-21, 2023-12-01-preview and later previews" in said


@pytest.mark.parametrize("operation", sorted(PREVIEW_SINCE))
def test_the_default_version_has_the_operation(operation: str) -> None:
    version = default_api_version(operation)
    assert absence(operation, version) is None
    assert version == (LAST_PREVIEW if operation in ("speech", "responses") else DEFAULT_API_VERSION)


@pytest.mark.parametrize("operation", sorted(PREVIEW_SINCE))
def test_the_page_says_the_same(operation: str) -> None:
    (row,) = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{operation}` |")]
    general = [version for version in sorted(GENERAL) if operation in GENERAL[version]]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == (f"{general[0]} and later" if general else "none")
    assert cells[2] == f"{PREVIEW_SINCE[operation]} and later"
