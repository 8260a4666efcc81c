"""Completions, the older sister of chat: one prompt in, the text that goes on from it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
from pipeline.operations._json import bad_reply, read_model, read_usage, write_json
from pipeline.operations._one_row import OneRow
from pipeline.operations._prompt import bound_of, completions_prompt
from pipeline.operations._sse import StreamRefused
from pipeline.operations.base import Bound, Prompt

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.job.spec import Job

# The deployment says which model.
_NOT_SENT = frozenset({"model"})
_BOUNDS = ("max_tokens",)
_COPIES = ("n", "best_of")

# The first classic Azure version whose description is known to have stream_options; 2024-10-21 has none.
_USAGE_OPTION_SINCE = "2025-04-01"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionsOperation(OneRow):
    """One row, one request. An item's content is an `Asked`.

    `on_truncated` is what becomes of a text that its token limit cut: keep, fail or retry.
    """

    on_truncated: str = "keep"
    name: str = "completions"
    reads_files: bool = False

    def item(self, row: Row) -> Item:
        """Render and check; row errors carry the codes `empty` and `type`."""
        body = self.template.render(row.values)
        stream = take_stream(body)
        tokens = _prompt_tokens(body.get("prompt"))
        asked = ask(body, bounds=_BOUNDS, copies=_copies(body), stream=stream)
        return Item(
            ordinal=row.ordinal, tokens=tokens + asked.output_tokens, output_tokens=asked.output_tokens, content=asked
        )

    def build(self, items: Sequence[Item], target: Target) -> Call:
        """Put the model's name in front of the body where the path does not say it."""
        (item,) = items
        usage_option = takes_usage_option(target, since=_USAGE_OPTION_SINCE)
        return call("completions", item, model=target.body_model, usage_option=usage_option)

    def packed(self, content: Asked) -> Any:
        """See `Portable`."""
        return packed(content)

    def unpacked(self, values: Any) -> Asked:
        """See `Portable`."""
        return unpacked(values)

    def parse(self, items: Sequence[Item], reply: Reply) -> list[RowResult]:
        """Read the text; what the content filter cut is an ok row with what was let through, as in chat."""
        (item,) = items
        try:
            answer = read_completion(reply, streamed=item.content.stream, kind="text_completion")
        except StreamRefused as refused:
            return [RowResult(ordinal=item.ordinal, error=refused.info)]
        choices = read_choices(answer.root)
        first = choices[0]
        text = first.get("text")
        if type(text) is not str and not (text is None and first.get("finish_reason") == "content_filter"):
            raise bad_reply("the first choice holds no text")
        values = {
            "output_text": text,
            "finish_reason": first.get("finish_reason"),
            "choices": write_json(choices) if len(choices) > 1 else None,
            "content_filter": filter_column(answer.root, first),
            "time_to_first_token_ms": answer.first_token_ms,
        }
        usage = read_usage(answer.root.get("usage"))
        result = RowResult(
            ordinal=item.ordinal, values=values, usage=usage, response=answer.response, model=read_model(answer.root)
        )
        if first.get("finish_reason") == "length":
            return [truncated(item, result, policy=self.on_truncated, field="max_tokens")]
        return [result]

    def prompt(self, items: Sequence[Item]) -> Prompt:
        """Say what the request is billed for as input."""
        return completions_prompt(items)

    def bound(self, items: Sequence[Item]) -> Bound:
        """Bound what the request can be billed for."""
        return bound_of(items)

    def sized(self, item: Item, output_tokens: int) -> Item | None:
        """Bound the answer by fewer tokens than the job does."""
        return sized(item, output_tokens)

    def schema(self) -> pa.Schema:
        """Texts, of which `choices` and `content_filter` are JSON; `time_to_first_token_ms` is null unless streamed."""
        import pyarrow as pa  # noqa: PLC0415 - `pipeline --help` does not pay for it

        texts = [pa.field(name, pa.string()) for name in ("output_text", "finish_reason", "choices", "content_filter")]
        return pa.schema([*texts, pa.field("time_to_first_token_ms", pa.float64())])


def _prompt_tokens(prompt: Any) -> int:
    """Check the row's prompt, a text or the tokens of one, and estimate its tokens. Raises RowError."""
    if prompt is None or prompt in ("", []):
        raise RowError(code="empty", message="request.prompt is empty or null")
    if isinstance(prompt, str):
        return estimate(len(prompt))
    if isinstance(prompt, list):
        if all(type(token) is int for token in prompt):
            return len(prompt)
        raise RowError(code="type", message="request.prompt is a list of prompts; give every prompt a row of its own")
    raise RowError(
        code="type",
        message=f"request.prompt is {type(prompt).__name__}, not text; '{{{{ column | string }}}}' makes it text",
    )


def _copies(body: Mapping[str, Any]) -> int:
    """How many texts are written, and billed, for one that is asked for."""
    return max([1, *(value for name in _COPIES if type(value := body.get(name)) is int)])


def create(job: Job) -> CompletionsOperation:
    """Compile the job's request. Raises JobFileError where it lacks its `prompt`."""
    require(job, "prompt")
    return CompletionsOperation(
        template=request_template(job, without=_NOT_SENT),
        on_truncated=job.run.on_truncated,
    )


_STARTER = """\
# Go on from one prompt a row. Try it without an account:   pipeline run --simulate THIS_FILE
operation: completions

input:
  path: rows.jsonl                          # one JSON object a line; Parquet works too
  id: id                                    # the column that names a row (optional)

request:                                    # the API's own body; {{ column }} reads the row
  prompt: "A slogan for {{ product }}:"
  max_tokens: 40                            # the service's own default is 16
  stop: "\\n"

deployments:
  - endpoint: ${AZURE_OPENAI_ENDPOINT}      # https://NAME.openai.azure.com
    deployment: gpt-35-turbo-instruct       # your deployment's name; chat models do not take prompts
    model: gpt-35-turbo-instruct            # what stands behind it
    api: azure
    api_version: "2024-10-21"
    requests_per_minute: 300                # your quota; leave out to learn it from the replies
    tokens_per_minute: 50000

output:
  path: out/completions                     # a folder that the run owns; run again to continue

run:
  workers: 32                               # requests in flight at most
"""

_STARTER_ROWS = """\
{"id": "a", "product": "a bicycle that folds"}
{"id": "b", "product": "bread baked at night"}
{"id": "c", "product": "a very quiet clock"}
"""

OPERATION = OperationEntry(
    name="completions",
    factory=create,
    description="Completions (legacy): a prompt in, the text that goes on from it out.",
    starter=_STARTER,
    starter_rows=_STARTER_ROWS,
)
