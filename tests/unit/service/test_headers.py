"""What reply headers say, in every spelling and in junk."""

from __future__ import annotations

import pytest

from pipeline.service.headers import RateLimits, rate_limits, reply_ids, retry_hint_s, should_retry

DATE = "Sun, 22 Nov 2026 10:00:00 GMT"


@pytest.mark.parametrize(
    ("headers", "hint_s"),
    [
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "1500.5"}, 1.5005),
        ({"retry-after-ms": " 20 "}, 0.02),
        ({"x-ms-retry-after-ms": "250"}, 0.25),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "86400"}, 86400),
        ({"retry-after": "1e2"}, 100),
        ({"retry-after-ms": "100", "x-ms-retry-after-ms": "200", "retry-after": "3"}, 0.1),
        ({"x-ms-retry-after-ms": "200", "retry-after": "3"}, 0.2),
        ({"retry-after-ms": "junk", "retry-after": "3"}, 3),
        ({"retry-after-ms": "-1", "retry-after": "3"}, 3),
        ({"retry-after-ms": "0", "retry-after": "3"}, 3),
        ({"retry-after": "Sun, 22 Nov 2026 10:00:30 GMT", "date": DATE}, 30),
        ({"retry-after": "Sun, 22 Nov 2026 09:00:00 GMT", "date": DATE}, None),
        ({"retry-after": "Sun, 22 Nov 2026 10:00:30 GMT"}, None),
        ({"retry-after": "Sun, 22 Nov 2026 10:00:30 GMT", "date": "junk"}, None),
        ({"retry-after": "Sun, 99 Nov 2026 10:00:30 GMT", "date": DATE}, None),
        ({"retry-after": "0", "x-ratelimit-reset-requests": "4"}, 4),
        ({"x-ratelimit-reset-requests": "10"}, 10),
        ({"x-ratelimit-reset-tokens": "6m0s"}, 360),
        ({"x-ratelimit-reset-tokens": "1m30.951s"}, 90.951),
        ({"x-ratelimit-reset-tokens": "4h43m36.314s"}, 17016.314),
        ({"x-ratelimit-reset-requests": "72ms"}, 0.072),
        ({"x-rate-limit-reset-tokens": "9"}, 9),
        ({"x-ratelimit-reset-requests": "3", "x-ratelimit-reset-tokens": "5"}, 5),
        ({"x-ratelimit-reset-requests": "3", "x-ratelimit-reset-tokens": "5", "x-ratelimit-remaining-tokens": "8"}, 3),
        ({"x-ratelimit-reset-tokens": "0"}, None),
        ({}, None),
    ],
    ids=str,
)
def test_a_hint_is_read_in_every_spelling(headers: dict[str, str], hint_s: float | None) -> None:
    assert retry_hint_s(headers) == (None if hint_s is None else pytest.approx(hint_s))


@pytest.mark.parametrize(
    "name",
    ["retry-after-ms", "x-ms-retry-after-ms", "retry-after", "x-ratelimit-reset-tokens", "x-ratelimit-reset-requests"],
)
@pytest.mark.parametrize(
    "junk",
    ["nan", "inf", "-inf", "Infinity", "-1", "-0.1", "1e400", "", " ", "soon", "0x10", "1_0", "٣", "1" * 400, "0"],
)
def test_junk_is_no_hint(name: str, junk: str) -> None:
    assert retry_hint_s({name: junk, "date": DATE}) is None


@pytest.mark.parametrize(
    ("body", "hint_s"),
    [
        (b'{"error":{"code":"429","message":"... Please retry after 45 seconds."}}', 45),
        (b'{"error":{"message":"Please retry after 1 second."}}', 1),
        (b"Please try again in 6ms. Visit", 0.006),
        (b"Please try again in 1.242s.", 1.242),
        (b"try again in 2 minutes", 120),
        (b"retry after 500 milliseconds", 0.5),
        (b"retry after some seconds", None),
        (b"retry after 0 seconds", None),
        (b"x" * 5000 + b"retry after 45 seconds", None),
    ],
)
def test_a_hint_is_read_from_text(body: bytes, hint_s: float | None) -> None:
    assert retry_hint_s({}, body) == hint_s


def test_headers_come_before_text() -> None:
    assert retry_hint_s({"retry-after": "2"}, b"retry after 45 seconds") == 2


@pytest.mark.parametrize(
    ("value", "said"), [("true", True), ("false", False), (" True ", True), ("1", None), ("", None), (None, None)]
)
def test_x_should_retry_says_true_false_or_nothing(value: str | None, said: bool | None) -> None:  # noqa: FBT001 - expected
    assert should_retry({} if value is None else {"x-should-retry": value}) is said


@pytest.mark.parametrize(
    ("headers", "limits"),
    [
        ({}, None),
        ({"x-ratelimit-remaining-tokens": "5"}, None),
        (
            {
                "x-ratelimit-limit-requests": "100",
                "x-ratelimit-limit-tokens": "450000",
                "x-ratelimit-remaining-requests": "99",
                "x-ratelimit-remaining-tokens": "0",
            },
            RateLimits(limit_requests=100, limit_tokens=450000, remaining_requests=99, remaining_tokens=0),
        ),
        ({"x-ratelimit-limit-tokens": "-1", "x-ratelimit-remaining-tokens": "-1"}, RateLimits()),
        ({"x-ratelimit-limit-tokens": "0", "x-ratelimit-remaining-tokens": "7"}, RateLimits()),
        ({"x-ratelimit-limit-requests": "nan", "x-ratelimit-limit-tokens": "9"}, RateLimits(limit_tokens=9)),
    ],
    ids=str,
)
def test_limits_are_read_and_junk_says_nothing(headers: dict[str, str], limits: RateLimits | None) -> None:
    assert rate_limits(headers) == limits


@pytest.mark.parametrize("value", ["", "a b", "a\nb", "é", "x" * 129, "\x7f"])
def test_an_id_that_is_not_printable_ascii_is_no_id(value: str) -> None:
    ids = reply_ids({"x-request-id": value, "apim-request-id": value})
    assert (ids.request_id, ids.apim_request_id) == (None, None)


def test_ids_and_region_are_read() -> None:
    ids = reply_ids({"x-request-id": "req_1", "apim-request-id": "a-b", "x-ms-region": "East US 2"})
    assert (ids.request_id, ids.apim_request_id, ids.region) == ("req_1", "a-b", "East US 2")


@pytest.mark.parametrize("value", ["a\x1b[0m", "x" * 129, "\u202e"])
def test_a_region_that_could_forge_a_line_is_none(value: str) -> None:
    assert reply_ids({"x-ms-region": value}).region is None
