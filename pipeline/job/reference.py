"""Writes the reference of the job file, docs/job-file.md, from the model itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline.job.spec import (
    DeploymentSpec,
    InputSpec,
    Job,
    OutputSpec,
    Price,
    RunSpec,
)

_HEAD = """\
# The job file

A job file says what is asked of which service for the rows of which input, and where the results go. It is YAML 1.2,
or JSON (`.json`) or TOML (`.toml`): at most 1 MB, 32 levels deep, without anchors, aliases, tags or double keys.
`pipeline validate` checks it and names every problem at once as `FILE:LINE:COLUMN: path.to.key: what is wrong`;
`pipeline schema` prints its JSON Schema for editors.

Every key has a class. *Operational* keys may change between two invocations of the same run. A changed *semantic* key
would mix two kinds of results in one folder, so it is refused with the difference, unless no row is done yet.
"""

_RULES = """\
## Variables

`${NAME}` and `${NAME:-default}` read the environment in `input.path`, `input.media_root`, `output.path` and in every
text below `deployments`; `$${` is a plain `${`. A variable that is not set, or empty, and has no default is a problem.
Space around a value is dropped. `key`, `token`, the values of `headers` and the secrets of `credential` must be
`${NAME}` alone: a secret that stands in the file, or as a default, is refused, and no message repeats it.
With `--simulate` the variables of deployments are checked for their form and not read.

## Units

A duration is a number with `ms`, `s`, `m`, `h` or `d` (`500ms`, `300s`, `1h30m`); a bare number is seconds.
A size is a number with `kB`, `MB`, `GB`, `TB` (powers of 1000) or `KiB`, `MiB`, `GiB`, `TiB` (powers of 1024); a bare
number is bytes.

## Templates

Every string of `request` that holds `{{`, `{%` or `{#` is a Jinja template over the row's columns.

- A string that is one bare `{{ column }}` keeps the value's type: a number, a list, an object. Where the column is
  null, a field of the body itself is left out; deeper inside, it is null.
- `{{ row['any name'] }}` reaches a column whose name is no identifier, or is `row`, `range`, `dict` or `namespace`.
- A column that a row does not have is null. Null may be tested (`{% if x is none %}`) and replaced
  (`{{ x | default('-') }}` fills null as well as what is undefined); null inside a longer text fails the row with a
  TemplateError.
- Dates are written in ISO 8601, decimals as text, true and false as in JSON, lists and objects as plain JSON. `tojson`
  escapes no HTML. A trailing newline stays. Binary values and NaN fail the row.
- A value is never read as a template. Templates run in Jinja's sandbox and cannot include others; a row's text may have
  32 million characters. Each row has a million steps: a turn of a loop is one, a call ten, and so are long values
  that are worked on (512 characters a step; 2, where a text is taken apart, as by `split` or `wordcount`).
- `urlize`, `xmlattr`, `forceescape` and `pprint` are not among the filters; `tojson` indents by 16 at most.

## What a request holds that is not sent

- `request.on_too_long` (embeddings): what becomes of a text that is longer than the model takes: `fail` fails the row,
  `truncate` sends its beginning, `split` embeds it in pieces: one row of the output a piece.
- `request.cut_after` (transcription, translation): a duration; longer recordings are cut into pieces at silences and
  joined again. Left out, only what the service would refuse is cut.
- `request.stream: true` (chat, completions, responses) has the answer sent as it is made. The run reads it to its end.

## Files as rows

`input.format: files` makes one row of each file of a folder, at any depth, or of a glob: `path` (below the folder of
`input.path`, before any wildcard), `bytes` and `modified`. Rows are sorted by path. Names that begin with `_` or `.`
are left out. Links, pipes and files whose names are not UTF-8 are failed rows. `input.media_root` is that folder unless
it is given, so `file: "{{ path }}"` sends the file. The files are listed when a run begins. When it is continued, files
that come last may be new; a changed, missing or new one among the others is a changed input.

## Lines made for the Batch API

`input.format: openai-batch` takes files whose lines are `{"custom_id": …, "method": "POST", "url": …, "body": {…}}`.
`request` is left out: each line's `body` is sent, without `model`, `stream` and `stream_options`. `operation` may be
left out: the first line's `url` says it. Every line must ask for the same one of `/chat/completions`, `/completions`,
`/embeddings`, `/images/generations` and `/responses`, with or without `/v1` before it; another is a failed row, and so
is an embeddings line whose `input` is a list. The columns are `custom_id`, `method`, `url` and `body`.

`output.format: openai-batch` writes the Batch API's result lines beside the parts, for any input: `custom_id` is the
value of `input.id`, or else the ordinal.

## Overrides

`--set path=value` changes a key for one invocation: `--set run.workers=64`, `--set deployments.0.priority=1`, or by the
deployment's name `--set deployments.sweden.priority=1`. The value is read as YAML; one that begins with `{{` is text.
"""


def reference() -> str:
    """Give the whole page, as docs/job-file.md holds it."""
    return "\n".join((_HEAD, *_tables(), _RULES, *_later()))


def _tables() -> Iterator[str]:
    sections: tuple[tuple[str, str, type[BaseModel]], ...] = (
        ("The job", "", Job),
        ("`input`", "input.", InputSpec),
        ("`deployments`", "deployments[].", DeploymentSpec),
        ("`deployments[].price`", "deployments[].price.", Price),
        ("`output`", "output.", OutputSpec),
        ("`run`", "run.", RunSpec),
    )
    for title, prefix, model in sections:
        rows = [
            _row(prefix, str(info.validation_alias or name), info)
            for name, info in model.model_fields.items()
            if isinstance(info.json_schema_extra, dict) and not info.json_schema_extra["x-later"]
        ]
        head = "| key | type | default | class | meaning |\n|---|---|---|---|---|"
        yield "\n".join((f"## {title}", "", head, *rows, ""))


def _row(prefix: str, name: str, info: FieldInfo) -> str:
    extra: dict[str, Any] = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    cells = (
        f"`{prefix}{name}`",
        extra["x-type"] or _type(info.annotation),
        extra["x-default"] or _default(info),
        extra["x-class"],
        info.description or "",
    )
    return "| " + " | ".join(str(cell).replace("|", r"\|") for cell in cells) + " |"


def _type(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    return "list of mappings" if get_origin(annotation) is tuple else "mapping"


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    return "none" if info.default in (None, {}) else f"`{info.default}`"


def _later() -> Iterator[str]:
    limits = [
        f"`run.{name}`"
        for name, info in RunSpec.model_fields.items()
        if isinstance(info.json_schema_extra, dict) and info.json_schema_extra["x-later"]
    ]
    yield "## Not available yet\n"
    yield "These are known, and refused with that word:\n"
    if limits:
        yield f"- keys {', '.join(limits)}"
    yield "- remote paths"
    yield ""
