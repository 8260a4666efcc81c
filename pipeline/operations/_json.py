"""JSON that is not to be trusted: what rows put into bodies, what replies hold. A row's error, never a crash."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from pipeline.errors import ReplyError, RowError
from pipeline.model import Reply, Usage

_MODEL = re.compile(r"[!-~]{1,200}")
_MAX_INT64 = 2**63 - 1


def too_deep() -> RowError:
    """Say that a row's values nest deeper than JSON can be written."""
    return RowError(code="type", message="a value nests too deep to be sent")


def write_body(value: Any) -> bytes:
    """Write what a row is asked with, as JSON.

    Raises RowError, code `type`, for integers beyond 64 bits, lone surrogates and nesting beyond 254 levels.
    """
    try:
        # A copy: orjson's own result keeps the 4 kB or more that it was written into, and bodies wait by the thousand.
        return b"%b" % orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        raise RowError(code="type", message=f"the request cannot be written as JSON: {error}") from None


def bad_reply(message: str) -> ReplyError:
    """Say why an answer cannot be used; it counts as a transient failure of the attempt."""
    return ReplyError(code="bad_reply", message=message)


def check_framed(reply: Reply) -> None:
    """Refuse a body that may have been cut without its showing. Raises ReplyError."""
    if not reply.framed:
        raise bad_reply("the reply says neither its length nor where it ends; it may have been cut")


def read_object(reply: Reply) -> dict[str, Any]:
    """Read the reply's JSON object.

    Raises ReplyError for everything else: cut or empty bodies, HTML, NaN, nesting too deep to read, lone surrogates.
    """
    try:
        value = orjson.loads(reply.body)
    except orjson.JSONDecodeError:
        raise bad_reply(f"the reply is not JSON ({len(reply.body)} bytes); it may have been cut") from None
    if type(value) is not dict:
        raise bad_reply("the reply is JSON but no object")
    return value


def write_json(value: Any) -> str:
    """JSON text of a piece of a reply. Raises ReplyError when it nests too deep to be written (254 levels)."""
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:
        raise bad_reply("the reply nests too deep") from None


def read_model(root: Mapping[str, Any]) -> str | None:
    """Read which model answered; None where the reply does not say it in a word."""
    model = root.get("model")
    return model if type(model) is str and _MODEL.fullmatch(model) else None


def read_usage(value: Any) -> Usage | None:
    """Read what the service counted, by the names of chat and by those of responses; None when it said nothing."""
    if type(value) is not dict:
        return None
    return Usage(
        input_tokens=_either(value, "prompt_tokens", "input_tokens"),
        output_tokens=_either(value, "completion_tokens", "output_tokens"),
        total_tokens=_count(value.get("total_tokens")),
        cached_tokens=_detail(value, ("prompt_tokens_details", "input_tokens_details"), "cached_tokens"),
        reasoning_tokens=_detail(value, ("completion_tokens_details", "output_tokens_details"), "reasoning_tokens"),
    )


def _either(value: dict[str, Any], name: str, other: str) -> int | None:
    return _count(value.get(name, value.get(other)))


def _detail(value: dict[str, Any], names: tuple[str, str], key: str) -> int | None:
    details = value.get(names[0], value.get(names[1]))
    return _count(details.get(key)) if type(details) is dict else None


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= _MAX_INT64 else None
