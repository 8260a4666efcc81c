"""The frozen job: every key of a job file with its type, default, class and meaning."""

from __future__ import annotations

import hmac
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, final
from urllib.parse import parse_qs, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PrivateAttr,
    Strict,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.config import JsonDict
from pydantic_core import CoreSchema, core_schema

from pipeline.job.availability import DEFAULT_API_VERSION
from pipeline.job.identity import KINDS

Class = Literal["semantic", "operational"]

NOT_YET = "not available yet"
DEFAULT_TIMEOUT_S = 300.0
MEDIA_TIMEOUT_S = 600.0  # sound and pictures take longer to make, and to carry

_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+")
_DURATION_PIECE = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(B|kB|KB|MB|GB|TB|KiB|MiB|GiB|TiB)?")
_BYTES = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12} | {
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_QUANTILE = re.compile(r"p(\d\d(?:\.\d+)?)")
_PERCENT = re.compile(r"(\d+(?:\.\d+)?) ?%")
_PLAIN_TYPES = ("string", "int8", "int16", "int32", "int64", "float", "float32", "double", "float64", "bool")
_TYPES = (*_PLAIN_TYPES, "date", "timestamp", "binary", "json")
_LIST = re.compile(r"list<\s*(\w+)\s*>")
_DECIMAL = re.compile(r"decimal\(\s*(\d{1,2})\s*(?:,\s*(\d{1,2})\s*)?\)")
_MAX_PRECISION = 76  # of Arrow's widest decimal


def parse_duration(value: object) -> float:
    """Seconds from "500ms", "300s", "10m", "2h", "1h30m" or a plain number of seconds; ValueError otherwise."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    text = value.replace(" ", "") if isinstance(value, str) else ""
    if not _DURATION.fullmatch(text):
        raise ValueError("must be a duration such as 500ms, 300s, 10m or 2h")
    return math.fsum(float(number) * _SECONDS[unit] for number, unit in _DURATION_PIECE.findall(text))


def parse_size(value: object) -> int:
    """Bytes from "512MB" (powers of 1000), "8GiB" (powers of 1024) or a plain number of bytes; ValueError otherwise."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError("must be a size such as 512MB or 8GiB")
    return int(float(match[1]) * _BYTES[match[2] or "B"])


def parse_fail_on(value: object) -> object:
    """`any`, `never`, or a fraction in (0, 1] from "5%" or 0.05; ValueError otherwise."""
    if value in ("any", "never"):
        return value
    match = _PERCENT.fullmatch(value.strip()) if isinstance(value, str) else None
    fraction = float(match[1]) / 100 if match else value
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction <= 1:
        raise ValueError("must be any, never or a share of the rows such as 5%")
    return float(fraction)


def parse_canary(value: object) -> int | None:
    """So many rows; None for `off`. ValueError otherwise."""
    if value is None or value == "off":
        return None
    if type(value) is not int or value < 1:
        raise ValueError("must be a number of rows above zero, or off")
    return value


def parse_share(value: object) -> float:
    """A fraction in [0, 1) from "20%" or 0.2; ValueError otherwise."""
    match = _PERCENT.fullmatch(value.strip()) if isinstance(value, str) else None
    fraction = float(match[1]) / 100 if match else value
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 <= fraction < 1:
        raise ValueError("must be a share below 100%, such as 20%")
    return float(fraction)


def parse_quantile(value: object) -> float:
    """A fraction from 0.5 to 1 (not included) from "p99" or "p99.9"; ValueError otherwise."""
    match = _QUANTILE.fullmatch(value.strip()) if isinstance(value, str) else None
    fraction = float(match[1]) / 100 if match else 0.0
    if not 0.5 <= fraction < 1:  # noqa: PLR2004 - below the median, more answers are cut than not
        raise ValueError("must be a quantile from p50 to p99.9, such as p99")
    return fraction


def _column_type(text: str) -> str:
    listed, decimal = _LIST.fullmatch(text), _DECIMAL.fullmatch(text)
    known = text in _TYPES or (listed is not None and listed[1] in _PLAIN_TYPES)
    if decimal is not None:
        precision, scale = int(decimal[1]), int(decimal[2] or 0)
        known = 1 <= precision <= _MAX_PRECISION and scale <= precision
    if not known:
        raise ValueError(f"must be one of {', '.join(_TYPES)}, decimal(PRECISION,SCALE), list<TYPE>")
    return text


@final
class Secret:
    """Text that shows itself to nobody but `reveal()`: str, repr, format, JSON, pickle and copies read `***`."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself, for the one header that it was given for."""
        return self._text

    def __str__(self) -> str:
        """Not the text."""
        return "***"

    def __repr__(self) -> str:
        """Not the text."""
        return "Secret('***')"

    def __format__(self, spec: str) -> str:
        """Not the text."""
        return format("***", spec)

    def __reduce__(self) -> tuple[type[Secret], tuple[str]]:
        """A copy, by pickle or by hand, does not hold the text."""
        return Secret, ("***",)

    def __eq__(self, other: object) -> bool:
        """In constant time."""
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._text.encode(), other._text.encode())

    def __hash__(self) -> int:
        """Of the text."""
        return hash(self._text)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type[Any], handler: GetCoreSchemaHandler) -> CoreSchema:
        """Accept a Secret or text; write `***`."""

        def wrap(value: object) -> Secret:
            if isinstance(value, Secret):
                return value
            if isinstance(value, str):
                return cls(value)
            raise ValueError("must be ${NAME}, a variable of the environment")

        return core_schema.no_info_plain_validator_function(
            wrap, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """A job file may only name a variable."""
        return {"type": "string", "pattern": r"^((Bearer|Basic) )?\$\{[A-Za-z_][A-Za-z0-9_]*\}$"}


def _one_or_many(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


_DURATION_SCHEMA = {
    "anyOf": [
        {"type": "string", "pattern": r"^(\d+(\.\d+)?(ms|s|m|h|d))+$", "examples": ["300s", "10m", "2h"]},
        {"type": "number", "minimum": 0},
    ]
}
_SIZE_SCHEMA = {
    "anyOf": [
        {"type": "string", "pattern": r"^\d+(\.\d+)? ?(B|kB|KB|MB|GB|TB|KiB|MiB|GiB|TiB)?$", "examples": ["512MB"]},
        {"type": "integer", "minimum": 1},
    ]
}
_FAIL_ON_SCHEMA = {
    "anyOf": [
        {"enum": ["any", "never"]},
        {"type": "string", "pattern": r"^\d+(\.\d+)? ?%$", "examples": ["5%"]},
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    ]
}
_SHARE_SCHEMA = {
    "anyOf": [
        {"type": "string", "pattern": r"^\d+(\.\d+)? ?%$", "examples": ["20%"]},
        {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
    ]
}
_PATHS_SCHEMA = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
    ]
}

Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Strict(), Field(ge=1)]
Rate = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]
Dollars = Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)]
ColumnType = Annotated[str, AfterValidator(_column_type)]
Duration = Annotated[
    float, Field(gt=0, allow_inf_nan=False), BeforeValidator(parse_duration), WithJsonSchema(_DURATION_SCHEMA)
]
Size = Annotated[int, Field(gt=0), BeforeValidator(parse_size), WithJsonSchema(_SIZE_SCHEMA)]
Canary = Annotated[
    int | None,
    BeforeValidator(parse_canary),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"const": "off"}, {"type": "null"}]}),
]
FailOn = Annotated[Literal["any", "never"] | float, BeforeValidator(parse_fail_on), WithJsonSchema(_FAIL_ON_SCHEMA)]
Quantile = Annotated[
    float,
    BeforeValidator(parse_quantile),
    WithJsonSchema({"type": "string", "pattern": r"^p\d\d(\.\d+)?$", "examples": ["p99"]}),
]
Share = Annotated[float, BeforeValidator(parse_share), WithJsonSchema(_SHARE_SCHEMA)]
Paths = Annotated[tuple[Text, ...], BeforeValidator(_one_or_many), Field(min_length=1), WithJsonSchema(_PATHS_SCHEMA)]


