"""The deployments for batches, with what their files may hold and what their lines say."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.job.batch import URL_OF
from pipeline.lanes.batch import BatchPlace
from pipeline.pace.batches import AZURE_LIMITS, OPENAI_LIMITS, Room
from pipeline.service.address import Family
from pipeline.service.batch_api import endpoint_of

if TYPE_CHECKING:
    from pipeline.job.spec import Job
    from pipeline.lanes.pulse import Pulse
    from pipeline.service.pool import Pool


def batch_places(job: Job, pool: Pool, *, pulse: Pulse) -> tuple[BatchPlace, ...]:
    """Give a place for each of the pool's deployments. `pulse` beats at the end of each call's attempt."""
    enqueued = {spec.name: spec.enqueued_tokens for spec in job.deployments}
    places = []
    for deployment in pool.deployments:
        family = Family(deployment.target.api)
        url = URL_OF[job.operation] if family is Family.AZURE and job.operation == "chat" else _v1(job.operation)
        places.append(
            BatchPlace(
                name=deployment.name,
                api=deployment.batch_api(attempted=pulse.beat),
                # A line's body names the deployment in every family: its path does not.
                target=replace(deployment.target, body_model=deployment.target.deployment),
                url=url,
                endpoint=endpoint_of(url, family),
                limits=OPENAI_LIMITS if family is Family.OPENAI else AZURE_LIMITS,
                room=Room(enqueued[deployment.name]),
            )
        )
    return tuple(places)


def _v1(operation: str) -> str:
    return f"/v1{URL_OF[operation]}"
