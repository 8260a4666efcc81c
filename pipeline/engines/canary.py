"""The canary: the first rows are asked before all others, and what came of them says whether these are sent at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pipeline import operations
from pipeline.engines.prediction import SAMPLED_ROWS
from pipeline.errors import PipelineError, RefusedError, StoppedEarlyError
from pipeline.job.budget import is_bounded
from pipeline.job.prices import cost_of, rates
from pipeline.operations._schema import misfit
from pipeline.operations.base import Priced
from pipeline.plan.ranges import plan_rules
from pipeline.plan.survey import as_simulated, sample, tokenized
from pipeline.store.files import storage
from pipeline.store.journal import JournalReader

if TYPE_CHECKING:
    from pipeline.job.spec import Job
    from pipeline.model import RowResult
    from pipeline.sources.base import Source
    from pipeline.store.folder import Layout

USUAL_SHARE = 0.1
"""Of the rows may fail, where `run.fail_on` says no other share; of the answers may be cut, or fit no schema."""
MOST_TIMES_THE_PLAN = 2.0
"""What a row may cost, of what was planned for it."""
_READ = ("ordinal", "status", "error", "usage", "finish_reason", "output_text")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What a check found: its name, what it saw and what it allows, and what is to be done about it."""

    name: str
    seen: str
    advice: str


def is_begun(layout: Layout, *, rows: int) -> bool:
    """Whether later rows are in parts already, so that there is nothing left to be careful about."""
    try:
        with JournalReader(layout.journal) as reader:
            return any(part.last >= rows for part in reader.parts())
    except FileNotFoundError:
        return False


def planned_usd(job: Job, source: Source, *, rows: int, simulated: bool) -> float | None:
    """Dollars that one of the first rows was to cost at most; None where that is not known. Raises SourceError."""
    operation = operations.get(job.operation).factory(job)
    if not isinstance(operation, Priced) or not is_bounded(job):
        return None
    most = min(rows, SAMPLED_ROWS)
    found = sample(
        source,
        operation,
        plan_rules(job, source, limit=most),
        counter=as_simulated if simulated else tokenized(job.deployments[0].model),
        enough=lambda seen: seen >= most,
    )
    tokens, answers = found.sums.figure("input_tokens").value, found.sums.figure("most_output").value
    cost = cost_of(rates(job.deployments, job.run.lane), tokens, answers)
    return None if cost is None or not found.rows else cost / found.rows


def judge(job: Job, layout: Layout, *, rows: int, planned: float | None) -> PipelineError | None:
    """Say why the rest is not sent, None where nothing speaks against it. Reads the first rows, in parts or not.

    `planned` is what a row was to cost. Raises StorageError.
    """
    found = list(_results(layout, rows))
    if not found:
        return None
    checks = [check for check in _checks(job, found, planned) if check is not None]
    if not checks:
        return None
    said = "; ".join(f"{check.name}: {check.seen}" for check in checks)
    advice = "; ".join(dict.fromkeys(check.advice for check in checks))
    message = (
        f"the canary of {len(found)} rows did not pass, and nothing else was sent. {said}. To go on: {advice}, and run "
        "again (--fresh for a new wording); or send the rest as it is with --canary off"
    )
    errors = Counter((row["error"] or {}).get("code") for row in found)
    refused_alike = len(errors) == 1 and None not in errors and len(found) > 1
    return RefusedError(message) if refused_alike else StoppedEarlyError(message)


def _checks(job: Job, rows: Sequence[Mapping[str, Any]], planned: float | None) -> Iterator[Checked | None]:
    answered = [row for row in rows if row["status"] == "ok"]
    failed = Counter(row["error"]["code"] for row in rows if row["status"] != "ok")
    usual = "see `pipeline errors`, then mend the job or the rows and send those again with `pipeline retry`"
    if job.run.fail_on != "never":
        most = USUAL_SHARE if job.run.fail_on == "any" else float(job.run.fail_on)
        codes = ", ".join(f"{count} {code}" for code, count in failed.most_common(3))
        yield _share("failed rows", failed.total(), len(rows), most, usual, codes)
    cut = sum(row.get("finish_reason") == "length" for row in answered)
    longer = "raise the request's bound on output tokens"
    yield _share("cut answers (finish_reason length)", cut, len(answered), USUAL_SHARE, longer)
    schema = _schema(job)
    if schema is not None:
        whole = [row for row in answered if row.get("finish_reason") in (None, "stop") and row.get("output_text")]
        misfits = sum(misfit(row["output_text"], schema) is not None for row in whole)
        yield _share("answers that do not fit the schema", misfits, len(whole), USUAL_SHARE, "mend schema or prompt")
    yield _dear(job, rows, planned)


def _share(name: str, count: int, of: int, most: float, advice: str, more: str = "") -> Checked | None:
    if not of or count / of <= most:
        return None
    seen = f"{count} of {of} ({count / of:.0%}), at most {most:.0%} may be{f' ({more})' if more else ''}"
    return Checked(name=name, seen=seen, advice=advice)


def _dear(job: Job, rows: Sequence[Mapping[str, Any]], planned: float | None) -> Checked | None:
    usages = [row["usage"] for row in rows if row["usage"] is not None]
    spent = cost_of(
        rates(job.deployments, job.run.lane),
        sum(usage["input_tokens"] or 0 for usage in usages),
        sum(usage["output_tokens"] or 0 for usage in usages),
    )
    if planned is None or spent is None or spent / len(rows) <= MOST_TIMES_THE_PLAN * planned:
        return None
    return Checked(
        name="dollars a row",
        seen=f"{spent / len(rows):.6f}, which is over {MOST_TIMES_THE_PLAN:g} times the {planned:.6f} planned at most",
        advice="look at `usage` of its rows (reasoning, pictures) and at the price",
    )


def _schema(job: Job) -> Any:
    """The JSON schema that answers are to fit; None where there is none, or rows bring their own."""
    given = job.request.get("response_format" if job.operation == "chat" else "text")
    if job.operation == "responses" and isinstance(given, Mapping):
        given = given.get("format")
    if not isinstance(given, Mapping) or given.get("type") != "json_schema":
        return None
    held = given.get("json_schema", given)
    return held.get("schema") if isinstance(held, Mapping) else None


def _results(layout: Layout, rows: int) -> Iterator[Mapping[str, Any]]:
    import pyarrow.parquet as pq  # noqa: PLC0415 - loaded when a run needs it

    with JournalReader(layout.journal) as reader, reader.snapshot():
        parts = [part for part in reader.parts() if part.first < rows]
        # What no part can hold yet: the columns may not be known until a row is ok.
        loose = {row.ordinal: _as_in_a_part(row) for row, _ in reader.results(0, rows - 1)}
    yield from loose.values()
    for part in parts:
        with storage(f"reading {part.name}"):
            path = layout.part(part.name)
            names = [name for name in _READ if name in pq.read_schema(path).names]
            table = pq.read_table(path, columns=names)
        yield from (row for row in table.to_pylist() if row["ordinal"] < rows and row["ordinal"] not in loose)


def _as_in_a_part(row: RowResult) -> Mapping[str, Any]:
    return {
        **(row.values or {}),
        "ordinal": row.ordinal,
        "status": "ok" if row.ok else "failed",
        "error": None if row.error is None else asdict(row.error),
        "usage": None if row.usage is None else asdict(row.usage),
    }
