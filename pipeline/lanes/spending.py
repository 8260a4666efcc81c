"""Keeps a run within its dollars and tokens: nothing is sent that could pass them, whatever comes back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, NoReturn

import anyio
import orjson

from pipeline.errors import StoppedEarlyError
from pipeline.job.prices import rates
from pipeline.lanes.stop import Stop, Stopped
from pipeline.model import NoReply, NoReplyKind, Reply, RowResult
from pipeline.operations.base import NOTHING, Bound, Priced
from pipeline.pace.allowance import DOLLAR, Allowance
from pipeline.pace.verdict import Answered, RowRefused, Verdict

if TYPE_CHECKING:
    from pipeline.job.spec import Job
    from pipeline.model import Item
    from pipeline.operations.base import Operation
    from pipeline.store.journal import Journal, Totals

NOTED = "allowances"
"""The journal's fact: for each budget, what is `lost` for good and what is `at_risk`, in its units."""

_NOT_SENT = (NoReplyKind.CONNECT, NoReplyKind.UNKNOWN_HOST, NoReplyKind.TLS)
_FILTERED = "content_filter"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """One limit: what a token of input and of output takes of its allowance, in its units."""

    name: str
    input: int
    output: int
    allowance: Allowance

    def units(self, tokens: Bound) -> int:
        """What so many tokens take."""
        return tokens.input * self.input + tokens.output * self.output

    def said(self, units: int) -> str:
        """Say an amount for people."""
        return f"${units / DOLLAR:,.4f}" if self.name == "run.max_cost" else f"{units:,} tokens"


class Share:
    """What one sending was given. Until `settle`, it is released where nothing left, and else lost at its worst."""

    __slots__ = ("_spending", "bound", "sent", "settled")

    def __init__(self, spending: Spending, bound: Bound) -> None:
        self._spending = spending
        self.bound = bound
        self.sent = False
        self.settled = False

    def settle(self, reply: Reply | NoReply, verdict: Verdict, results: Sequence[RowResult]) -> None:
        """Count what came back."""
        self.settled = True
        self._spending.settle(self.bound, reply, verdict, results)


