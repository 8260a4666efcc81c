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
        (403, ErrorType.PERMISSION_DENIED, "forbidden"),
        (404, ErrorType.NOT_FOUND, "not_found"),
        (409, ErrorType.CONFLICT, "conflict"),
        (413, ErrorType.API_STATUS, "request_too_large"),
        (418, ErrorType.API_STATUS, "http_418"),
        (422, ErrorType.UNPROCESSABLE_ENTITY, "unprocessable_entity"),
        (429, ErrorType.RATE_LIMIT, "rate_limit_exceeded"),
        (500, ErrorType.INTERNAL_SERVER, "internal_server_error"),
        (503, ErrorType.INTERNAL_SERVER, "service_unavailable"),
        (599, ErrorType.INTERNAL_SERVER, "http_599"),
        (302, ErrorType.API_STATUS, "redirected"),
    ],
)
def test_an_error_without_a_code_is_called_by_its_status(status: int, type_: ErrorType, code: str) -> None:
    error = error_info(reply(status, b'{"error":{"code":"%d","message":"m"}}' % status))
    assert (error.type, error.code) == (type_, code)


@pytest.mark.parametrize("inner", ["innererror", "inner_error"])
@pytest.mark.parametrize("result", ["content_filter_result", "content_filter_results"])
def test_a_filtered_prompt_is_a_rows_content_filter_in_all_four_spellings(inner: str, result: str) -> None:
    innermost = {"code": "ResponsibleAIPolicyViolation", result: FILTERED}
    for code in ("content_filter", None, "400", "contentFilter"):
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


@pytest.mark.parametrize("code", ["insufficient_quota", "billing_hard_limit_reached", "billing_not_active"])
def test_spent_money_is_no_throttling(code: str) -> None:
    body = json.dumps({"error": {"code": code, "message": "You exceeded", "type": code}}).encode()
    assert isinstance(classify(reply(429, body, retry_after="1")), SpentMoney)


def test_a_request_larger_than_the_quota_is_refused_for_good() -> None:
    body = b'{"error":{"message":"Request too large for m: Limit 3, Requested 4.","code":"rate_limit_exceeded"}}'
    assert isinstance(classify(reply(429, body)), RowRefused)


def test_a_503_with_a_hint_is_throttling_and_without_one_is_not() -> None:
    hinted = classify(reply(503, retry_after="3"))
    assert isinstance(hinted, Throttled)
    assert hinted.hint_s == 3
    assert isinstance(classify(reply(503)), Transient)


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
    ("status", "kind"), [(302, RefusalKind.REDIRECT), (403, RefusalKind.FORBIDDEN), (404, RefusalKind.NOT_FOUND)]
)
def test_a_deployments_refusal_says_why(status: int, kind: RefusalKind) -> None:
    verdict = classify(reply(status))
    assert isinstance(verdict, DeploymentRefused)
    assert verdict.kind is kind


def test_a_message_is_cut_and_its_control_characters_are_escaped() -> None:
    hostile = "a\n\x1b]0;t\x07\u202e\u2028b" + "x" * 1000
    message = error_info(reply(400, json.dumps({"error": {"message": hostile}}).encode())).message
    assert message.startswith("a\\n\\x1b]0;t\\x07\\u202e\\u2028b")
    assert len(message) < 520 + 20
