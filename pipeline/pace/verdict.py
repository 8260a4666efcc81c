"""What one attempt came to: the closed set of verdicts between classifying an answer and deciding what to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pipeline.model import ErrorInfo


class ThrottleKind(StrEnum):
    """Which limit a refusal names."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    CAPACITY = "capacity"  # the service is short of machines: nobody's quota is at fault
    UTILIZATION = "utilization"  # provisioned machines are busy: a matter of milliseconds, and of course
    UNNAMED = "unnamed"


class RefusalKind(StrEnum):
    """Why a deployment turned a request away that no other wording of the request would mend."""

    FORBIDDEN = "forbidden"  # network rules, an abuse block
    NOT_FOUND = "not_found"  # no such deployment, path or api-version
    REDIRECT = "redirect"  # never followed
    TLS = "tls"  # the certificate did not verify
    UNKNOWN_HOST = "unknown_host"
    ORDERED = "ordered"  # throttled, and told not to try again


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A 2xx reply; whether it says what the operation promises is for the operation to judge."""

    name = "answered"


@dataclass(frozen=True, slots=True, kw_only=True)
class BadReply:
    """A 2xx reply that is not what the operation promises, or one too large to read."""

    error: ErrorInfo
    name = "bad_reply"


@dataclass(frozen=True, slots=True, kw_only=True)
class Transient:
    """A fault that another attempt may not meet. `hint_s` is the wait that the service asked for, if any."""

    error: ErrorInfo
    hint_s: float | None = None
    name = "transient"


@dataclass(frozen=True, slots=True, kw_only=True)
class Throttled:
    """Sent too early; never counted as an attempt. `hint_s` is the wait that the service asked for, if any."""

    error: ErrorInfo
    hint_s: float | None
    kind: ThrottleKind
    name = "throttled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unauthorized:
    """The credential was refused."""

    error: ErrorInfo
    name = "unauthorized"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentRefused:
    """The deployment turns everything away; three in a row set it aside."""

    error: ErrorInfo
    kind: RefusalKind
    name = "deployment_refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpentMoney:
    """The account has no money or quota left; waiting does not mend it."""

    error: ErrorInfo
    name = "spent_money"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRefused:
    """The service refuses this request for what it says; sending it again would be refused again."""

    error: ErrorInfo
    name = "row_refused"


Verdict = Answered | BadReply | Transient | Throttled | Unauthorized | DeploymentRefused | SpentMoney | RowRefused
