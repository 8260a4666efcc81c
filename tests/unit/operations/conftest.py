"""Operations made from jobs, as the product makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from pipeline import operations
from pipeline.job.spec import Job
from pipeline.operations.base import Operation

Make = Callable[..., Operation]
MODELS = {"embeddings": "text-embedding-3-small", "speech": "tts-1", "image": "gpt-image-1"}


@pytest.fixture
def make() -> Make:
    """Make an operation from a request and whatever else the job should say."""

    def from_job(
        name: str,
        request: Mapping[str, Any],
        *,
        deployments: tuple[Mapping[str, Any], ...] = ({},),
        run: Mapping[str, Any] | None = None,
        raw: str = "auto",
        source: Mapping[str, Any] | None = None,
        media: str = "auto",
    ) -> Operation:
        model = MODELS.get(name, "gpt-4o-mini")
        place = {"endpoint": "https://x.openai.azure.com", "api": "azure", "api_version": "2024-10-21", "auth": "entra"}
        job = Job.model_validate(
            {
                "name": "job",
                "operation": name,
                "input": {"path": "rows.jsonl", **(source or {})},
                "request": request,
                "deployments": [
                    {"name": f"d{number}", "deployment": model, **place, **deployment}
                    for number, deployment in enumerate(deployments)
                ],
                "output": {"path": "out", "raw": raw, "media": media},
                "run": run or {},
            },
        )
        return operations.get(name).factory(job)

    return from_job
