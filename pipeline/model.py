"""The values that walk through the house: rows in, items asked, replies back, results kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

CHUNK = "chunk"
"""The result column of operations whose rows may come as several pieces: the piece's number, from 0."""


class ErrorType(StrEnum):
    """Who or what failed a row: the OpenAI SDKs' class names, then four of our own."""

    BAD_REQUEST = "BadRequestError"
    AUTHENTICATION = "AuthenticationError"
    PERMISSION_DENIED = "PermissionDeniedError"
    NOT_FOUND = "NotFoundError"
    CONFLICT = "ConflictError"
    UNPROCESSABLE_ENTITY = "UnprocessableEntityError"
    RATE_LIMIT = "RateLimitError"
    INTERNAL_SERVER = "InternalServerError"
    API_STATUS = "APIStatusError"
    API_CONNECTION = "APIConnectionError"
    API_TIMEOUT = "APITimeoutError"
    ROW = "RowError"
    TEMPLATE = "TemplateError"
    MEDIA = "MediaError"
    REPLY = "ReplyError"


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorInfo:
    """Why a row failed, as its `error` column says it. `http_status` is None when nothing was answered.

    `param` is the field of the request that the service names, if it names one; it is not kept in the column.
    """

    type: ErrorType
    code: str
    message: str
    http_status: int | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One input row. `values` holds at least the columns that the job's templates name, as Python values."""

    ordinal: int
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """An input row that cannot be asked; it becomes a failed row and never stops the run."""

    ordinal: int
    error: ErrorInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One row, rendered and checked, ready to be packed into a request.

    `content` is the operation's own and opaque to everybody else. `tokens` is the admission
    estimate in tokens (prompt and the most it may answer). `reply_bytes` is the size expected
    of its share of the reply. `inputs` is how many of the inputs that a request may have it takes.
    `output_tokens` is what of the estimate is for its answer.
    """

    ordinal: int
    content: Any
    tokens: int
    reply_bytes: int = 0
    inputs: int = 1
    output_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What an operation must know of the deployment it builds a request for.

    `body_model` is the value of the body's `model` field, None where the path names the deployment.
    `model` is what stands behind the deployment (token counts, prices, vector size). `api` is the family of its paths:
    azure, azure-v1 or openai; `api_version` what its queries say, None where they say nothing.
    """

    deployment: str
    model: str
    body_model: str | None
    api: str = "azure"
    api_version: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One HTTP request's worth, before an address and credentials are put to it.

    `endpoint` is the path below the base, such as "chat/completions". `tokens` is the admission estimate.
    `stream` asks for the moments at which the reply's bytes came (`Reply.arrivals`).
    `shows_end` says that an answer cannot be cut without its showing, as JSON cannot. Any other is asked for without
    compression, so that the reply itself says where it ends (`Reply.framed`).
    """

    endpoint: str
    body: bytes
    tokens: int
    content_type: str = "application/json"
    accept: str = "application/json"
    stream: bool = False
    shows_end: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came back of one attempt: any status, the whole body, header names in lower case.

    `arrivals`, of a reply that was asked for as a stream: pairs of how many bytes of the body had come, and after how
    many ms, in order. `framed` says that the reply told where its body ends (RFC 9112, 6.3: a length or chunks; HTTP/2
    always does). One that ends with its connection may have been cut anywhere.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    latency_ms: float
    arrivals: tuple[tuple[int, float], ...] = ()
    framed: bool = True


class NoReplyKind(StrEnum):
    """Why an attempt ended without a whole reply."""

    CONNECT = "connect"  # refused, reset, name not found for now: nothing was sent
    UNKNOWN_HOST = "unknown_host"  # the name does not exist
    TLS = "tls"  # the certificate did not verify
    READ = "read"  # the connection failed, or the body was cut, after sending began
    TIMEOUT = "timeout"  # the attempt's total deadline, or a connect, read or write limit, passed
    TOO_LARGE = "too_large"  # the body passed the cap, counted after decompression


@dataclass(frozen=True, slots=True, kw_only=True)
class NoReply:
    """An attempt without a whole reply. `message` is ours and holds no URL, header or body."""

    kind: NoReplyKind
    message: str
    latency_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What the service says it counted; None where it said nothing."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    seconds: float | None = None
    characters: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFile:
    """Speech or a picture to be kept as `media/ORDINAL.SUFFIX`; the row's `column` then holds that path.

    `suffix` is the operation's own word, such as mp3, never the service's or a row's.
    """

    column: str
    suffix: str
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RowResult:
    """One row's end: `values` of the operation's columns when ok, else `error`.

    Where `CHUNK` is among the columns, each value is a list with an entry for every piece of the row.

    `response` is the reply's JSON, kept or dropped by `output.raw`; `model` who answered, where the reply says so.
    What is not yet an end asks for more: `files` to be written, `fetch`, a URL whose content completes the result
    (`Fetching.fetched`), or `again`, the item to be sent once more in this one's place: what came stands if that
    fails, unless `values` is None. The row has the usage of both.
    """

    ordinal: int
    values: Mapping[str, Any] | None = None
    error: ErrorInfo | None = None
    usage: Usage | None = None
    response: bytes | None = None
    model: str | None = None
    files: tuple[OutputFile, ...] = ()
    fetch: str | None = None
    again: Item | None = None

    @property
    def ok(self) -> bool:
        """True when the row has an answer."""
        return self.error is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One sending of a request, as `attempts/*.parquet` and the log keep it. Times: epoch seconds, ms."""

    ordinals: tuple[int, ...]
    deployment: str
    started_at: float
    latency_ms: float
    status: int | None
    verdict: str
    code: str | None
    client_request_id: str
    request_id: str | None
    apim_request_id: str | None
    region: str | None
    estimated_tokens: int
    input_tokens: int | None
    output_tokens: int | None
    retry_after_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestInfo:
    """The `request` column: who answered, under which ids. Ids are None when nothing was sent."""

    attempts: int = 0
    deployment: str | None = None
    model: str | None = None
    variant: str | None = None
    client_request_id: str | None = None
    request_id: str | None = None
    apim_request_id: str | None = None
    region: str | None = None
    latency_ms: float | None = None
    finished_at: float | None = None

    @property
    def is_copy(self) -> bool:
        """Whether it was another row's, whose answer was given to this one."""
        return not self.attempts and self.client_request_id is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenFile:
    """A file of the output folder that belongs to a row. `name` is its path below the folder."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one request came to: committed whole, or not at all. `files` were written before.

    `batched`: it went through the Batch API, at its price. `carried`: an earlier run paid for it.
    """

    rows: tuple[RowResult, ...]
    request: RequestInfo
    attempts: tuple[Attempt, ...] = ()
    files: tuple[WrittenFile, ...] = ()
    batched: bool = False
    carried: bool = False
