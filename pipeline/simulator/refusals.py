"""The error bodies that the gateway in front of the models answers with, worded as Azure and OpenAI word them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pipeline.simulator.base import Family, Operation, Place, RefusedError
from pipeline.simulator.config import PoisonRule, Quirk, Shortage
from pipeline.simulator.limits import whole_seconds
from pipeline.simulator.provisioned import Utilization
from pipeline.simulator.quota import Limit, Verdict

_INJECTED = {
    408: ("Timeout", "The operation was timeout."),
    409: ("conflict", "The request conflicts with another operation in progress."),
    429: (
        "429",
        (
            "The system is currently experiencing high demand and cannot process your request. Your request exceeds "
            "the maximum usage size allowed during peak load. For improved capacity reliability, consider switching to "
            "Provisioned Throughput."
        ),
    ),
    500: ("InternalServerError", "The server had an error while processing your request. Sorry about that!"),
    502: ("BadGateway", "Bad gateway."),
    503: ("ServiceUnavailable", "The service is temporarily unable to process your request. Please try again later."),
    504: ("GatewayTimeout", "The gateway did not receive a response from the model in time."),
    529: ("Overloaded", "The service is overloaded."),
}
_OPERATIONS = {"chat": "chatCompletion", "completions": "completion", "images": "imageGeneration"}
_VIOLATION = "ResponsibleAIPolicyViolation"
_BLOCKED = {
    "hate": {"filtered": False, "severity": "safe"},
    "jailbreak": {"detected": False, "filtered": False},
    "self_harm": {"filtered": False, "severity": "safe"},
    "sexual": {"filtered": False, "severity": "safe"},
    "violence": {"filtered": True, "severity": "medium"},
}


def unauthorized(family: Family) -> RefusedError:
    """No key, or a wrong one."""
    if family.azure:
        return RefusedError(
            401,
            _plain(
                "401",
                "Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide a valid key "
                "for an active subscription and use a correct regional API endpoint for your resource.",
            ),
        )
    return RefusedError(
        401, _full("Incorrect API key provided.", kind="invalid_request_error", param=None, code="invalid_api_key")
    )


def not_found() -> RefusedError:
    """No such path or api-version."""
    return RefusedError(404, _plain("404", "Resource not found"))


def unsupported_version() -> RefusedError:
    """Version not known to the v1 family."""
    return RefusedError(400, _plain("BadRequest", "API version not supported"))


def no_deployment(family: Family, name: str) -> RefusedError:
    """No such deployment; at OpenAI, no such model."""
    if family.azure:
        return RefusedError(
            404,
            _plain(
                "DeploymentNotFound",
                "The API deployment for this resource does not exist. If you created the deployment within the last "
                "5 minutes, please wait a moment and try again.",
            ),
        )
    return RefusedError(
        404,
        _full(
            f"The model `{name}` does not exist or you do not have access to it.",
            kind="invalid_request_error",
            param=None,
            code="model_not_found",
        ),
    )


def wrong_model(operation: Operation, place: Place) -> RefusedError:
    """Refuse a model that serves other operations."""
    if place.family.azure:
        return RefusedError(
            400,
            _plain(
                "OperationNotSupported",
                f"The {_OPERATIONS.get(operation.name, operation.name)} operation does not work with the specified "
                f"model, {place.model}. Please choose different model and try again. You can learn more about which "
                "models can be used with each operation here: https://go.microsoft.com/fwlink/?linkid=2197993.",
            ),
        )
    return RefusedError(
        404,
        _full(
            f"This model is not supported in the v1/{operation.path} endpoint.",
            kind="invalid_request_error",
            param="model",
            code=None,
        ),
    )


def no_model() -> RefusedError:
    """Neither path nor body names a model."""
    return RefusedError(
        400, _full("you must provide a model parameter", kind="invalid_request_error", param=None, code=None)
    )


def too_many_headers() -> RefusedError:
    """More than ten headers of the client's own."""
    return RefusedError(431, _plain("431", "Request Header Fields Too Large"))


def throttled(
    operation: Operation,
    place: Place,
    verdict: Verdict,
    *,
    wait_s: float,
    tokens: int,
    waits: Mapping[str, str],
) -> RefusedError:
    """Quota used up for now; `wait_s` is in real seconds, `waits` are the headers that say so."""
    seconds = whole_seconds(wait_s)
    headers = dict(waits)
    limit = verdict.exceeded or Limit.TOKEN
    match place.family:
        case Family.CLASSIC:
            body = _plain(
                "429",
                f"Requests to the {operation.azure_name} Operation under Azure OpenAI API version {place.api_version} "
                f"have exceeded {limit} rate limit of your current OpenAI S0 pricing tier. Please retry after "
                f"{seconds} seconds. Please go here: https://aka.ms/oai/quotaincrease if you would like to further "
                "increase the default rate limit.",
            )
        case Family.V1:
            body = _full(
                f"Your requests to {place.deployment} for {place.model} have exceeded the {limit} rate limit for your "
                f"current AIServices S0 pricing tier. Please retry after {seconds} seconds. To increase your default "
                "rate limit, visit: https://aka.ms/oai/quotaincrease.",
                kind="too_many_requests",
                param=None,
                code="too_many_requests",
            )
        case Family.OPENAI:
            body = _openai_throttled(place, verdict, wait_s=wait_s, tokens=tokens)
    if place.family.azure:
        headers["policy-id"] = f"DeploymentRatelimit-{limit.title()}"
    return RefusedError(429, body, headers=headers)


