"""The last words of a run: what it came to, where the results are, what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.engines.tally import ONLY_FAILED
from pipeline.rehearsal import SIMULATED_SUFFIX
from pipeline.store.training import EVENTS, METRICS
from pipeline.views.text import count, dollars, duration, plain, table

if TYPE_CHECKING:
    from pipeline.store.summary import BudgetState, Summary, TrainingState


# What a person can do about a deployment that was set aside, by the word that its `set_aside` begins with.
_REMEDIES = {
    "unauthorized": "check its credential: the variable that `key` names, or the identity behind `auth: entra`",
    "refused": "check its endpoint, deployment, api_version and network rules",
    "spent": "check the subscription's billing and quota",
    "paused": "come back when its pause is over, or raise run.max_pause",
}

_LONG = 120
"""Characters from which a command has a line of its own."""


def closing(summary: Summary, *, reader: str, report: str | None = None, settings: str = "") -> list[str]:
    """Give the lines. `reader` is what `pipeline errors` is to be given for this run, quoted for a shell.

    `report` is where the page of the run lies; None: none could be written. `settings` are the `--set` options that
    the run was called with, quoted for a shell: commands that go on with it need them too.
    """
    page = [] if report is None else [("report", plain(report))]
    return [
        headline(summary),
        *[f"  {plain(line.strip())}" for line in (summary.reason or "").splitlines()],
        *_unwritten(summary),
        *[f"  {line}" for line in table([*spent(summary), *_results(summary), *page])],
        *_offers(summary),
        *_next(summary, reader, settings),
    ]


def headline(summary: Summary) -> str:
    """Say the state and the rows."""
    rows = summary.rows
    said = [f"{count(rows.ok, 'row')} ok", f"{rows.failed:,} failed"]
    if rows.pending:
        said.append(f"{rows.pending:,} pending")
    elif rows.pending is None and summary.state not in {"complete", "running"}:
        said.append("the rest of the input pending")
    if rows.not_in_parts:
        said.append(f"{rows.not_in_parts:,} finished and not yet in a part")
    return f"{summary.state if summary.paused_since is None else 'paused'}: {', '.join(said)}"


def spent(summary: Summary) -> list[tuple[str, str]]:
    """Say what it took: time and speed of this invocation, requests, tokens and dollars of the folder's life."""
    if summary.training is not None:
        return [("took", duration(summary.seconds)), *_trained(summary.training, summary.fine_tuned_model)]
    tokens = summary.tokens
    cost = "unknown: no price, or not billed by tokens" if summary.cost_usd is None else dollars(summary.cost_usd)
    paused = f" ({duration(summary.paused_seconds)} of it paused)" if summary.paused_seconds else ""
    idle = summary.state == "complete" and summary.rows_per_second == 0
    speed = "nothing was left to do" if idle else f"{summary.rows_per_second:,.1f} rows/s"
    return [
        ("took", f"{duration(summary.seconds)}{paused}, {speed}"),
        (
            "requests",
            f"{summary.requests:,} answered, {count(summary.attempts, 'attempt')}, {summary.throttled:,} throttled",
        ),
        ("tokens", f"{tokens.input:,} in, {tokens.output:,} out"),
        ("cost", cost),
        *[("budget", line) for line in _budget(summary.budget)],
        *_carried(summary),
        *([("copied", f"{count(summary.copied, 'row')} from rows that ask for the same")] if summary.copied else []),
    ]


def _carried(summary: Summary) -> Iterator[tuple[str, str]]:
    """Say what became of the results of an earlier run over another state of the input."""
    if summary.carried or summary.deleted:
        rows = count(summary.carried, "row")
        yield "carried", f"{rows} from the earlier results; {summary.deleted:,} of theirs not in the input any more"


def _budget(state: BudgetState | None) -> Iterator[str]:
    """Say how much of each budget is used."""
    if state is not None and state.dollars is not None:
        yield f"{dollars(state.dollars.spent)} of {dollars(state.dollars.limit)} used"
    if state is not None and state.tokens is not None:
        yield f"{state.tokens.spent:,.0f} of {state.tokens.limit:,.0f} tokens used"


def _trained(training: TrainingState, model: str | None) -> list[tuple[str, str]]:
    """Say what is known of a training: the service's names and counts."""
    facts = [("trains", plain(training.model))]
    if training.examples:
        beside = f", {training.validation_examples:,} for validation" if training.validation_examples else ""
        facts.append(("examples", f"{training.examples:,} for training{beside}"))
    if training.job is not None:
        facts.append(("training", f"{plain(training.job)}, {plain(training.state or '')}"))
    if training.trained_tokens is not None:
        facts.append(("tokens", f"{training.trained_tokens:,} trained"))
    if model is not None:
        facts.append(("model", plain(model)))
    return facts


