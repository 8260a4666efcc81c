"""Images: a prompt in, one picture out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
import pybase64

from pipeline.errors import RowError
from pipeline.job.batch import BATCH_FORMAT
from pipeline.job.template import request_template
from pipeline.job.tokens import estimate
from pipeline.model import Call, ErrorInfo, ErrorType, Item, Reply, Row, RowResult, Target
from pipeline.operations import OperationEntry
from pipeline.operations._checks import is_fixed, lacking, refuse, text_of
from pipeline.operations._filter import filter_column
from pipeline.operations._json import bad_reply, read_object, read_usage, write_body, write_json
from pipeline.operations._media_out import Media, kept_bytes, media_fields, place_media
from pipeline.operations._one_row import OneRow

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.job.spec import Job

# The longest prompt of a family of models, in characters (Azure OpenAI REST reference, images/generations).
_GPT_IMAGE, _DALL_E = "gpt-image", "dall-e"
MAX_CHARACTERS: Mapping[str, int] = {_GPT_IMAGE: 32_000, _DALL_E: 4_000}

# Tokens of a picture of 1024 x 1024 by gpt-image's qualities; they grow with its area.
PICTURE_TOKENS: Mapping[str, int] = {"low": 272, "medium": 1056, "high": 4160}
_SQUARE_PIXELS = 1024 * 1024
# What `size: auto` may choose: 1024 x 1536.
_LARGEST_PIXELS = 1024 * 1536
_MAX_EDGE = 10_000

# How large a picture will be; only ranges end by it. Photographs as PNG have about two bytes a pixel.
_BYTES_A_PIXEL: Mapping[str, float] = {"png": 2.0, "jpeg": 0.5, "webp": 0.5}

_MAX_URL = 16_384

# The deployment says which model.
_NOT_SENT = frozenset({"model"})

_WITHHELD = ErrorInfo(
    type=ErrorType.REPLY,
    code="content_filter",
    message="the service's content filter withheld the picture; `response` says why",
    http_status=200,
)


class Prompt(NamedTuple):
    """What an item holds: the encoded body without `model`, and whether it says how the picture should come."""

    body: bytes
    says_format: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOperation(OneRow):
    """One row, one request, one picture. `models` are those behind the deployments."""

    media: Media
    models: tuple[str, ...]
    keep_response: bool = False
    name: str = "image"
    reads_files: bool = False
    _families: frozenset[str | None] = field(init=False)
    _max_characters: int | None = field(init=False)

    def __post_init__(self) -> None:
        """Look up the families of the models, and the longest prompt that one of them takes."""
        families = frozenset(family(model) for model in self.models)
        object.__setattr__(self, "_families", families)
        most = None if None in families else max(MAX_CHARACTERS[each] for each in families if each is not None)
        object.__setattr__(self, "_max_characters", most)

    def item(self, row: Row) -> Item:
        """Render and check; row errors carry the codes `empty`, `type`, `too_long` and `unsupported`."""
        body = self.template.render(row.values)
        prompt = text_of(body, "prompt", most=self._max_characters, taker="the model")
        for name in _JUDGED:
            if name in body and (problem := self._unfit(name, body[name])):
                raise RowError(code="unsupported", message=f"request.{name} {problem}")
        content = Prompt(write_body(body), "response_format" in body)
        tokens = estimate(len(prompt))
        if _GPT_IMAGE in self._families:
            tokens += _picture_tokens(body)
        expected = kept_bytes(self.media, _expected_bytes(body))
        return Item(ordinal=row.ordinal, content=content, tokens=tokens, reply_bytes=expected)

    def problems(self, request: Mapping[str, Any]) -> dict[str, str]:
        """What no row could be asked with, by the request's fields."""
        found = lacking(request, "prompt")
        for name in _JUDGED:
            if name in request and is_fixed(request[name]) and (problem := self._unfit(name, request[name])):
                found[name] = problem
        if "response_format" in request and _GPT_IMAGE in self._families:
            found["response_format"] = _NO_FORMAT
        return found

    def _unfit(self, name: str, value: Any) -> str | None:
        """Say what is wrong with a field whose values are known; None where nothing is."""
        match name:
            case "n":
                one = type(value) is int and value == 1
                return None if one else "is not 1: a row holds one picture; give every picture a row of its own"
            case "stream":
                return None if value is False else "is not false: a row takes its picture whole, never in parts"
            case _:
                if _GPT_IMAGE in self._families:
                    return _NO_FORMAT
                return None if value in ("b64_json", "url") else "is neither b64_json nor url"

    def build(self, items: Sequence[Item], target: Target) -> Call:
        """Put what the deployment decides in front of the body: the model's name where the path does not say it.

        dall-e is asked for base64 where the job says nothing: a URL would have to be fetched before it expires.
        """
        (item,) = items
        prompt: Prompt = item.content
        front: dict[str, Any] = {} if target.body_model is None else {"model": target.body_model}
        if not prompt.says_format and family(target.model) == _DALL_E:
            front["response_format"] = "b64_json"
        body = orjson.dumps(front)[:-1] + b"," + prompt.body[1:] if front else prompt.body
        return Call(endpoint="images/generations", body=body, tokens=item.tokens)

    def parse(self, items: Sequence[Item], reply: Reply) -> list[RowResult]:
        """Read the picture, or the URL where it waits.

        A reply without a picture is asked for again, unless the content filter withheld it: that is the row's end, for
        it was billed, and asking again bills it again.
        """
        (item,) = items
        root = read_object(reply)
        entry = _first(root)
        usage = read_usage(root.get("usage"))
        found = filter_column(root, entry)
        revised = entry.get("revised_prompt")
        result = RowResult(
            ordinal=item.ordinal,
            values={"revised_prompt": revised if type(revised) is str else None, "content_filter": found},
            usage=usage,
            response=_response(root) if self.keep_response else None,
        )
        encoded, url = entry.get("b64_json"), entry.get("url")
        if type(encoded) is str:
            return [self.fetched(result, _decoded(encoded))]
        if type(url) is str:
            # The reply goes with it in any case: it says more than a fetch that fails.
            return [replace(result, fetch=_checked_url(url), response=_response(root))]
        if _is_filtered(entry):
            return [replace(result, values=None, error=_WITHHELD, response=_response(root))]
        raise bad_reply("the reply holds no picture")

    def fetched(self, result: RowResult, content: bytes) -> RowResult:
        """Put the picture where the job wants it. Raises ReplyError where the content is none."""
        values, files = place_media("image", self.media, content, kind_of(content))
        return replace(result, values={**values, **(result.values or {})}, files=files, fetch=None)

    def schema(self) -> pa.Schema:
        """`image`, `image_path` or both, as `output.media` says; `revised_prompt`, and `content_filter` as JSON."""
        import pyarrow as pa  # noqa: PLC0415 - `pipeline --help` does not pay for it

        texts = [pa.field(name, pa.string()) for name in ("revised_prompt", "content_filter")]
        return pa.schema([*media_fields("image", self.media), *texts])


