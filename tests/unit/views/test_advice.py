from __future__ import annotations

import pytest

from pipeline.model import ErrorType
from pipeline.views.advice import advice


@pytest.mark.parametrize("type_", ErrorType)
def test_every_type_of_error_has_something_to_do(type_: ErrorType) -> None:
    said = advice(type_.value, "a code that nobody knows")

    assert said
    assert "{" not in said


def test_a_known_code_says_more_than_its_type() -> None:
    assert advice("BadRequestError", "Content_Filter") != advice("BadRequestError", "another")


def test_a_line_of_the_input_that_is_no_json_is_not_taken_for_an_answer() -> None:
    said = advice("RowError", "invalid_json")

    assert "answer" not in said
    assert "retry" not in said
    assert "input" in said
    assert said != advice("ReplyError", "invalid_json")


def test_what_the_service_could_not_do_then_is_to_be_retried_by_its_type() -> None:
    assert "pipeline retry JOB --only 503" in advice("InternalServerError", "503")
    assert "pipeline retry JOB --only RateLimitError" in advice("RateLimitError", None)
