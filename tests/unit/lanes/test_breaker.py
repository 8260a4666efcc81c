"""When a refusal is everybody's."""

from __future__ import annotations

import pytest

from pipeline.errors import RefusedError
from pipeline.lanes.breaker import Breaker, Suspicion
from pipeline.model import ErrorInfo, ErrorType

LIMIT, LIMIT_LATER = 20, 100


def error(code: str = "invalid_request_error", param: str | None = None) -> ErrorInfo:
    return ErrorInfo(type=ErrorType.BAD_REQUEST, code=code, message="No.", http_status=400, param=param)


WIDE = [
    error("unsupported_parameter"),
    error("unsupported_value"),
    error("unsupported_value", "temperature"),
    error("OperationNotSupported"),
    error(param="dimensions"),
    error(param="response_format.json_schema"),
    error(param="$.tools[0].function"),
]
ROWS_OWN = [
    error(),
    error("content_filter", "prompt"),
    error("content_filter", "anything"),
    error("context_length_exceeded", "messages"),
    error("invalid_value", "file"),
    error(param="messages[0].content"),
    error(param="$.input[7]"),
    error(param="input"),
]


@pytest.mark.parametrize("wide", WIDE)
def test_the_twentieth_refusal_of_what_every_row_asks_stops_the_run(wide: ErrorInfo) -> None:
    breaker = Breaker()
    for _ in range(LIMIT - 1):
        assert breaker.suspects(wide) is Suspicion.ASK_AGAIN
    with pytest.raises(RefusedError, match="No\\. Mend the job file"):
        breaker.suspects(wide)


@pytest.mark.parametrize("own", ROWS_OWN)
def test_what_is_wrong_with_a_row_is_the_rows_own(own: ErrorInfo) -> None:
    breaker = Breaker()
    assert {breaker.suspects(own) for _ in range(2 * LIMIT_LATER)} == {Suspicion.NONE}


@pytest.mark.parametrize(
    ("refusal", "rows_own", "wide"),
    [
        (error("unsupported_value", "voice"), frozenset({"voice"}), False),
        (error("invalid_value", "voice"), frozenset({"voice"}), False),
        (error("invalid_value", "speed"), frozenset({"voice"}), True),
        (error("unsupported_parameter", "voice"), frozenset({"voice"}), True),
        (error("unsupported_value", "voice"), None, False),
        (error("invalid_value", "anything"), None, False),
        (error("unsupported_parameter", "anything"), None, True),
    ],
)
def test_a_value_that_rows_fill_is_their_own_and_a_parameter_that_nobody_may_send_is_not(
    refusal: ErrorInfo,
    rows_own: frozenset[str] | None,
    wide: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    assert (Breaker(rows_own).suspects(refusal) is not Suspicion.NONE) is wide


def test_an_answer_ends_the_suspicion() -> None:
    breaker = Breaker()
    for _ in range(LIMIT - 1):
        breaker.suspects(WIDE[0])
    breaker.answered()
    assert breaker.suspects(WIDE[0]) is Suspicion.HOLD_BACK


def test_refusals_of_different_kinds_are_not_in_a_row() -> None:
    breaker = Breaker()
    for number in range(3 * LIMIT):
        assert breaker.suspects(WIDE[number % 2]) is Suspicion.ASK_AGAIN


def test_a_hundred_refusals_that_all_differ_stop_a_run_that_was_never_answered() -> None:
    breaker = Breaker()
    for number in range(LIMIT_LATER - 1):
        assert breaker.suspects(error(param=f"field_{number}")) is Suspicion.ASK_AGAIN
    with pytest.raises(RefusedError, match=f"each of the first {LIMIT_LATER} requests.*No\\. .*no row was failed"):
        breaker.suspects(error(param="another"))


def test_refusals_that_differ_are_held_back_however_many_once_there_was_an_answer() -> None:
    breaker = Breaker()
    breaker.answered()
    for number in range(3 * LIMIT_LATER):
        assert breaker.suspects(error(param=f"field_{number}")) is Suspicion.HOLD_BACK


@pytest.mark.parametrize("wide", WIDE)
def test_after_answers_a_hundred_in_a_row_stop_the_run_and_all_before_are_held_back(wide: ErrorInfo) -> None:
    breaker = Breaker()
    breaker.answered()
    for _ in range(LIMIT_LATER - 1):
        assert breaker.suspects(wide) is Suspicion.HOLD_BACK
    with pytest.raises(RefusedError, match=f"{LIMIT_LATER} requests in a row.*No\\. .*no row was failed by this"):
        breaker.suspects(wide)


@pytest.mark.parametrize("refused", [1, LIMIT, LIMIT_LATER - 1])
def test_an_answer_between_them_begins_the_count_anew(refused: int) -> None:
    breaker = Breaker()
    for _ in range(5):
        breaker.answered()
        for _ in range(refused):
            assert breaker.suspects(WIDE[0]) is Suspicion.HOLD_BACK
