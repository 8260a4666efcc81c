"""Responses: a text or a list of items in, a list of items out, read into the columns that chat has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from pipeline.errors import ReplyError, RowError
from pipeline.job.template import request_template
from pipeline.job.tokens import estimate
from pipeline.model import Call, ErrorInfo, ErrorType, Item, Reply, Row, RowResult, Target
from pipeline.operations import OperationEntry
from pipeline.operations._asked import Asked, ask, call, packed, sized, take_stream, truncated, unpacked
from pipeline.operations._checks import refuse
from pipeline.operations._filter import filter_column
from pipeline.operations._json import bad_reply, read_model, read_object, read_usage, write_body, write_json
from pipeline.operations._one_row import OneRow
from pipeline.operations._pictures import (
    LOW_DETAIL_PICTURE_TOKENS,
    MARK,
    PICTURE_TOKENS,
    defer_columns,
    take_pictures,
)
from pipeline.operations._prompt import bound_of, responses_prompt
from pipeline.operations._schema import fitting
from pipeline.operations._sse import StreamRefused, arrived_ms, events, is_stream, read_event
from pipeline.operations.base import Bound, Prompt
from pipeline.service.classify import error_info

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.job.spec import Job

# The deployment says which model.
_NOT_SENT = frozenset({"model"})
_BOUNDS = ("max_output_tokens",)

# What may stand in for an input: a prompt that the service keeps, or a conversation that goes on.
_INSTEAD_OF_INPUT = ("prompt", "previous_response_id", "conversation")

# Failures of a response that another asking may not meet; every other code is about what was asked.
_TRANSIENT_CODES = frozenset({"server_error", "rate_limit_exceeded", "vector_store_timeout"})

# What replies hold may be of any type, also of one that no set takes.
_ENDS = ("response.completed", "response.failed", "response.incomplete")
_FIRST_TOKENS = (
    "response.output_text.delta",
    "response.refusal.delta",
    "response.function_call_arguments.delta",
    "response.custom_tool_call_input.delta",
)
_TOOL_CALLS = ("function_call", "custom_tool_call")
# Why an answer is incomplete, in the words of chat's finish_reason.
_REASONS = {"max_output_tokens": "length"}

_TEXTS = ("output_text", "refusal", "finish_reason", "tool_calls", "content_filter", "response_status")


class _Answer(NamedTuple):
    root: dict[str, Any]
    response: bytes
    first_token_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponsesOperation(OneRow):
    """One row, one request. An item's content is an `Asked`.

    `media_root` is the folder of the rows' pictures, `data_columns` are the columns that hold pictures themselves.
    `on_truncated` is what becomes of an answer that its token limit cut: keep, fail or retry. `fail_invalid_json`
    fails answers that do not fit the schema that the request asks for.
    """

    media_root: Path | None = None
    data_columns: frozenset[str] = frozenset()
    on_truncated: str = "keep"
    fail_invalid_json: bool = False
    name: str = "responses"

    @property
    def columns(self) -> frozenset[str] | None:
        """The columns that the request's templates read."""
        return None if self.template.columns is None else self.template.columns | self.data_columns

    @property
    def reads_files(self) -> bool:
        """Whether rows may name pictures, or bring them along to be encoded: both take their time."""
        return self.media_root is not None or bool(self.data_columns)

    def item(self, row: Row) -> Item:
        """Render and check.

        Row errors carry the codes `empty`, `type`, `too_long` and `unsupported`, media errors those of pictures.
        """
        body = self.template.render(row.values)
        if body.get("background"):
            raise RowError(code="unsupported", message=_BACKGROUND)
        stream = take_stream(body)
        pictures: tuple[Any, ...] = ()
        if "input" in body:
            body["input"], pictures = take_pictures(
                body["input"], row.values, root=self.media_root, style="responses", place="request.input"
            )
        tokens = _check(body)
        asked = ask(body, bounds=_BOUNDS, copies=1, stream=stream, pictures=pictures)
        return Item(
            ordinal=row.ordinal, tokens=tokens + asked.output_tokens, output_tokens=asked.output_tokens, content=asked
        )

    def build(self, items: Sequence[Item], target: Target) -> Call:
        """Name the model, which on Azure is the deployment: no path says it. Reads the pictures.

        Raises MediaError where a picture can no longer be sent.
        """
        (item,) = items
        return call("responses", item, model=target.body_model or target.deployment)

    def packed(self, content: Asked) -> Any:
        """See `Portable`."""
        return packed(content)

    def unpacked(self, values: Any) -> Asked:
        """See `Portable`."""
        return unpacked(values)

    def parse(self, items: Sequence[Item], reply: Reply) -> list[RowResult]:
        """Read the response, or a stream's last event, which holds it whole.

        A response that says of itself, after a 200, that it failed is a transient failure where the service is at
        fault, else a failed row. One that the content filter cut is an ok row with what was let through, as in chat.
        """
        (item,) = items
        try:
            answer = _read_answer(reply, streamed=item.content.stream)
        except StreamRefused as refused:
            return [RowResult(ordinal=item.ordinal, error=refused.info)]
        root = answer.root
        usage = read_usage(root.get("usage"))
        status = root.get("status")
        if status == "failed":
            return [RowResult(ordinal=item.ordinal, error=_failure(root), usage=usage, response=answer.response)]
        if status not in ("completed", "incomplete"):
            raise bad_reply("the response is neither completed, incomplete nor failed")
        values = {**_output(root), "time_to_first_token_ms": answer.first_token_ms}
        result = RowResult(
            ordinal=item.ordinal, values=values, usage=usage, response=answer.response, model=read_model(root)
        )
        if values["finish_reason"] == "length":
            return [truncated(item, result, policy=self.on_truncated, field="max_output_tokens")]
        return [self._checked(item.content, result)]

    def _checked(self, asked: Asked, result: RowResult) -> RowResult:
        """Fail an answer that does not fit its schema. Refusals, tool calls and filtered answers are none, and stay."""
        values = result.values
        if not self.fail_invalid_json or values is None or values["finish_reason"] != "stop" or values["refusal"]:
            return result
        schema = _schema(asked)
        return result if schema is None else fitting(result, schema)

    def prompt(self, items: Sequence[Item]) -> Prompt:
        """Say what the request is billed for as input."""
        return responses_prompt(items)

    def bound(self, items: Sequence[Item]) -> Bound:
        """Bound what the request can be billed for."""
        return bound_of(items)

    def sized(self, item: Item, output_tokens: int) -> Item | None:
        """Bound the answer by fewer tokens than the job does."""
        return sized(item, output_tokens)

    def schema(self) -> pa.Schema:
        """Six texts, of which `tool_calls` and `content_filter` are JSON, null when the response held none.

        `time_to_first_token_ms` is null where nothing was streamed.
        """
        import pyarrow as pa  # noqa: PLC0415 - `pipeline --help` does not pay for it

        texts = [pa.field(name, pa.string()) for name in _TEXTS]
        return pa.schema([*texts, pa.field("time_to_first_token_ms", pa.float64())])