def _unwritten(summary: Summary) -> list[str]:
    """Say what was paid for and is lost."""
    if not summary.unwritten:
        return []
    rows = count(summary.unwritten, "row")
    return [f"  {rows} answered, but the disk would not take the answer: asked, and billed, again by the next run"]


def _results(summary: Summary) -> list[tuple[str, str]]:
    rows = summary.rows
    if summary.training is not None:
        return _events(summary)
    if rows.total == 0:
        return [("results", "none: the input has no rows")]
    if rows.ok + rows.failed == rows.not_in_parts:
        return [("results", f"none readable yet, in {plain(summary.output)}")]
    pattern = f"{plain(summary.output)}/*.parquet".replace("'", "''")
    query = f"FROM '{pattern}' SELECT status, count(*) GROUP BY status"
    return [("results", plain(summary.output)), ("look", f'duckdb -c "{query}"')]


def _events(summary: Summary) -> list[tuple[str, str]]:
    if summary.state != "complete":
        return []
    folder = plain(summary.output)
    query = f"FROM '{folder}/{EVENTS}' WHERE type = 'checkpoint'".replace('"', '\\"')
    return [("events", f"{folder}/{EVENTS}"), ("figures", f"{folder}/{METRICS}"), ("look", f'duckdb -c "{query}"')]


def _offers(summary: Summary) -> list[str]:
    """Say where a service would take more than the job file lets it be asked."""
    lines = []
    for use in summary.deployments:
        for key, stated, offered in (
            ("requests_per_minute", use.requests_per_minute, use.offered_requests_per_minute),
            ("tokens_per_minute", use.tokens_per_minute, use.offered_tokens_per_minute),
        ):
            if stated is not None and offered is not None:
                lines.append(f"{plain(use.name)}: the service offers {offered:,.0f} {key}, the job {stated:,.0f}")
    return lines


def _next(summary: Summary, reader: str, settings: str) -> list[str]:
    lines = []
    for step in next_steps(summary, reader=reader, settings=settings):
        if step.command is None:
            lines.append(step.text)
        elif len(step.command) > _LONG:
            lines += [step.text, f"  {step.command}"]
        else:
            lines.append(f"{step.text}  {step.command}")
    return lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing to do now; `command` is what to type for it, quoted for a shell."""

    text: str
    command: str | None = None


def next_steps(summary: Summary, *, reader: str, settings: str = "") -> list[Step]:
    """Say what is left to do. `reader` is what commands that read are to be given for this run, quoted for a shell.

    `settings` are options that commands which go on with it need.
    """
    steps = []
    if summary.rows.failed:
        steps.append(Step(text="why rows failed:", command=f"pipeline errors {reader} --group-by code"))
    match summary.state:
        case "complete":
            if summary.rows.failed and summary.training is None:
                steps.append(
                    Step(text="to send them again, once that is put right:", command=_retry(summary, settings))
                )
            steps += _deploy(summary.training)
        case "refused":
            steps += _remedies(summary)
            steps.append(Step(text="put right what was refused, then run the same command again: it continues"))
        case "stopped" if summary.reason == ONLY_FAILED:
            pass  # the reason names the command
        case "stopped" if summary.exit_code == 0:
            steps.append(Step(text="the same command without --limit, or with a higher one, continues"))
        case _:
            steps.append(Step(text="to continue, run the same command again"))
    return steps


def _retry(summary: Summary, settings: str) -> str:
    """The command that sends the failed rows again; a rehearsal's are sent to the simulator."""
    simulate = " --simulate" if summary.output.endswith(SIMULATED_SUFFIX) else ""
    return f"pipeline retry {shlex.quote(plain(summary.job_file))}{simulate}{settings}"


def _deploy(training: TrainingState | None) -> list[Step]:
    """Say what is left to do before a trained model answers."""
    if training is None or training.deploy is None:
        return []
    text = "the model answers once it is deployed, which costs money by the hour:"
    return [Step(text=text, command=plain(training.deploy))]


def _remedies(summary: Summary) -> list[Step]:
    kinds = [(use.name, (use.set_aside or "").partition(":")[0]) for use in summary.deployments]
    return [Step(text=f"{plain(name)}: {_REMEDIES[kind]}") for name, kind in kinds if kind in _REMEDIES]
