"""What workers are handed: tasks to send, rows whose end is known; and how items are packed into requests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.model import Item, Outcome, RequestInfo, RowResult

if TYPE_CHECKING:
    from pipeline.operations.base import PackLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One request's rows, all of the range that begins at `span`."""

    span: int
    items: tuple[Item, ...]

    @property
    def size(self) -> int:
        """How many rows."""
        return len(self.items)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """Rows whose end is known without asking anybody; `request` is the earlier run's that answered them."""

    span: int
    rows: tuple[RowResult, ...]
    request: RequestInfo | None = None

    @property
    def size(self) -> int:
        """How many rows."""
        return len(self.rows)

    def outcome(self, variant: str) -> Outcome:
        """What is committed. `variant` is the wording that rows failed in that nobody was asked for."""
        if self.request is None:
            return Outcome(rows=self.rows, request=RequestInfo(variant=variant))
        return Outcome(rows=self.rows, request=self.request, carried=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """Rows that ask for what another row was asked, with the ordinal of that one: they are given what it came to.

    `items` are these rows, to be asked themselves where it came to nothing that they could be given; none where it is
    known to have been answered in this invocation.
    """

    span: int
    rows: tuple[tuple[int, int], ...]
    items: tuple[Item, ...] = ()

    @property
    def size(self) -> int:
        """How many rows."""
        return len(self.rows)


Work = Task | Settled | Copies


@dataclass(slots=True)
class Packer:
    """Fills requests up to the operation's limits, in the order of the rows."""

    limits: PackLimits
    _items: list[Item] = field(default_factory=list)
    _inputs: int = 0
    _tokens: int = 0
    _reply_bytes: int = 0

    def add(self, item: Item) -> tuple[Item, ...] | None:
        """Add an item; returns the pack that it did not fit into any more, if that is so."""
        limits = self.limits
        full = None
        if self._items and (
            self._inputs + item.inputs > limits.items
            or (limits.tokens is not None and self._tokens + item.tokens > limits.tokens)
            or (limits.reply_bytes is not None and self._reply_bytes + item.reply_bytes > limits.reply_bytes)
        ):
            full = self.flush()
        self._items.append(item)
        self._inputs += item.inputs
        self._tokens += item.tokens
        self._reply_bytes += item.reply_bytes
        return full

    def flush(self) -> tuple[Item, ...]:
        """Whatever is left, possibly nothing."""
        items = tuple(self._items)
        self._items, self._inputs, self._tokens, self._reply_bytes = [], 0, 0, 0
        return items
