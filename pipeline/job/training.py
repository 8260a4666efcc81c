"""What a job that trains a model says in its `request`: fields of each example, and fields of the whole job."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.job.template import has_template

if TYPE_CHECKING:
    from pipeline.job.spec import DeploymentSpec, Job, RunSpec

TRAINING = "fine-tuning"
"""The operation that makes one model of all rows, where the others ask for an answer to each."""

CHAT_FIELDS = frozenset({"messages", "tools", "parallel_tool_calls"})
"""The fields of a chat example."""
PAIR_FIELDS = frozenset({"input", "preferred_output", "non_preferred_output"})
"""The fields of a preference pair."""
SENT_FIELDS = frozenset({"method", "hyperparameters", "suffix", "seed", "integrations", "metadata", "trainingType"})
"""The fields of the API's own that are said once, when the job is created."""
OWN_FIELDS = frozenset({"validation", "on_duplicate", "max_example_tokens"})
"""The fields of ours that are said once."""
METHODS: Mapping[str, frozenset[str]] = {"supervised": CHAT_FIELDS, "dpo": PAIR_FIELDS}
"""The methods of training, with the fields of their examples."""
MOST_METADATA = 15
"""Pairs of a job's own metadata; the service takes one more, which is our tag."""
MOST_SUFFIX: Mapping[str, int] = {"azure": 40, "azure-v1": 64, "openai": 64}
"""Characters of a suffix that each family takes (the APIs' descriptions)."""

MOST_EXAMPLE_TOKENS = 65_536
"""Tokens of one example that the services train on: longer ones are cut (OpenAI's guide to fine-tuning)."""
_OLD_MODELS = ("gpt-35-turbo", "gpt-3.5-turbo")
_MOST_OF_OLD_MODELS = 16_385


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Where validation examples come from: a second input, or a share of the rows. None of both: there are none."""

    path: Path | None = None
    share: float = 0.0


def validation_of(job: Job) -> Validation:
    """Read `request.validation` of a checked job: a share such as 10% or 0.1, or a path beside the job file."""
    value = job.request.get("validation")
    share = _share(value)
    if value is None or share is not None:
        return Validation(share=share or 0.0)
    return Validation(path=job.file.absolute().parent / value)


def most_tokens(job: Job) -> int:
    """How many tokens one example may have: what the job says, else what its model takes."""
    stated = job.request.get("max_example_tokens")
    old = job.deployments[0].model.startswith(_OLD_MODELS)
    return int(stated or (_MOST_OF_OLD_MODELS if old else MOST_EXAMPLE_TOKENS))


def asked_of(request: Mapping[str, Any]) -> dict[str, Any]:
    """Give what the service is told when the job is created, but for model and files."""
    return {name: value for name, value in request.items() if name in SENT_FIELDS and value is not None}


def epochs_of(request: Mapping[str, Any]) -> int | None:
    """How many times a training sees each example; None where the service chooses."""
    method = request.get("method")
    kind = method.get(str(method.get("type"))) if isinstance(method, Mapping) else None
    for holder in (kind, request):
        figures = holder.get("hyperparameters") if isinstance(holder, Mapping) else None
        epochs = figures.get("n_epochs") if isinstance(figures, Mapping) else None
        if type(epochs) is int and epochs > 0:
            return epochs
    return None


def training_usd(job: Job, tokens: int | None) -> float | None:
    """Dollars of so many trained tokens, over all epochs; None where they, or `price.training`, are not known."""
    price = job.deployments[0].price
    if tokens is None or price is None or price.training is None:
        return None
    return tokens * price.training / 1_000_000


def training_problems(
    request: Mapping[str, Any], deployments: tuple[DeploymentSpec, ...], run: RunSpec | None
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Say what is wrong with a job that trains a model, each with its path in the job file."""
    for path, message in _request_problems(request):
        yield ("request", *path), message
    if len(deployments) > 1:
        yield ("deployments",), "are several, and one job trains one model: leave one"
    suffix = request.get("suffix")
    most = min((MOST_SUFFIX[spec.api] for spec in deployments), default=max(MOST_SUFFIX.values()))
    if suffix is not None and not (isinstance(suffix, str) and 0 < len(suffix) <= most):
        yield ("request", "suffix"), f"must be text of at most {most} characters"
    if run is not None and run.lane != "online":
        yield ("run", "lane"), "is for requests that are answered: leave it out for a training"
    if run is not None and run.right_size is not None:
        yield ("run", "right_size"), "is for requests that are answered: a training has no answers"


def _request_problems(request: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    known = CHAT_FIELDS | PAIR_FIELDS | SENT_FIELDS | OWN_FIELDS
    for name, value in request.items():
        if name in {"training_file", "validation_file"}:
            yield (name,), "is made of the rows: say `input.path`, and `request.validation` for a second file"
        elif name not in known and name != "model":  # the model has a problem of its own
            near = difflib.get_close_matches(name, known, 1)
            yield (name,), f"unknown field{f' (did you mean `{near[0]}`?)' if near else ''}"
        elif name in SENT_FIELDS | OWN_FIELDS and _has_template(value):
            yield (name,), "is said once for the whole job: it cannot hold a template"
    yield from _method_problems(request)
    yield from _own_problems(request)


def _method_problems(request: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    method = request.get("method")
    kind = method.get("type") if isinstance(method, Mapping) else None
    pairs = bool(PAIR_FIELDS & request.keys())
    if method is not None and (not isinstance(kind, str) or kind not in METHODS):
        yield ("method",), f"must be a mapping whose `type` is one of {', '.join(METHODS)}"
        return
    if pairs and kind != "dpo":
        yield ("method",), "must be {type: dpo}, which is what preference pairs are for"
    elif kind == "dpo" and not pairs:
        yield ("method",), "is dpo, which needs input, preferred_output and non_preferred_output"
    fields = METHODS["dpo" if pairs else "supervised"]
    for name in sorted((CHAT_FIELDS | PAIR_FIELDS) & request.keys() - fields):
        yield (name,), f"is no field of an example that has {', '.join(sorted(fields & request.keys()))}"
    for name in sorted(fields - request.keys()) if pairs else ():
        yield (), f"has no {name}, which a preference pair needs"
    if not pairs and "messages" not in request:
        yield (), "has no messages: say what an example is"


def _own_problems(request: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    validation = request.get("validation")
    is_path = isinstance(validation, str) and validation and not validation.strip().endswith("%")
    if validation is not None and _share(validation) is None and not is_path:
        yield ("validation",), "must be a share below 100% such as 10%, or the path of a second input"
    if request.get("on_duplicate") not in (None, "fail", "keep"):
        yield ("on_duplicate",), "must be one of fail, keep"
    most = request.get("max_example_tokens")
    if most is not None and (type(most) is not int or most < 1):
        yield ("max_example_tokens",), "must be a whole number above zero"
    metadata = request.get("metadata")
    if metadata is not None and not (isinstance(metadata, Mapping) and len(metadata) <= MOST_METADATA):
        yield ("metadata",), f"must be a mapping of at most {MOST_METADATA} pairs"


def _share(value: Any) -> float | None:
    """A share of the rows; None for what is none."""
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            share = float(value.strip().removesuffix("%")) / 100
        except ValueError:
            return None
        return share if 0 < share < 1 else None
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1:
        return float(value)
    return None


def _has_template(value: Any) -> bool:
    match value:
        case str():
            return has_template(value)
        case Mapping():
            return any(map(_has_template, value.values()))
        case list():
            return any(map(_has_template, value))
    return False
