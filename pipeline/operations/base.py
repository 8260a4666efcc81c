"""What an operation is: pure functions from a row to an item, from items to a call, from a reply to results.

A new operation is one file in this folder that declares `OPERATION`; contract tests find it by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.job.spec import Job
    from pipeline.model import Call, ErrorInfo, Item, Reply, Row, RowResult, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class PackLimits:
    """How much one request may carry; `items` counts their `inputs`. One item to a request where `items` is 1."""

    items: int = 1
    tokens: int | None = None
    reply_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What of a request is billed as input: `texts` to be counted, and `tokens` for what is none.

    `tokens` are those that frame messages, and the estimate of pictures; `roles` are the messages, each of which names
    who speaks in a token of its own.
    """

    texts: tuple[str, ...]
    tokens: int = 0
    roles: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """The most that one sending of a request can be billed for, in tokens."""

    input: int
    output: int

    def __add__(self, other: Bound) -> Bound:
        """Both together."""
        return Bound(input=self.input + other.input, output=self.output + other.output)

    def __sub__(self, other: Bound) -> Bound:
        """What is left."""
        return Bound(input=self.input - other.input, output=self.output - other.output)


NOTHING = Bound(input=0, output=0)


class Operation(Protocol):
    """One kind of request. Instances are frozen: what a run learns gives a new one (`settled`)."""

    @property
    def name(self) -> str:
        """What a job file says under `operation`."""

    @property
    def limits(self) -> PackLimits:
        """How much one request may carry."""

    @property
    def columns(self) -> frozenset[str] | None:
        """The input columns that `prepare` reads; None when a template may reach any."""

    @property
    def reads_files(self) -> bool:
        """Whether `build` reads files: it is then called in a worker thread."""

    def prepare(self, rows: Sequence[Row]) -> list[Item | ErrorInfo]:
        """Render and check rows, in order: an item to send, or why the row cannot be asked. Never raises for a row."""

    def build(self, items: Sequence[Item], target: Target) -> Call:
        """Build the request that carries these items. Pure, but for files; the same items give the same bytes.

        Raises RowProblem where a file that an item names can no longer be sent.
        """

    def parse(self, items: Sequence[Item], reply: Reply) -> list[RowResult]:
        """Read a 2xx reply: one result for every item, in their order.

        Raises ReplyError when the reply is not what the operation promises (cut, shapeless, fewer or more
        or wrong-sized vectors): the attempt then counts as a transient failure.
        """

    def blame(self, items: Sequence[Item], error: ErrorInfo) -> int | None:
        """Which item (its index) a refused pack's error names; None when it names none."""

    def facts(self, results: Sequence[RowResult]) -> Mapping[str, int]:
        """What these results fix for the whole run (such as a vector size); empty when nothing."""

    def settled(self, facts: Mapping[str, int]) -> Self:
        """The same operation, bound to what the run has fixed."""

    def schema(self) -> pa.Schema:
        """The result columns and their types. Raises LookupError while a fact is still unknown."""


@runtime_checkable
class Cutting(Operation, Protocol):
    """An operation whose items may be too long for one request: they are cut into pieces, asked for one by one.

    Finished pieces are kept, so that a restart does not pay for them again.
    """

    def cut(self, item: Item, folder: Path) -> Sequence[Item] | None:
        """Cut an item that one request cannot carry; None where one can. Blocking.

        The same item gives the same pieces, whose ordinals are the item's. `folder` is there for their files; it goes
        when the row is done or the run ends. Raises RowProblem where the item cannot be cut.
        """

    def piece_key(self, piece: Item) -> str:
        """Name what was asked with a piece: a result kept under the same key is an answer to it."""

    def join(self, item: Item, pieces: Sequence[Item], results: Sequence[RowResult]) -> RowResult:
        """Make one result of those of all pieces, each ok, in order. Usage is summed up. Pure."""


@runtime_checkable
class Priced(Operation, Protocol):
    """An operation that is billed by tokens which are known, or bounded, before anything is sent."""

    def prompt(self, items: Sequence[Item]) -> Prompt:
        """Say what a request of these items is billed for as input. Pure, reads no file."""

    def bound(self, items: Sequence[Item]) -> Bound:
        """Bound what a request of these items can be billed for. Pure, reads no file."""


@runtime_checkable
class Sizing(Operation, Protocol):
    """An operation whose requests reserve quota for the longest answer, which may be more than answers need."""

    def sized(self, item: Item, output_tokens: int) -> Item | None:
        """Bound an item's answer by so many tokens; None where the job bounds it no higher.

        An answer that this bound cuts asks for the item as it was (`RowResult.again`). Pure.
        """


@runtime_checkable
class Portable(Operation, Protocol):
    """An operation whose items can be handed to another process of the run."""

    def packed(self, content: Any) -> Any:
        """Write an item's content as plain values: what MessagePack knows."""

    def unpacked(self, values: Any) -> Any:
        """Make the content of what `packed` wrote."""


@runtime_checkable
class Fetching(Operation, Protocol):
    """An operation whose replies name URLs that hold the result proper (`RowResult.fetch`)."""

    def fetched(self, result: RowResult, content: bytes) -> RowResult:
        """Complete a result with what its URL held. Raises ReplyError where it is not what was promised. Pure."""


class OperationFactory(Protocol):
    """Builds an operation from a job that was validated before."""

    def __call__(self, job: Job) -> Operation:
        """Compile the job's request templates."""


def result_columns(operation: Operation) -> tuple[str, ...]:
    """The names of an operation's result columns; none while a type is still unknown."""
    try:
        return tuple(operation.schema().names)
    except LookupError:
        return ()
