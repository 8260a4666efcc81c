"""What a lane is: the way in which a run's work is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import pyarrow as pa


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
