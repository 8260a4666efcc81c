"""Tells a service that is away from a row that cannot be answered, so that no row is failed by an outage."""

from __future__ import annotations

from pipeline.errors import StoppedEarlyError
from pipeline.model import NoReply, NoReplyKind, Reply

FAILURES = 20
"""Faults without an answer between them that make an outage of it."""


class Outage:
    """Counts faults since the service last answered anybody. Time is passed in, monotonic seconds."""

    def __init__(self, *, max_outage_s: float) -> None:
        self._max_outage_s = max_outage_s
        self._failures = 0
        self._since: float | None = None

    def answered(self) -> None:
        """Note that the service answered a request, be it with a refusal of its rows."""
        self._failures = 0
        self._since = None

    def met(self, now: float, message: str) -> None:
        """Note a fault or a refusal to be waited out.

        Raises StoppedEarlyError when nothing was answered for longer than the job allows.
        """
        self._failures += 1
        if self._since is None:
            self._since = now
        if now - self._since > self._max_outage_s:
            raise StoppedEarlyError(
                f"the service has answered nothing for {now - self._since:.0f} s, longer than run.max_outage "
                f"({message}); no row was failed by this: run the same command again once the service is back"
            )

    def explains(self, reply: Reply | NoReply) -> bool:
        """Whether a fault is the service's rather than the row's: nobody could connect, or nobody was answered."""
        return (isinstance(reply, NoReply) and reply.kind is NoReplyKind.CONNECT) or self._failures >= FAILURES
