"""Says what a reply means: every status and every shape of error body gets one verdict; pure."""

from __future__ import annotations

import re
from typing import Any, assert_never

import orjson

from pipeline.model import ErrorInfo, ErrorType, NoReply, NoReplyKind, Reply
from pipeline.pace.verdict import (
    Answered,
    BadReply,
    DeploymentRefused,
    RefusalKind,
    RowRefused,
    SpentMoney,
    Throttled,
    ThrottleKind,
    Transient,
    Unauthorized,
    Verdict,
)
from pipeline.service.headers import retry_hint_s, should_retry

MESSAGE_CHARS = 500
"""Characters of the service's message that are kept; it may quote the prompt."""
CODE_CHARS = 100
"""Characters of the service's code that are kept."""
PARSED_BYTES = 1 << 20
"""Bytes; a longer error body is taken as plain text."""

TRANSIENT_STATUSES = frozenset({408, 409, 425})
"""The 4xx statuses that another attempt may not meet (the OpenAI SDKs' list and Too Early)."""

_TYPES = {
    400: ErrorType.BAD_REQUEST,
    401: ErrorType.AUTHENTICATION,
    403: ErrorType.PERMISSION_DENIED,
    404: ErrorType.NOT_FOUND,
    409: ErrorType.CONFLICT,
    422: ErrorType.UNPROCESSABLE_ENTITY,
    429: ErrorType.RATE_LIMIT,
}
_NAMES = {
    400: "bad_request",
    401: "unauthorized",
    402: "payment_required",
    403: "forbidden",
    404: "not_found",
    408: "timeout",
    409: "conflict",
    413: "request_too_large",
    415: "unsupported_media_type",
    422: "unprocessable_entity",
    429: "rate_limit_exceeded",
    431: "too_many_headers",
    500: "internal_server_error",
    502: "bad_gateway",
    503: "service_unavailable",
    504: "gateway_timeout",
    529: "overloaded",
}
_SPENT_CODES = frozenset(
    {
        "insufficient_quota",
        "billing_hard_limit_reached",
        "billing_not_active",
        "insufficient_balance",
        "access_terminated",
    }
)
_CAPACITY_WORDS = ("high demand", "temporarily unable", "capacity", "overloaded", "resource unavailable", "flex")
"""What is said where machines are short, those of flex processing included: no quota was exceeded."""
_FILTER_CODES = frozenset({"contentfilter", "responsibleaipolicyviolation"})
_INNER_NAMES = ("innererror", "inner_error", "innerError")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_TAGS = re.compile(r"<(script|style)\b.*?</\1>|<[^>]*>", re.IGNORECASE | re.DOTALL)
_BLANKS = re.compile(r"\s+")


def classify(reply: Reply | NoReply) -> Verdict:  # noqa: PLR0911 - one a row of the table
    """Say what an attempt came to. Never raises, whatever the reply holds."""
    if isinstance(reply, NoReply):
        return _no_reply(reply)
    status = reply.status
    if 200 <= status < 300:  # noqa: PLR2004 - success, by RFC 9110
        return Answered()
    error = error_info(reply)
    if 300 <= status < 400:  # noqa: PLR2004 - redirection, by RFC 9110
        return DeploymentRefused(error=error, kind=RefusalKind.REDIRECT)
    match status:
        case 401:
            return Unauthorized(error=error)
        case 402:
            return SpentMoney(error=error)
        case 403:
            return DeploymentRefused(error=error, kind=RefusalKind.FORBIDDEN)
        case 404:
            return DeploymentRefused(error=error, kind=RefusalKind.NOT_FOUND)
        case 429:
            return _throttled(reply, error)
        case _:
            return _by_order(reply, error)


def error_info(reply: Reply) -> ErrorInfo:
    """Read why a reply is no answer, from every body shape in use.

    The code is the service's own (its innermost where the outer one is only the status again), else the status'
    name; the message is cut to 500 characters with control characters escaped.
    """
    status = reply.status
    code, message, param = _read_body(reply.body)
    name = _NAMES.get(status) or ("redirected" if 300 <= status < 400 else f"http_{status}")  # noqa: PLR2004 - RFC 9110
    if not message:
        message = f"The service answered with status {status} and said nothing more."
    return ErrorInfo(
        type=_TYPES.get(status) or (ErrorType.INTERNAL_SERVER if status >= 500 else ErrorType.API_STATUS),  # noqa: PLR2004 - RFC 9110
        code=code or name,
        message=message,
        http_status=status,
        param=param or None,
    )


def plain(text: str, limit: int = MESSAGE_CHARS) -> str:
    """Cut a foreign text and escape what could forge a line, move a cursor or turn the reading direction."""
    cut = text[:limit]
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), cut)


