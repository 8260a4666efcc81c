"""What is still to be asked, counted without sending or writing anything: rows, requests, tokens. Blocking."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pipeline.job.tokens import count, estimate
from pipeline.model import BadRow, ErrorInfo, ErrorType, Item, Row
from pipeline.operations.base import Priced
from pipeline.plan.forecast import Bunch, Sums
from pipeline.plan.ranges import columns_read, may_be_id
from pipeline.plan.same import request_digest
from pipeline.plan.work import Packer
from pipeline.sources.base import Position
from pipeline.sources.digest import RangeDigest

if TYPE_CHECKING:
    from pipeline.operations.base import Operation, PackLimits
    from pipeline.plan.ranges import PlanRules
    from pipeline.sources.base import Source

ROWS_AT_ONCE = 500
"""Rows of a bunch: what a sample takes or leaves."""
COUNTED_ROWS = 20_000
"""Rows at the beginning that are all counted; then one bunch in two as many again, one in four, and so on."""
_SAMPLED_AT_ONCE = 50
NAMED = 5
"""Rows that cannot be asked which are told one by one."""

Pack = tuple[Item, ...]
Counter = Callable[["Operation", Sequence[Pack]], list[int]]
"""The input tokens of requests, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unaskable:
    """A row that fails before anything is sent."""

    ordinal: int
    error: ErrorInfo


@dataclass(slots=True, kw_only=True)
class Survey:
    """What an input comes to: all of its `rows`, those that are `done`, and the `sums` of what is not.

    `share` is how many requests they fill, were they among others like them.
    """

    rows: int = 0
    done: int = 0
    share: float = 0.0
    sums: Sums = field(default_factory=Sums)
    unaskable: list[Unaskable] = field(default_factory=list)
    ids_checked: bool = True


def tokenized(model: str, *, longest: float = math.inf) -> Counter:
    """Count with the model's tokenizer; a text of more than `longest` characters is estimated."""

    def counter(operation: Operation, packs: Sequence[Pack]) -> list[int]:
        assert isinstance(operation, Priced)  # noqa: S101 - nobody else is counted
        prompts = [operation.prompt(pack) for pack in packs]
        texts = (text for prompt in prompts for text in prompt.texts)
        counts = iter(count([text for text in texts if len(text) <= longest], model))

        def tokens(text: str) -> int:
            return next(counts) if len(text) <= longest else estimate(len(text))

        return [prompt.tokens + prompt.roles + sum(map(tokens, prompt.texts)) for prompt in prompts]

    return counter


def as_simulated(operation: Operation, packs: Sequence[Pack]) -> list[int]:
    """Count as the simulator does, four characters to a token."""
    assert isinstance(operation, Priced)  # noqa: S101 - nobody else is counted
    prompts = [operation.prompt(pack) for pack in packs]
    return [prompt.tokens + sum(estimate(len(text)) for text in prompt.texts) for prompt in prompts]


def survey(
    source: Source,
    operation: Operation,
    rules: PlanRules,
    *,
    done: Callable[[int, int], bytearray],
    counter: Counter,
    exact: bool,
) -> Survey:
    """Render every row, or a sample of a long input, and pack it as the run would.

    `done` gives a byte an ordinal within bounds: 1 where the row is done. Raises SourceError.
    """
    found = Survey()
    bunches = _Bunches(found, operation, rules, counter)
    stride = _Stride(exact=exact)
    with closing(source.open(Position(), values=columns_read(operation, rules), carried=())) as cursor:
        while (room := _room(rules, found.rows)) > 0 and (batch := cursor.read(room, RangeDigest())).rows:
            first = found.rows
            found.rows = batch.end.ordinal
            flags = done(first, found.rows - 1)
            found.done += sum(flags)
            rows = [row for row in batch.rows if not flags[row.ordinal - first]]
            looks = stride.looks_at(len(rows))
            if stride.every > 1:
                bunches.begin_sampling()
            if looks:
                bunches.take(rows, every=stride.every, range_ends=found.rows % rules.part_rows == 0)
            else:
                found.sums.unseen(len(rows), every=stride.every)
    bunches.end()
    return found


def sample(
    source: Source, operation: Operation, rules: PlanRules, *, counter: Counter, enough: Callable[[int], bool]
) -> Survey:
    """Render and pack the first rows, until `enough` says so of their number, done or not. Raises SourceError."""
    found = Survey()
    bunches = _Bunches(found, operation, rules, counter)
    with closing(source.open(Position(), values=columns_read(operation, rules), carried=())) as cursor:
        while not enough(found.rows) and (room := min(_SAMPLED_AT_ONCE, _room(rules, found.rows))) > 0:
            batch = cursor.read(room, RangeDigest())
            if not batch.rows:
                break
            found.rows = batch.end.ordinal
            bunches.take(batch.rows, every=1, range_ends=found.rows % rules.part_rows == 0)
    bunches.end()
    return found