def declare(
    default: Any = ...,
    *,
    kind: Class,
    doc: str,
    type_text: str = "",
    default_text: str = "",
    later: bool = False,
    name: str | None = None,
) -> Any:
    """Declare a key: its class, its meaning, how the reference words its type and default, and its name in the file."""
    extra: JsonDict = {"x-class": kind, "x-type": type_text, "x-default": default_text, "x-later": later}
    if name is None:
        return Field(default, description=doc, json_schema_extra=extra)
    return Field(default, description=doc, json_schema_extra=extra, validation_alias=name)


class Section(BaseModel):
    """A mapping of the job file. Unknown keys are refused; instances are frozen; Python may use field names."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_by_name=True, validate_by_alias=True, hide_input_in_errors=True
    )


class InputSpec(Section):
    """Where the rows come from."""

    path: Paths = declare(
        kind="semantic",
        type_text="path, glob or list of them",
        doc="A file, folder or glob, or a list of them, relative to the job file. `${NAME}` is read from the "
        "environment. A folder's files are read in the order of their names.",
    )
    format: Text = declare(
        "auto",
        kind="semantic",
        type_text="`auto` or a format",
        doc="How the rows are written. `auto` goes by the file's ending and first bytes; `jsonl` may be .gz or .zst. "
        "`files` makes one row of each file, with the columns `path`, `bytes` and `modified`. `openai-batch` takes "
        "lines made for the Batch API (.gz and .zst too).",
    )
    id: Text | None = declare(
        None,
        kind="semantic",
        type_text="column",
        default_text="`openai-batch`: `custom_id`; else none: the ordinal names a row",
        doc="The column that names a row. Its values are unique; the second holder of one is a failed row.",
    )
    columns: dict[str, ColumnType] = declare(
        {},
        kind="semantic",
        type_text="mapping of column to type",
        default_text="from the first rows",
        doc="JSONL only: types that the first rows would not give. Types: "
        + ", ".join(f"`{name}`" for name in _TYPES)
        + ", `decimal(10,2)`, and lists such as `list<string>`.",
    )
    incremental: Literal["id", "content"] | None = declare(
        None,
        kind="semantic",
        type_text="`id` or `content`",
        doc="For an input that changes between runs: only new and changed rows are sent, and the results of the others "
        "are carried over. `id`: a row is the one with the same `input.id`, and unchanged when it is asked the same. "
        "`content`: rows that are asked the same are the same. For chat, completions, embeddings and responses.",
    )
    media_root: Path | None = declare(
        None,
        kind="semantic",
        type_text="folder",
        default_text="`format: files`: the folder of `path`, before any wildcard; else none: rows name no files",
        doc="The only folder from which a row may name a file, relative to the job file. It must exist.",
    )


class Price(Section):
    """US dollars for a million tokens; None where the figure is not known."""

    input: Dollars | None = declare(None, kind="operational", type_text="dollars", doc="A million tokens of input.")
    output: Dollars | None = declare(None, kind="operational", type_text="dollars", doc="A million tokens of output.")
    cached_input: Dollars | None = declare(
        None,
        kind="operational",
        type_text="dollars",
        default_text="`input`",
        doc="A million tokens of input that the service found in its cache.",
    )
    training: Dollars | None = declare(
        None, kind="operational", type_text="dollars", doc="Fine-tuning: a million tokens trained, over all epochs."
    )


_LOOPBACK = re.compile(r"localhost|127(?:\.\d{1,3}){3}|::1")
_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")
_AZURE_HOSTS = (
    ".openai.azure.com",
    ".openai.azure.us",
    ".openai.azure.cn",
    ".cognitiveservices.azure.com",
    ".cognitiveservices.azure.us",
    ".services.ai.azure.com",
    ".services.ai.azure.us",
)
_KEY_PARAMETERS = re.compile(r"key|code|sig|signature|secret|token|password|pass|pwd|auth", re.IGNORECASE)
_OWN_HEADERS = frozenset(
    {
        "host",
        "content-type",
        "content-length",
        "accept",
        "accept-encoding",
        "user-agent",
        "connection",
        "transfer-encoding",
        "x-ms-client-request-id",
        "openai-organization",
        "openai-project",
    }
)
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


def is_azure(endpoint: str) -> bool:
    """True when the endpoint's host is one of Azure OpenAI's own, in any Azure cloud."""
    try:
        host = urlsplit(endpoint).hostname or ""
    except ValueError:
        return False
    return host.endswith(_AZURE_HOSTS)


def default_api(endpoint: str) -> str:
    """The URL family that an endpoint's host and path speak of."""
    if "/openai/v1" in endpoint and is_azure(endpoint):
        return "azure-v1"
    return "azure" if is_azure(endpoint) or "/openai/deployments/" in endpoint else "openai"