def _check(body: Mapping[str, Any]) -> int:
    """Check what the service would refuse, and estimate the prompt's tokens."""
    given = body.get("input")
    if given is None and not any(body.get(key) for key in _INSTEAD_OF_INPUT):
        raise RowError(code="empty", message="request.input is missing or null")
    if not isinstance(given, str | list | None):
        raise RowError(code="type", message="request.input is neither text nor a list of items")
    if given is not None and not given:
        raise RowError(code="empty", message="request.input is empty")
    characters, picture_tokens = (0, 0) if given is None else _measure(given)
    instructions = body.get("instructions")
    characters += len(instructions) if isinstance(instructions, str) else 0
    for key in ("tools", "text"):
        if body.get(key):
            characters += len(write_body(body[key]))
    return estimate(characters) + picture_tokens


def _measure(given: str | list[Any]) -> tuple[int, int]:
    """The characters of an input, and the tokens of its pictures."""
    if isinstance(given, str):
        return len(given), 0
    characters = 0
    picture_tokens = 0
    for index, item in enumerate(given):
        if not isinstance(item, dict):
            raise RowError(code="type", message=f"request.input.{index} is not an object")
        content = item.get("content")
        if isinstance(content, str):
            characters += len(content)
        elif isinstance(content, list):
            for place, part in enumerate(content):
                if not isinstance(part, dict) or not isinstance(part.get("type"), str):
                    raise RowError(
                        code="type", message=f"request.input.{index}.content.{place} is not an object with a type"
                    )
                text = part.get("text")
                if isinstance(text, str):
                    characters += len(text)
                else:
                    picture_tokens += LOW_DETAIL_PICTURE_TOKENS if part.get("detail") == "low" else PICTURE_TOKENS
        else:
            characters += len(write_body(item))
    return characters, picture_tokens


def _read_answer(reply: Reply, *, streamed: bool) -> _Answer:
    """Read the response, as it came or out of the event that ends a stream.

    Raises ReplyError for what is no response and for a stream without such an event: it was cut.
    """
    if not streamed or not is_stream(reply.body):
        return _Answer(read_object(reply), reply.body, None)
    first_end: int | None = None
    for event in events(reply.body):
        if event.data.strip() == b"[DONE]":
            break
        said = read_event(event)
        kind = said.get("type")
        if first_end is None and kind in _FIRST_TOKENS:
            first_end = event.end
        root = said.get("response")
        if kind in _ENDS and type(root) is dict:
            try:
                response = orjson.dumps(root)
            except orjson.JSONEncodeError:
                raise bad_reply("the response nests too deep") from None
            return _Answer(root, response, None if first_end is None else arrived_ms(reply, first_end))
    raise bad_reply(f"the stream ended before its response did ({len(reply.body)} bytes); it was cut")


