"""What the simulator plays: deployments and their quotas, latency, faults, poison, quota changes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt

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


class Quirk(StrEnum):
    """What services were seen to do beside their documentation; each is played only where it is asked for."""

    ASYNC_FILTER = "async_filter"  # streams of Azure: the filter's words come late, in events without a delta
    INNER_ERROR = "inner_error"  # refusals by the filter: `inner_error` and `content_filter_results`
    NO_INNER_ERROR = "no_inner_error"  # refusals by the filter say nothing more
    IGNORE_BASE64 = "ignore_base64"  # vectors are lists, whatever was asked for
    NEGATIVE_LIMITS = "negative_limits"  # x-ratelimit-…-tokens are -1, and a 429 says nothing of when


def _fault_names(rates: dict[str, float]) -> dict[str, float]:
    known = {kind.value for kind in FaultKind}
    for name in rates:
        if name not in known and not re.fullmatch("[345][0-9][0-9]", name):
            raise ValueError(f"{name!r} is neither a status from 300 to 599 nor one of {', '.join(sorted(known))}")
    if sum(rates.values()) > 1:
        raise ValueError(f"the rates sum to {sum(rates.values()):g}, more than 1")
    return rates


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


class DeploymentConfig(_Strict):
    """One deployment. Without a limit, that quota is not judged. `model` defaults to the deployment's name."""

    model: str | None = None
    requests_per_minute: PositiveInt | None = None
    tokens_per_minute: PositiveInt | None = None
    request_window_s: Literal[1, 10] = 1
    dimensions: PositiveInt | None = None


class LatencyConfig(_Strict):
    """How long an answer takes: lognormal about `median_ms`, fixed where sigma is 0; more for each output token."""

    median_ms: NonNegativeFloat = 0.0
    sigma: NonNegativeFloat = 0.0
    per_output_token_ms: NonNegativeFloat = 0.0


class FaultsConfig(_Strict):
    """How often what goes wrong: `rates` maps a status or a kind of fault to its share of the admitted requests.

    Whether a request fails is a function of the seed, its body and how often that body came before. Where `attempts`
    is given, only that many first sendings of a body can fail. `headers` go with every injected status;
    `drip_interval_s` is the time between the bytes of `drip`.
    """

    rates: Annotated[dict[str, Rate], AfterValidator(_fault_names)] = Field(default_factory=dict)
    attempts: PositiveInt | None = None
    headers: dict[str, str] | None = None
    drip_interval_s: PositiveFloat = 0.3


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
    """All of it. Without deployments every name is accepted, without quota; without keys, every key."""

    deployments: dict[str, DeploymentConfig] = Field(default_factory=dict)
    keys: tuple[str, ...] = ()
    region: str = "Sweden Central"
    latency: LatencyConfig = LatencyConfig()
    faults: FaultsConfig = FaultsConfig()
    poison: tuple[PoisonRule, ...] = ()
    schedule: tuple[QuotaChange, ...] = ()
    speed: PositiveFloat = 1.0
    seed: int = 0
    vectors: Vectors = "auto"
    audio: Audio = "auto"
    quirks: frozenset[Quirk] = frozenset()


def read_config(text: str) -> SimulatorConfig:
    """Read YAML or JSON. Raises ValueError (pydantic's ValidationError among them) or yaml.YAMLError."""
    return make_config(yaml.safe_load(text) or {})


def make_config(values: Mapping[Any, Any]) -> SimulatorConfig:
    """Check a configuration. Raises pydantic's ValidationError, a ValueError, which lists every problem."""
    return SimulatorConfig.model_validate(values)


def load_config(path: Path) -> SimulatorConfig:
    """Read a configuration file. Raises OSError, and what `read_config` raises."""
    return read_config(path.read_text(encoding="utf-8"))
