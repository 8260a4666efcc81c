"""Chat completions: messages in, one answer (or n) out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from pipeline.errors import RowError
from pipeline.job.template import request_template
from pipeline.job.tokens import estimate
from pipeline.model import Call, Item, Reply, Row, RowResult, Target
from pipeline.operations import OperationEntry
from pipeline.operations._asked import (
    Asked,
    ask,
    call,
    packed,
    sized,
    take_stream,
    takes_usage_option,
    truncated,
    unpacked,
)
from pipeline.operations._checks import require
from pipeline.operations._chunks import read_choices, read_completion
from pipeline.operations._filter import filter_column
from pipeline.operations._json import bad_reply, read_model, read_usage, write_body, write_json
from pipeline.operations._one_row import OneRow
from pipeline.operations._pictures import (
    LOW_DETAIL_PICTURE_TOKENS,
    MARK,
    PICTURE_TOKENS,
    defer_columns,
    take_pictures,
)
from pipeline.operations._prompt import bound_of, chat_prompt
from pipeline.operations._schema import fitting
from pipeline.operations._sse import StreamRefused
from pipeline.operations.base import Bound, Prompt

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.job.spec import Job

# Azure's documented limits of one chat request.
MAX_MESSAGES = 2048
MAX_MESSAGE_CHARACTERS = 1_048_576
MAX_TOOLS = 128

# The deployment says which model.
_NOT_SENT = frozenset({"model"})

# What bounds the answer; the first is that of the reasoning models, which refuse the other.
_BOUNDS = ("max_completion_tokens", "max_tokens")

# The classic Azure API takes stream_options from here on.
_USAGE_OPTION_SINCE = "2024-09-01"

# Who must say something: an assistant may have called a tool instead, and a tool may return nothing.
_MUST_SPEAK = frozenset({"system", "developer", "user"})
_INSTEAD_OF_CONTENT = ("tool_calls", "function_call", "refusal", "audio")

_TEXTS = ("output_text", "refusal", "finish_reason", "tool_calls", "choices", "content_filter")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOperation(OneRow):
    """One row, one request. An item's content is an `Asked`.

    `media_root` is the folder of the rows' pictures, `data_columns` are the columns that hold pictures themselves.
    `on_truncated` is what becomes of an answer that its token limit cut: keep, fail or retry. `fail_invalid_json`
    fails answers that do not fit the schema that the request asks for.
    """

    media_root: Path | None = None
    data_columns: frozenset[str] = frozenset()
    on_truncated: str = "keep"
    fail_invalid_json: bool = False
    name: str = "chat"

    @property
    def columns(self) -> frozenset[str] | None:
        """The columns that the request's templates read."""
        return None if self.template.columns is None else self.template.columns | self.data_columns

    @property
    def reads_files(self) -> bool:
        """Whether rows may name pictures, or bring them along to be encoded: both take their time."""
        return self.media_root is not None or bool(self.data_columns)

    def item(self, row: Row) -> Item:
        """Render and check; row errors carry the codes `empty`, `type`, `too_long`, media errors those of pictures."""
        body = self.template.render(row.values)
        stream = take_stream(body)
        body["messages"], pictures = take_pictures(
            body.get("messages"), row.values, root=self.media_root, style="chat", place="request.messages"
        )
        tokens = _check(body)
        asked = ask(body, bounds=_BOUNDS, copies=_copies(body), stream=stream, pictures=pictures)
        return Item(
            ordinal=row.ordinal, tokens=tokens + asked.output_tokens, output_tokens=asked.output_tokens, content=asked
        )

    def build(self, items: Sequence[Item], target: Target) -> Call:
        """Put the model's name in front of the body where the path does not say it, and read the pictures.

        Raises MediaError where a picture can no longer be sent.
        """
        (item,) = items
        usage_option = takes_usage_option(target, since=_USAGE_OPTION_SINCE)
        return call("chat/completions", item, model=target.body_model, usage_option=usage_option)

    def packed(self, content: Asked) -> Any:
        """See `Portable`."""
        return packed(content)

    def unpacked(self, values: Any) -> Asked:
        """See `Portable`."""
        return unpacked(values)

    def parse(self, items: Sequence[Item], reply: Reply) -> list[RowResult]:
        """Read the answer; a streamed one is put together as it would have come in one piece.

        A completion cut by the content filter is an ok row with `finish_reason` content_filter and whatever
        text was let through: it was billed, and asking again bills it again.
        """
        (item,) = items
        try:
            answer = read_completion(reply, streamed=item.content.stream, kind="chat.completion")
        except StreamRefused as refused:
            return [RowResult(ordinal=item.ordinal, error=refused.info)]
        root = answer.root
        choices = read_choices(root)
        first = choices[0]
        finish_reason = first.get("finish_reason")
        message = first.get("message")
        if message is None and finish_reason == "content_filter":
            message = {}
        if type(message) is not dict:
            raise bad_reply("the first choice holds no message")
        values = {
            "output_text": _content(message.get("content")),
            "refusal": _content(message.get("refusal")),
            "finish_reason": finish_reason,
            "tool_calls": _tool_calls(message),
            "choices": write_json(choices) if len(choices) > 1 else None,
            "content_filter": filter_column(root, first),
            "time_to_first_token_ms": answer.first_token_ms,
        }
        usage = read_usage(root.get("usage"))
        result = RowResult(
            ordinal=item.ordinal, values=values, usage=usage, response=answer.response, model=read_model(root)
        )
        if finish_reason == "length":
            return [truncated(item, result, policy=self.on_truncated, field="max_completion_tokens")]
        return [self._checked(item.content, result)]

    def _checked(self, asked: Asked, result: RowResult) -> RowResult:
        """Fail an answer that does not fit its schema. Refusals, tool calls and filtered answers are none, and stay."""
        values = result.values
        if not self.fail_invalid_json or values is None or values["finish_reason"] not in (None, "stop"):
            return result
        schema = _schema(asked)
        if schema is None or values["refusal"] or values["tool_calls"]:
            return result
        return fitting(result, schema)

    def prompt(self, items: Sequence[Item]) -> Prompt:
        """Say what the request is billed for as input."""
        return chat_prompt(items)

    def bound(self, items: Sequence[Item]) -> Bound:
        """Bound what the request can be billed for."""
        return bound_of(items)

    def sized(self, item: Item, output_tokens: int) -> Item | None:
        """Bound the answer by fewer tokens than the job does."""
        return sized(item, output_tokens)

    def schema(self) -> pa.Schema:
        """Six texts, of which `tool_calls`, `choices` and `content_filter` are JSON, null when the reply held none.

        `time_to_first_token_ms` is null where nothing was streamed.
        """
        import pyarrow as pa  # noqa: PLC0415 - `pipeline --help` does not pay for it

        texts = [pa.field(name, pa.string()) for name in _TEXTS]
        return pa.schema([*texts, pa.field("time_to_first_token_ms", pa.float64())])


