"""Reads what reply headers say of waiting, limits and identity; pure, and unmoved by junk."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import lru_cache

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,15}(?:\.[0-9]{0,15})?|\.[0-9]{1,15})(?:[eE][+-]?[0-9]{1,3})?")
_GO_DURATION = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{1,9})?(?:ms|us|µs|ns|h|m|s))+")
_GO_PART = re.compile(r"([0-9.]+)(ms|us|µs|ns|h|m|s)")
_UNIT_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_RETRY_TEXT = re.compile(
    rb"(?:retry|try again) (?:after|in) ([0-9]{1,7}(?:\.[0-9]{1,6})?) ?(ms|milliseconds?|s\b|seconds?|minutes?)",
    re.IGNORECASE,
)
_TEXT_UNIT_S = {b"ms": 1e-3, b"mi": 60.0, b"s": 1.0, b"se": 1.0}
_SEARCHED_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimits:
    """What a reply says of its deployment's quota, in units a minute; None where it says nothing usable."""

    limit_requests: float | None = None
    limit_tokens: float | None = None
    remaining_requests: float | None = None
    remaining_tokens: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyIds:
    """The identities that Azure's support asks for; None where missing or not printable ASCII of at most 128."""

    request_id: str | None
    apim_request_id: str | None
    region: str | None


def retry_hint_s(headers: Mapping[str, str], body: bytes = b"") -> float | None:
    """Seconds that the service asks to wait, None where it says nothing usable; never negative or infinite.

    Order: retry-after-ms, x-ms-retry-after-ms, Retry-After (seconds, or a date minus the reply's own Date), the text
    "retry after N seconds", x-ratelimit-reset-* (the longer one whose remaining is not above zero). A Retry-After of
    zero says only "not now" and is passed over.
    """
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        milliseconds = _number(headers.get(name))
        if milliseconds is not None and milliseconds > 0:
            return milliseconds / 1000
    value = headers.get("retry-after")
    if value is not None:
        seconds = _number(value)
        if seconds is None:
            seconds = _until(value, headers.get("date"))
        if seconds is not None and seconds > 0:
            return seconds
    seconds = _from_text(body)
    if seconds is not None:
        return seconds
    return _reset_s(headers)


def should_retry(headers: Mapping[str, str]) -> bool | None:
    """Read what x-should-retry orders; None where it is missing or says neither true nor false."""
    return {"true": True, "false": False}.get(headers.get("x-should-retry", "").strip().lower())


def rate_limits(headers: Mapping[str, str]) -> RateLimits | None:
    """Read x-ratelimit-limit-* and -remaining-*; None without a limit. Azure's -1 and other junk say nothing."""
    if "x-ratelimit-limit-requests" not in headers and "x-ratelimit-limit-tokens" not in headers:
        return None
    limit_requests = _number(headers.get("x-ratelimit-limit-requests"))
    limit_tokens = _number(headers.get("x-ratelimit-limit-tokens"))
    return RateLimits(
        limit_requests=limit_requests or None,
        limit_tokens=limit_tokens or None,
        remaining_requests=_number(headers.get("x-ratelimit-remaining-requests")) if limit_requests else None,
        remaining_tokens=_number(headers.get("x-ratelimit-remaining-tokens")) if limit_tokens else None,
    )


def utilization(headers: Mapping[str, str]) -> float | None:
    """Read how full provisioned throughput is: 1.0 is full; None where it says nothing usable."""
    value = headers.get("azure-openai-deployment-utilization")
    percent = _number(value.strip().removesuffix("%")) if value is not None else None
    return None if percent is None else percent / 100


def reply_ids(headers: Mapping[str, str]) -> ReplyIds:
    """Read x-request-id, apim-request-id and x-ms-region."""
    region = headers.get("x-ms-region")
    return ReplyIds(
        request_id=_identity(headers.get("x-request-id")),
        apim_request_id=_identity(headers.get("apim-request-id")),
        region=region if region is not None and len(region) <= 128 and region.isprintable() else None,  # noqa: PLR2004 - as ids
    )


def _identity(value: str | None) -> str | None:
    return value if value is not None and _REQUEST_ID.fullmatch(value) else None


@lru_cache(maxsize=256)  # a service's limits are the same in every reply
def _number(value: str | None) -> float | None:
    if value is None:
        return None
    text = value.strip()
    if not _NUMBER.fullmatch(text):
        return None
    number = float(text)
    return number if math.isfinite(number) and number >= 0 else None


def _duration_s(value: str | None) -> float | None:
    if value is None:
        return None
    text = value.strip()
    if _GO_DURATION.fullmatch(text):
        return sum(float(amount) * _UNIT_S[unit] for amount, unit in _GO_PART.findall(text))
    return _number(text)


def _reset_s(headers: Mapping[str, str]) -> float | None:
    waits = []
    for what in ("requests", "tokens"):
        wait_s = _duration_s(headers.get(f"x-ratelimit-reset-{what}") or headers.get(f"x-rate-limit-reset-{what}"))
        remaining = _number(headers.get(f"x-ratelimit-remaining-{what}"))
        if wait_s and not remaining:
            waits.append(wait_s)
    return max(waits, default=None)


def _until(value: str, date: str | None) -> float | None:
    if date is None:
        return None
    try:
        then, now = parsedate_to_datetime(value), parsedate_to_datetime(date)
    except (ValueError, OverflowError):
        return None
    return (then.replace(tzinfo=then.tzinfo or UTC) - now.replace(tzinfo=now.tzinfo or UTC)).total_seconds()


def _from_text(body: bytes) -> float | None:
    found = _RETRY_TEXT.search(body, 0, _SEARCHED_BYTES)
    if found is None:
        return None
    amount, unit = float(found[1]), found[2].lower()
    return amount * _TEXT_UNIT_S[b"ms" if unit.startswith((b"ms", b"milli")) else unit[:2]] or None
