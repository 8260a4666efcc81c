"""What the processes of one run hand to each other, as plain values: tasks, outcomes, causes, and how things stand."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipeline import errors
from pipeline.errors import DefectError, PipelineError
from pipeline.model import Item
from pipeline.plan.work import Task
from pipeline.store.journal import Packed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.operations.base import Portable
    from pipeline.service.deployment import Deployment
    from pipeline.service.pool import Aside


def task_values(task: Task, operation: Portable) -> Any:
    """A task as plain values."""
    return task.span, [
        (
            item.ordinal,
            operation.packed(item.content),
            item.tokens,
            item.reply_bytes,
            item.inputs,
            item.output_tokens,
        )
        for item in task.items
    ]


def task_of(values: Any, operation: Portable) -> Task:
    """The task that `task_values` wrote down."""
    span, items = values
    return Task(
        span=span,
        items=tuple(
            Item(
                ordinal=ordinal,
                content=operation.unpacked(content),
                tokens=tokens,
                reply_bytes=reply_bytes,
                inputs=inputs,
                output_tokens=output_tokens,
            )
            for ordinal, content, tokens, reply_bytes, inputs, output_tokens in items
        ),
    )


def packed_of(values: Sequence[Any]) -> Packed:
    """An outcome as it came over a channel, which knows no tuples."""
    rows, payload, attempts, tokens, batched, carried = values
    return Packed(rows, payload, attempts, tuple(tokens), batched, carried)


def cause_values(cause: BaseException | None) -> tuple[str, str] | None:
    """Why a sender stopped, as plain values: what a defect says of itself is left out, for it may hold anything."""
    if cause is None:
        return None
    if isinstance(cause, PipelineError):
        return type(cause).__name__, str(cause)
    trace, place = cause.__traceback__, ""
    while trace is not None:
        place = f" in {trace.tb_frame.f_code.co_qualname}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return DefectError.__name__, f"a sending process failed with {type(cause).__name__}{place}; please report this"


def cause_of(values: Sequence[str] | None) -> PipelineError | None:
    """The cause that `cause_values` wrote down; one that cannot be made again is a defect."""
    if values is None:
        return None
    name, message = values
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, PipelineError) and kind.__init__ is Exception.__init__:
        return kind(message)
    return DefectError(message)


def deployment_values(deployment: Deployment) -> dict[str, Any]:
    """How a deployment stands in one process."""
    return {**asdict(deployment.report()), "in_flight": deployment.in_flight, "paused_until": deployment.paused_until}


def aside_values(aside: Aside) -> tuple[str, str, str]:
    """A deployment that is set aside in one process: its name, the kind, and what it said."""
    return aside.deployment, aside.kind.value, aside.error.message
