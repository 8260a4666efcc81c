"""Every status and every shape of error body gets one verdict."""

from __future__ import annotations

import json

import pytest

from pipeline.model import ErrorType, NoReply, NoReplyKind, Reply
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
from pipeline.service.classify import classify, error_info

FILTERED = {"hate": {"filtered": False, "severity": "safe"}, "jailbreak": {"detected": True, "filtered": True}}
SHAPES: dict[str, bytes] = {
    "code": b'{"error":{"code":"some_code","message":"said","param":null,"type":"t","innererror":{}}}',
    "code is the status": b'{"error":{"code":"429","message":"said"}}',
    "code is a number": b'{"error":{"code":400,"message":"said"}}',
    "code is null": b'{"error":{"code":null,"message":"said","type":null}}',
    "no wrapper": b'{"statusCode":401,"message":"said"}',
    "authoring": b'{"error":{"code":"invalidPayload","message":"said","target":"x","details":[],"innererror":{}}}',
    "bare": b'{"code":"some_code","message":"said"}',
    "error is text": b'{"error":"said"}',
    "detail": b'{"detail":[{"loc":["body"],"msg":"said"}]}',
    "list": b'[{"error":{"code":"c","message":"said"}}]',
    "text": b"said",
    "html": b"<html><head><style>p{}</style></head><body><h1>said</h1></body></html>",
    "empty": b"",
    "blank": b" \n",
    "null": b"null",
    "list of nothing": b"[]",
    "object of nothing": b"{}",
    "error of nothing": b'{"error":{}}',
    "error is null": b'{"error":null}',
    "wrong types": b'{"error":{"code":["x"],"message":{"a":1},"innererror":"x","type":3}}',
    "not utf-8": b"\xff\xfesaid",
    "deep": b"[" * 100_000,
    "deep object": b'{"error":' * 10_000 + b"1" + b"}" * 10_000,
    "big": b'{"error":{"message":"' + b"x" * 2_000_000 + b'"}}',
    "lone surrogate": b'{"error":{"message":"\\ud800"}}',
}


def reply(status: int, body: bytes = b"", **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status=status, headers=named, body=body, latency_ms=1.0)


def expected(status: int) -> type[Verdict]:
    if 200 <= status < 300:
        return Answered
    if 300 <= status < 400 or status in {403, 404}:
        return DeploymentRefused
    if status < 200 or status >= 500 or status in {408, 409, 425}:
        return Transient
    return {401: Unauthorized, 402: SpentMoney, 429: Throttled}.get(status, RowRefused)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_status_with_every_shape_has_its_verdict_and_a_usable_error(shape: str) -> None:
    for status in range(100, 600):
        verdict = classify(reply(status, SHAPES[shape]))
        assert type(verdict) is expected(status), status
        if not isinstance(verdict, Answered):
            error = verdict.error
            assert error.http_status == status
            assert 0 < len(error.code) <= 100
            assert 0 < len(error.message) <= 5500
            assert error.message.isprintable()
            error.message.encode()
            error.code.encode()


@pytest.mark.parametrize("shape", [name for name, body in SHAPES.items() if b"said" in body])
def test_what_the_service_said_is_kept(shape: str) -> None:
    assert "said" in error_info(reply(400, SHAPES[shape])).message


@pytest.mark.parametrize(
    ("status", "type_", "code"),
    [
        (400, ErrorType.BAD_REQUEST, "bad_request"),
        (401, ErrorType.AUTHENTICATION, "unauthorized"),
        (402, ErrorType.API_STATUS, "payment_required"),
        (403, ErrorType.PERMISSION_DENIED, "forbidden"),
        (404, ErrorType.NOT_FOUND, "not_found"),
        (408, ErrorType.API_STATUS, "timeout"),
        (409, ErrorType.CONFLICT, "conflict"),
        (413, ErrorType.API_STATUS, "request_too_large"),
        (415, ErrorType.API_STATUS, "unsupported_media_type"),
        (418, ErrorType.API_STATUS, "http_418"),
        (422, ErrorType.UNPROCESSABLE_ENTITY, "unprocessable_entity"),
        (429, ErrorType.RATE_LIMIT, "rate_limit_exceeded"),
        (431, ErrorType.API_STATUS, "too_many_headers"),
        (499, ErrorType.API_STATUS, "http_499"),
        (500, ErrorType.INTERNAL_SERVER, "internal_server_error"),
        (502, ErrorType.INTERNAL_SERVER, "bad_gateway"),
        (503, ErrorType.INTERNAL_SERVER, "service_unavailable"),
        (504, ErrorType.INTERNAL_SERVER, "gateway_timeout"),
        (529, ErrorType.INTERNAL_SERVER, "overloaded"),
        (599, ErrorType.INTERNAL_SERVER, "http_599"),
        (299, ErrorType.API_STATUS, "http_299"),
        (300, ErrorType.API_STATUS, "redirected"),
        (302, ErrorType.API_STATUS, "redirected"),
        (399, ErrorType.API_STATUS, "redirected"),
    ],
)
def test_an_error_without_a_code_is_called_by_its_status(status: int, type_: ErrorType, code: str) -> None:
    error = error_info(reply(status, b'{"error":{"code":"%d","message":"m"}}' % status))
    assert (error.type, error.code) == (type_, code)