_NO_FORMAT = "is no field of gpt-image models, which always answer with base64: leave it out"
_JUDGED = ("n", "stream", "response_format")


def family(model: str) -> str | None:
    """The family of a model, whose members take the same fields; None for a model of another maker."""
    name = model.lower()
    if name.startswith("gpt-image"):
        return _GPT_IMAGE
    return _DALL_E if name.startswith(("dall-e", "dalle")) else None


def kind_of(content: bytes) -> str:
    """The kind of a picture by its first bytes, as the ending of a file's name. Raises ReplyError for all others."""
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if content.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    if content.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    raise bad_reply("the reply's picture is neither PNG, JPEG, WebP nor GIF")


def _pixels(size: Any) -> int:
    """The area of `1024x1536`; that of the largest usual picture where the service is to choose."""
    edges = size.split("x") if isinstance(size, str) else []
    if len(edges) == 2 and all(edge.isascii() and edge.isdigit() and len(edge) < 6 for edge in edges):  # noqa: PLR2004
        width, height = (min(int(edge), _MAX_EDGE) for edge in edges)
        return width * height
    return _LARGEST_PIXELS


def _picture_tokens(body: Mapping[str, Any]) -> int:
    quality = body.get("quality")
    tokens = PICTURE_TOKENS.get(quality, PICTURE_TOKENS["high"]) if isinstance(quality, str) else PICTURE_TOKENS["high"]
    return math.ceil(tokens * _pixels(body.get("size")) / _SQUARE_PIXELS)


