"""summary.json: what a run has come to, replaced whole while it goes on, read by everything that shows."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import DamageError
from pipeline.store.files import replace_text, storage


@dataclass(frozen=True, slots=True, kw_only=True)
class RowCounts:
    """Rows of the input. `total` and `pending` are None until the input was read to its end."""

    total: int | None = None
    ok: int = 0
    failed: int = 0
    pending: int | None = None
    not_in_parts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCounts:
    """The service's own counts, over the folder's life."""

    input: int = 0
    output: int = 0
    total: int = 0
    cached: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentUse:
    """What one deployment did in this invocation. `quota_used` is the share of the quota in force, None without one.

    `offered_…` is what the service says it allows, where that is more than the job file does; `sent_…` what is sent of
    late, in tokens as the service counts them; `paused_s` how long nothing might leave because the service said so.
    """

    name: str
    requests: int = 0
    throttled: int = 0
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    quota_used: float | None = None
    offered_requests_per_minute: float | None = None
    offered_tokens_per_minute: float | None = None
    sent_requests_per_minute: float = 0.0
    sent_tokens_per_minute: float = 0.0
    paused_s: float = 0.0
    set_aside: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """How a training stands. `job` and `state` are the service's words; `deploy` is the command to go on with.

    `examples` and `validation_examples` are those uploaded, `trained_tokens` what the service counted.
    """

    job: str | None = None
    state: str | None = None
    model: str = ""
    examples: int = 0
    validation_examples: int = 0
    trained_tokens: int | None = None
    deploy: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Allotted:
    """How a budget stands, over the folder's life. `spent` counts what may have been billed without an answer.

    `unsure` is that part of it; `reserved` is the worst of what is under way. Dollars, or tokens.
    """

    limit: float
    spent: float
    unsure: float
    reserved: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetState:
    """The job's budgets; None where there is none."""

    dollars: Allotted | None = None
    tokens: Allotted | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedTokens:
    """Tokens of prompts and answers; None where they were not known beforehand."""

    input: int | None = None
    output: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """What all rows were expected to take, by the first of them; None where it was not known beforehand.

    `seconds` is what the quotas allow, in one invocation.
    """

    requests: int
    tokens: PredictedTokens
    cost_usd: float | None
    seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The state of a run. Counts of rows, requests and tokens are the folder's; times and rates this invocation's.

    `state` is running, complete, stopped, refused or interrupted; `reason` says why it ended before its rows did.
    `calls_on_refusals` counts the calls spent on finding out which rows of refused packs were to blame, `unwritten`
    the rows that were answered in this invocation and that no disk would take: they are pending, and asked again.
    `carried` rows have an earlier run's results, `deleted` ones are in those and not in the input any more; `copied`
    rows were given what another row that asks for the same came to.
    `paused_since` is there while the run is paused (ISO 8601 in UTC, `state` stays running), `paused_seconds` is how
    long this invocation was. `workers` and `leave` are those in force, None where a lane has none.
    `rows_expected` is how many rows there seem to be, `rows.total` once that is known: before, as the input says, or by
    its bytes read so far; None where neither tells. `eta_seconds` goes by it.
    `predicted` is there once the number of rows is known, `budget` where the job has one, `fine_tuned_model` and
    `training` for jobs that train a model: their rows are the examples.
    `started_at` is when this invocation began and `updated_at` when this was counted, ISO 8601 in UTC.
    """

    state: str
    reason: str | None = None
    exit_code: int | None = None
    rows: RowCounts = field(default_factory=RowCounts)
    requests: int = 0
    attempts: int = 0
    throttled: int = 0
    calls_on_refusals: int = 0
    unwritten: int = 0
    carried: int = 0
    deleted: int = 0
    copied: int = 0
    tokens: TokenCounts = field(default_factory=TokenCounts)
    cost_usd: float | None = None
    budget: BudgetState | None = None
    predicted: Predicted | None = None
    seconds: float = 0.0
    rows_per_second: float = 0.0
    started_at: str | None = None
    updated_at: str | None = None
    eta_seconds: float | None = None
    rows_expected: int | None = None
    paused_since: str | None = None
    paused_seconds: float = 0.0
    workers: int | None = None
    leave: float | None = None
    in_flight: int = 0
    waits_for: int | None = None
    deployments: tuple[DeploymentUse, ...] = ()
    output: str = ""
    job: str = ""
    job_file: str = ""
    fine_tuned_model: str | None = None
    training: TrainingState | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values, as they stand in summary.json and are printed by --json."""
        return asdict(self)


def write_summary(path: Path, summary: Summary) -> None:
    """Replace the file atomically. It tells, and nothing depends on it, so the disk is not waited for."""
    with storage("writing summary.json"):
        replace_text(path, json.dumps(summary.as_json(), indent=1), durable=False)


def read_summary(path: Path) -> Summary:
    """Read it back. Raises FileNotFoundError where no run wrote one, DamageError when it cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        value["rows"] = RowCounts(**value["rows"])
        value["tokens"] = TokenCounts(**value["tokens"])
        value["deployments"] = tuple(DeploymentUse(**one) for one in value["deployments"])
        if value.get("budget") is not None:
            value["budget"] = _read_budget(value["budget"])
        if value.get("predicted") is not None:
            tokens = PredictedTokens(**value["predicted"].pop("tokens"))
            value["predicted"] = Predicted(**value["predicted"], tokens=tokens)
        if value.get("training") is not None:
            value["training"] = TrainingState(**value["training"])
        return Summary(**value)
    except (ValueError, TypeError, KeyError) as error:
        raise DamageError(f"{path} cannot be read; it is written anew by the next run") from error


def _read_budget(value: dict[str, Any]) -> BudgetState:
    return BudgetState(**{name: None if each is None else Allotted(**each) for name, each in value.items()})
