"""What a run was expected to take, by the first rows of its input, to be held against what it took."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio
from anyio import to_thread

from pipeline.errors import PipelineError
from pipeline.job.budget import ANSWER_BOUNDS
from pipeline.job.prices import cost_of, rates
from pipeline.job.tokens import forget
from pipeline.memory import give_back
from pipeline.operations.base import Priced
from pipeline.plan.forecast import MINUTE_S, Minutes, minutes, summed_quota
from pipeline.plan.survey import Survey, as_simulated, sample, tokenized
from pipeline.store.summary import Predicted, PredictedTokens, read_summary

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.clock import Clock
    from pipeline.job.spec import Job
    from pipeline.operations.base import Operation
    from pipeline.plan.ranges import PlanRules
    from pipeline.sources.base import Source

SAMPLED_ROWS = 500
"""Rows at the beginning of the input that are looked at: all that takes no time."""
LONGEST_TEXT = 20_000
"""Characters of a text beyond which its tokens are estimated: to count many such takes longer than a look may."""
LONGEST_S = 0.5
"""Seconds after which no further rows are looked at, and for which a run that has ended waits for those."""


def predicted_before(path: Path) -> Predicted | None:
    """What the summary of an earlier invocation predicted; None where there is none that can be read."""
    try:
        return read_summary(path).predicted
    except (FileNotFoundError, PipelineError):
        return None


def time_of(job: Job, *, requests: float, tokens: float, latency_s: float | None) -> Minutes:
    """Say how long requests take at the job's quotas and workers; `latency_s` of a call is None where not known."""
    mine = [one for one in job.deployments if one.lane == "online"] or job.deployments
    given = [] if job.run.lane == "batch" else mine
    return minutes(
        requests=requests,
        tokens=tokens,
        requests_per_minute=summed_quota([one.requests_per_minute for one in given], leave=job.run.leave),
        tokens_per_minute=summed_quota([one.tokens_per_minute for one in given], leave=job.run.leave),
        workers=job.run.workers,
        latency_s=latency_s if given else None,
    )


@dataclass(slots=True, kw_only=True)
class Prediction:
    """Looks at the first rows beside the run, once there is something to do.

    `begun` is set when there is; a run without keeps what was predicted `before`, and no tokenizer is loaded for it.
    `simulated`: tokens are counted as the simulator counts them.
    """

    job: Job
    source: Source
    operation: Operation
    rules: PlanRules
    simulated: bool
    clock: Clock
    begun: anyio.Event
    before: Predicted | None = None
    _found: Survey | None = None
    _looked: anyio.Event = field(default_factory=anyio.Event)

    async def make(self) -> None:
        """Look at them. A run goes on without, whatever that raises: what is wrong with its rows it finds itself."""
        await self.begun.wait()
        began = self.clock.now()
        counter = as_simulated if self.simulated else tokenized(self.job.deployments[0].model, longest=LONGEST_TEXT)

        def look() -> Survey:
            try:
                return sample(
                    self.source,
                    self.operation,
                    self.rules,
                    counter=counter,
                    enough=lambda rows: rows >= SAMPLED_ROWS or self.clock.now() - began > LONGEST_S,
                )
            finally:
                # Most runs count no more than this.
                forget()
                give_back()

        with suppress(Exception):
            self._found = await to_thread.run_sync(look, abandon_on_cancel=True)
        self._looked.set()

    async def made(self) -> None:
        """Wait for it, not long: only a run of a few rows ends before."""
        if not self.begun.is_set():
            return
        with anyio.move_on_after(LONGEST_S):
            await self._looked.wait()

    def of(self, rows: int | None) -> Predicted | None:
        """What so many rows take, all of them like the first; None while that is not known."""
        if not self.begun.is_set():
            return self.before
        found = self._found
        if found is None or rows is None or not found.rows:
            return None
        whole, times = found.rows == rows, rows / found.rows
        requests = found.sums.figure("requests").value if whole else found.share * times
        prompt = round(found.sums.figure("input_tokens").value * times) if isinstance(self.operation, Priced) else None
        answers = 0 if ANSWER_BOUNDS.get(self.job.operation) == () else None
        known = prompt is not None and answers is not None
        time = time_of(
            self.job, requests=requests, tokens=found.sums.figure("quota_tokens").value * times, latency_s=None
        )
        return Predicted(
            requests=round(requests),
            tokens=PredictedTokens(input=prompt, output=answers),
            cost_usd=cost_of(rates(self.job.deployments, self.job.run.lane), prompt or 0, 0) if known else None,
            seconds=None if time.longest is None else round(time.longest * MINUTE_S, 1),
        )