@pytest.mark.parametrize("inner", ["innererror", "inner_error", "innerError"])
@pytest.mark.parametrize("result", ["content_filter_result", "content_filter_results"])
def test_a_filtered_prompt_is_a_rows_content_filter_in_all_four_spellings(inner: str, result: str) -> None:
    innermost = {"code": "ResponsibleAIPolicyViolation", result: FILTERED}
    for code in ("content_filter", None, "400", "contentFilter", "invalid_request_error"):
        error = {"message": "filtered", "type": None, "param": "prompt", "code": code, "status": 400, inner: innermost}
        verdict = classify(reply(400, json.dumps({"error": error}).encode(), x_should_retry="true"))
        assert isinstance(verdict, RowRefused)
        assert verdict.error.code == "content_filter"


@pytest.mark.parametrize("code", ["context_length_exceeded", "unsupported_parameter", "invalid_request_error"])
def test_a_rows_own_code_is_kept(code: str) -> None:
    assert error_info(reply(400, json.dumps({"error": {"code": code, "message": "m"}}).encode())).code == code


@pytest.mark.parametrize(
    ("body", "headers", "kind"),
    [
        (b"have exceeded token rate limit of your current OpenAI S0 pricing tier", {}, ThrottleKind.TOKENS),
        (b"have exceeded call rate limit of your current AIServices S0 pricing tier", {}, ThrottleKind.REQUESTS),
        (b"x", {"policy_id": "DeploymentRatelimit-Token"}, ThrottleKind.TOKENS),
        (b"x", {"policy_id": "DeploymentRatelimit-Call"}, ThrottleKind.REQUESTS),
        (
            b'{"error":{"type":"tokens","message":"Rate limit reached on tokens per min (TPM)"}}',
            {},
            ThrottleKind.TOKENS,
        ),
        (b"Rate limit reached on requests per min (RPM)", {}, ThrottleKind.REQUESTS),
        (b"The system is currently experiencing high demand and cannot process", {}, ThrottleKind.CAPACITY),
        (b"The service is temporarily unable to process your request", {}, ThrottleKind.CAPACITY),
        (b'{"error":{"code":"resource_unavailable","message":"Resource Unavailable"}}', {}, ThrottleKind.CAPACITY),
        (b"No flex processing is available now", {}, ThrottleKind.CAPACITY),
        (b"Not enough capacity", {}, ThrottleKind.CAPACITY),
        (b"The engine is overloaded", {}, ThrottleKind.CAPACITY),
        (b"Resource unavailable", {}, ThrottleKind.CAPACITY),
        (b'{"error":{"code":"resource_unavailable","message":"x"}}', {}, ThrottleKind.CAPACITY),
        (b'{"error":{"code":"Tokens","message":"x"}}', {}, ThrottleKind.TOKENS),
        (b'{"error":{"code":"Requests","message":"x"}}', {}, ThrottleKind.REQUESTS),
        (b"more than 100 tokens per minute", {}, ThrottleKind.TOKENS),
        (b"more than 10 Requests per second", {}, ThrottleKind.REQUESTS),
        (b"Utilization of the deployment is above 100 %", {}, ThrottleKind.UTILIZATION),
        (b"x", {"policy_id": "DeploymentRatelimit-Other"}, ThrottleKind.UNNAMED),
        (b"x", {"azure_openai_deployment_utilization": "101.2%", "retry_after_ms": "80"}, ThrottleKind.UTILIZATION),
        (b"over capacity", {"azure_openai_deployment_utilization": "101.2%"}, ThrottleKind.UTILIZATION),
        (b"x", {"retry_after_ms": "80"}, ThrottleKind.UNNAMED),
        (b"", {}, ThrottleKind.UNNAMED),
    ],
)
def test_a_429_says_which_limit(body: bytes, headers: dict[str, str], kind: ThrottleKind) -> None:
    verdict = classify(reply(429, body, **headers))
    assert isinstance(verdict, Throttled)
    assert verdict.kind is kind


