"""The job file's JSON Schema, for editors."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pydantic import BaseModel

from pipeline.job.batch import BATCH_FORMAT
from pipeline.job.spec import DeploymentSpec, InputSpec, Job, OutputSpec, Price, RunSpec

_MODELS: tuple[type[BaseModel], ...] = (Job, InputSpec, DeploymentSpec, Price, OutputSpec, RunSpec)


def json_schema(*, operations: Collection[str], formats: Collection[str]) -> dict[str, Any]:
    """Give the JSON Schema (draft 2020-12) of a job file that may name these operations and formats of the input.

    It describes what is written, before `${NAME}` is read; keys that are not available yet are not in it.
    """
    schema = Job.model_json_schema(by_alias=True)
    for model in _MODELS:
        _tidy(schema if model is Job else schema["$defs"][model.__name__], model)
    schema["properties"]["operation"]["enum"] = sorted(operations)
    schema["$defs"]["InputSpec"]["properties"]["format"]["enum"] = ["auto", *sorted(formats)]
    deployment = schema["$defs"]["DeploymentSpec"]["properties"]
    deployment["headers"]["maxProperties"] = 4
    # Lines made for the Batch API hold both.
    lines = {"properties": {"input": {"properties": {"format": {"const": BATCH_FORMAT}}, "required": ["format"]}}}
    schema["anyOf"] = [{"required": ["operation", "request"]}, lines]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "A job file of pipeline",
    }


def _tidy(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Leave the words to descriptions, and require only what has no default in a file."""
    schema.pop("title", None)
    properties: dict[str, Any] = schema["properties"]
    schema.pop("required", None)
    required: list[str] = []
    for field, info in model.model_fields.items():
        name = str(info.validation_alias or field)
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else None
        if extra is None or extra["x-later"]:
            del properties[name]
            continue
        described = properties[name]
        for word in ("title", "x-class", "x-type", "x-default", "x-later"):
            described.pop(word, None)
        if "$ref" in described or described.get("default", ()) in (None, {}):
            described.pop("default", None)
        described["description"] = f"{info.description} ({extra['x-class']})"
        if info.is_required() and not extra["x-default"]:
            required.append(name)
    if required:
        schema["required"] = required
