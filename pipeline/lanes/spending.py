"""Keeps a run within its dollars and tokens: nothing is sent that could pass them, whatever comes back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, NoReturn, Self

import anyio
import orjson

from pipeline.errors import StoppedEarlyError
from pipeline.job.prices import rates
from pipeline.lanes.stop import Stop, Stopped
from pipeline.model import NoReply, NoReplyKind, Reply, RowResult
from pipeline.operations.base import NOTHING, Bound, Priced
from pipeline.pace.allowance import DOLLAR, Allowance
from pipeline.pace.verdict import Answered, RowRefused, Verdict
from pipeline.store.journal import BatchStep
from pipeline.store.summary import Allotted, BudgetState

if TYPE_CHECKING:
    from pipeline.job.spec import Job
    from pipeline.lanes.base import Keeping
    from pipeline.model import Item
    from pipeline.operations.base import Operation
    from pipeline.store.journal import BatchRecord, Journal, Totals

NOTED = "allowances"
"""The journal's fact: for each budget, what is `lost` for good and what is `at_risk`, in its units, and its terms."""
_MOST = "most"

_NOT_SENT = (NoReplyKind.CONNECT, NoReplyKind.UNKNOWN_HOST, NoReplyKind.TLS)
_FILTERED = "content_filter"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """One limit: what a token of input and of output takes of its allowance, in its units.

    `terms` is what the allowance was reckoned by: the most of it, and the prices of both lanes.
    """

    name: str
    input: int
    output: int
    allowance: Allowance
    terms: Mapping[str, int]

    def units(self, tokens: Bound) -> int:
        """What so many tokens take."""
        return _cost(tokens, Bound(input=self.input, output=self.output))

    @property
    def unit(self) -> str:
        """What is counted."""
        return "dollars" if self.name == "run.max_cost" else "tokens"

    def said(self, units: int) -> str:
        """Say an amount for people."""
        return f"${units / DOLLAR:,.4f}" if self.unit == "dollars" else f"{units:,} tokens"

    def state(self) -> Allotted:
        """How it stands, in dollars or tokens."""
        allowance = self.allowance
        return Allotted(
            limit=self._shown(allowance.most),
            spent=self._shown(allowance.used - allowance.held),
            unsure=self._shown(allowance.lost + allowance.gone),
            reserved=self._shown(allowance.reserved + allowance.held),
        )

    def _shown(self, units: int) -> float:
        return units / DOLLAR if self.unit == "dollars" else units


class Share:
    """What one sending was given, and a context: whatever ends it, it is counted.

    Until `settle`, it is released where nothing left, and else lost at its worst.
    """

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

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """Count it, where nobody did."""
        if self.settled:
            return
        if self.sent:
            self._spending.lose(self.bound)
        else:
            self._spending.release(self.bound)


class Spending:
    """The run's budgets; without any, everything may be sent."""

    def __init__(
        self,
        *,
        budgets: Sequence[Budget],
        operation: Operation,
        journal: Keeping,
        noted: Mapping[str, Mapping[str, int]],
        stop: Stop,
    ) -> None:
        """`noted` is what the journal holds of budgets."""
        self._budgets = tuple(budgets)
        self._operation = operation if isinstance(operation, Priced) else None
        self._journal = journal
        self._noted: dict[str, Mapping[str, int]] = dict(noted)
        self._stop = stop
        self._keeps = False
        self._noting = anyio.Lock()
        self._freed = _Freed()

    def of_batches(self) -> Spending:
        """The same budgets, for the lane whose batches the journal holds with what they may cost.

        A run that is killed loses nothing of these.
        """
        view = copy(self)
        view._keeps = True  # noqa: SLF001 - one of ours
        return view

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
                await self._freed.event.wait()
        self.take(bound)
        try:
            await self.secure()
        except BaseException:
            self.release(bound)
            raise

    def take(self, bound: Bound) -> None:
        """Set aside what was decided before, fits or not."""
        for budget in self._budgets:
            budget.allowance.reserve(budget.units(bound))
        self._keep(bound)

    def release(self, bound: Bound) -> None:
        """Give back what was set aside for what is not sent, or not billed."""
        for budget in self._budgets:
            budget.allowance.release(budget.units(bound))
        self._give_up(bound)

    def lose(self, bound: Bound, cost: Bound | None = None) -> None:
        """Count what was, or may have been, billed without a row to show for it; at its worst where that is unknown."""
        for budget in self._budgets:
            budget.allowance.lose(budget.units(bound), budget.units(bound if cost is None else cost))
        self._give_up(bound)

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
            self._give_up(bound)
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

    def share(self, bound: Bound) -> Share:
        """One sending of what was reserved: whatever ends it, it is counted."""
        return Share(self, bound)

    def state(self) -> BudgetState | None:
        """How the budgets stand; None where there are none."""
        return BudgetState(**{budget.unit: budget.state() for budget in self._budgets}) if self._budgets else None

    async def close(self) -> None:
        """Note what is lost for good; nothing is at risk any more. Raises StorageError."""
        if self._budgets:
            for budget in self._budgets:
                budget.allowance.secured = 0
            await self._note({budget.name: (budget.allowance.to_keep, 0) for budget in self._budgets})

    async def secure(self) -> None:
        """Have the journal know what a kill would lose, before it can be lost. Raises StorageError."""
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
        found = ((budget.name, budget.allowance.to_secure()) for budget in self._budgets)
        return {name: units for name, units in found if units is not None}

    async def _note(self, known: Mapping[str, tuple[int, int]]) -> None:
        """Keep lost, at_risk and the terms of our budgets, and what was noted of others."""
        terms = {budget.name: budget.terms for budget in self._budgets}
        self._noted |= {
            name: {"lost": lost, "at_risk": at_risk, **terms[name]} for name, (lost, at_risk) in known.items()
        }
        await self._journal.note(NOTED, self._noted)

    def end(self, bound: Bound) -> NoReturn:
        """Ask the run to stop, for want of room for so much. Raises Stopped."""
        short = next(budget for budget in self._budgets if not budget.allowance.fits(budget.units(bound)))
        self._stop.request(StoppedEarlyError(_words(short, bound)))
        raise Stopped

    def _keep(self, bound: Bound) -> None:
        if self._keeps:
            for budget in self._budgets:
                budget.allowance.kept += budget.units(bound)

    def _give_up(self, bound: Bound) -> None:
        """Nothing is set aside for it any more: let others look whether there is room now."""
        if self._keeps:
            for budget in self._budgets:
                budget.allowance.kept -= budget.units(bound)
        self._freed.event.set()
        self._freed.event = anyio.Event()


