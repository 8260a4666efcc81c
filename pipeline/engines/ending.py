"""What a run ends with: the state, the reason and the exit code of whatever stopped it."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import ExamplesError, PipelineError, RefusedError
from pipeline.lanes.stop import Interrupted

DEFECT = 70


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a run stands: `reason` and `exit_code` once it has ended, None while it goes on."""

    state: str
    reason: str | None = None
    exit_code: int | None = None


def ending_of(cause: BaseException | None) -> Ending:
    """Say how a run ends that `cause` stopped; None: it did all that there was."""
    match cause:
        case None:
            return Ending(state="complete", exit_code=0)
        case Interrupted(number=number):
            return Ending(state="interrupted", reason=str(cause), exit_code=128 + number)
        case RefusedError() | ExamplesError():
            return Ending(state="refused", reason=str(cause), exit_code=cause.exit_code)
        case PipelineError():
            return Ending(state="stopped", reason=str(cause), exit_code=cause.exit_code)
    return Ending(state="stopped", reason=f"a defect of ours: {type(cause).__name__}", exit_code=DEFECT)