def _check(body: Mapping[str, Any]) -> int:
    """Check what Azure would refuse, and estimate the prompt's tokens."""
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise RowError(code="type", message="request.messages is not a list of messages")
    if not messages:
        raise RowError(code="empty", message="request.messages is empty")
    if len(messages) > MAX_MESSAGES:
        raise RowError(code="too_long", message=f"{len(messages)} messages; a request holds at most {MAX_MESSAGES}")
    characters = 0
    picture_tokens = 0
    for index, message in enumerate(messages):
        length, pictures = _measure(index, message)
        characters += length
        picture_tokens += pictures
    for key in ("tools", "functions"):
        defined = body.get(key)
        if isinstance(defined, list) and len(defined) > MAX_TOOLS:
            raise RowError(code="too_long", message=f"{len(defined)} {key}; a request holds at most {MAX_TOOLS}")
    for key in ("tools", "functions", "response_format"):
        if body.get(key):
            characters += len(write_body(body[key]))
    return estimate(characters) + picture_tokens


def _copies(body: Mapping[str, Any]) -> int:
    copies = body.get("n")
    return copies if type(copies) is int and copies > 1 else 1


def _measure(index: int, message: Any) -> tuple[int, int]:
    """One message's characters, and the tokens of its pictures and recordings."""
    place = f"request.messages.{index}"
    if not isinstance(message, dict):
        raise RowError(code="type", message=f"{place} is not an object")
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise RowError(code="type", message=f"{place} has no role")
    content = message.get("content")
    pictures = 0
    if isinstance(content, str):
        characters = len(content)
    elif isinstance(content, list):
        characters, pictures = _measure_parts(place, content)
    elif content is None:
        characters = 0
    else:
        raise RowError(code="type", message=f"{place}.content is neither text nor a list of parts")
    if not content and _must_have_content(role, message):
        raise RowError(code="empty", message=f"{place}.content is empty")
    if characters > MAX_MESSAGE_CHARACTERS:
        raise RowError(
            code="too_long",
            message=f"{place} has {characters} characters; a message holds at most {MAX_MESSAGE_CHARACTERS}",
        )
    called = message.get("tool_calls")
    return characters + (len(write_body(called)) if called else 0), pictures