def _failure(root: Mapping[str, Any]) -> ErrorInfo:
    """Why a response failed. Raises ReplyError where the service is at fault, or gives no reason."""
    error = root.get("error")
    body = f'{{"error":{write_json(error)}}}'.encode()
    said = error_info(Reply(status=200, headers={}, body=body, latency_ms=0))
    if type(error) is not dict or not error.get("code") or said.code in _TRANSIENT_CODES:
        raise ReplyError(code="bad_reply", message=f"the response failed: {said.code}: {said.message}")
    return ErrorInfo(type=ErrorType.BAD_REQUEST, code=said.code, message=said.message, http_status=200)


def _output(root: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a response that ended. Raises ReplyError where its output is none."""
    output = root.get("output")
    if type(output) is not list or any(type(item) is not dict for item in output):
        raise bad_reply("the response holds no list of output items")
    calls = [item for item in output if item.get("type") in _TOOL_CALLS]
    return {
        "output_text": _joined(output, "output_text", "text"),
        "refusal": _joined(output, "refusal", "refusal"),
        "finish_reason": _finish_reason(root, called=bool(calls)),
        "tool_calls": write_json(calls) if calls else None,
        "content_filter": filter_column(root, {}),
        "response_status": root.get("status"),
    }


def _joined(output: Sequence[Mapping[str, Any]], kind: str, key: str) -> str | None:
    """The texts of all parts of a kind, in order; None where there is no such part."""
    texts = []
    for item in output:
        content = item.get("content")
        for part in content if type(content) is list else ():
            if type(part) is dict and part.get("type") == kind:
                if type(part.get(key)) is not str:
                    raise bad_reply("a part of the output holds no text")
                texts.append(part[key])
    return "".join(texts) if texts else None


def _finish_reason(root: Mapping[str, Any], *, called: bool) -> str:
    """Say in chat's words why the answer ended; `incomplete` where the service gives no reason."""
    if root.get("status") == "completed":
        return "tool_calls" if called else "stop"
    details = root.get("incomplete_details")
    reason = details.get("reason") if type(details) is dict else None
    return _REASONS.get(reason, reason) if type(reason) is str else "incomplete"


def _schema(asked: Asked) -> Any:
    """The schema that the row's answer is to fit; None where it may be anything."""
    # A mark is no UTF-8; what stands in its place is of no interest here.
    text = orjson.loads(asked.body.replace(MARK, b"")).get("text")
    wanted = text.get("format") if type(text) is dict else None
    return wanted.get("schema") if type(wanted) is dict else None


_BACKGROUND = "a background response is answered before it is there; leave background out"


def create(job: Job) -> ResponsesOperation:
    """Compile the job's request. Raises JobFileError where it asks for background responses."""
    refuse(job, {"background": _BACKGROUND} if job.request.get("background") is True else {})
    request, data_columns = defer_columns(job.request)
    return ResponsesOperation(
        template=request_template(job.model_copy(update={"request": request}), without=_NOT_SENT),
        media_root=job.input.media_root,
        data_columns=data_columns,
        on_truncated=job.run.on_truncated,
        fail_invalid_json=job.run.on_invalid_json == "fail",
    )


_STARTER = """\
# Ask a model one question a row. Try it without an account:   pipeline run --simulate THIS_FILE
operation: responses

input:
  path: rows.jsonl                          # one JSON object a line; Parquet works too
  id: id                                    # the column that names a row (optional)

request:                                    # the API's own body; {{ column }} reads the row
  instructions: Answer in one short sentence.
  input: "{{ question }}"
  max_output_tokens: 100                    # bounds the answer and the cost, reasoning included; 16 at least
  store: false                              # the service keeps responses for 30 days otherwise

deployments:
  - endpoint: ${AZURE_OPENAI_ENDPOINT}      # https://NAME.openai.azure.com
    deployment: gpt-4.1-mini                # your deployment's name
    model: gpt-4.1-mini                     # what stands behind it
    api: azure-v1                           # the classic API has responses from 2025-03-01-preview on
    requests_per_minute: 300                # your quota; leave out to learn it from the replies
    tokens_per_minute: 50000

output:
  path: out/responses                       # a folder that the run owns; run again to continue

run:
  workers: 32                               # requests in flight at most
"""

_STARTER_ROWS = """\
{"id": "a", "question": "Why do leaves turn red?"}
{"id": "b", "question": "How long does light take from the sun to the earth?"}
{"id": "c", "question": "Which metal is liquid at room temperature?"}
"""

OPERATION = OperationEntry(
    name="responses",
    factory=create,
    description="Responses: input, instructions, tools and reasoning in; text, tool calls and the status out.",
    starter=_STARTER,
    starter_rows=_STARTER_ROWS,
)