@dataclass(slots=True)
class _Freed:
    """Set, and made anew, whenever something was given back."""

    event: anyio.Event = field(default_factory=anyio.Event)


async def open_spending(job: Job, *, operation: Operation, journal: Journal, stop: Stop) -> Spending:
    """The job's budgets, with what earlier invocations spent of them.

    Where rows may go in either lane, what this invocation spends counts at the price of single requests. Batches that
    are under way in a run that follows none count at their worst. Raises StorageError.
    """
    with journal.reader() as reader:
        noted = reader.noted(NOTED) or {}
        batches = reader.batches() if job.run.lane == "online" else []
    left = [record for record in batches if record.step is not BatchStep.COLLECTED]
    for record in left:
        await journal.keep_batch(replace(record, overtaken=True))
    return Spending(
        budgets=tuple(_budgets(job, journal.totals, noted, left)),
        operation=operation,
        journal=journal,
        noted=noted,
        stop=stop,
    )


def _budgets(
    job: Job, totals: Totals, noted: Mapping[str, Mapping[str, int]], left: Sequence[BatchRecord]
) -> Iterator[Budget]:
    under_way = Bound(input=sum(one.most_input for one in left), output=sum(one.most_output for one in left))
    batched = Bound(input=totals.batched_input_tokens, output=totals.batched_output_tokens)
    online = Bound(input=totals.input_tokens - batched.input, output=totals.output_tokens - batched.output)
    cost, tokens = job.run.max_cost, job.run.max_tokens_total
    if cost is not None:
        prices = {lane: _unit_prices(job, lane) for lane in ("online", "batch")}
        spent = sum(_cost(used, prices[lane]) for lane, used in (("online", online), ("batch", batched)))
        held = _cost(under_way, prices["batch"])
        terms = {_MOST: round(cost * DOLLAR)}
        for lane, price in prices.items():
            terms |= {f"{lane}_input": price.input, f"{lane}_output": price.output}
        price = prices.get(job.run.lane) or _unit_prices(job, job.run.lane)
        yield _budget("run.max_cost", terms, spent, held, noted, price)
    if tokens is not None:
        spent = online.input + online.output + batched.input + batched.output
        held = under_way.input + under_way.output
        yield _budget("run.max_tokens_total", {_MOST: tokens}, spent, held, noted, Bound(input=1, output=1))


def _cost(tokens: Bound, price: Bound) -> int:
    return tokens.input * price.input + tokens.output * price.output


def _budget(
    name: str,
    terms: Mapping[str, int],
    spent: int,
    held: int,
    noted: Mapping[str, Mapping[str, int]],
    price: Bound,
) -> Budget:
    before = noted.get(name, {})
    same_prices = all(before.get(term) == units for term, units in terms.items() if term != _MOST)
    allowance = Allowance.after_kill(
        most=terms[_MOST],
        spent=spent,
        lost=before.get("lost", 0),
        at_risk=before.get("at_risk", 0),  # what was at risk was not told off: that run was killed
        held=held,
        most_then=before.get(_MOST) if same_prices else None,
    )
    return Budget(name=name, input=price.input, output=price.output, allowance=allowance, terms=terms)


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
    doubts = [f"{said(unsure)} of it for requests whose answers were lost" for _ in range(unsure > 0)]
    if allowance.held:
        doubts.append(f"{said(allowance.held)} set aside for batches under way, which `run.lane: batch` collects")
    doubt = f" ({', '.join(doubts)})" if doubts else ""
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


_NOBODY_KNOWS = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.GATEWAY_TIMEOUT})
"""What a gateway says that gave up waiting: the service behind it may answer, and bill, all the same."""


def _billed(bound: Bound, reply: Reply, verdict: Verdict) -> Bound:
    """What a reply that is no answer was billed for: what it says, else its prompt where that was looked at."""
    usage = _stated(reply)
    if usage is not None:
        return usage
    if reply.status < HTTPStatus.MULTIPLE_CHOICES or reply.status in _NOBODY_KNOWS:
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