class Spending:
    """The run's budgets; without any, everything may be sent."""

    def __init__(
        self,
        *,
        budgets: Sequence[Budget],
        operation: Operation,
        journal: Journal,
        noted: Mapping[str, Mapping[str, int]],
        stop: Stop,
        at_risk: bool,
    ) -> None:
        """`noted` is what the journal holds of budgets.

        `at_risk`: a run that is killed loses what is under way; else the lane keeps that itself.
        """
        self._budgets = tuple(budgets)
        self._operation = operation if isinstance(operation, Priced) else None
        self._journal = journal
        self._noted: dict[str, Mapping[str, int]] = dict(noted)
        self._stop = stop
        self._at_risk = at_risk
        self._noting = anyio.Lock()
        self._changed = anyio.Event()

    def bound(self, items: Sequence[Item]) -> Bound:
        """The most that a request of these items can be billed for; nothing where there is no budget."""
        if not self._budgets or self._operation is None:
            return NOTHING
        return self._operation.bound(items)

    def fits(self, bound: Bound) -> bool:
        """Whether so much may be reserved now."""
        return all(budget.allowance.fits(budget.units(bound)) for budget in self._budgets)

    @property
    def under_way(self) -> bool:
        """Whether anything is reserved, which may be freed yet."""
        return any(budget.allowance.reserved for budget in self._budgets)

    async def reserve(self, bound: Bound) -> None:
        """Have so much set aside, durably; waits for what is under way to be freed.

        Where nothing is, the run is asked to stop. Raises Stopped.
        """
        if not self._budgets:
            return
        while not self.fits(bound):
            if not self.under_way:
                self.end(bound)
            with self._stop.waiting():
                await self._changed.wait()
        self.take(bound)
        try:
            await self._secure()
        except BaseException:
            self.release(bound)
            raise

    def take(self, bound: Bound) -> None:
        """Set aside what was decided before, fits or not."""
        for budget in self._budgets:
            budget.allowance.reserve(budget.units(bound))

    def release(self, bound: Bound) -> None:
        """Give back what was set aside for what is not sent, or not billed."""
        for budget in self._budgets:
            budget.allowance.release(budget.units(bound))
        self._wake()

    def lose(self, bound: Bound, cost: Bound | None = None) -> None:
        """Count what was, or may have been, billed without a row to show for it; at its worst where that is unknown."""
        for budget in self._budgets:
            budget.allowance.lose(budget.units(bound), budget.units(bound if cost is None else cost))
        self._wake()

    def settle(self, bound: Bound, reply: Reply | NoReply, verdict: Verdict, results: Sequence[RowResult]) -> None:
        """Count what came back of a sending: an answer's usage; nothing for a refusal; the worst where nobody knows."""
        if not self._budgets:
            return
        if isinstance(verdict, Answered):
            used = _used(results)
            if used == NOTHING:
                self.lose(bound)  # a service that does not say what it counted
                return
            for budget in self._budgets:
                budget.allowance.answer(budget.units(bound), budget.units(used))
            self._wake()
        elif isinstance(reply, NoReply):
            self.lose(bound, NOTHING if reply.kind in _NOT_SENT else bound)
        else:
            self.lose(bound, _billed(bound, reply, verdict))

    def committed(self, rows: Sequence[RowResult]) -> None:
        """Count rows that are committed."""
        if self._budgets:
            used = _used(rows)
            for budget in self._budgets:
                budget.allowance.commit(budget.units(used))

    @contextmanager
    def share(self, bound: Bound) -> Iterator[Share]:
        """One sending of what was reserved: whatever ends it, it is counted."""
        share = Share(self, bound)
        try:
            yield share
        finally:
            if not share.settled:
                if share.sent:
                    self.lose(bound)
                else:
                    self.release(bound)

    async def close(self) -> None:
        """Note what is lost for good; nothing is at risk any more. Raises StorageError."""
        if self._budgets:
            for budget in self._budgets:
                budget.allowance.secured = 0
            await self._note({budget.name: (budget.allowance.to_keep, 0) for budget in self._budgets})

    async def _secure(self) -> None:
        """Have the journal know what a kill would lose, before it can be lost."""
        if not self._to_secure():
            return
        async with self._noting:
            wanted = self._to_secure()
            if wanted:
                secured = {budget.name: wanted.get(budget.name, budget.allowance.secured) for budget in self._budgets}
                with anyio.CancelScope(shield=True):
                    await self._note(
                        {budget.name: (budget.allowance.lost, secured[budget.name]) for budget in self._budgets}
                    )
                for budget in self._budgets:
                    budget.allowance.secured = secured[budget.name]

    def _to_secure(self) -> dict[str, int]:
        found = ((budget.name, budget.allowance.to_secure(reserved=self._at_risk)) for budget in self._budgets)
        return {name: units for name, units in found if units is not None}

    async def _note(self, known: Mapping[str, tuple[int, int]]) -> None:
        """Keep lost and at_risk of our budgets, and what was noted of others."""
        self._noted |= {name: {"lost": lost, "at_risk": at_risk} for name, (lost, at_risk) in known.items()}
        await self._journal.note(NOTED, self._noted)

    def end(self, bound: Bound) -> NoReturn:
        """Ask the run to stop, for want of room for so much. Raises Stopped."""
        short = next(budget for budget in self._budgets if not budget.allowance.fits(budget.units(bound)))
        self._stop.request(StoppedEarlyError(_words(short, bound)))
        raise Stopped

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


def open_spending(
    job: Job, *, operation: Operation, journal: Journal, noted: Mapping[str, Mapping[str, int]], stop: Stop
) -> Spending:
    """The job's budgets, with what earlier invocations spent of them. `noted` is the journal's fact `NOTED`.

    Where rows may go in either lane, what this invocation spends counts at the price of single requests.
    """
    return Spending(
        budgets=tuple(_budgets(job, journal.totals, noted)),
        operation=operation,
        journal=journal,
        noted=noted,
        stop=stop,
        at_risk=job.run.lane != "batch",
    )


