"""How many files and connections a run has open at once, and whether the system lets it."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

from pipeline.errors import JobFileError, Problem

if TYPE_CHECKING:
    from pipeline.job.spec import Job

OWN = 64
"""What a run has open whatever its size: the interpreter, journal, spool, parts, logs, input; about 30 were counted."""


def descriptors_needed(job: Job) -> int:
    """The most files and connections that a run of the job has open at once.

    A worker keeps a connection to each deployment that it has used, and has one file of a row, or one picture that is
    being fetched, open beside it.
    """
    return OWN + job.run.workers * (len(job.deployments) + 1)


def ensure_descriptors(job: Job) -> None:
    """Make sure that the run will not be refused a file or connection half-way; raises the soft limit where that helps.

    Raises JobFileError when the hard limit is lower than what is needed.
    """
    needed = descriptors_needed(job)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        message = (
            f"{job.run.workers} workers need {needed} open files and connections, and this process may have {hard}; "
            f"raise the limit (`ulimit -n {needed}`, or LimitNOFILE= of a systemd unit), or lower run.workers"
        )
        raise JobFileError((Problem(file=str(job.file), line=None, column=None, path="run.workers", message=message),))
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
