"""A batch runner for Azure OpenAI and OpenAI-compatible services: job files in, Parquet out.

`job = load_job("job.yaml")`, then `summary = await run_job(job)`; what a person must know is raised as a
PipelineError. Names are imported when they are used, so `import pipeline` costs nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.engines.again import Retry
    from pipeline.errors import (
        DamageError,
        DefectError,
        DiskFullError,
        ExamplesError,
        FolderHeldError,
        InputChangedError,
        JobChangedError,
        JobFileError,
        NoTokenYetError,
        PipelineError,
        Problem,
        RefusedError,
        StalledError,
        StoppedEarlyError,
        StorageError,
    )
    from pipeline.job.spec import Job
    from pipeline.lanes.stop import Interrupted
    from pipeline.rehearsal import simulated
    from pipeline.run import RunOptions, run_job
    from pipeline.sources.errors import SourceError
    from pipeline.store.summary import Summary

    __version__: str

__all__ = [
    "DamageError",
    "DefectError",
    "DiskFullError",
    "ExamplesError",
    "FolderHeldError",
    "InputChangedError",
    "Interrupted",
    "Job",
    "JobChangedError",
    "JobFileError",
    "NoTokenYetError",
    "PipelineError",
    "Problem",
    "RefusedError",
    "Retry",
    "RunOptions",
    "SourceError",
    "StalledError",
    "StoppedEarlyError",
    "StorageError",
    "Summary",
    "__version__",
    "load_job",
    "run_job",
    "simulated",
]

_HOMES = {
    "Interrupted": "pipeline.lanes.stop",
    "Job": "pipeline.job.spec",
    "Retry": "pipeline.engines.again",
    "RunOptions": "pipeline.run",
    "SourceError": "pipeline.sources.errors",
    "Summary": "pipeline.store.summary",
    "run_job": "pipeline.run",
    "simulated": "pipeline.rehearsal",
}


def load_job(
    path: str | Path,
    *,
    overrides: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
    simulate: bool = False,
) -> Job:
    """Read and check a job file. Raises JobFileError with every problem at once.

    `overrides` are values by path, each read as YAML, as `--set` takes them: {"run.workers": "8"}. `environ` is what
    `${NAME}` reads; None: this process's environment. `simulate`: for `simulated`; no variable of a deployment is read.
    """
    import os  # noqa: PLC0415 - importing the package costs nothing

    from pipeline import operations, sources  # noqa: PLC0415
    from pipeline.job.load import load_job as load  # noqa: PLC0415

    return load(
        Path(path),
        environ=os.environ if environ is None else environ,
        operations=operations.names(),
        formats=sources.names(),
        overrides=overrides,
        simulate=simulate,
        first_url=sources.first_url,
    )


def __getattr__(name: str) -> Any:
    """Import a public name when it is used."""
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415 - importing the package costs nothing

        return version("aoai-pipeline")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES.get(name, "pipeline.errors")), name)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