def _room(rules: PlanRules, at: int) -> int:
    """How many rows to read: never over the end of a range, for no pack goes over it."""
    end = min((at // rules.part_rows + 1) * rules.part_rows, at + ROWS_AT_ONCE)
    return (end if rules.limit is None else min(end, rules.limit)) - at


@dataclass(slots=True, kw_only=True)
class _Stride:
    """Which bunches are looked at: all, then one in two, one in four: each time as many."""

    exact: bool
    every: int = 1
    _taken: int = 0
    _passed: int = 0

    def looks_at(self, rows: int) -> bool:
        """Whether the next bunch, of so many rows, is looked at."""
        if self.exact:
            return True
        if self._taken >= COUNTED_ROWS:
            self._taken, self._passed, self.every = 0, 0, self.every * 2
        self._passed += 1
        # The middle one of each group, lest what begins or ends a stretch of the input is met more often.
        looks = self._passed % self.every == self.every // 2
        self._taken += rows if looks else 0
        return looks


class _Bunches:
    """Prepares rows, packs them and adds them up."""

    def __init__(self, found: Survey, operation: Operation, rules: PlanRules, counter: Counter) -> None:
        self._found = found
        self._operation = operation
        self._rules = rules
        self._counter = counter
        self._packer = Packer(operation.limits)
        self._samples = False
        self._ids: set[int] = set()
        self._asked: set[int] = set()

    def begin_sampling(self) -> None:
        """From here on bunches stand for others: packs do not go from one to the next."""
        if not self._samples:
            self.end()
            self._samples = True
            self._found.ids_checked = self._rules.id_column is None

    def take(self, rows: Sequence[Row | BadRow], *, every: int, range_ends: bool) -> None:
        """Count rows that are not done, of a stretch where one bunch in `every` is looked at."""
        askable, failing = self._sorted_out(rows)
        good = [item for item in askable if not self._rules.dedupe or self._is_new(item)]
        packs: list[Pack] = []
        for item in good:
            pack = self._packer.add(item)
            if pack:
                packs.append(pack)
        if range_ends or self._samples or self._operation.limits.items == 1:
            packs += self._flushed()
        requests = float(len(packs))
        limits = self._operation.limits
        share = _share_of_packs(good, limits) if limits.items > 1 else requests
        self._found.share += share
        if self._samples:
            requests = share
        copied = len(askable) - len(good)
        self._add(Bunch(rows=len(rows), failing=failing, copied=copied, requests=requests), packs, every=every)

    def end(self) -> None:
        """Count what is left in the last pack."""
        packs = self._flushed()
        self._add(Bunch(requests=len(packs)), packs, every=1)

    def _flushed(self) -> list[Pack]:
        pack = self._packer.flush()
        return [pack] if pack else []

    def _add(self, bunch: Bunch, packs: Sequence[Pack], *, every: int) -> None:
        """Add a bunch up, with what its packs come to."""
        operation = self._operation
        bunch = replace(bunch, quota_tokens=sum(_estimated(operation, pack) for pack in packs))
        if isinstance(operation, Priced):
            bunch = replace(
                bunch,
                input_tokens=sum(self._counter(operation, packs)),
                most_output=sum(operation.bound(pack).output for pack in packs),
            )
        self._found.sums.add(bunch, every=every)

    def _sorted_out(self, rows: Sequence[Row | BadRow]) -> tuple[list[Item], int]:
        late = {row.ordinal: error for row in rows if (error := self._id_problem(row)) is not None}
        askable = [row for row in rows if isinstance(row, Row) and row.ordinal not in late]
        prepared = dict(zip((row.ordinal for row in askable), self._operation.prepare(askable), strict=True))
        good: list[Item] = []
        failing = 0
        for row in rows:
            end = row.error if isinstance(row, BadRow) else late.get(row.ordinal) or prepared[row.ordinal]
            if isinstance(end, Item):
                good.append(end)
                continue
            failing += 1
            if len(self._found.unaskable) < NAMED:
                self._found.unaskable.append(Unaskable(ordinal=row.ordinal, error=end))
        return good, failing

    def _is_new(self, item: Item) -> bool:
        """Whether no row that was looked at asks for the same."""
        digest = request_digest(self._operation, item)
        if digest is None:
            return True
        known = len(self._asked)
        self._asked.add(hash(digest))
        return len(self._asked) > known

    def _id_problem(self, row: Row | BadRow) -> ErrorInfo | None:
        """What is wrong with a row's id; whether somebody has it already is looked at while no row is passed over."""
        column = self._rules.id_column
        if column is None or isinstance(row, BadRow):
            return None
        value = row.values.get(column)
        if not may_be_id(value):
            code = "id_missing" if value is None else "id_type"
            return ErrorInfo(type=ErrorType.ROW, code=code, message=f"column {column!r} names the row, and holds no id")
        if self._samples:
            return None
        key = hash((type(value).__name__, value))
        if key in self._ids:
            message = f"an earlier row has the same id in column {column!r}"
            return ErrorInfo(type=ErrorType.ROW, code="duplicate_id", message=message)
        self._ids.add(key)
        return None


def _estimated(operation: Operation, pack: Pack) -> int:
    """What admission reserves for a request; equal texts of a pack are sent once."""
    if len(pack) > 1 and isinstance(operation, Priced):
        return sum(estimate(len(text)) for text in operation.prompt(pack).texts)
    return sum(item.tokens for item in pack)


def _share_of_packs(items: Sequence[Item], limits: PackLimits) -> float:
    """How many requests items fill, were they among others like them."""
    filled = [sum(item.inputs for item in items) / limits.items]
    if limits.tokens:
        filled.append(sum(item.tokens for item in items) / limits.tokens)
    if limits.reply_bytes:
        filled.append(sum(item.reply_bytes for item in items) / limits.reply_bytes)
    return max(filled)


def done_rows(
    parts: Sequence[tuple[int, int]], within: Callable[[int, int], bytearray]
) -> Callable[[int, int], bytearray]:
    """Which rows are done: those of parts (first and last ordinals, rising), and those that `within` knows."""

    def done(first: int, last: int) -> bytearray:
        flags = within(first, last)
        for low, high in _overlapping(parts, first, last):
            flags[low - first : high - first + 1] = b"\x01" * (high - low + 1)
        return flags

    return done


def _overlapping(parts: Sequence[tuple[int, int]], first: int, last: int) -> Iterator[tuple[int, int]]:
    for low, high in parts:
        if low <= last and high >= first:
            yield max(low, first), min(high, last)
