"""Fine-tuning: rows become examples of a file, from which the service makes a model of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import ReplyError, RowError
from pipeline.job.template import request_template
from pipeline.job.training import OWN_FIELDS, PAIR_FIELDS, SENT_FIELDS, TRAINING, most_tokens
from pipeline.model import Call, Item, Reply, Row, RowResult, Target
from pipeline.operations import OperationEntry
from pipeline.operations._examples import check_chat, check_pair, example_tokens, tidied
from pipeline.operations._json import write_body
from pipeline.operations._one_row import OneRow

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.job.spec import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuningOperation(OneRow):
    """One row, one example. An item's content is its line of the training file, without the line's end.

    `pairs`: examples are preference pairs, else chats. `model` counts the tokens, `most` is how many of them an
    example may have.
    """

    pairs: bool
    model: str
    most: int
    name: str = TRAINING
    reads_files: bool = False

    def item(self, row: Row) -> Item:
        """Render and check an example; row errors carry codes such as `role`, `weight`, `last_message`, `too_long`."""
        body = tidied(self.template.render(row.values))
        if self.pairs:
            check_pair(body)
        else:
            check_chat(body)
        line = write_body(body)
        tokens = example_tokens(body, self.model)
        if tokens > self.most:
            raise RowError(
                code="too_long",
                message=f"the example has {tokens} tokens, and one may have {self.most}: shorten it, or say "
                "request.max_example_tokens where the model takes more",
            )
        return Item(ordinal=row.ordinal, tokens=tokens, output_tokens=0, content=line)

    def build(self, items: Sequence[Item], target: Target) -> Call:  # noqa: ARG002 - the protocol's
        """Give the example as it stands in the file that is uploaded."""
        (item,) = items
        return Call(endpoint="files", body=item.content, tokens=item.tokens)

    def parse(self, items: Sequence[Item], reply: Reply) -> list[RowResult]:  # noqa: ARG002 - likewise
        """Refuse: no row has an answer of its own. Raises ReplyError."""
        raise ReplyError(code="no_answer", message="an example of a training has no answer of its own")

    def schema(self) -> pa.Schema:
        """No columns: what is written are the training's events."""
        import pyarrow as pa  # noqa: PLC0415 - `pipeline --help` does not pay for it

        return pa.schema([])


def create(job: Job) -> FineTuningOperation:
    """Compile the job's examples."""
    return FineTuningOperation(
        template=request_template(job, without=SENT_FIELDS | OWN_FIELDS | {"model"}),
        pairs=bool(PAIR_FIELDS & job.request.keys()),
        model=job.deployments[0].model,
        most=most_tokens(job),
    )


_STARTER = """\
# Train a model on one example a row. Try it without an account:   pipeline run --simulate THIS_FILE
operation: fine-tuning

input:
  path: rows.jsonl                          # one JSON object a line; Parquet works too; at least ten rows
  id: id                                    # the column that names a row (optional)

request:
  messages:                                 # an example; {{ column }} reads the row; ends with the assistant
    - {role: system, content: Answer in one word.}
    - {role: user, content: "What is the capital of {{ country }}?"}
    - {role: assistant, content: "{{ capital }}"}
  method:                                   # from here on: said once, when the job is created
    type: supervised
    supervised: {hyperparameters: {n_epochs: 3}}
  suffix: capitals                          # part of the new model's name
  seed: 7
  # validation: 10%                         # a share of the rows, or the path of a second file

deployments:
  - endpoint: ${AZURE_OPENAI_ENDPOINT}      # https://NAME.openai.azure.com
    deployment: gpt-4o-mini-2024-07-18      # the model to train, with its version
    api: azure-v1

output:
  path: out/fine-tuning                     # a folder that the run owns; run again to continue
"""

_CAPITALS = (
    ("Austria", "Vienna"),
    ("Chile", "Santiago"),
    ("Denmark", "Copenhagen"),
    ("Egypt", "Cairo"),
    ("Finland", "Helsinki"),
    ("Ghana", "Accra"),
    ("Japan", "Tokyo"),
    ("Kenya", "Nairobi"),
    ("Norway", "Oslo"),
    ("Peru", "Lima"),
    ("Portugal", "Lisbon"),
    ("Thailand", "Bangkok"),
)
_STARTER_ROWS = "".join(
    f'{{"id": "{country[:2].lower()}", "country": "{country}", "capital": "{capital}"}}\n'
    for country, capital in _CAPITALS
)

OPERATION = OperationEntry(
    name=TRAINING,
    factory=create,
    description="Fine-tuning: a model trained on the rows, by the service's own training jobs.",
    starter=_STARTER,
    starter_rows=_STARTER_ROWS,
)
