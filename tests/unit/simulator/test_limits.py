"""Limits and waits are written in every spelling that services were seen to use."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.simulator.config import Quirk
from pipeline.simulator.limits import LimitWriter, go_duration
from pipeline.simulator.quota import Quota

QUOTA = Quota(requests_per_minute=600, tokens_per_minute=1_000)
QUOTA.judge(10.0, 16)
VERDICT = QUOTA.judge(10.4, 20)
WALL_S = 1_767_225_600.25  # 2026-01-01 00:00:00 GMT and a quarter


def limits(*quirks: Quirk, azure: bool = True, speed: float = 1.0) -> dict[str, str]:
    written = LimitWriter(speed=speed, quirks=quirks).limits(VERDICT, azure=azure)
    return {name.decode().removeprefix("x-ratelimit-"): value.decode() for name, value in written}


def waits(wait_s: float, *quirks: Quirk) -> dict[str, str]:
    return LimitWriter(quirks=quirks).waits(wait_s, wall_s=WALL_S)


def test_azure_counts_resets_in_whole_seconds() -> None:
    assert limits() == {
        "limit-requests": "600",
        "remaining-requests": "598",
        "reset-requests": "1",
        "limit-tokens": "1000",
        "remaining-tokens": "964",
        "reset-tokens": "60",
    }


def test_limits_are_those_of_real_time() -> None:
    found = limits(speed=10)
    assert (found["limit-requests"], found["remaining-tokens"], found["reset-tokens"]) == ("6000", "9640", "6")


@pytest.mark.parametrize(
    ("quirks", "azure", "requests", "tokens"),
    [
        ((), False, "600ms", "59.6s"),
        ((Quirk.RESET_DURATIONS,), True, "600ms", "59.6s"),
        ((Quirk.RESET_MILLISECONDS,), True, "600ms", "59600ms"),
        ((Quirk.RESET_MILLISECONDS,), False, "600ms", "59600ms"),
    ],
)
def test_resets_come_as_durations(quirks: tuple[Quirk, ...], azure: bool, requests: str, tokens: str) -> None:  # noqa: FBT001
    found = limits(*quirks, azure=azure)
    assert (found["reset-requests"], found["reset-tokens"]) == (requests, tokens)


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0, b"0ms"), (0.0721, b"73ms"), (1, b"1s"), (59.9996, b"1m0s"), (90.951, b"1m30.951s"), (360, b"6m0s")],
)
def test_a_duration_is_written_as_go_does(seconds: float, written: bytes) -> None:
    assert go_duration(seconds) == written


def test_a_reset_can_be_misspelt() -> None:
    found = limits(Quirk.MISSPELT_RESET)
    assert [name for name in found if "reset" in name] == ["x-rate-limit-reset-requests", "x-rate-limit-reset-tokens"]


def test_limits_can_be_missing_or_negative() -> None:
    assert limits(Quirk.NO_LIMITS) == {}
    assert limits(Quirk.NEGATIVE_LIMITS) == {"limit-tokens": "-1", "remaining-tokens": "-1", "reset-tokens": "0"}


def test_remaining_requests_can_be_those_of_the_short_window() -> None:
    assert limits(Quirk.REMAINING_OF_SLICE)["remaining-requests"] == "8"


def test_limits_that_are_not_judged_are_not_named() -> None:
    found = LimitWriter().limits(replace(VERDICT, requests_limit=None), azure=True)
    assert {name.rpartition(b"-")[2] for name, _ in found} == {b"tokens"}


@pytest.mark.parametrize(
    ("quirks", "written"),
    [
        ((), {"retry-after": "3", "retry-after-ms": "2346"}),
        ((Quirk.RETRY_AFTER_FLOAT,), {"retry-after": "2.345", "retry-after-ms": "2345.1"}),
        ((Quirk.RETRY_AFTER_DATE,), {"retry-after": "Thu, 01 Jan 2026 00:00:03 GMT"}),
        ((Quirk.NO_RETRY_AFTER,), {}),
        ((Quirk.MISSPELT_RESET,), {}),
        ((Quirk.NEGATIVE_LIMITS,), {}),
    ],
)
def test_a_wait_is_written_as_configured(quirks: tuple[Quirk, ...], written: dict[str, str]) -> None:
    assert waits(2.3451, *quirks) == written


def test_a_short_wait_is_a_whole_second() -> None:
    assert waits(0.02) == {"retry-after": "1", "retry-after-ms": "20"}
