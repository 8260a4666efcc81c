"""A checked job as plain values, for another process of the same run; the one place where secrets are written down."""

from __future__ import annotations

from typing import Any

from pipeline.job.spec import Job


def job_values(job: Job) -> dict[str, Any]:
    """The job with its secrets revealed: for a pipe to a process of our own, and for nothing else.

    `job_of` makes an equal job of it.
    """
    values = job.model_dump(mode="json")
    values["file"] = str(job.file)
    for deployment, written in zip(job.deployments, values["deployments"], strict=True):
        for name in ("key", "token"):
            secret = getattr(deployment, name)
            written[name] = None if secret is None else secret.reveal()
        written["headers"] = {name: secret.reveal() for name, secret in deployment.headers.items()}
    if job.run.right_size is not None:
        values["run"]["right_size"] = f"p{100 * job.run.right_size:.10g}"
    return values


def job_of(values: dict[str, Any]) -> Job:
    """The job that `job_values` wrote down."""
    return Job.model_validate(values)