def _budgets(job: Job, totals: Totals, noted: Mapping[str, Mapping[str, int]]) -> Iterator[Budget]:
    batched = Bound(input=totals.batched_input_tokens, output=totals.batched_output_tokens)
    online = Bound(input=totals.input_tokens - batched.input, output=totals.output_tokens - batched.output)
    cost, tokens = job.run.max_cost, job.run.max_tokens_total
    if cost is not None:
        prices = {lane: _unit_prices(job, lane) for lane in ("online", "batch")}
        spent = sum(
            used.input * prices[lane].input + used.output * prices[lane].output
            for lane, used in (("online", online), ("batch", batched))
        )
        price = prices.get(job.run.lane) or _unit_prices(job, job.run.lane)
        yield _budget("run.max_cost", round(cost * DOLLAR), spent, noted, price)
    if tokens is not None:
        spent = online.input + online.output + batched.input + batched.output
        yield _budget("run.max_tokens_total", tokens, spent, noted, Bound(input=1, output=1))


def _budget(name: str, most: int, spent: int, noted: Mapping[str, Mapping[str, int]], price: Bound) -> Budget:
    before = noted.get(name, {})
    lost = before.get("lost", 0) + before.get("at_risk", 0)  # what was at risk was not told off: that run was killed
    allowance = Allowance(most=most, spent=spent, lost=lost)
    return Budget(name=name, input=price.input, output=price.output, allowance=allowance)


def _unit_prices(job: Job, lane: str) -> Bound:
    """The dearest prices of a lane's deployments, in units a token; a price that is not known was not asked for."""
    found = rates(job.deployments, lane)
    return Bound(input=max(_units(rate.input) for rate in found), output=max(_units(rate.output) for rate in found))


def _units(dollars_a_million: float | None) -> int:
    return math.ceil(round((dollars_a_million or 0.0) * (DOLLAR // 1_000_000), 3))


def _words(budget: Budget, bound: Bound) -> str:
    """Say that a budget has no room for so much, and how to go on."""
    allowance, said = budget.allowance, budget.said
    unsure = allowance.lost + allowance.gone
    doubt = f" ({said(unsure)} of it for requests whose answers were lost)" if unsure else ""
    return (
        f"{budget.name} of {said(allowance.most)} has no room for another request, which may take "
        f"{said(budget.units(bound))}: {said(allowance.used)} spent{doubt}, {said(allowance.left)} left. Everything is "
        f"kept; to go on, raise {budget.name} and run the same command again"
    )


def _used(rows: Sequence[RowResult]) -> Bound:
    usages = [row.usage for row in rows if row.usage is not None]
    return Bound(
        input=sum(usage.input_tokens or 0 for usage in usages), output=sum(usage.output_tokens or 0 for usage in usages)
    )


def _billed(bound: Bound, reply: Reply, verdict: Verdict) -> Bound:
    """What a reply that is no answer was billed for: what it says, else its prompt where that was looked at."""
    usage = _stated(reply)
    if usage is not None:
        return usage
    if reply.status < HTTPStatus.MULTIPLE_CHOICES:
        return bound
    filtered = isinstance(verdict, RowRefused) and verdict.error.code == _FILTERED
    return Bound(input=bound.input, output=0) if filtered else NOTHING


def _stated(reply: Reply) -> Bound | None:
    """The usage that a body names, in the words of either API; None where it names none."""
    try:
        usage = orjson.loads(reply.body)["usage"]
        found = [usage.get(name, usage.get(other)) for name, other in _FIELDS]
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return None
    tokens = [value for value in found if type(value) is int and value >= 0]
    return Bound(input=tokens[0], output=tokens[1]) if len(tokens) == len(_FIELDS) else None


_FIELDS = (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens"))
