"""What the simulator plays: deployments and their quotas, latency, faults, poison, quota changes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from pipeline.simulator.cost import Cost, PromptCount, Rounding, cost_of

Vectors = Literal["auto", "model", "hash"]
Audio = Literal["auto", "tones", "whisper", "opaque"]
Rate = Annotated[float, Field(ge=0, le=1)]


class FaultKind(StrEnum):
    """What can go wrong with a reply, beside a status."""

    RESET_BEFORE = "reset_before"  # TCP reset, nothing answered
    RESET_DURING = "reset_during"  # TCP reset in the middle of the reply
    CLOSE_EARLY = "close_early"  # the connection is closed, nothing answered
    CUT_LENGTH = "cut_length"  # fewer bytes than Content-Length says, then closed
    CUT_CHUNK = "cut_chunk"  # closed inside a chunk
    HALF_BODY = "half_body"  # neither length nor chunks, closed after half of the body
    GARBAGE = "garbage"  # no HTTP at all
    HUGE_HEADER = "huge_header"  # a header of 300 kB
    CUT_STREAM = "cut_stream"  # closed after a byte drawn by lot, inside a chunk, streams and others alike
    ERROR_EVENT = "error_event"  # a stream with an error in its middle; replies that are no stream stay whole
    DRIP = "drip"  # one byte each `drip_interval_s`
    HANG = "hang"  # never answers
    HTML = "html"  # 200 with a gateway's page
    EMPTY_OBJECT = "empty_object"  # 200 with {}
    DEEP_JSON = "deep_json"  # 200 with 100,000 opening brackets
    WRONG_CHARSET = "wrong_charset"  # 200 with the right JSON in UTF-16
    HUGE_BODY = "huge_body"  # 200 with 200 MB of blanks


class Shortage(StrEnum):
    """A 429 that no rate limit is the reason of."""

    CAPACITY = "capacity"  # machines are short: "high demand"
    FLEX_UNAVAILABLE = "flex_unavailable"  # none is left for `service_tier: flex`; other requests stay whole
    INSUFFICIENT_QUOTA = "insufficient_quota"  # the money is spent


class Quirk(StrEnum):
    """What services were seen to do beside their documentation; each is played only where it is asked for."""

    ASYNC_FILTER = "async_filter"  # streams of Azure: the filter's words come late, in events without a delta
    INNER_ERROR = "inner_error"  # refusals by the filter: `inner_error` and `content_filter_results`
    NO_INNER_ERROR = "no_inner_error"  # refusals by the filter say nothing more
    IGNORE_BASE64 = "ignore_base64"  # vectors are lists, whatever was asked for
    NEGATIVE_LIMITS = "negative_limits"  # x-ratelimit-…-tokens are -1, and a 429 says nothing of when
    NO_LIMITS = "no_limits"  # no x-ratelimit-… at all, as behind a gateway
    NO_RETRY_AFTER = "no_retry_after"  # a 429 has neither retry-after nor retry-after-ms
    RETRY_AFTER_FLOAT = "retry_after_float"  # both are decimals
    RETRY_AFTER_DATE = "retry_after_date"  # retry-after is a date, and retry-after-ms is missing
    MISSPELT_RESET = "misspelt_reset"  # x-rate-limit-reset-…, and a 429 without retry-after
    RESET_DURATIONS = "reset_durations"  # x-ratelimit-reset-… as 72ms and 1m30.5s, by Azure too
    RESET_MILLISECONDS = "reset_milliseconds"  # … as 90500ms
    REMAINING_OF_SLICE = "remaining_of_slice"  # x-ratelimit-remaining-requests is the short window's
    CAPITAL_STATES = "capital_states"  # a batch's status begins with a capital
    ISO_DATES = "iso_dates"  # times of files, batches and jobs are ISO 8601
    NULL_COUNTS = "null_counts"  # a batch's endpoint is null, and so are its counts until it is completed
    EMPTY_IDS = "empty_ids"  # a file that a batch does not have is "" instead of null


class BatchEnd(StrEnum):
    """How a batch ends."""

    COMPLETED = "completed"
    EXPIRED = "expired"
    FAILED = "failed"
    CANCELLED = "cancelled"


class TrainingEnd(StrEnum):
    """How a fine-tuning job ends."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"


