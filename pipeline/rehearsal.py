"""Rehearsals: every deployment of a job becomes the embedded simulator, the output goes to a folder beside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import DefectError, StorageError

if TYPE_CHECKING:
    from pipeline.job.spec import DeploymentSpec, Job

SIMULATED_SUFFIX = ".simulated"
"""What the name of a rehearsal's output folder ends with."""
_LOOK_S = 1.0


def simulated_folder(root: Path) -> Path:
    """Return the output folder of a job's rehearsals."""
    return root.with_name(root.name + SIMULATED_SUFFIX)


@contextmanager
def simulated(job: Job, *, speed: float = 1.0) -> Iterator[Job]:
    """Give the same job over a simulator with its deployments' quotas; the simulator ends with the block.

    Load the job with `simulate=True`, so that its deployments need no credentials. Its rows go to `<output>.simulated`.
    Minutes of quota pass `speed` times as fast. Every call is on the ledger, `<output>.simulated.ledger.jsonl`. Batches
    and trainings are kept in `<output>.simulated.service`, so that they go on when the job is continued; they are
    looked at each second. Raises StorageError where nothing can be written beside the output.
    """
    from pipeline.job.spec import Secret  # noqa: PLC0415 - commands that only name the folder need none of these
    from pipeline.job.training import TRAINING  # noqa: PLC0415
    from pipeline.simulator.serve import SimulatorDiedError, start  # noqa: PLC0415

    output = simulated_folder(job.output.path)
    ledger = output.with_name(f"{output.name}.ledger.jsonl")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        ledger.open("ab").close()
    except OSError as error:
        raise StorageError(
            f"{ledger} cannot be written ({error.strerror}): a rehearsal keeps its results and its ledger beside "
            "`output.path`; name another one"
        ) from error
    try:
        lasts = job.run.lane != "online" or job.operation == TRAINING
        kept = output.with_name(f"{output.name}.service") if lasts else None
        process = start({**_config(job, speed), "folder": kept}, ledger=ledger)
    except SimulatorDiedError as error:
        raise DefectError(f"{error}; please report this") from error
    with process:
        yield job.model_copy(
            update={
                "output": job.output.model_copy(update={"path": output}),
                "run": job.run.model_copy(
                    update={"poll_s": _LOOK_S, "metrics_file": _metrics_file(job.run.metrics_file, output)}
                ),
                "deployments": tuple(
                    deployment.model_copy(
                        update={
                            "endpoint": _endpoint(process.url, index, deployment),
                            "auth": "key",
                            "key": Secret("simulated"),
                            "requests_per_minute": _faster(deployment.requests_per_minute, speed),
                            "tokens_per_minute": _faster(deployment.tokens_per_minute, speed),
                        }
                    )
                    for index, deployment in enumerate(job.deployments)
                ),
            }
        )


def _metrics_file(path: Path | None, output: Path) -> Path | None:
    """Where a rehearsal's figures go: beside its results, where no collector takes them for the job's own."""
    return None if path is None else output.with_name(f"{output.name}.prom")


def _config(job: Job, speed: float) -> dict[str, Any]:
    return {
        "speed": speed,
        "deployments": {
            f"{_resource(index)}/{deployment.deployment}": {
                "model": deployment.model,
                "requests_per_minute": _whole(deployment.requests_per_minute),
                "tokens_per_minute": _whole(deployment.tokens_per_minute),
                "enqueued_tokens": deployment.enqueued_tokens,
            }
            for index, deployment in enumerate(job.deployments)
        },
    }


def _endpoint(url: str, index: int, deployment: DeploymentSpec) -> str:
    base = f"{url}/{_resource(index)}"
    return f"{base}/v1" if deployment.api == "openai" else base


def _resource(index: int) -> str:
    """Name the resource of a deployment: two deployments of one name are two places still."""
    return f"resource-{index}"


def _whole(per_minute: float | None) -> int | None:
    return None if per_minute is None else max(1, round(per_minute))


def _faster(per_minute: float | None, speed: float) -> float | None:
    """Return the quota as it is felt in real time."""
    return None if per_minute is None else per_minute * speed
