"""When a refusal is everybody's."""

from __future__ import annotations

import pytest

from pipeline.errors import RefusedError
from pipeline.lanes.breaker import LIMIT, LIMIT_LATER, Breaker
from pipeline.model import ErrorInfo, ErrorType


def error(code: str = "invalid_request_error", param: str | None = None) -> ErrorInfo:
    return ErrorInfo(type=ErrorType.BAD_REQUEST, code=code, message="No.", http_status=400, param=param)


WIDE = [
    error("unsupported_parameter"),
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
    error(param="messages[0].content"),
    error(param="$.input[7]"),
    error(param="input"),
]


@pytest.mark.parametrize("wide", WIDE)
def test_the_twentieth_refusal_of_what_every_row_asks_stops_the_run(wide: ErrorInfo) -> None:
    breaker = Breaker()
    for _ in range(LIMIT - 1):
        assert breaker.holds(wide)
    with pytest.raises(RefusedError, match="No\\. Mend the job file"):
        breaker.holds(wide)


@pytest.mark.parametrize("own", ROWS_OWN)
def test_what_is_wrong_with_a_row_is_the_rows_own(own: ErrorInfo) -> None:
    breaker = Breaker()
    assert not any(breaker.holds(own) for _ in range(2 * LIMIT))


def test_an_answer_ends_the_suspicion() -> None:
    breaker = Breaker()
    for _ in range(LIMIT - 1):
        breaker.holds(WIDE[0])
    breaker.answered()
    assert not breaker.holds(WIDE[0])


def test_refusals_of_different_kinds_are_not_in_a_row() -> None:
    breaker = Breaker()
    assert all(breaker.holds(WIDE[number % 2]) for number in range(3 * LIMIT))


@pytest.mark.parametrize("wide", WIDE)
def test_after_answers_a_hundred_in_a_row_stop_the_run_and_the_later_ones_wait(wide: ErrorInfo) -> None:
    breaker = Breaker()
    breaker.answered()
    held = [breaker.holds(wide) for _ in range(LIMIT_LATER - 1)]
    assert held == [False] * (LIMIT - 1) + [True] * (LIMIT_LATER - LIMIT)
    with pytest.raises(
        RefusedError, match=f"{LIMIT_LATER} requests in a row.*No\\. The first {LIMIT - 1} of their rows"
    ):
        breaker.holds(wide)


@pytest.mark.parametrize("refused", [1, LIMIT, LIMIT_LATER - 1])
def test_an_answer_between_them_begins_the_count_anew(refused: int) -> None:
    breaker = Breaker()
    for _ in range(5):
        breaker.answered()
        for _ in range(refused):
            breaker.holds(WIDE[0])
    breaker.answered()
    assert not breaker.holds(WIDE[0])
