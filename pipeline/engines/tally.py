"""What a run has come to, at any moment and at its end, as the summary that everybody reads."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from pipeline.clock import utc
from pipeline.engines.ending import ending_of
from pipeline.errors import StoppedEarlyError
from pipeline.job.prices import cost_of, rates
from pipeline.lanes.stop import Interrupted
from pipeline.store.summary import DeploymentUse, RowCounts, Summary, TokenCounts

if TYPE_CHECKING:
    from pipeline.clock import Clock
    from pipeline.engines.prediction import Prediction
    from pipeline.job.spec import Job
    from pipeline.lanes.base import Lane
    from pipeline.lanes.control import Control
    from pipeline.lanes.crew import Crew
    from pipeline.lanes.spending import Spending
    from pipeline.plan.plan import Plan
    from pipeline.service.pool import Pool
    from pipeline.store.journal import Journal, Totals

ONLY_FAILED = "only failed rows were sent again; `pipeline run` goes on with the rest of the input"
"""Why a retry leaves rows that nothing stopped."""


class Tally:
    """Counts one invocation; it begins when it is made."""

    def __init__(
        self,
        *,
        job: Job,
        journal: Journal,
        plan: Plan,
        lane: Lane,
        pool: Pool | Crew,
        spending: Spending,
        prediction: Prediction,
        limit: int | None,
        only_again: bool = False,
        control: Control,
        clock: Clock,
    ) -> None:
        self._control = control
        self._paused_before_s = control.paused_s
        self._job = job
        self._journal = journal
        self._plan = plan
        self._lane = lane
        self._pool = pool
        self._spending = spending
        self._prediction = prediction
        self._limit = limit
        self._only_again = only_again
        self._clock = clock
        self._began = clock.now()
        self._started_at = utc(clock.wall())
        self._before = journal.totals.ok + journal.totals.failed

    def now(self, state: str = "running") -> Summary:
        """The summary as of now."""
        totals = self._journal.totals
        seconds = self._clock.now() - self._began
        done = totals.ok + totals.failed
        total = self._plan.rows_total
        expected = self._plan.rows_expected if total is None else total
        active_s = seconds - (self._control.paused_s - self._paused_before_s)
        rate = (done - self._before) / active_s if active_s > 0 else 0.0
        is_steady = rate > 0 and not self._control.is_paused
        sends = self._job.run.lane != "batch"
        asides = {aside.deployment: f"{aside.kind.value}: {aside.error.message}" for aside in self._pool.asides}
        return Summary(
            state=state,
            rows=RowCounts(
                total=total,
                ok=totals.ok,
                failed=totals.failed,
                pending=None if total is None else total - done,
                not_in_parts=done - totals.sealed_ok - totals.sealed_failed,
            ),
            requests=totals.requests,
            attempts=totals.attempts,
            throttled=totals.throttled,
            calls_on_refusals=totals.calls_on_refusals,
            unwritten=self._lane.unwritten,
            carried=totals.carried,
            deleted=totals.deleted,
            copied=totals.copied,
            tokens=TokenCounts(
                input=totals.input_tokens,
                output=totals.output_tokens,
                total=totals.total_tokens,
                cached=totals.cached_tokens,
            ),
            cost_usd=spent_usd(self._job, totals),
            budget=self._spending.state(),
            predicted=self._prediction.of(self._limit if total is None else total),
            seconds=round(seconds, 3),
            rows_per_second=round(rate, 1),
            started_at=self._started_at,
            updated_at=utc(self._clock.wall()),
            eta_seconds=round(max(0, expected - done) / rate, 1) if is_steady and expected is not None else None,
            rows_expected=expected,
            paused_since=self._control.paused_since,
            paused_seconds=round(self._control.paused_s, 3),
            workers=self._control.workers if sends else None,
            leave=self._control.leave if sends else None,
            in_flight=self._lane.in_flight,
            waits_for=self._plan.waits_for,
            deployments=tuple(
                DeploymentUse(**asdict(one.report()), set_aside=asides.get(one.name)) for one in self._pool.deployments
            ),
            output=str(self._job.output.path),
            job=self._job.name,
            job_file=str(self._job.file.absolute()),
        )

    @property
    def _left_out(self) -> str:
        """Why rows are left though nothing stopped the run."""
        if self._only_again:
            return ONLY_FAILED
        return f"--limit {self._limit} reached"

    def ending(self, cause: BaseException | None) -> Summary:
        """The last summary: why the run ended, and with which exit code. `cause` is None when its rows did."""
        rows = self.now().rows
        if isinstance(cause, StoppedEarlyError | Interrupted) and rows.pending == 0 and rows.not_in_parts == 0:
            cause = None  # asked too late: there was nothing left to stop
        match cause:
            case None:
                # The limit may lie at the input's end or beyond, and failed rows may be all that was left.
                complete = self._limit is None or rows.pending == 0
                if self._only_again:
                    complete = rows.pending == rows.not_in_parts == 0
                summary = self.now("complete" if complete else "stopped")
                reason = None if complete else self._left_out
                if summary.rows.not_in_parts and not self._only_again:
                    summary = replace(summary, state="stopped")
                    reason = (
                        f"{summary.rows.not_in_parts} rows wait in the journal: the size of their vectors is not known "
                        "until a row is ok, or until request.dimensions says it"
                    )
                code = 1 if _too_many_failed(self._job, summary) else 0
            case _:
                ending = ending_of(cause)
                summary, reason, code = self.now(ending.state), ending.reason, ending.exit_code or 0
        return replace(summary, reason=reason, exit_code=code, eta_seconds=None, paused_since=None)


def spent_usd(job: Job, totals: Totals) -> float | None:
    """Dollars that the folder's rows have cost; None where a price is unknown, or rows are not billed by tokens."""
    if totals.requests and totals.ok and not totals.input_tokens and not totals.output_tokens:
        return None
    batched = totals.batched_input_tokens, totals.batched_output_tokens
    online = totals.input_tokens - batched[0], totals.output_tokens - batched[1]
    costs = [cost_of(rates(job.deployments, "online"), *online), cost_of(rates(job.deployments, "batch"), *batched)]
    return None if None in costs else sum(cost for cost in costs if cost is not None)


def _too_many_failed(job: Job, summary: Summary) -> bool:
    failed, done = summary.rows.failed, summary.rows.ok + summary.rows.failed
    match job.run.fail_on:
        case "any":
            return failed > 0
        case "never":
            return False
        case share:
            return done > 0 and failed / done >= float(share)