def _fault_names(rates: dict[str, float]) -> dict[str, float]:
    known = {kind.value for kind in (*FaultKind, *Shortage)}
    for name in rates:
        if name not in known and not re.fullmatch("[345][0-9][0-9]", name):
            raise ValueError(f"{name!r} is neither a status from 300 to 599 nor one of {', '.join(sorted(known))}")
    if sum(rates.values()) > 1:
        raise ValueError(f"the rates sum to {sum(rates.values()):g}, more than 1")
    return rates


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


class CostConfig(_Strict):
    """What admission counts, where it is not what is known of the model; the fields are those of `cost.Cost`."""

    prompt: PromptCount | None = None
    characters_per_token: PositiveFloat | None = None
    rounding: Rounding | None = None
    answers: bool | None = None
    answer_when_absent: NonNegativeInt | None = None
    choices: bool | None = None
    picture_tokens: NonNegativeInt | None = None
    picture_low_tokens: NonNegativeInt | None = None
    factor: PositiveFloat | None = None

    def cost(self, model: str) -> Cost:
        """Give a model's cost with what is configured in its place."""
        return replace(cost_of(model), **{name: value for name, value in self if value is not None})


class ProvisionedConfig(_Strict):
    """Provisioned throughput: so many tokens a minute, of which `bucket_s` seconds are a utilization of 100 %.

    `spillover` names the deployment that takes what this one cannot.
    """

    tokens_per_minute: PositiveInt
    bucket_s: PositiveFloat = 10.0
    spillover: str | None = None


class DeploymentConfig(_Strict):
    """One deployment. Without a limit, that quota is not judged. `model` defaults to the deployment's name."""

    model: str | None = None
    requests_per_minute: PositiveInt | None = None
    tokens_per_minute: PositiveInt | None = None
    request_window_s: Literal[1, 10] = 1
    provisioned: ProvisionedConfig | None = None
    cost: CostConfig = CostConfig()
    dimensions: PositiveInt | None = None
    batch: Literal["also", "only", "never"] = "also"
    enqueued_tokens: PositiveInt | None = None

    @model_validator(mode="after")
    def _one_judge(self) -> Self:
        if self.provisioned is not None and (self.requests_per_minute or self.tokens_per_minute):
            raise ValueError(
                "a provisioned deployment has no requests_per_minute and no tokens_per_minute of its own: "
                "leave them out, or leave `provisioned` out"
            )
        return self


class LatencyConfig(_Strict):
    """How long an answer takes: lognormal about `median_ms`, fixed where sigma is 0; more for each output token."""

    median_ms: NonNegativeFloat = 0.0
    sigma: NonNegativeFloat = 0.0
    per_output_token_ms: NonNegativeFloat = 0.0


class AnswersConfig(_Strict):
    """How long answers of text are: lognormal about `median_tokens`, all the same where sigma is 0.

    None leaves them as long as their extract and its tag; no answer is shorter than that.
    """

    median_tokens: PositiveInt | None = None
    sigma: NonNegativeFloat = 0.0
    most_tokens: PositiveInt = 16_384


class FaultsConfig(_Strict):
    """How often what goes wrong: `rates` maps a status, a kind of fault or a shortage to its share of what is admitted.

    Whether a request fails is a function of the seed, its body and how often that body came before. Where `attempts`
    is given, only that many first sendings of a body can fail. `headers` go with every injected status;
    `charge_shortages` says whether a request that met a shortage keeps its charge; `drip_interval_s` is the time
    between the bytes of `drip`.
    """

    rates: Annotated[dict[str, Rate], AfterValidator(_fault_names)] = Field(default_factory=dict)
    charge_shortages: bool = True
    attempts: PositiveInt | None = None
    headers: dict[str, str] | None = None
    drip_interval_s: PositiveFloat = 0.3


