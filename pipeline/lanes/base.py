"""What a lane is: the way in which a run's work is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.model import Attempt, Outcome
    from pipeline.plan.work import Work
    from pipeline.store.journal import JournalReader


class Handing(Protocol):
    """Hands out work: the plan, or what stands for it in another process."""

    def next_ready(self) -> Work | None:
        """The next work where some is ready, else None."""

    async def next(self) -> Work | None:
        """The next work, None when there is no more."""

    def finished(self, work: Work) -> None:
        """Note that the work's rows are committed."""

    def read_on(self, reads_on: bool) -> None:  # noqa: FBT001 - what it is set to
        """Wait for the window no longer, or again."""


class Keeping(Protocol):
    """Keeps what comes of requests: the journal, or what stands for it in another process. Raises StorageError."""

    async def commit(self, outcome: Outcome) -> None:
        """Keep an outcome, durably."""

    async def keep_attempts(self, attempts: tuple[Attempt, ...]) -> None:
        """Keep attempts whose rows stay pending."""

    async def note(self, key: str, value: object) -> None:
        """Keep a fact of the run."""

    def reader(self) -> JournalReader:
        """Read what is kept."""


class Lane(Protocol):
    """Sends the work of a run, and commits what comes of it."""

    @property
    def in_flight(self) -> int:
        """How many requests are under way."""

    @property
    def works_long(self) -> bool:
        """Whether a thread works on a row for long without anything else getting done."""

    @property
    def waits_until(self) -> float | None:
        """To when something is knowingly waited for, monotonic seconds; None where nothing is."""

    @property
    def unwritten(self) -> int:
        """Rows that were answered, and could not be written."""

    def schema(self) -> pa.Schema:
        """The result columns. Raises LookupError while a fact of the run is unknown."""

    async def work(self) -> None:
        """Take work until there is no more or the run stops."""
