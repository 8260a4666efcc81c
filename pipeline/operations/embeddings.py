"""Embeddings: many rows to a request, one vector a row, or one a piece of its text."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import orjson
import pybase64

from pipeline.errors import RowError, RowProblem
from pipeline.job.prices import vector_size
from pipeline.job.template import RequestTemplate, compile_request, request_template
from pipeline.job.tokens import at_most, count, cut, estimate, max_input_tokens
from pipeline.model import CHUNK, Call, ErrorInfo, Item, Reply, Row, RowResult, Target, Usage
from pipeline.operations import OperationEntry
from pipeline.operations._checks import require
from pipeline.operations._json import bad_reply, read_model, read_object, read_usage, too_deep, write_body
from pipeline.operations._text_pieces import split_text
from pipeline.operations.base import Bound, PackLimits, Prompt

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.job.spec import Job

# The service's documented limits of one request.
MAX_INPUTS = 2048
MAX_REQUEST_TOKENS = 300_000

# A pack bigger than this share of the quota would wait long and fail dear.
PACK_QUOTA_S = 10
PACK_REPLY_BYTES = 8 * 1024 * 1024

# The largest of the built-in models' vectors: what to expect of a model that the table does not know.
LARGEST_VECTOR = 3072
_ENTRY_BYTES = 64  # {"object":"embedding","index":2047,"embedding":"…"}, and some

# What stands beside the other fields: the texts, and what is not the job's to say. What is no field of the API.
_NOT_SENT = ("input", "model", "encoding_format")
_OURS = ("on_too_long",)

_FLOAT_BYTES = 4
_VECTOR_SIZE = "vector_size"
_EMBEDDING = "embedding"

# The service's ways to name one input: `'$.input[3]' is invalid`, `Invalid 'input[3]': …`, `… at index 3`.
_NAMED_INPUT = re.compile(r"\binput\s?\[(\d{1,6})\]|\bindex:? (\d{1,6})\b", re.IGNORECASE)


class Text(NamedTuple):
    """What an item holds: its text, and the request's other fields, equal for all rows that share a pack.

    `pieces` is the text, or what it was cut into: an input of the request each.
    """

    pieces: tuple[str, ...]
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingsOperation:
    """Rows are packed; equal texts of a pack are sent once.

    `constant` holds the fields beside `input`; None when they depend on the row, which then has a request to itself.
    `vector_size` is None until it is known. `models` are those behind the deployments. `on_too_long` says what becomes
    of a text that is too long for them: `fail`, `truncate` or `split`, which cuts it into at most `most_pieces`. With
    `split`, every value of a result is a list, one entry a piece.
    """

    template: RequestTemplate
    constant: Mapping[str, Any] | None
    limits: PackLimits
    models: tuple[str, ...]
    vector_size: int | None
    keep_response: bool = False
    on_too_long: str = "fail"
    most_pieces: int = MAX_INPUTS
    name: str = "embeddings"
    reads_files: bool = False
    _max_input_tokens: int | None = field(init=False)

    def __post_init__(self) -> None:
        """Look up the shortest input limit of the models."""
        known = [most for model in self.models if (most := max_input_tokens(model)) is not None]
        object.__setattr__(self, "_max_input_tokens", min(known, default=None))

    @property
    def columns(self) -> frozenset[str] | None:
        """The columns that the request's templates read."""
        return self.template.columns

    def prepare(self, rows: Sequence[Row]) -> list[Item | ErrorInfo]:
        """Render and check; row errors carry the codes `empty`, `type` and `too_long`."""
        prepared = [self._prepare(row) for row in rows]
        self._fit_long(prepared)
        return prepared

    def _prepare(self, row: Row) -> Item | ErrorInfo:
        try:
            fields = self.template.render(row.values)
            text = _text(fields.get("input"))
            constant = self.constant
            if constant is None:
                constant = _sent_fields(fields)
                write_body(constant)
        except RowProblem as problem:
            return problem.info
        except RecursionError:
            return too_deep().info
        return Item(
            ordinal=row.ordinal,
            content=Text((text,), constant),
            tokens=_tokens(text),
            reply_bytes=_reply_bytes(self.vector_size or LARGEST_VECTOR),
        )

    def _fit_long(self, prepared: list[Item | ErrorInfo]) -> None:
        """Cut, split or refuse texts that the model cannot take; only those that could be too long are counted."""
        most = self._max_input_tokens
        if most is None:
            return
        suspects = [
            (index, item)
            for index, item in enumerate(prepared)
            if isinstance(item, Item) and at_most(item.content.pieces[0]) > most
        ]
        if not suspects:
            return
        counts = count([item.content.pieces[0] for _, item in suspects], self.models[0])
        for (index, item), counted in zip(suspects, counts, strict=True):
            if counted > most:
                prepared[index] = self._fitted(item, counted, most)

    def _fitted(self, item: Item, counted: int, most: int) -> Item | ErrorInfo:
        """What becomes of a text of `counted` tokens, more than `most`."""
        (text,) = item.content.pieces
        match self.on_too_long:
            case "truncate":
                return _of_pieces(item, (cut(text, most, self.models[0]),))
            case "split":
                return self._split(item, counted, most)
        return _too_long(f"has {counted} tokens; the model takes at most {most}: shorten it")

    def _split(self, item: Item, counted: int, most: int) -> Item | ErrorInfo:
        """Cut a text into pieces. It fails where one request cannot carry them all."""
        pieces: list[str] = []
        if counted <= MAX_REQUEST_TOKENS:
            pieces = split_text(item.content.pieces[0], most, self.models[0])
            counted = sum(count(pieces, self.models[0]))
        if counted > MAX_REQUEST_TOKENS:
            return _too_long(
                f"has {counted} tokens; a request carries at most {MAX_REQUEST_TOKENS}, and all pieces of a text: "
                "make several rows of it"
            )
        if len(pieces) > self.most_pieces:
            return _too_long(
                f"makes {len(pieces)} pieces; a request carries at most {self.most_pieces} inputs (the smallest "
                "max_inputs of the deployments), and all pieces of a text: make several rows of it"
            )
        return _of_pieces(item, tuple(pieces))

    def build(self, items: Sequence[Item], target: Target) -> Call:
        """Send every text of the pack once, in order of first appearance, and ask for base64."""
        unique = list(_places(items))
        body: dict[str, Any] = {} if target.body_model is None else {"model": target.body_model}
        body["input"] = unique
        body.update(items[0].content.fields)
        body["encoding_format"] = "base64"
        return Call(endpoint="embeddings", body=orjson.dumps(body), tokens=sum(map(_tokens, unique)))

    def packed(self, content: Text) -> Any:
        """See `Portable`."""
        return content.pieces, dict(content.fields)

    def unpacked(self, values: Any) -> Text:
        """See `Portable`."""
        pieces, fields = values
        return Text(tuple(pieces), fields)

    def parse(self, items: Sequence[Item], reply: Reply) -> list[RowResult]:
        """Give every row its vector, or vectors, as little-endian float32 bytes, and its share of the usage.

        Shares follow the texts' estimated tokens and add up to the service's figures.
        """
        root = read_object(reply)
        places = _places(items)
        vectors = self._vectors(root.get("data"), len(places))
        model = read_model(root)
        usages = _share(read_usage(root.get("usage")), [item.tokens for item in items])
        results = []
        for item, usage in zip(items, usages, strict=True):
            own = [places[piece] for piece in item.content.pieces]
            response = _response(root, own if self._splits else own[0], usage) if self.keep_response else None
            values = self._values([vectors[place] for place in own])
            results.append(RowResult(ordinal=item.ordinal, values=values, usage=usage, response=response, model=model))
        return results

    def prompt(self, items: Sequence[Item]) -> Prompt:
        """Every text of the pack once."""
        return Prompt(texts=tuple(_places(items)))

    def bound(self, items: Sequence[Item]) -> Bound:
        """Bound the request by the bytes of its texts."""
        return Bound(input=sum(at_most(text) for text in _places(items)), output=0)

    @property
    def _splits(self) -> bool:
        return self.on_too_long == "split"

    def _values(self, vectors: list[bytes]) -> dict[str, Any]:
        if self._splits:
            return {CHUNK: list(range(len(vectors))), _EMBEDDING: vectors}
        return {_EMBEDDING: vectors[0]}

    def _vectors(self, data: Any, expected: int) -> list[bytes]:
        if type(data) is not list:
            raise bad_reply("the reply holds no data")
        if len(data) != expected:
            raise bad_reply(f"the reply holds {len(data)} vectors for {expected} texts")
        vectors: list[bytes] = [b""] * expected
        try:
            for entry in data:
                index = entry["index"]
                if type(index) is not int or not 0 <= index < expected or vectors[index]:
                    raise bad_reply("the vectors' indexes are not those of the texts")
                vectors[index] = _vector(entry["embedding"])
        except (KeyError, TypeError, ValueError, struct.error, OverflowError):
            raise bad_reply("an entry of data is no embedding") from None
        size = self.vector_size or len(vectors[0]) // _FLOAT_BYTES
        for vector in vectors:
            if len(vector) != size * _FLOAT_BYTES or not vector:
                raise bad_reply(
                    f"a vector has {len(vector) / _FLOAT_BYTES:g} floats where {size} are expected; "
                    "see request.dimensions and the deployment's model",
                )
        if not _all_finite(vectors):
            raise bad_reply("a vector holds NaN or an infinity")
        return vectors

    def blame(self, items: Sequence[Item], error: ErrorInfo) -> int | None:
        """Find the input that the service's `param`, else its message, names; None when it names none or several."""
        text = error.param if error.param and _NAMED_INPUT.search(error.param) else error.message
        named = {int(match[1] or match[2]) for match in _NAMED_INPUT.finditer(text)}
        if len(named) != 1:
            return None
        (place,) = named
        places = _places(items)
        return next(
            (index for index, item in enumerate(items) if place in [places[piece] for piece in item.content.pieces]),
            None,
        )

    def facts(self, results: Sequence[RowResult]) -> Mapping[str, int]:
        """`vector_size` in floats, while it is unknown and a row is ok."""
        if self.vector_size is None:
            for result in results:
                if result.values is not None:
                    found = result.values[_EMBEDDING]
                    return {_VECTOR_SIZE: len(found[0] if self._splits else found) // _FLOAT_BYTES}
        return {}

    def settled(self, facts: Mapping[str, int]) -> Self:
        """Bound to the run's `vector_size`; a size that the job itself fixes stays."""
        if self.vector_size is not None or _VECTOR_SIZE not in facts:
            return self
        return replace(self, vector_size=facts[_VECTOR_SIZE])

    def schema(self) -> pa.Schema:
        """A column of fixed-size lists; before it the piece's number, where texts are split.

        Raises LookupError until the size is known.
        """
        import pyarrow as pa  # noqa: PLC0415 - `pipeline --help` does not pay for it

        if self.vector_size is None:
            raise LookupError("the vector size is not known before the first reply")
        floats = pa.field("item", pa.float32(), nullable=False)
        vector = pa.field(_EMBEDDING, pa.list_(floats, self.vector_size))
        return pa.schema([pa.field(CHUNK, pa.int32()), vector] if self._splits else [vector])


def _text(value: Any) -> str:
    """Check the row's text. Raises RowError for what the service would refuse."""
    if value is None or value == "":
        raise RowError(code="empty", message="request.input is empty or null")
    if isinstance(value, list):
        raise RowError(code="type", message="request.input is a list; give every text a row of its own")
    if not isinstance(value, str):
        raise RowError(
            code="type",
            message=f"request.input is {type(value).__name__}, not text; '{{{{ column | string }}}}' makes it text",
        )
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RowError(code="type", message="request.input holds half a surrogate pair") from None
    return value


def _too_long(why: str) -> ErrorInfo:
    return RowError(code="too_long", message=f"the text {why}").info


def _of_pieces(item: Item, pieces: tuple[str, ...]) -> Item:
    """The item with these texts in place of its own."""
    return replace(
        item,
        content=item.content._replace(pieces=pieces),
        tokens=sum(map(_tokens, pieces)),
        reply_bytes=len(pieces) * item.reply_bytes,
        inputs=len(pieces),
    )


def _tokens(text: str) -> int:
    return estimate(len(text))


def _sent_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what goes out beside `input`; the wire's encoding and the model are not the job's to say."""
    return {key: value for key, value in fields.items() if key not in _NOT_SENT}


def _reply_bytes(size: int) -> int:
    """Bytes of one vector of `size` floats in base64, with its frame."""
    return 4 * math.ceil(size * _FLOAT_BYTES / 3) + _ENTRY_BYTES


def _places(items: Sequence[Item]) -> dict[str, int]:
    """Every text of a pack and its place in the request."""
    texts = dict.fromkeys(piece for item in items for piece in item.content.pieces)
    return {text: place for place, text in enumerate(texts)}


def _vector(embedding: Any) -> bytes:
    """Base64 as asked, or the list of floats that some compatible services send all the same."""
    if type(embedding) is str:
        return pybase64.b64decode(embedding, validate=True)
    return struct.pack(f"<{len(embedding)}f", *embedding)


def _all_finite(vectors: Sequence[bytes]) -> bool:
    """Whether no float is NaN or infinite: either would show in the sum, which double precision keeps finite."""
    import pyarrow as pa  # noqa: PLC0415 - `pipeline --help` does not pay for it
    import pyarrow.compute as pc  # noqa: PLC0415

    joined = vectors[0] if len(vectors) == 1 else b"".join(vectors)
    floats = pa.Array.from_buffers(pa.float32(), len(joined) // _FLOAT_BYTES, [None, pa.py_buffer(joined)])
    return math.isfinite(pc.sum(floats).as_py())


def _share(usage: Usage | None, weights: Sequence[int]) -> list[Usage | None]:
    if usage is None or len(weights) == 1:
        return [usage] * len(weights)
    inputs = _split(usage.input_tokens, weights)
    totals = inputs if usage.total_tokens == usage.input_tokens else _split(usage.total_tokens, weights)
    return [Usage(input_tokens=mine, total_tokens=total) for mine, total in zip(inputs, totals, strict=True)]


def _split(amount: int | None, weights: Sequence[int]) -> Sequence[int | None]:
    """Whole numbers in proportion to the weights that add up to the amount (largest remainder)."""
    if amount is None:
        return [None] * len(weights)
    whole = sum(weights)
    shares = [amount * weight // whole for weight in weights]
    remainders = [amount * weight % whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=remainders.__getitem__, reverse=True)
    for index in by_remainder[: amount - sum(shares)]:
        shares[index] += 1
    return shares


def _response(root: Mapping[str, Any], place: int | list[int], usage: Usage | None) -> bytes:
    """One row's part of a pack's reply; the vector is a column already. With several pieces come several places."""
    counted = None if usage is None else {"prompt_tokens": usage.input_tokens, "total_tokens": usage.total_tokens}
    return orjson.dumps({"object": "embedding", "model": root.get("model"), "index": place, "usage": counted})


def create(job: Job) -> EmbeddingsOperation:
    """Compile the job's request and find what is known of its packs and vectors before the first call.

    Raises JobFileError where the request has no `input`.
    """
    require(job, "input")
    request = job.request
    others = request_template(job, without=(*_NOT_SENT, *_OURS))
    constant = others.render({}) if others.columns == frozenset() else None
    models = tuple(dict.fromkeys(deployment.model for deployment in job.deployments))
    return EmbeddingsOperation(
        template=compile_request({"input": request.get("input")})
        if constant is not None
        else request_template(job, without=_OURS),
        constant=constant,
        limits=_limits(job) if constant is not None else PackLimits(),
        models=models,
        vector_size=_known_size(request.get("dimensions"), models),
        keep_response=job.output.raw == "all",
        on_too_long=request.get("on_too_long") or "fail",
        most_pieces=_most_inputs(job),
    )


def _known_size(dimensions: Any, models: Sequence[str]) -> int | None:
    if type(dimensions) is int:
        return dimensions
    sizes = {vector_size(model) for model in models}
    return sizes.pop() if len(sizes) == 1 else None


def _most_inputs(job: Job) -> int:
    """How many texts every deployment takes in one request."""
    return min([MAX_INPUTS, *(each.max_inputs for each in job.deployments if each.max_inputs is not None)])


def _limits(job: Job) -> PackLimits:
    rates = [each.tokens_per_minute for each in job.deployments if each.tokens_per_minute is not None]
    return PackLimits(
        items=_most_inputs(job),
        tokens=min([MAX_REQUEST_TOKENS, *(max(1, int(rate * PACK_QUOTA_S / 60)) for rate in rates)]),
        reply_bytes=PACK_REPLY_BYTES,
    )


_STARTER = """\
# Embed one text a row. Try it without an account:   pipeline run --simulate THIS_FILE
operation: embeddings

input:
  path: rows.jsonl                          # one JSON object a line; Parquet works too
  id: id                                    # the column that names a row (optional)

request:                                    # the API's own body; {{ column }} reads the row
  input: "{{ text }}"
  dimensions: 256                           # leave out for the model's full size

deployments:
  - endpoint: ${AZURE_OPENAI_ENDPOINT}      # https://NAME.openai.azure.com
    deployment: text-embedding-3-small      # your deployment's name
    model: text-embedding-3-small           # what stands behind it
    api: azure
    api_version: "2024-10-21"
    requests_per_minute: 300                # your quota; leave out to learn it from the replies
    tokens_per_minute: 50000

output:
  path: out/embeddings                      # a folder that the run owns; run again to continue

run:
  workers: 32                               # requests in flight at most
"""

_STARTER_ROWS = """\
{"id": "a", "text": "Bees dance to tell each other where the flowers are."}
{"id": "b", "text": "A keystone holds an arch together."}
{"id": "c", "text": "Salt lowers the freezing point of water."}
"""

OPERATION = OperationEntry(
    name="embeddings",
    factory=create,
    description="Embeddings: many texts to a request; one float32 vector a row.",
    starter=_STARTER,
    starter_rows=_STARTER_ROWS,
    large_answers=True,
)
