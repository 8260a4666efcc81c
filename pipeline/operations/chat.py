"""Chat completions: messages in, one answer (or n) out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import orjson

from pipeline.errors import RowError, RowProblem
from pipeline.job.template import RequestTemplate, compile_request
from pipeline.job.tokens import estimate
from pipeline.model import Call, ErrorInfo, ErrorType, Item, Reply, Row, RowResult, Target
from pipeline.operations import OperationEntry
from pipeline.operations._json import bad_reply, read_object, read_usage, too_deep, write_body, write_json
from pipeline.operations.base import PackLimits

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.job.spec import Job

# Azure's documented limits of one chat request.
MAX_MESSAGES = 2048
MAX_MESSAGE_CHARACTERS = 1_048_576
MAX_TOOLS = 128

# Azure's own admission estimate when a request names no bound on its answer (Microsoft's simulator of its quotas).
DEFAULT_OUTPUT_TOKENS = 16

# A 2048 x 2048 picture in high detail by gpt-4o's tiles (85 + 8 x 170), and any picture in low detail.
PICTURE_TOKENS = 1445
LOW_DETAIL_PICTURE_TOKENS = 85

# The deployment says which model; a batch run reads whole replies, never streams.
_NOT_SENT = frozenset({"model", "stream", "stream_options"})

# Who must say something: an assistant may have called a tool instead, and a tool may return nothing.
_MUST_SPEAK = frozenset({"system", "developer", "user"})
_INSTEAD_OF_CONTENT = ("tool_calls", "function_call", "refusal", "audio")

_TRUNCATED = ErrorInfo(
    type=ErrorType.REPLY,
    code="truncated",
    message="the answer ended at its token limit (finish_reason length); raise request.max_completion_tokens",
    http_status=200,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOperation:
    """One row, one request. `content` of an item is the encoded body without `model`."""

    template: RequestTemplate
    fail_truncated: bool = False
    name: str = "chat"
    reads_files: bool = False
    limits: PackLimits = field(default_factory=PackLimits)

    @property
    def columns(self) -> frozenset[str] | None:
        """The columns that the request's templates read."""
        return self.template.columns

    def prepare(self, rows: Sequence[Row]) -> list[Item | ErrorInfo]:
        """Render and check; row errors carry the codes `empty`, `type` and `too_long`."""
        return [self._prepare(row) for row in rows]

    def _prepare(self, row: Row) -> Item | ErrorInfo:
        try:
            body = self.template.render(row.values)
            return Item(ordinal=row.ordinal, tokens=_check(body), content=write_body(body))
        except RowProblem as problem:
            return problem.info
        except RecursionError:
            return too_deep().info

    def build(self, items: Sequence[Item], target: Target) -> Call:
        """Put the model's name in front of the body where the path does not say it."""
        (item,) = items
        body: bytes = item.content
        if target.body_model is not None:
            body = b'{"model":' + orjson.dumps(target.body_model) + b"," + body[1:]
        return Call(endpoint="chat/completions", body=body, tokens=item.tokens)

    def parse(self, items: Sequence[Item], reply: Reply) -> list[RowResult]:
        """Read the answer.

        A completion cut by the content filter is an ok row with `finish_reason` content_filter and whatever
        text was let through: it was billed, and asking again bills it again.
        """
        (item,) = items
        root = read_object(reply)
        choices = _choices(root)
        first = choices[0]
        finish_reason = first.get("finish_reason")
        if finish_reason is not None and type(finish_reason) is not str:
            raise bad_reply("finish_reason is no text")
        usage = read_usage(root.get("usage"))
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
            "content_filter": _content_filter(root, first),
        }
        if finish_reason == "length" and self.fail_truncated:
            return [RowResult(ordinal=item.ordinal, error=_TRUNCATED, usage=usage, response=reply.body)]
        return [RowResult(ordinal=item.ordinal, values=values, usage=usage, response=reply.body)]

    def blame(self, items: Sequence[Item], error: ErrorInfo) -> int | None:  # noqa: ARG002 - the protocol's
        """Name nobody: a request holds one row."""
        return None

    def facts(self, results: Sequence[RowResult]) -> Mapping[str, int]:  # noqa: ARG002 - the protocol's
        """Answers fix nothing for the run."""
        return {}

    def settled(self, facts: Mapping[str, int]) -> Self:  # noqa: ARG002 - the protocol's
        """Nothing to bind."""
        return self

    def schema(self) -> pa.Schema:
        """Six texts; `tool_calls`, `choices` and `content_filter` are JSON, null when the reply held none."""
        import pyarrow as pa  # noqa: PLC0415 - `pipeline --help` does not pay for it

        names = ("output_text", "refusal", "finish_reason", "tool_calls", "choices", "content_filter")
        return pa.schema([pa.field(name, pa.string()) for name in names])


def _check(body: Mapping[str, Any]) -> int:
    """Check what Azure would refuse and estimate the request's tokens: prompt, and the most it may answer."""
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
    return estimate(characters) + picture_tokens + _most_output(body)


def _most_output(body: Mapping[str, Any]) -> int:
    bound = body.get("max_completion_tokens")
    if bound is None:
        bound = body.get("max_tokens")
    output = bound if type(bound) is int and bound > 0 else DEFAULT_OUTPUT_TOKENS
    copies = body.get("n")
    return output * (copies if type(copies) is int and copies > 1 else 1)


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


def _choices(root: Mapping[str, Any]) -> list[dict[str, Any]]:
    choices = root.get("choices")
    if type(choices) is not list or not choices:
        raise bad_reply("the reply holds no choices")
    if any(type(choice) is not dict for choice in choices):
        raise bad_reply("a choice is no object")
    if len(choices) > 1:
        if any(type(choice.get("index")) is not int for choice in choices):
            raise bad_reply("a choice has no index")
        choices.sort(key=lambda choice: choice["index"])
    return choices


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


def _content_filter(root: Mapping[str, Any], choice: Mapping[str, Any]) -> str | None:
    """Tell what Azure's filter said: `{"prompt": …, "completion": …}`, each absent when it said nothing.

    `prompt` is a list when the service judged a prompt's texts and pictures one by one.
    """
    verdicts: dict[str, Any] = {}
    prompts = root.get("prompt_filter_results") or root.get("prompt_annotations")
    if type(prompts) is list:
        judged = [verdict for prompt in prompts if type(prompt) is dict and (verdict := _verdict(prompt))]
        if judged:
            verdicts["prompt"] = judged[0] if len(judged) == 1 else judged
    completion = _verdict(choice)
    if completion:
        verdicts["completion"] = completion
    return write_json(verdicts) if verdicts else None


def _verdict(holder: Mapping[str, Any]) -> Any:
    """Find the filter's results under both names that the service has used."""
    return holder.get("content_filter_results") or holder.get("content_filter_result")


def create(job: Job) -> ChatOperation:
    """Compile the job's request."""
    return ChatOperation(
        template=compile_request({key: value for key, value in job.request.items() if key not in _NOT_SENT}),
        fail_truncated=job.run.on_truncated == "fail",
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