SPENT = ["insufficient_quota", "billing_hard_limit_reached", "billing_not_active"]
SPENT += ["insufficient_balance", "access_terminated", "Insufficient_Quota"]


@pytest.mark.parametrize("code", SPENT)
def test_spent_money_is_no_throttling(code: str) -> None:
    body = json.dumps({"error": {"code": code, "message": "You exceeded", "type": code}}).encode()
    assert isinstance(classify(reply(429, body, retry_after="1")), SpentMoney)


def test_spent_money_may_be_said_in_words_alone() -> None:
    assert isinstance(classify(reply(429, b"You exceeded your current quota, check your plan")), SpentMoney)


@pytest.mark.parametrize(
    "words", ["Request too large for m: Limit 3, Requested 4.", "The input or output must be reduced"]
)
def test_a_request_larger_than_the_quota_is_refused_for_good(words: str) -> None:
    body = json.dumps({"error": {"message": words, "code": "rate_limit_exceeded"}}).encode()
    assert isinstance(classify(reply(429, body)), RowRefused)


@pytest.mark.parametrize(
    ("body", "headers", "hint_s"),
    [(b"x", {"retry_after_ms": "80"}, 0.08), (b"Please retry after 7 seconds.", {}, 7.0), (b"x", {}, None)],
)
def test_a_429_carries_the_hint_of_its_headers_or_its_text(
    body: bytes, headers: dict[str, str], hint_s: float | None
) -> None:
    verdict = classify(reply(429, body, **headers))
    assert isinstance(verdict, Throttled)
    assert verdict.hint_s == hint_s
    assert verdict.error.http_status == 429


def test_throttled_and_told_not_to_try_again_is_the_deployments_matter_and_no_rows() -> None:
    verdict = classify(reply(429, b"slow down", x_should_retry="false", retry_after="1"))
    assert isinstance(verdict, DeploymentRefused)
    assert verdict.kind is RefusalKind.ORDERED
    assert isinstance(classify(reply(429, b"slow down", x_should_retry="true")), Throttled)


def test_a_503_with_a_hint_is_throttling_and_without_one_is_not() -> None:
    hinted = classify(reply(503, retry_after="3"))
    assert isinstance(hinted, Throttled)
    assert (hinted.hint_s, hinted.kind) == (3, ThrottleKind.UNNAMED)
    assert classify(reply(503)) == Transient(error=hinted.error, hint_s=None)


def test_another_fault_with_a_hint_is_a_fault_that_keeps_its_hint() -> None:
    verdict = classify(reply(500, retry_after="3"))
    assert isinstance(verdict, Transient)
    assert verdict.hint_s == 3


@pytest.mark.parametrize("status", [400, 408, 413, 422, 500, 502, 504])
def test_x_should_retry_is_obeyed(status: int) -> None:
    assert isinstance(classify(reply(status, x_should_retry="true")), Transient)
    assert isinstance(classify(reply(status, x_should_retry="false")), RowRefused)


def test_every_kind_of_no_reply_has_its_verdict() -> None:
    verdicts = {
        NoReplyKind.CONNECT: Transient,
        NoReplyKind.READ: Transient,
        NoReplyKind.TIMEOUT: Transient,
        NoReplyKind.UNKNOWN_HOST: DeploymentRefused,
        NoReplyKind.TLS: DeploymentRefused,
        NoReplyKind.TOO_LARGE: BadReply,
    }
    assert set(verdicts) == set(NoReplyKind)
    for kind, verdict in verdicts.items():
        assert type(classify(NoReply(kind=kind, message="m", latency_ms=1.0))) is verdict


@pytest.mark.parametrize(
    ("kind", "type_", "code"),
    [
        (NoReplyKind.CONNECT, ErrorType.API_CONNECTION, "connect"),
        (NoReplyKind.READ, ErrorType.API_CONNECTION, "read"),
        (NoReplyKind.TIMEOUT, ErrorType.API_TIMEOUT, "timeout"),
        (NoReplyKind.UNKNOWN_HOST, ErrorType.API_CONNECTION, "unknown_host"),
        (NoReplyKind.TLS, ErrorType.API_CONNECTION, "tls"),
        (NoReplyKind.TOO_LARGE, ErrorType.REPLY, "bad_reply"),
    ],
)
def test_what_never_was_a_reply_is_called_by_its_kind(kind: NoReplyKind, type_: ErrorType, code: str) -> None:
    verdict = classify(NoReply(kind=kind, message="the words", latency_ms=1.0))
    assert isinstance(verdict, Transient | DeploymentRefused | BadReply)
    error = verdict.error
    assert (error.type, error.code, error.message, error.http_status) == (type_, code, "the words", None)


