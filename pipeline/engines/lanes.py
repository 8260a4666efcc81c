"""Makes the lane that a job asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline.job import change
from pipeline.job.batch import BATCH_FORMAT
from pipeline.job.template import compile_request
from pipeline.lanes.auto import AutoLane
from pipeline.lanes.batch import BatchLane, BatchRules
from pipeline.lanes.batch_places import batch_places
from pipeline.lanes.crew import Crew
from pipeline.lanes.online import LaneRules, OnlineLane
from pipeline.operations.base import Portable
from pipeline.pace.batches import online_s, pull_back_at
from pipeline.pace.retry import RetryRules

if TYPE_CHECKING:
    from pipeline.clock import Clock
    from pipeline.job.spec import Job
    from pipeline.lanes.base import Lane
    from pipeline.lanes.commit import Commits
    from pipeline.lanes.control import Control
    from pipeline.lanes.findings import Findings
    from pipeline.lanes.pulse import Pulse
    from pipeline.lanes.spending import Spending
    from pipeline.lanes.stop import Stop
    from pipeline.log import EventLog
    from pipeline.plan.plan import Plan
    from pipeline.plan.ranges import PlanRules
    from pipeline.service.fetch import Fetcher
    from pipeline.service.pool import Pool
    from pipeline.sources.base import Source
    from pipeline.store.answered import Originals
    from pipeline.store.folder import Layout
    from pipeline.store.journal import Journal
    from pipeline.telemetry import Telemetry


def lane_rules(job: Job, layout: Layout) -> LaneRules:
    """What the job says of sending rows one by one."""
    return LaneRules(
        retry=RetryRules(max_attempts=job.run.max_attempts, max_pause_s=job.run.max_pause_s),
        raw=_raw(job),
        variant=change.variant(job),
        root=layout.root,
        pieces=layout.pieces,
        right_size=job.run.right_size,
        rows_own=compile_request(job.request).row_fields if job.request else None,
    )


def make_lane(
    job: Job,
    *,
    layout: Layout,
    source: Source,
    plan: Plan,
    plan_rules: PlanRules,
    pool: Pool,
    batch_pool: Pool,
    journal: Journal,
    findings: Findings,
    commits: Commits,
    fetcher: Fetcher | None,
    wait: bool,
    stop: Stop,
    clock: Clock,
    random: Callable[[], float],
    pulse: Pulse,
    spending: Spending,
    control: Control,
    telemetry: Telemetry | None,
    log: EventLog,
    crew: bool,
    originals: Originals | None,
) -> Lane:
    """Make what sends the rows: `pool` holds the deployments of the online lane, `batch_pool` those of batches.

    `crew`: several processes send.
    """
    variant = change.variant(job)

    def online() -> OnlineLane:
        return OnlineLane(
            plan=plan,
            pool=pool,
            journal=journal,
            findings=findings,
            commits=commits,
            rules=lane_rules(job, layout),
            fetcher=fetcher,
            stop=stop,
            clock=clock,
            random=random,
            pulse=pulse,
            spending=spending,
            control=control,
            telemetry=telemetry,
            originals=originals,
        )

    def batch() -> BatchLane:
        return BatchLane(
            plan=plan,
            source=source,
            plan_rules=plan_rules,
            places=batch_places(job, batch_pool, pulse=pulse),
            journal=journal,
            findings=findings,
            commits=commits,
            rules=BatchRules(
                folder=layout.batches,
                variant=variant,
                raw=_raw(job),
                max_attempts=job.run.max_attempts,
                max_outage_s=job.run.max_outage_s,
                look_s=job.run.poll_s,
                keep_files=job.run.keep_files,
                wait=wait,
            ),
            stop=stop,
            clock=clock,
            random=random,
            pulse=pulse,
            spending=spending,
            control=control,
        )

    if crew and isinstance(findings.operation, Portable):
        return Crew(
            job=job,
            operation=findings.operation,
            plan=plan,
            pool=pool,
            journal=journal,
            findings=findings,
            commits=commits,
            log=log,
            stop=stop,
            clock=clock,
            pulse=pulse,
        )
    if job.run.lane == "online":
        return online()
    if job.run.lane == "batch":
        return batch()
    lane = batch()
    began_at = clock.now()

    def late() -> float:
        """When the rows that are not done must be sent one by one, by the quotas of the online deployments."""
        done = journal.totals.ok + journal.totals.failed
        left = max(0, (plan.rows_total or plan.rows_read) - done)
        return pull_back_at(
            began_at=began_at,
            deadline_at=began_at + (job.run.deadline_s or 0.0),
            online_s=online_s(
                requests=left,
                tokens=left * lane.tokens_a_row,
                requests_per_minute=_sum(
                    [spec.requests_per_minute for spec in job.deployments if spec.lane == "online"]
                ),
                tokens_per_minute=_sum([spec.tokens_per_minute for spec in job.deployments if spec.lane == "online"]),
            ),
        )

    return AutoLane(batch=lane, online=online(), plan=plan, pull_back_at=late, stop=stop, clock=clock)


def _sum(quotas: list[float | None]) -> float | None:
    """All of them together; None where one is not known."""
    return None if None in quotas else sum(quota for quota in quotas if quota is not None)


def _raw(job: Job) -> str:
    """Which replies are kept: `auto` keeps all of those whose text is the result, else those of failed rows."""
    if job.output.raw != "auto":
        return job.output.raw
    return "all" if job.operation in {"chat", "responses"} or job.output.format == BATCH_FORMAT else "failed"
