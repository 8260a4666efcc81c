"""What a run of a job would take: rows, requests, tokens, dollars and minutes, as values and as lines for people."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pipeline import operations
from pipeline.engines.prediction import time_of
from pipeline.engines.tally import spent_usd
from pipeline.job.budget import is_bounded
from pipeline.job.prices import AS_OF, SOURCE, rates
from pipeline.job.training import TRAINING
from pipeline.operations.base import Priced
from pipeline.plan.forecast import likely_output, money
from pipeline.plan.ranges import plan_rules
from pipeline.plan.survey import Survey, as_simulated, done_rows, survey, tokenized
from pipeline.sources import open_source
from pipeline.store.folder import Layout
from pipeline.store.journal import JournalReader, Totals
from pipeline.views.text import dollars, duration, plain, table
from pipeline.views.training_plan import plan_training, training_plan_lines

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.job.prices import Rate
    from pipeline.job.spec import Job

_LATENCIES = 500
_OK = 200
_MINUTE_S = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class _Earlier:
    """What the output folder holds: totals, and seconds that its latest calls took; None where there are none."""

    totals: Totals
    latency_s: float | None


def make_plan(job: Job, *, root: Path, limit: int | None, exact: bool, simulated: bool) -> dict[str, Any]:
    """Count what is still to be asked, and what that takes. `root` is the output folder, which is only read.

    `simulated`: tokens are counted as the simulator counts them. Raises SourceError, DamageError, StorageError.
    """
    if job.operation == TRAINING:
        return plan_training(job, root=root, simulated=simulated)
    with suppress(FileNotFoundError), JournalReader(Layout(root).journal) as reader:
        parts = [(part.first, part.last) for part in reader.parts()]
        found = _surveyed(job, reader.done, parts, limit=limit, exact=exact, simulated=simulated)
        latencies = [each.latency_ms for _, each in reader.attempts(limit=_LATENCIES) if each.status == _OK]
        latency_s = fmean(latencies) / 1000 if latencies else None
        return _report(job, found, _Earlier(totals=reader.totals(), latency_s=latency_s))
    found = _surveyed(job, _none_done, [], limit=limit, exact=exact, simulated=simulated)
    return _report(job, found, _Earlier(totals=Totals(), latency_s=None))


def _none_done(first: int, last: int) -> bytearray:
    return bytearray(last - first + 1)


def _surveyed(
    job: Job, done: Any, parts: list[tuple[int, int]], *, limit: int | None, exact: bool, simulated: bool
) -> Survey:
    source = open_source(job.input.path, format=job.input.format, columns=job.input.columns)
    return survey(
        source,
        operations.get(job.operation).factory(job),
        plan_rules(job, source, limit=limit),
        done=done_rows(parts, done),
        counter=as_simulated if simulated else tokenized(job.deployments[0].model),
        exact=exact,
    )


def _report(job: Job, found: Survey, earlier: _Earlier) -> dict[str, Any]:
    sums, totals, lane = found.sums, earlier.totals, job.run.lane
    failing, copied, requests = sums.figure("failing"), sums.figure("copied"), sums.figure("requests")
    known = isinstance(operations.get(job.operation).factory(job), Priced)
    tokens = sums.figure("input_tokens") if known else None
    quota_tokens = sums.figure("quota_tokens")
    most = sums.figure("most_output").at_most() if known and is_bounded(job) else None
    likely = likely_output(
        rows=sums.rows - failing.value - copied.value,
        # Rows that were given what another row, or an earlier run, was billed for have no tokens here.
        known_rows=min(totals.ok, totals.requests),
        known_output=totals.output_tokens,
        most=most,
    )
    priced = rates(job.deployments, lane)
    cost = money(
        priced, input_tokens=None if tokens is None else tokens.at_most(), likely_output=likely, most_output=most
    )
    time = time_of(job, requests=requests.value, tokens=quota_tokens.value, latency_s=earlier.latency_s)
    return {
        "name": job.name,
        "operation": job.operation,
        "lane": lane,
        "rows": {
            "total": found.rows,
            "ok": totals.ok,
            "failed": totals.failed,
            "left": sums.rows,
            "cannot_be_asked": asdict(failing),
            "copied": asdict(copied),
            "counted": sums.seen,
        },
        "requests": asdict(requests),
        "tokens": {
            "input": None if tokens is None else asdict(tokens),
            "output_likely": None if likely is None else round(likely),
            "output_most": None if most is None else round(most),
            "quota": asdict(quota_tokens),
        },
        "cost_usd": {"so_far": spent_usd(job, totals), **asdict(cost)},
        "prices": [_price(rate) for rate in priced],
        "budget": {"max_cost": job.run.max_cost, "max_tokens_total": job.run.max_tokens_total},
        "minutes": {**asdict(time), "longest": time.longest},
        "cannot_be_asked": [
            {
                "ordinal": one.ordinal,
                "type": one.error.type.value,
                "code": one.error.code,
                "message": one.error.message,
            }
            for one in found.unaskable
        ],
        "ids_checked": found.ids_checked,
    }


def _price(rate: Rate) -> dict[str, Any]:
    source = f"{SOURCE}, {AS_OF}" if rate.listed else "the job file"
    known = rate.input is not None or rate.output is not None
    return {
        "deployment": rate.deployment,
        "model": rate.model,
        "input": rate.input,
        "output": rate.output,
        "source": source if known else None,
    }


def plan_lines(report: Mapping[str, Any]) -> list[str]:
    """Lay a plan out for people."""
    if "training" in report:
        return training_plan_lines(report)
    facts = [
        ("rows", _rows(report)),
        ("requests", _figure(report["requests"])),
        ("input tokens", _input(report)),
        ("output tokens", _output(report)),
        ("dollars", _money(report)),
        *[("", said) for said in dict.fromkeys(map(_said_price, report["prices"]))],
        ("time", _time(report)),
    ]
    lines = [f"{plain(report['name'])}: {report['operation']}, {report['lane']}"]
    lines += [f"  {line}" for line in table(facts)]
    for row in report["cannot_be_asked"]:
        lines.append(f"row {row['ordinal']} cannot be asked: {row['type']} {row['code']}: {plain(row['message'])}")
    if not report["ids_checked"]:
        lines.append("ids of a long input were not compared; --exact looks at every row")
    return lines


def _rows(report: Mapping[str, Any]) -> str:
    rows = report["rows"]
    said = [f"{rows['total']:,}"]
    if rows["ok"] or rows["failed"]:
        said.append(f"{rows['ok']:,} ok and {rows['failed']:,} failed already, {rows['left']:,} left")
    if rows["cannot_be_asked"]["value"]:
        said.append(f"{_figure(rows['cannot_be_asked'])} cannot be asked")
    if rows["copied"]["value"]:
        said.append(f"{_figure(rows['copied'])} ask for what an earlier row asks")
    if rows["counted"] < rows["left"]:
        said.append(f"a sample of {rows['counted']:,} was counted (--exact counts all)")
    return ", ".join(said)


def _figure(figure: Mapping[str, float]) -> str:
    said = f"{figure['value']:,.0f}"
    return f"{said} ± {figure['within']:,.0f}" if figure["within"] else said


def _input(report: Mapping[str, Any]) -> str:
    tokens = report["tokens"]["input"]
    return (
        _figure(tokens) if tokens is not None else f"not known: {report['operation']} is not billed by what is written"
    )


def _output(report: Mapping[str, Any]) -> str:
    tokens = report["tokens"]
    if tokens["output_most"] == 0:
        return "none"
    said = []
    if tokens["output_likely"] is not None:
        said.append(f"about {tokens['output_likely']:,}, by the answers so far")
    if tokens["output_most"] is not None:
        said.append(f"at most {tokens['output_most']:,}")
    return ", ".join(said) or "not known: the request does not bound its answers"


def _money(report: Mapping[str, Any]) -> str:
    cost, budget = report["cost_usd"], report["budget"]["max_cost"]
    said = []
    if cost["likely"] is not None:
        said.append(f"about {dollars(cost['likely'])}")
    if cost["most"] is not None:
        said.append(f"at most {dollars(cost['most'])}")
    elif cost["input"] is not None:
        said.append(f"{dollars(cost['input'])} for the input alone")
    if not said:
        said.append("not known: no price, or no count of tokens")
    if cost["so_far"]:
        said.append(f"{dollars(cost['so_far'])} so far")
    if budget is not None:
        said.append(f"run.max_cost is {dollars(budget)}")
    return ", ".join(said)


def _said_price(price: Mapping[str, Any]) -> str:
    if price["source"] is None:
        return f"{plain(price['model'])}: no price known; give deployments.*.price"
    sides = [f"{name} {'not known' if price[name] is None else f'${price[name]:g}'}" for name in ("input", "output")]
    return f"{plain(price['model'])}: {', '.join(sides)} a million tokens ({price['source']})"


_LIMITS = {"requests": "the requests a minute", "tokens": "the tokens a minute", "workers": "run.workers"}


def _time(report: Mapping[str, Any]) -> str:
    if not report["rows"]["left"]:
        return "none: every row is done"
    if report["lane"] == "batch":
        return "not known: batches end within a day"
    time = report["minutes"]
    if time["binds"] is None:
        return "not known: the deployments' quotas are not given"
    others = [
        f"{duration(time[name] * _MINUTE_S)} by {words}"
        for name, words in _LIMITS.items()
        if time[name] is not None and name != time["binds"]
    ]
    said = f"{duration(time['longest'] * _MINUTE_S)}, bound by {_LIMITS[time['binds']]}"
    return f"{said} ({', '.join(others)})" if others else said