def _no_reply(reply: NoReply) -> Verdict:
    match reply.kind:
        case NoReplyKind.CONNECT | NoReplyKind.READ | NoReplyKind.TIMEOUT:
            timed_out = reply.kind is NoReplyKind.TIMEOUT
            return Transient(error=_unanswered(reply, ErrorType.API_TIMEOUT if timed_out else ErrorType.API_CONNECTION))
        case NoReplyKind.UNKNOWN_HOST:
            error = _unanswered(reply, ErrorType.API_CONNECTION)
            return DeploymentRefused(error=error, kind=RefusalKind.UNKNOWN_HOST)
        case NoReplyKind.TLS:
            return DeploymentRefused(error=_unanswered(reply, ErrorType.API_CONNECTION), kind=RefusalKind.TLS)
        case NoReplyKind.TOO_LARGE:
            return BadReply(error=ErrorInfo(type=ErrorType.REPLY, code="bad_reply", message=reply.message))
        case _:
            assert_never(reply.kind)


def _unanswered(reply: NoReply, type_: ErrorType) -> ErrorInfo:
    return ErrorInfo(type=type_, code=reply.kind.value, message=reply.message)


def _throttled(reply: Reply, error: ErrorInfo) -> Verdict:
    text = error.message.lower()
    code = error.code.lower()
    if code in _SPENT_CODES or "exceeded your current quota" in text:
        return SpentMoney(error=error)
    if "request too large" in text or "must be reduced" in text:
        return RowRefused(error=error)
    if should_retry(reply.headers) is False:
        # Being throttled is no fault of the rows: the deployment is left alone instead.
        return DeploymentRefused(error=error, kind=RefusalKind.ORDERED)
    return Throttled(
        error=error, hint_s=retry_hint_s(reply.headers, reply.body), kind=_throttle_kind(reply, text, code)
    )


def _throttle_kind(reply: Reply, text: str, code: str) -> ThrottleKind:
    policy = reply.headers.get("policy-id", "").lower()
    if policy.endswith("-token") or "token rate limit" in text or "tokens per min" in text or code == "tokens":
        return ThrottleKind.TOKENS
    if policy.endswith("-call") or "call rate limit" in text or "requests per" in text or code == "requests":
        return ThrottleKind.REQUESTS
    if "azure-openai-deployment-utilization" in reply.headers or "utilization" in text:
        return ThrottleKind.UTILIZATION
    if code == "resource_unavailable" or any(word in text for word in _CAPACITY_WORDS):
        return ThrottleKind.CAPACITY
    return ThrottleKind.UNNAMED


def _by_order(reply: Reply, error: ErrorInfo) -> Verdict:
    """Judge a status that x-should-retry may overrule."""
    ordered = should_retry(reply.headers)
    status = reply.status
    hint_s = retry_hint_s(reply.headers)
    again = status >= 500 or status < 200 or status in TRANSIENT_STATUSES  # noqa: PLR2004 - RFC 9110
    if error.code != "content_filter" and (ordered if ordered is not None else again):
        if status == 503 and hint_s is not None:  # noqa: PLR2004 - Service Unavailable
            return Throttled(error=error, hint_s=hint_s, kind=ThrottleKind.UNNAMED)
        return Transient(error=error, hint_s=hint_s)
    return RowRefused(error=error)


def _read_body(body: bytes) -> tuple[str, str, str]:
    """Return the code, the message and the field that a body names, each empty where it names none."""
    if not body.strip():
        return "", "", ""
    parsed: Any = None
    if len(body) <= PARSED_BYTES:
        try:
            parsed = orjson.loads(body)
        except (orjson.JSONDecodeError, RecursionError):
            parsed = None
    match parsed:
        case {"error": dict(error)} | [{"error": dict(error)}, *_]:
            return _read_object(error)
        case {"error": str(message), **others}:
            return _code(others.get("code")), plain(message), ""
        case dict(error) | [dict(error), *_]:
            return _read_object(error)
        case str():
            return "", plain(parsed), ""
        case _:
            text = body[: 16 * MESSAGE_CHARS].decode("utf-8", "replace")
            if text.lstrip().startswith("<"):
                text = _BLANKS.sub(" ", _TAGS.sub(" ", text)).strip()
            return "", plain(text), ""


def _read_object(error: dict[str, Any]) -> tuple[str, str, str]:
    inner = next((found for name in _INNER_NAMES if isinstance(found := error.get(name), dict)), {})
    code = _code(error.get("code")) or _code(error.get("type")) or _code(inner.get("code"))
    for found in (code, _code(inner.get("code"))):
        if found.replace("_", "").lower() in _FILTER_CODES:
            code = "content_filter"
    param = _code(error.get("param"))
    for name in ("message", "detail", "error_description", "title"):
        said = error.get(name)
        if said:
            return code, plain(said if isinstance(said, str) else _as_json(said)), param
    return code, "", param


def _as_json(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:  # it reads deeper than it writes
        return ""


def _code(value: Any) -> str:
    """Return a code worth keeping: a status written as a number or text is none."""
    if not isinstance(value, str):
        return ""
    code = value.strip()
    return "" if code.isdigit() else plain(code, CODE_CHARS)