def _openai_throttled(place: Place, verdict: Verdict, *, wait_s: float, tokens: int) -> dict[str, Any]:
    by_calls = verdict.exceeded is Limit.CALL
    limit = (verdict.requests_limit if by_calls else verdict.tokens_limit) or 0
    used = limit - (verdict.requests_left if by_calls else verdict.tokens_left)
    unit = "requests per min (RPM)" if by_calls else "tokens per min (TPM)"
    return _full(
        f"Rate limit reached for {place.model} in organization org-simulated on {unit}: Limit {limit}, Used {used}, "
        f"Requested {1 if by_calls else tokens}. Please try again in {wait_s:.3f}s.",
        kind="requests" if by_calls else "tokens",
        param=None,
        code="rate_limit_exceeded",
    )


def utilized(utilization: Utilization, *, wait_s: float, waits: Mapping[str, str]) -> RefusedError:
    """Provisioned throughput busy for now; `wait_s` is in real seconds, `waits` are the headers that say so."""
    message = (
        f"The utilization of this provisioned deployment is at {utilization.share:.1%}, above 100%. Please retry after "
        f"{whole_seconds(wait_s)} seconds."
    )
    return RefusedError(429, _plain("429", message), headers=waits)


def short(shortage: Shortage) -> RefusedError:
    """Word a 429 that no rate limit is the reason of."""
    match shortage:
        case Shortage.CAPACITY:
            return injected(429)
        case Shortage.FLEX_UNAVAILABLE:
            message = "There are not enough resources for flex processing at the moment. Please try again later."
            kind = code = "resource_unavailable"
        case Shortage.INSUFFICIENT_QUOTA:
            message = "You exceeded your current quota, please check your plan and billing details."
            kind = code = "insufficient_quota"
    return RefusedError(429, _full(message, kind=kind, param=None, code=code))


def injected(status: int) -> RefusedError:
    """Word a status that the configuration asked for."""
    code, message = _INJECTED.get(status, (str(status), f"Injected status {status}."))
    return RefusedError(status, _plain(code, message))


def poisoned(rule: PoisonRule, operation: Operation, *, index: int, quirks: Collection[Quirk] = ()) -> RefusedError:
    """Refuse a text that a rule names; the content filter with all that Azure says about it."""
    param = f"{operation.field}[{index}]" if rule.name_index else None
    if rule.code == "content_filter" and operation.name == "images":
        return _blocked_picture(rule)
    if rule.code == "content_filter":
        message = rule.message or (
            "The response was filtered due to the prompt triggering Azure OpenAI's content management policy. Please "
            "modify your prompt and retry. To learn more about our content filtering policies please read our "
            "documentation: https://go.microsoft.com/fwlink/?linkid=2198766"
        )
        error: dict[str, Any] = {
            "message": message,
            "type": None,
            "param": param or "prompt",
            "code": "content_filter",
            "status": rule.status,
        }
        if Quirk.INNER_ERROR in quirks:
            error["inner_error"] = {"code": _VIOLATION, "content_filter_results": _BLOCKED}
        elif Quirk.NO_INNER_ERROR not in quirks:
            error["innererror"] = {"code": _VIOLATION, "content_filter_result": _BLOCKED}
        return RefusedError(rule.status, {"error": error})
    named = f"Invalid '{param}': " if param else ""
    message = named + (rule.message or "the text was refused.")
    return RefusedError(rule.status, _full(message, kind="invalid_request_error", param=param, code=rule.code))


def _blocked_picture(rule: PoisonRule) -> RefusedError:
    """Word the filter's refusal as image generation does: another code, and the other spelling of what is inside."""
    message = rule.message or (
        "Your request was rejected as a result of our safety system. Your prompt may contain text that is not allowed "
        "by our safety system."
    )
    inner = {"code": _VIOLATION, "content_filter_results": _BLOCKED}
    error = {"code": "content_policy_violation", "message": message, "type": "invalid_request_error", "param": None}
    return RefusedError(rule.status, {"error": {**error, "inner_error": inner}})


def _plain(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


def _full(message: str, *, kind: str, param: str | None, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