def _expected_bytes(body: Mapping[str, Any]) -> int:
    kind = body.get("output_format")
    a_pixel = _BYTES_A_PIXEL.get(kind, _BYTES_A_PIXEL["png"]) if isinstance(kind, str) else _BYTES_A_PIXEL["png"]
    return int(a_pixel * _pixels(body.get("size")))


def _first(root: Mapping[str, Any]) -> dict[str, Any]:
    data = root.get("data")
    if type(data) is not list or not data or type(data[0]) is not dict:
        raise bad_reply("the reply holds no data")
    first: dict[str, Any] = data[0]
    return first


def _decoded(encoded: str) -> bytes:
    try:
        return pybase64.b64decode(encoded, validate=True)
    except ValueError:
        raise bad_reply("the reply's picture is not base64") from None


def _checked_url(url: str) -> str:
    """Give the URL back. Raises ReplyError for what is plainly none; who fetches it looks closer."""
    if len(url) > _MAX_URL or not url.lower().startswith(("https://", "http://")):
        raise bad_reply("the reply's picture has a URL that is none")
    return url


def _is_filtered(entry: Mapping[str, Any]) -> bool:
    found = entry.get("content_filter_results")
    return type(found) is dict and any(type(each) is dict and each.get("filtered") is True for each in found.values())


def _response(root: Mapping[str, Any]) -> bytes:
    """The reply without its pictures, and without the queries of their URLs, which are keys to them."""
    return write_json({**root, "data": [_without_picture(entry) for entry in root["data"]]}).encode()


def _without_picture(entry: Any) -> Any:
    if type(entry) is not dict:
        return entry
    kept = {key: value for key, value in entry.items() if key != "b64_json"}
    if type(kept.get("url")) is str:
        kept["url"] = kept["url"].partition("?")[0]
    return kept


def create(job: Job) -> ImageOperation:
    """Compile the job's request. Raises JobFileError for what no row could be asked with."""
    request = {key: value for key, value in job.request.items() if key not in _NOT_SENT}
    operation = ImageOperation(
        template=request_template(job, without=_NOT_SENT),
        media=job.output.media,
        models=tuple(dict.fromkeys(deployment.model for deployment in job.deployments)),
        keep_response=job.output.raw == "all",
    )
    if job.input.format != BATCH_FORMAT:
        refuse(job, operation.problems(request))
    return operation


_STARTER = """\
# Draw one picture a row. Try it without an account:   pipeline run --simulate THIS_FILE
operation: image

input:
  path: rows.jsonl                          # one JSON object a line; Parquet works too
  id: id                                    # the column that names a row (optional)

request:                                    # the API's own body; {{ column }} reads the row
  prompt: "{{ prompt }}"
  size: 1024x1024                           # or 1024x1536, 1536x1024, auto
  quality: low                              # or medium, high: a picture costs by its quality and size
  output_format: png                        # or jpeg

deployments:
  - endpoint: ${AZURE_OPENAI_ENDPOINT}      # https://NAME.openai.azure.com
    deployment: gpt-image-1                 # your deployment's name
    model: gpt-image-1                      # what stands behind it
    api: azure
    api_version: "2025-04-01-preview"
    requests_per_minute: 60                 # your quota; leave out to learn it from the replies

output:
  path: out/image                           # a folder that the run owns; run again to continue
  media: auto                               # pictures up to 1 MB in the column `image`, else a file; column | files

run:
  workers: 4                                # requests in flight at most
"""

_STARTER_ROWS = """\
{"id": "a", "prompt": "A lighthouse on a low cliff at dusk, in watercolour."}
{"id": "b", "prompt": "A wooden desk with an open atlas, seen from above."}
{"id": "c", "prompt": "A narrow street after rain, lamps reflected in the stones."}
"""

OPERATION = OperationEntry(
    name="image",
    factory=create,
    description="Images: a prompt in, one picture out, in a column or a file, with the filter's verdicts.",
    starter=_STARTER,
    starter_rows=_STARTER_ROWS,
)