@pytest.mark.parametrize(("kind", "refusal"), [
    (NoReplyKind.UNKNOWN_HOST, RefusalKind.UNKNOWN_HOST), (NoReplyKind.TLS, RefusalKind.TLS)
])  # fmt: skip
def test_a_host_that_is_not_there_or_not_itself_is_the_deployments_matter(
    kind: NoReplyKind, refusal: RefusalKind
) -> None:
    verdict = classify(NoReply(kind=kind, message="m", latency_ms=1.0))
    assert isinstance(verdict, DeploymentRefused)
    assert verdict.kind is refusal


@pytest.mark.parametrize(
    ("body", "code", "message", "param"),
    [
        ({"error": {"code": "c", "message": "m", "param": "p"}}, "c", "m", "p"),
        ({"error": {"code": "c", "message": "m", "param": ""}}, "c", "m", None),
        ({"error": {"code": "400", "type": "t", "message": "m", "innererror": {"code": "i"}}}, "t", "m", None),
        ({"error": {"code": 400, "message": "m", "innererror": {"code": "i"}}}, "i", "m", None),
        ({"error": {"code": " c ", "message": "m"}}, "c", "m", None),
        ({"error": "m", "code": "c"}, "c", "m", None),
        ({"error": {"detail": "d", "title": "t"}}, "bad_request", "d", None),
        ({"error": {"error_description": "e", "title": "t"}}, "bad_request", "e", None),
        ({"title": "t", "code": "c"}, "c", "t", None),
        ({"detail": [{"msg": "d"}]}, "bad_request", '[{"msg":"d"}]', None),
        ([{"error": {"code": "c", "message": "m", "param": "p"}}, {"error": "other"}], "c", "m", "p"),
        ([{"code": "c", "message": "m"}], "c", "m", None),
        ("m", "bad_request", "m", None),
        (
            {"error": {"code": "c", "message": ""}},
            "c",
            "The service answered with status 400 and said nothing more.",
            None,
        ),
        ({"error": {"code": "c" * 200, "message": "m"}}, "c" * 100, "m", None),
        ({"error": {"code": "c", "message": "m" * 600}}, "c", "m" * 500, None),
    ],
)
def test_code_message_and_field_are_found_wherever_they_stand(
    body: object, code: str, message: str, param: str | None
) -> None:
    error = error_info(reply(400, json.dumps(body).encode()))
    assert (error.code, error.message, error.param) == (code, message, param)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"  <html><style>p { color: red }</style>\n<h1>No</h1> <p>entry</p></html>", "No entry"),
        (b"<SCRIPT>\nevil()\n</SCRIPT>said", "said"),
        (b"a < b > c", "a < b > c"),
        (b"x" * 9_000, "x" * 500),
        (b"\xff", "\ufffd"),
        (b'{"error":{"message":"m"', '{"error":{"message":"m"'),
        (b"\n", "The service answered with status 400 and said nothing more."),
    ],
)
def test_what_is_no_json_is_read_as_text(body: bytes, message: str) -> None:
    error = error_info(reply(400, body))
    assert (error.message, error.param) == (message, None)


@pytest.mark.parametrize("body", [b'{"error":"said"}', b'"said"', b"said", b"<p>said</p>"])
def test_a_body_that_names_no_field_has_none(body: bytes) -> None:
    error = error_info(reply(400, body))
    assert (error.message, error.param) == ("said", None)


def test_a_body_of_a_megabyte_is_parsed_and_a_longer_one_is_text() -> None:
    frame = b'{"error":{"code":"c","message":"m","x":"%s"}}'
    fits = frame % (b"x" * (2**20 - len(frame) + 2))
    assert len(fits) == 2**20
    assert error_info(reply(400, fits)).code == "c"
    longer = error_info(reply(400, fits + b" "))
    assert (longer.code, longer.message[:20]) == ("bad_request", '{"error":{"code":"c"')


def test_the_text_of_a_page_is_looked_for_in_its_first_eight_thousand_bytes() -> None:
    assert error_info(reply(400, b"<p>" + b" " * 7_990 + b"said")).message == "said"
    assert error_info(reply(400, b"<p>" + b" " * 7_997 + b"said")).message.startswith("The service answered")