class OfflineConfig(_Strict):
    """Files, batches and fine-tuning jobs: how long each state lasts, and how the nth of them ends.

    Seconds are real ones divided by `speed`. `ends` and `training_ends` are gone through in order, again and again;
    without them everything ends well. `done_share` of the lines are answered before a batch expires or is cancelled by
    the service. `fail_fast` refuses a batch over its deployment's enqueued tokens when it is created, else it fails
    afterwards. `line_faults` strike lines (statuses alone), `faults` the calls that manage all this, after they were
    carried out; statuses below 500 refuse them. Lists show a batch `listing_lag_s` after it was created.
    """

    processed_s: NonNegativeFloat = 0.0
    validating_s: NonNegativeFloat = 0.0
    in_progress_s: NonNegativeFloat = 0.0
    finalizing_s: NonNegativeFloat = 0.0
    cancelling_s: NonNegativeFloat = 0.0
    lines_per_s: PositiveFloat | None = None
    listing_lag_s: NonNegativeFloat = 0.0
    ends: tuple[BatchEnd, ...] = ()
    done_share: Rate = 0.5
    fail_fast: bool = True
    most_lines: PositiveInt = 100_000
    most_bytes: PositiveInt = 200_000_000
    most_files: PositiveInt = 500
    most_expiring_files: PositiveInt = 10_000
    queued_s: NonNegativeFloat = 0.0
    running_s: NonNegativeFloat = 0.0
    most_steps: PositiveInt = 100
    training_ends: tuple[TrainingEnd, ...] = ()
    line_faults: FaultsConfig = FaultsConfig()
    faults: FaultsConfig = FaultsConfig()


class PoisonRule(_Strict):
    """Texts that the service refuses. Status 200 filters the answer instead of the request.

    With status 200 and a code other than content_filter, an answer of `responses` says that it failed, with that code.
    """

    contains: Annotated[str, Field(min_length=1)]
    status: Annotated[int, Field(ge=200, le=599)] = 400
    code: str = "content_filter"
    name_index: bool = False
    message: str | None = None


class QuotaChange(_Strict):
    """A deployment's quota from a time on, in real seconds after the first request."""

    at_s: NonNegativeFloat
    deployment: str
    requests_per_minute: PositiveInt | None = None
    tokens_per_minute: PositiveInt | None = None


class SimulatorConfig(_Strict):
    """All of it. Without deployments every name is accepted, without quota; without keys, every key.

    `folder` is where files, batches and fine-tuning jobs lie; without it they are gone with the process.
    """

    deployments: dict[str, DeploymentConfig] = Field(default_factory=dict)
    keys: tuple[str, ...] = ()
    region: str = "Sweden Central"
    latency: LatencyConfig = LatencyConfig()
    answers: AnswersConfig = AnswersConfig()
    faults: FaultsConfig = FaultsConfig()
    poison: tuple[PoisonRule, ...] = ()
    offline: OfflineConfig = OfflineConfig()
    folder: Path | None = None
    schedule: tuple[QuotaChange, ...] = ()
    speed: PositiveFloat = 1.0
    seed: int = 0
    vectors: Vectors = "auto"
    audio: Audio = "auto"
    quirks: frozenset[Quirk] = frozenset()

    @model_validator(mode="after")
    def _names_that_exist(self) -> Self:
        problems = [*_spillover_problems(self.deployments), *_schedule_problems(self.deployments, self.schedule)]
        if problems:
            raise ValueError("; ".join(problems))
        return self


def _spillover_problems(deployments: Mapping[str, DeploymentConfig]) -> list[str]:
    problems = []
    for name, deployment in deployments.items():
        target = deployment.provisioned.spillover if deployment.provisioned is not None else None
        if target is None:
            continue
        if target not in deployments:
            problems.append(f"deployments.{name}.provisioned.spillover: there is no deployment {target!r}")
        elif deployments[target].provisioned is not None:
            problems.append(f"deployments.{name}.provisioned.spillover: {target!r} is provisioned too")
    return problems


def _schedule_problems(deployments: Mapping[str, DeploymentConfig], schedule: tuple[QuotaChange, ...]) -> list[str]:
    provisioned = {name for name, deployment in deployments.items() if deployment.provisioned is not None}
    return [
        f"schedule.{index}: {change.deployment!r} is provisioned, and has no limits that could change"
        for index, change in enumerate(schedule)
        if change.deployment in provisioned
    ]


def read_config(text: str) -> SimulatorConfig:
    """Read YAML or JSON. Raises ValueError (pydantic's ValidationError among them) or yaml.YAMLError."""
    return make_config(yaml.safe_load(text) or {})


def make_config(values: Mapping[Any, Any]) -> SimulatorConfig:
    """Check a configuration. Raises pydantic's ValidationError, a ValueError, which lists every problem."""
    return SimulatorConfig.model_validate(values)


def load_config(path: Path) -> SimulatorConfig:
    """Read a configuration file. Raises OSError, and what `read_config` raises."""
    return read_config(path.read_text(encoding="utf-8"))
