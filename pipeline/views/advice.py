"""What a person can do about rows that failed, by the code of their error."""

from __future__ import annotations

from collections.abc import Mapping

_BY_CODE: Mapping[str, str] = {
    "content_filter": "The service's content filter refused it: change the row or the filter's policy.",
    "context_length_exceeded": "Longer than the model reads: shorten the row, or take a model with a larger context.",
    "string_above_max_length": "A text is longer than the service takes: shorten the row.",
    "max_tokens_per_request": "More tokens than one request may hold: shorten the row.",
    "too_long": "Longer than may be sent: shorten the row; embeddings can truncate or split (request.on_too_long).",
    "too_large": "Larger than may be sent: make the row or its file smaller.",
    "empty": "There is nothing to send: fill the column, or leave the row out of the input.",
    "duplicate_id": "Another row has the same id: make ids unique.",
    "quota_too_small": "The request needs more tokens than a minute's quota holds: shorten it, or raise the quota.",
    "unsupported_parameter": "The model does not know a field of the request: take it out of the job.",
    "unsupported_value": "The model does not take a value of the request: change it in the job.",
    "missing_required_parameter": "The request lacks a field: add it to the job.",
    "invalid_json": "The answer is no JSON, or does not fit the schema: allow more output tokens, or ask again.",
    "truncated": "The answer was cut at its bound on tokens: raise it, as `pipeline retry JOB --only truncated --set "
    "request.max_completion_tokens=…` does for these rows.",
    "bad_reply": "The reply was not what the service promises, several times: ask again, then ask its support.",
    "timeout": "No whole answer came in time: ask again, or raise run.timeout.",
    "connect": "The service could not be reached: ask again once it can.",
    "read": "The connection broke before the answer was whole: ask again.",
    "rate_limit_exceeded": "Throttled for too long: lower run.workers or raise the quota, then ask again.",
    "duplicate": "Another example is the same: take it out, or set request.on_duplicate.",
}
_MENDED = "a run takes a mended input where the job has `input.incremental` from its start, or anew with --fresh."
_BY_KIND: Mapping[tuple[str, str], str] = {
    ("RowError", "invalid_json"): f"The line of the input is no JSON: mend it; {_MENDED}",
}
_BY_TYPE: Mapping[str, str] = {
    "RowError": f"The row cannot be sent: mend it in the input, or the request; {_MENDED}",
    "TemplateError": "A template of the request cannot be rendered over the row: mend the row or the template.",
    "MediaError": "A file that the row names cannot be used: mend the file or the row.",
    "ReplyError": "The answer is not what was asked for: look at the row, then ask again.",
    "InternalServerError": "The service failed, time after time: ask again, then give its support a request id.",
    "APIConnectionError": "The connection failed, time after time: ask again.",
    "APITimeoutError": "No answer came in time, time after time: ask again, or raise run.timeout.",
    "RateLimitError": "Throttled: lower run.workers or raise the quota, then ask again.",
}
_ELSE = "The service refuses this request for what it says: look at its message, then change the row or the request."


_AGAIN = "ask again"


def advice(type_: str, code: str | None) -> str:
    """Say what to do about rows that failed with this type and code, and by which command where it is to ask again."""
    known = (code or "").lower()
    said = _BY_KIND.get((type_, known)) or _BY_CODE.get(known) or _BY_TYPE.get(type_) or _ELSE
    return f"{said} `pipeline retry JOB --only {code or type_}` does." if _AGAIN in said else said