def _must_have_content(role: str, message: Mapping[str, Any]) -> bool:
    if role in _MUST_SPEAK:
        return True
    return message.get("content") is None and not any(message.get(key) for key in _INSTEAD_OF_CONTENT)


def _measure_parts(place: str, parts: list[Any]) -> tuple[int, int]:
    characters = 0
    pictures = 0
    for index, part in enumerate(parts):
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise RowError(code="type", message=f"{place}.content.{index} is not an object with a type")
        text = part.get("text", part.get("refusal"))
        if isinstance(text, str):
            characters += len(text)
        else:
            source = part.get("image_url")
            low = isinstance(source, dict) and source.get("detail") == "low"
            pictures += LOW_DETAIL_PICTURE_TOKENS if low else PICTURE_TOKENS
    return characters, pictures


def _content(content: Any) -> str | None:
    if content is None or type(content) is str:
        return content
    if type(content) is list:
        # Some compatible services answer in parts, as requests are written.
        texts = [part.get("text") for part in content if type(part) is dict and part.get("type") == "text"]
        return "".join(text for text in texts if type(text) is str)
    raise bad_reply("the message's content is no text")


def _tool_calls(message: Mapping[str, Any]) -> str | None:
    calls = message.get("tool_calls")
    if not calls and message.get("function_call"):
        # What `functions` answered before there were tools, in the shape of today's tool calls.
        calls = [{"type": "function", "function": message["function_call"]}]
    return write_json(calls) if calls else None


def _schema(asked: Asked) -> Any:
    """The schema that the row's answer is to fit; None where it may be anything."""
    # A mark is no UTF-8; what stands in its place is of no interest here.
    wanted = orjson.loads(asked.body.replace(MARK, b"")).get("response_format")
    named = wanted.get("json_schema") if type(wanted) is dict else None
    return named.get("schema") if type(named) is dict else None


def create(job: Job) -> ChatOperation:
    """Compile the job's request. Raises JobFileError where it lacks its `messages`."""
    require(job, "messages")
    request, data_columns = defer_columns(job.request)
    return ChatOperation(
        template=request_template(job.model_copy(update={"request": request}), without=_NOT_SENT),
        media_root=job.input.media_root,
        data_columns=data_columns,
        on_truncated=job.run.on_truncated,
        fail_invalid_json=job.run.on_invalid_json == "fail",
    )


_STARTER = """\
# Ask a model one question a row. Try it without an account:   pipeline run --simulate THIS_FILE
operation: chat

input:
  path: rows.jsonl                          # one JSON object a line; Parquet works too
  id: id                                    # the column that names a row (optional)

request:                                    # the API's own body; {{ column }} reads the row
  messages:
    - role: system
      content: Answer in one short sentence.
    - role: user
      content: "{{ question }}"
  max_completion_tokens: 100                # bounds the answer and the cost; counts against the quota

deployments:
  - endpoint: ${AZURE_OPENAI_ENDPOINT}      # https://NAME.openai.azure.com
    deployment: gpt-4o-mini                 # your deployment's name
    model: gpt-4o-mini                      # what stands behind it
    api: azure
    api_version: "2024-10-21"
    requests_per_minute: 300                # your quota; leave out to learn it from the replies
    tokens_per_minute: 50000

output:
  path: out/chat                            # a folder that the run owns; run again to continue

run:
  workers: 32                               # requests in flight at most
"""

_STARTER_ROWS = """\
{"id": "a", "question": "Why is the sky blue?"}
{"id": "b", "question": "What is the boiling point of water at sea level?"}
{"id": "c", "question": "Who wrote Faust?"}
"""

OPERATION = OperationEntry(
    name="chat",
    factory=create,
    description="Chat completions: messages, tools and JSON schemas in; text, tool calls and filter verdicts out.",
    starter=_STARTER,
    starter_rows=_STARTER_ROWS,
)
