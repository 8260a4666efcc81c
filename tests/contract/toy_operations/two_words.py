"""A new operation: one file, found without a word said elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import orjson
import pyarrow as pa

from pipeline.errors import ReplyError, RowError, RowProblem
from pipeline.job.template import RequestTemplate, compile_request
from pipeline.model import Call, ErrorInfo, Item, Reply, Row, RowResult, Target
from pipeline.operations import OperationEntry
from pipeline.operations.base import PackLimits

if TYPE_CHECKING:
    from pipeline.job.spec import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoWords:
    """Ask for a word, get two."""

    template: RequestTemplate
    name: str = "two-words"
    reads_files: bool = False
    limits: PackLimits = field(default_factory=PackLimits)

    @property
    def columns(self) -> frozenset[str] | None:
        return self.template.columns

    def prepare(self, rows: Sequence[Row]) -> list[Item | ErrorInfo]:
        return [self._prepare(row) for row in rows]

    def _prepare(self, row: Row) -> Item | ErrorInfo:
        try:
            word = self.template.render(row.values).get("word")
            if not isinstance(word, str) or not word.isalpha():
                raise RowError(code="type", message="word is none")
        except RowProblem as problem:
            return problem.info
        except RecursionError:
            return RowError(code="type", message="word nests too deep").info
        return Item(ordinal=row.ordinal, content=word, tokens=1)

    def build(self, items: Sequence[Item], target: Target) -> Call:
        model = {} if target.body_model is None else {"model": target.body_model}
        body = orjson.dumps({**model, "word": items[0].content})
        return Call(endpoint="two-words", body=body, tokens=1)

    def parse(self, items: Sequence[Item], reply: Reply) -> list[RowResult]:
        try:
            words = orjson.loads(reply.body)["words"]
            first, second = words
        except (ValueError, TypeError, KeyError):
            raise ReplyError(code="bad_reply", message="no two words") from None
        if type(first) is not str or type(second) is not str:
            raise ReplyError(code="bad_reply", message="no two words")
        return [RowResult(ordinal=items[0].ordinal, values={"first": first, "second": second})]

    def blame(self, items: Sequence[Item], error: ErrorInfo) -> int | None:
        return None

    def facts(self, results: Sequence[RowResult]) -> Mapping[str, int]:
        return {}

    def settled(self, facts: Mapping[str, int]) -> Self:
        return self

    def schema(self) -> pa.Schema:
        return pa.schema([("first", pa.string()), ("second", pa.string())])


def create(job: Job) -> TwoWords:
    return TwoWords(template=compile_request(job.request))


OPERATION = OperationEntry(
    name="two-words",
    factory=create,
    description="Two words for one.",
    starter="""\
operation: two-words
input: {path: rows.jsonl}
request: {word: "{{ word }}"}
deployments: [{endpoint: "https://x.openai.azure.com", deployment: d, model: m, api: azure, api_version: "2024-10-21"}]
output: {path: out}
""",
    starter_rows='{"word": "moon"}\n{"word": "tide"}\n',
)
