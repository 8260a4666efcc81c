"""What a job must say before a run can promise to stay within dollars or tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.job.prices import AS_OF, rates

if TYPE_CHECKING:
    from pipeline.job.spec import DeploymentSpec, Job, RunSpec

ANSWER_BOUNDS: Mapping[str, tuple[str, ...]] = {
    "chat": ("max_completion_tokens", "max_tokens"),
    "responses": ("max_output_tokens",),
    "completions": ("max_tokens",),
    "embeddings": (),
}
"""The operations whose requests can be bounded in tokens, with the fields that bound their answers."""


def is_bounded(job: Job) -> bool:
    """Whether every answer has a bound: the operation has none to give, or the request or each row's line does."""
    bounds = ANSWER_BOUNDS.get(job.operation, ())
    return not bounds or not job.request or any(job.request.get(name) is not None for name in bounds)


def budget_problems(
    *,
    operation: str | None,
    request: Mapping[str, Any] | None,
    run: RunSpec,
    deployments: tuple[DeploymentSpec, ...],
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Say what is missing for the job's budgets: paths and messages. `request` is None where rows bring their own."""
    names = [name for name in ("max_cost", "max_tokens_total") if getattr(run, name) is not None]
    for name in names:
        if operation is not None and operation not in ANSWER_BOUNDS:
            yield ("run", name), f"is for {', '.join(ANSWER_BOUNDS)}: what {operation} may cost at most is not known"
    if not names or operation is None or operation not in ANSWER_BOUNDS:
        return
    bounds = ANSWER_BOUNDS[operation]
    if request is not None and bounds and not any(request.get(field) is not None for field in bounds):
        yield ("run", names[0]), f"needs a bound on answers: give `request.{bounds[0]}`"
    if run.max_cost is not None:
        yield from _unpriced(run.lane, deployments, answers=bool(bounds))


def _unpriced(
    lane: str, deployments: tuple[DeploymentSpec, ...], *, answers: bool
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    places = {spec.name: index for index, spec in enumerate(deployments)}
    for rate in rates(deployments, lane):
        missing = [
            f"`deployments.{places[rate.deployment]}.price.{side}`"
            for side, figure in (("input", rate.input), ("output", rate.output if answers else 0.0))
            if figure is None
        ]
        if missing:
            why = (
                f"the built-in table of {AS_OF} does not know {rate.model}" if rate.listed else "the job leaves it out"
            )
            yield (
                ("run", "max_cost"),
                f"needs the price of {rate.deployment}: give {' and '.join(missing)}, dollars a million tokens ({why})",
            )
