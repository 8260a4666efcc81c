"""What an operation of the simulator is: it reads a body, says what it costs, and answers as a function of it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Protocol

import orjson

from pipeline.simulator.cost import DOCUMENTED, Cost
from pipeline.simulator.ledger import body_digest
from pipeline.simulator.models import ModelFacts

_DATED_VERSION = re.compile(r"\d{4}-\d{2}-\d{2}(-preview)?")


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
    cost: Cost = DOCUMENTED


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """Which dated api-versions of the classic family serve an operation: from `since` on, or previews only."""

    since: str = ""
    preview: bool = False

    def serve(self, version: str | None) -> bool:
        """Say whether a version serves the operation; whatever is no date serves none."""
        if version is None or not _DATED_VERSION.fullmatch(version):
            return False
        return version >= self.since and (version.endswith("-preview") or not self.preview)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request, read. `tokens` is what its admission costs, `answer_tokens` of them for what may be answered.

    `keys` name and `texts` are what was asked, in order.
    """

    body: Mapping[str, Any]
    tokens: int
    answer_tokens: int = 0
    keys: tuple[str, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An error that comes with status 200, inside the answer."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Occasion:
    """What is not the request's own: the time, what a poison rule does to the answer, where the simulator listens.

    `filtered`: by the content filter. `failure` is None but for operations that can fail with status 200.
    `origin` is a URL without a slash at its end.
    """

    created_s: int
    filtered: bool = False
    failure: Failure | None = None
    origin: str = ""


CHAT_ERROR_EVENT = (
    b'data: {"error":{"message":"The server had an error while processing your request. Sorry about that!",'
    b'"type":"server_error","param":null,"code":null}}\n\n'
)
"""An error in the middle of a stream, as chat has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A reply: one body, or the events of a stream. `output_tokens` is what the model takes time for.

    `error_event` is what takes the place of a stream's rest when it goes wrong.
    """

    body: bytes = b""
    events: tuple[bytes, ...] = ()
    output_tokens: int = 0
    content_type: bytes = b"application/json"
    error_event: bytes = CHAT_ERROR_EVENT


class Operation(Protocol):
    """One kind of request: one module in `operations/` with a function `make_operation`, which the app finds."""

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

    @property
    def deployment_in_path(self) -> bool:
        """Whether the classic family names the deployment in the path; else the body's `model` does."""

    @property
    def versions(self) -> Versions:
        """The classic family's versions that serve it."""

    @property
    def can_fail(self) -> bool:
        """Whether an error can come with status 200, inside the answer."""

    def decode(self, body: bytes, content_type: str) -> Mapping[str, Any]:
        """Take a body apart into its fields. Raises RefusedError."""

    def digest(self, body: bytes, fields: Mapping[str, Any]) -> bytes:
        """Name a body by 8 bytes: the same for the same request, however it was written down."""

    def read(self, body: Mapping[str, Any], place: Place) -> Asked:
        """Check a body's fields and count them. Raises RefusedError."""

    def slow(self, asked: Asked, place: Place) -> bool:
        """Whether answering takes so long that it belongs into a thread."""

    def answer(self, asked: Asked, place: Place, occasion: Occasion) -> Answer:
        """Answer; the same request gives the same answer, but for the time. Raises RefusedError."""


class JsonOperation:
    """What operations with a JSON body have in common; a base to derive from."""

    deployment_in_path: ClassVar[bool] = True
    versions: ClassVar[Versions] = Versions()
    can_fail: ClassVar[bool] = False

    def decode(self, body: bytes, content_type: str) -> Mapping[str, Any]:  # noqa: ARG002 - the protocol's
        """Read the JSON object, whatever the content type says. Raises RefusedError."""
        try:
            values = orjson.loads(body)
        except orjson.JSONDecodeError:
            raise _bad_json() from None
        if not isinstance(values, dict):
            raise _bad_json()
        return values

    def digest(self, body: bytes, fields: Mapping[str, Any]) -> bytes:  # noqa: ARG002 - the protocol's
        """Name the body by its bytes."""
        return body_digest(body)

    def slow(self, asked: Asked, place: Place) -> bool:  # noqa: ARG002 - the protocol's
        """Say no: an answer takes microseconds."""
        return False


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


def missing(name: str) -> RefusedError:
    """Refuse a body without a field that it needs."""
    return bad_request(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")


def _bad_json() -> RefusedError:
    return bad_request(
        "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your HTTP "
        "library correctly. The OpenAI API expects a JSON payload, but what was sent was not valid JSON.)"
    )


def estimated_tokens(text: str) -> int:
    """Estimate a text's tokens as admission does: a token for each four characters, rounded up."""
    return math.ceil(len(text) / 4)