class DeploymentSpec(Section):
    """A place to send to, with its quota and credentials."""

    name: Text = declare(
        kind="operational",
        default_text="`deployment`",
        type_text="text",
        doc="What logs, results and the summary call it. Unique.",
    )
    endpoint: Text = declare(
        kind="operational",
        type_text="URL",
        doc="`https://…` of the resource (for `api: openai` the base URL, `/v1` included). A URL pasted with path and "
        "query is understood. Plain http is for loopback alone; a key never belongs in it.",
    )
    deployment: Text = declare(
        kind="operational", type_text="text", doc="On Azure the deployment's name; elsewhere the model's id."
    )
    model: Text = declare(
        kind="semantic",
        default_text="`deployment`",
        type_text="text",
        doc="The model that stands behind it: for token counts, prices and vector sizes.",
    )
    api: Literal["azure", "azure-v1", "openai"] = declare(
        kind="operational",
        default_text="by the endpoint's host and path",
        doc="The URL family: `azure` is `…/openai/deployments/NAME/…?api-version=`, `azure-v1` is `…/openai/v1/…`, "
        "`openai` takes the endpoint as the base URL.",
    )
    api_version: Text | None = declare(
        None,
        kind="operational",
        type_text="text",
        default_text=f"`azure`: the endpoint's own, else `OPENAI_API_VERSION`, else {DEFAULT_API_VERSION} or, for what "
        "that lacks, the last preview; `azure-v1`: `preview` for sound and pictures, else none",
        doc="The `api-version` of the requests.",
    )
    auth: Literal["entra", "key", "token", "none"] = declare(
        kind="operational",
        default_text="`entra` with a `credential`, else `key` where `AZURE_OPENAI_API_KEY` (`openai`: "
        "`OPENAI_API_KEY`) is set, else `token` where `AZURE_OPENAI_AD_TOKEN` is (not `openai`), else `entra`",
        doc="How requests are signed: Microsoft Entra ID, an API key, a bearer token, or not at all.",
    )
    key: Secret | None = declare(
        None,
        kind="operational",
        type_text="`${NAME}`",
        default_text="the variable of `auth`",
        doc="The API key, as a variable without a default. A literal key is refused.",
    )
    token: Secret | None = declare(
        None,
        kind="operational",
        type_text="`${NAME}`",
        default_text="`${AZURE_OPENAI_AD_TOKEN}`",
        doc="The bearer token of `auth: token`, as a variable without a default.",
    )
    headers: dict[str, Secret] = declare(
        {},
        kind="operational",
        type_text="mapping of name to `${NAME}`",
        default_text="none",
        doc="At most four further headers, for gateways. Their values are secret: `${NAME}` or `Bearer ${NAME}`.",
    )
    organization: Text | None = declare(
        None, kind="operational", type_text="text", default_text="none", doc="The header `OpenAI-Organization`."
    )
    project: Text | None = declare(
        None, kind="operational", type_text="text", default_text="none", doc="The header `OpenAI-Project`."
    )
    ca_bundle: Path | None = declare(
        None,
        kind="operational",
        type_text="file",
        default_text="the system's, or `SSL_CERT_FILE`",
        doc="Certificates to trust (PEM), relative to the job file. Verification itself cannot be turned off.",
    )
    scope: Text | None = declare(
        None,
        kind="operational",
        type_text="text",
        default_text="by the cloud and the URL family",
        doc="The Entra scope to ask a token for.",
    )
    credential: dict[str, Any] | None = declare(
        None,
        kind="operational",
        type_text="mapping",
        default_text="the default credential chain",
        doc="Which Entra credential to use: `type`, one of "
        + ", ".join(f"`{name}`" for name in KINDS)
        + ", and its options (docs/identity.md). Secrets among them are given as `${NAME}`, files are relative to the "
        "job file.",
    )
    lane: Literal["online", "batch"] = declare(
        "online",
        kind="operational",
        default_text="`run.lane`",
        doc="What the deployment is for: requests that are answered at once, or batches. On Azure these are two "
        "deployments.",
    )
    enqueued_tokens: Count | None = declare(
        None,
        kind="operational",
        type_text="number",
        default_text="none: what the service refuses is submitted again when there is room",
        doc="The tokens that its batches may hold at a time (`lane: batch`).",
    )
    requests_per_minute: Rate | None = declare(
        None,
        kind="operational",
        type_text="number",
        default_text="learnt from the replies",
        doc="The quota of requests.",
    )
    tokens_per_minute: Rate | None = declare(
        None,
        kind="operational",
        type_text="number",
        default_text="learnt from the replies",
        doc="The quota of tokens, as the service counts them on admission.",
    )
    max_inputs: Count | None = declare(
        None,
        kind="operational",
        type_text="number",
        default_text="2048",
        doc="Embeddings: the most texts of one request.",
    )
    priority: Annotated[int, Strict()] = declare(
        0,
        kind="operational",
        type_text="number",
        doc="Lower goes first; a later one takes what the earlier ones cannot.",
    )
    price: Price | None = declare(
        None,
        kind="operational",
        default_text="the built-in table",
        doc="US dollars for a million tokens; wins over the built-in table.",
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        """Name and model default to the deployment, `api` to what the endpoint says, `auth` to what is given."""
        if not isinstance(data, Mapping):
            return data
        filled = dict(data)
        deployment, endpoint = filled.get("deployment"), filled.get("endpoint")
        for name in ("name", "model"):
            if deployment is not None:
                filled.setdefault(name, deployment)
        filled.setdefault("api", default_api(endpoint) if isinstance(endpoint, str) else "azure")
        filled.setdefault("auth", "key" if filled.get("key") else "token" if filled.get("token") else "entra")
        if filled.get("api") == "azure" and filled.get("api_version") is None:
            filled["api_version"] = pasted_api_version(endpoint) or DEFAULT_API_VERSION
        return filled

    @field_validator("name", "deployment", "model", "organization", "project", "scope")
    @classmethod
    def _printable(cls, value: str | None) -> str | None:
        if value is not None and not (value.isprintable() and value == value.strip()):
            raise ValueError("must be printable text without spaces around it")
        return value

    @field_validator("endpoint")
    @classmethod
    def _endpoint(cls, value: str) -> str:
        """Check the URL; messages never repeat it, since it may hold a key."""
        try:
            url = urlsplit(value)
            host, port = url.hostname or "", url.port
        except ValueError as error:
            raise ValueError("must be a URL such as https://NAME.openai.azure.com") from error
        if url.scheme not in ("http", "https") or not host or port == 0 or value != value.strip():
            raise ValueError("must be a URL such as https://NAME.openai.azure.com")
        if url.username is not None or url.password is not None:
            raise ValueError("holds a user name or password: say `key: ${NAME}` instead")
        if any(_KEY_PARAMETERS.search(name) for name in parse_qs(url.query, keep_blank_values=True)):
            raise ValueError("holds a key in its query: say `key: ${NAME}` or `headers: {NAME: ${NAME}}` instead")
        if not _HOST.fullmatch(host):
            raise ValueError("has no usable host name: put the name of your resource in, without brackets")
        if url.scheme == "http" and not _LOOPBACK.fullmatch(host):
            raise ValueError("must be https: plain http is for loopback alone")
        return value

    @field_validator("headers")
    @classmethod
    def _headers(cls, value: dict[str, Secret]) -> dict[str, Secret]:
        if len(value) > 4:  # noqa: PLR2004 - with ours, more would pass the ten that Azure takes
            raise ValueError(f"has {len(value)} headers: at most 4 are sent")
        for name in value:
            if not _HEADER_NAME.fullmatch(name):
                raise ValueError("holds a name that is no header's")
            if name.lower() in _OWN_HEADERS:
                raise ValueError(f"`{name}` is set by the pipeline itself")
        return value

    @model_validator(mode="after")
    def _credentials(self) -> Self:
        if self.auth == "none" and (self.key or self.token):
            raise ValueError("has `auth: none` and a credential: leave one of them out")
        clash = {"authorization", "api-key"} & {name.lower() for name in self.headers}
        if self.auth != "none" and clash:
            raise ValueError(
                f"the header `{min(clash)}` is set by `auth: {self.auth}`: say `auth: none` to set it here"
            )
        return self


def pasted_api_version(endpoint: object) -> str | None:
    """The `api-version` of an endpoint that was pasted with its query; None where it has none."""
    if not isinstance(endpoint, str):
        return None
    try:
        return next(iter(parse_qs(urlsplit(endpoint).query).get("api-version", ())), None)
    except ValueError:
        return None


class OutputSpec(Section):
    """Where the results go, and what they hold."""

    path: Path = declare(
        kind="operational",
        type_text="folder",
        doc="A local folder that the run owns, relative to the job file. `${NAME}` is read from the environment.",
    )
    columns: (
        Literal["all", "none"]
        | Annotated[tuple[Text, ...], WithJsonSchema({"type": "array", "items": {"type": "string", "minLength": 1}})]
    ) = declare(
        "all",
        kind="semantic",
        type_text="`all`, `none` or list of columns",
        doc="The input's columns that are carried over beside the results.",
    )
    part_rows: Annotated[int, Strict(), Field(ge=1, le=10_000_000)] = declare(
        10_000, kind="operational", type_text="number", doc="A part ends here …"
    )
    part_bytes: Size = declare(
        512_000_000,
        kind="operational",
        type_text="size",
        default_text="512MB",
        doc="… or here, whichever comes first.",
    )
    media: Literal["auto", "column", "files"] = declare(
        "auto",
        kind="operational",
        doc="Where sound and pictures go: into a column, or over 1 MB (`auto`) or always (`files`) into files named by "
        "ordinal.",
    )
    raw: Literal["auto", "none", "failed", "all"] = declare(
        "auto",
        kind="operational",
        doc="Which rows keep the service's whole reply as JSON in `response`. `auto` is `all` for chat, responses and "
        "`format: openai-batch`, else `failed`.",
    )
    compression: Literal["zstd", "snappy", "gzip", "lz4", "none"] = declare(
        "zstd", kind="operational", doc="The parts' compression."
    )
    format: Literal["parquet", "openai-batch"] = declare(
        "parquet",
        kind="operational",
        doc="`openai-batch` writes the Batch API's result lines beside the Parquet parts when every row is finished: "
        "`output.jsonl`, and `errors.jsonl` for failed rows.",
    )


class RunSpec(Section):
    """How the rows are sent, and when the run stops."""

    lane: Literal["online", "batch", "auto"] = declare(
        "online",
        kind="operational",
        doc="Requests are sent one by one and answered at once, or in files through the Batch API, at half the price "
        "and within a day (docs/batch.md). `auto` takes batches as long as `deadline` lets it, and sends what is "
        "unfinished one by one.",
    )
    poll_s: Duration = declare(
        60.0,
        kind="operational",
        type_text="duration",
        default_text="60s",
        name="poll",
        doc="The least time between two looks at a batch. A submission that was not answered is looked for ten times "
        "as long before it is made again.",
    )
    keep_files: Annotated[bool, Strict()] = declare(
        False,
        kind="operational",
        type_text="`true`, `false`",
        default_text="`false`",
        doc="Whether the service keeps the files of batches whose results are safe; else they are deleted.",
    )
    workers: Annotated[int, Strict(), Field(ge=1, le=10_000)] = declare(
        32, kind="operational", type_text="number", doc="The most requests in flight."
    )
    processes: Annotated[int, Strict(), Field(ge=1, le=64)] = declare(
        1,
        kind="operational",
        type_text="number",
        doc="How many processes send, each with its share of `workers` and of the quotas; 1: the run's own. For online "
        "rows of chat, completions, embeddings and responses, where one core is too few (docs/performance.md).",
    )
    timeout_s: Duration = declare(
        DEFAULT_TIMEOUT_S,
        kind="operational",
        type_text="duration",
        default_text="300s; sound and pictures: 600s",
        name="timeout",
        doc="How long one attempt may take, from connecting to the last byte.",
    )
    max_attempts: Count = declare(
        8,
        kind="operational",
        type_text="number",
        doc="A row's attempts at transient faults. Being throttled is no attempt.",
    )
    max_pause_s: Duration = declare(
        600.0,
        kind="operational",
        type_text="duration",
        default_text="10m",
        name="max_pause",
        doc="A longer wait asked for by the service ends the run, to be continued.",
    )
    max_outage_s: Duration = declare(
        1800.0,
        kind="operational",
        type_text="duration",
        default_text="30m",
        name="max_outage",
        doc="A longer outage of the service ends the run, to be continued.",
    )
    leave: Share = declare(
        0.0,
        kind="operational",
        type_text="share such as `20%`",
        default_text="0%",
        doc="The share of each deployment's quota, stated or learnt, that is left to others.",
    )
    right_size: Quantile | None = declare(
        None,
        kind="operational",
        type_text="quantile such as `p99`",
        default_text="none: requests reserve what the job's bound on output tokens says",
        doc="Learns how long answers are and asks for no more than this quantile of them, so that more requests fit "
        "into a quota of tokens; what that cuts is asked once more, as the job says, and paid for twice.",
    )
    max_cost: Dollars | None = declare(
        None,
        kind="operational",
        type_text="dollars",
        default_text="none",
        doc="US dollars for the folder's life, over all invocations: the run ends cleanly before it could pass them "
        "(exit code 4). Needs the prices of all deployments and a bound on answers.",
    )
    max_tokens_total: Count | None = declare(
        None,
        kind="operational",
        type_text="number",
        default_text="none",
        doc="Tokens for the folder's life, of requests and answers together, kept to as `max_cost` is.",
    )
    deadline_s: Duration | None = declare(
        None,
        kind="operational",
        type_text="duration",
        default_text="none",
        name="deadline",
        doc="How long this invocation may take; then it stops cleanly, to be continued.",
    )
    canary: Canary = declare(
        None,
        kind="operational",
        type_text="number or `off`",
        default_text="off",
        doc="So many first rows are asked before all others, which are sent only if those pass: no more failed rows "
        "than `fail_on` allows (10 %, if that is `any`), no more than 10 % of answers cut or unfit for the schema, no "
        "row dearer than twice the plan. Else the run ends with exit code 4; 3 where all were refused alike.",
    )
    fail_on: FailOn = declare(
        "any",
        kind="operational",
        type_text="`any`, `never` or a share such as `5%`",
        doc="When failed rows make the exit code 1: at the first, never, or from this share of the rows on.",
    )
    dedupe: Literal["content"] | None = declare(
        None,
        kind="operational",
        type_text="`content`",
        default_text="none: every row is asked",
        doc="`content`: rows that ask for the same are asked once, and all are given what comes. Answers that chance "
        "would make differ are then one answer. For chat, completions, embeddings and responses, in the online lane "
        "and one process.",
    )
    on_truncated: Literal["keep", "fail", "retry"] = declare(
        "keep",
        kind="operational",
        doc="What becomes of an answer that its length limit cut (`finish_reason: length`). `retry` asks once more, "
        "with twice the request's bound on output tokens; whatever comes then is kept.",
    )
    on_invalid_json: Literal["keep", "fail"] = declare(
        "keep",
        kind="operational",
        doc="What becomes of an answer that does not fit the JSON schema of the request's `response_format`. `fail` "
        "makes it a failed row, ReplyError `invalid_json`; refusals, tool calls and cut answers stay as they are.",
    )
    window_bytes: Size = declare(
        8 * 2**30,
        kind="operational",
        type_text="size",
        default_text="8GiB",
        name="window",
        doc="The most bytes of unfinished ranges on disk before reading waits.",
    )
    grace_s: Annotated[
        float, Field(ge=0, allow_inf_nan=False), BeforeValidator(parse_duration), WithJsonSchema(_DURATION_SCHEMA)
    ] = declare(
        25.0,
        kind="operational",
        type_text="duration",
        default_text="25s",
        name="grace",
        doc="What calls in flight are given after SIGTERM or Ctrl-C.",
    )
    otel: Literal["off", "on", "propagate"] = declare(
        "off",
        kind="operational",
        doc="Tells OpenTelemetry of requests, as the environment's `OTEL_…` variables say (docs/metrics.md); needs "
        "`pip install 'aoai-pipeline[otel]'`. `propagate` also sends a `traceparent` header to the service.",
    )
    metrics_file: Path | None = declare(
        None,
        kind="operational",
        type_text="file.prom",
        default_text="none",
        doc="A file that holds the run's figures for Prometheus, for the node exporter's textfile collector: replaced "
        "every 15 s and at the end (docs/metrics.md). Its name ends in `.prom`; relative to the job file.",
    )

    @field_validator("metrics_file")
    @classmethod
    def _metrics_file(cls, value: Path | None) -> Path | None:
        if value is not None and value.suffix != ".prom":
            raise ValueError("must end in .prom: the collector reads no others")
        return value


class Origin:
    """Where a job's values stand in its file, and its paths as written; equal to any other, for it is no content.

    `marks` are lines and columns from 1, `written` the values of `input.path` and `input.media_root` before they were
    made absolute, both by path.
    """

    __slots__ = ("marks", "written")

    def __init__(
        self,
        *,
        marks: Mapping[tuple[str | int, ...], tuple[int, int]] | None = None,
        written: Mapping[tuple[str, ...], Any] | None = None,
    ) -> None:
        self.marks = marks or {}
        self.written = written or {}

    def __eq__(self, other: object) -> bool:
        """Any other origin is equal."""
        return isinstance(other, Origin)

    def __hash__(self) -> int:
        """All are one."""
        return hash(Origin)


class Job(Section):
    """A checked job. `request` is the body as written, templates included; `file` is the job file itself."""

    name: Text = declare(
        kind="operational", type_text="text", default_text="the file's stem", doc="What the run is called."
    )
    operation: Text = declare(
        kind="semantic",
        type_text="an operation",
        default_text="`input.format: openai-batch`: what the first line's `url` says; else required",
        doc="What is asked of the service for every row: `pipeline init` lists the operations.",
    )
    input: InputSpec = declare(kind="semantic", doc="Where the rows come from.")
    request: dict[str, Any] = declare(
        kind="semantic",
        type_text="mapping",
        default_text="`input.format: openai-batch`: each line's own `body`; else required",
        doc="The API's own body, field by field. Strings are templates over the row's columns.",
    )
    deployments: Annotated[tuple[DeploymentSpec, ...], Field(min_length=1)] = declare(
        kind="operational", doc="One or more places to send to; the run spreads over them."
    )
    output: OutputSpec = declare(kind="operational", doc="Where the results go, and what they hold.")
    run: RunSpec = declare(
        default=RunSpec(), kind="operational", default_text="all defaults", doc="How the rows are sent."
    )
    file: Path = Field(default=Path("job.yaml"), exclude=True)
    _origin: Origin = PrivateAttr(default_factory=Origin)

    @property
    def origin(self) -> Origin:
        """Where the job's values stand in its file."""
        return self._origin

    def with_origin(self, origin: Origin) -> Self:
        """The same job, knowing where its values stand."""
        job = self.model_copy()
        job._origin = origin  # noqa: SLF001 - its own
        return job

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not value.isprintable():
            raise ValueError("must be printable text")
        return value
