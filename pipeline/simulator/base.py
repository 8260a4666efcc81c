"""What an operation of the simulator is: it reads a body, says what it costs, and answers as a function of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import orjson

from pipeline.simulator.models import ModelFacts


class Family(StrEnum):
    """Which of the three URL families a request came by."""

    CLASSIC = "classic"  # /openai/deployments/{deployment}/…?api-version=
    V1 = "v1"  # /openai/v1/…
    OPENAI = "openai"  # /v1/…

    @property
    def azure(self) -> bool:
        """Whether Azure's own fields and headers go with the answer."""
        return self is not Family.OPENAI


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a request was sent: the deployment and what stands behind it."""

    family: Family
    api_version: str | None
    deployment: str
    model: str
    facts: ModelFacts
    dimensions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request, read. `tokens` is what its admission costs; `keys` name and `texts` are what was asked, in order."""

    body: Mapping[str, Any]
    tokens: int
    keys: tuple[str, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A reply: one JSON body, or the events of a stream. `output_tokens` is what the model takes time for."""

    body: bytes
    events: tuple[bytes, ...] = ()
    output_tokens: int = 0


class Operation(Protocol):
    """One kind of request. A new one is one file, and a line in the app's table."""

    @property
    def name(self) -> str:
        """As the ledger names it."""

    @property
    def path(self) -> str:
        """Below the base, such as "chat/completions"."""

    @property
    def field(self) -> str:
        """The body's field that holds the texts."""

    @property
    def azure_name(self) -> str:
        """As Azure's 429 names it."""

    def read(self, body: Mapping[str, Any], place: Place) -> Asked:
        """Check a body and count it. Raises RefusedError."""

    def slow(self, asked: Asked, place: Place) -> bool:
        """Whether answering takes so long that it belongs into a thread."""

    def answer(self, asked: Asked, place: Place, *, created_s: int, filtered: bool) -> Answer:
        """Answer; the same request gives the same answer, but for the time. `filtered`: by the content filter."""


class RefusedError(Exception):
    """The request is answered with an error. `body` is the whole JSON body, `headers` go with it."""

    def __init__(self, status: int, body: Mapping[str, Any], *, headers: Mapping[str, str] | None = None) -> None:
        self.status = status
        self.body = orjson.dumps(body)
        self.headers = headers or {}
        super().__init__(f"{status}: {self.body.decode()}")


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> RefusedError:
    """Refuse a body as the model's own service words it, the same in every family."""
    return RefusedError(
        400, {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}
    )


def estimated_tokens(text: str) -> int:
    """Estimate a text's tokens as admission does: a token for each four characters, rounded up."""
    return math.ceil(len(text) / 4)
