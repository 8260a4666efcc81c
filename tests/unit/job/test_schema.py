import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.job.reference import reference
from pipeline.job.schema import json_schema
from pipeline.job.spec import DeploymentSpec, InputSpec, Job, OutputSpec, Price, RunSpec, Section

SCHEMA = json_schema(operations=("embeddings", "chat"), formats=("jsonl", "parquet"))
SECTIONS: tuple[type[Section], ...] = (Job, InputSpec, DeploymentSpec, Price, OutputSpec, RunSpec)


def section(model: type[Section]) -> dict[str, Any]:
    found: dict[str, Any] = SCHEMA if model is Job else SCHEMA["$defs"][model.__name__]
    return found


@pytest.mark.parametrize("model", SECTIONS)
def test_every_key_is_in_the_schema_with_a_description(model: type[Section]) -> None:
    written = {
        str(info.validation_alias or name)
        for name, info in model.model_fields.items()
        if isinstance(info.json_schema_extra, dict) and not info.json_schema_extra["x-later"]
    }
    assert section(model)["properties"].keys() == written
    assert section(model)["additionalProperties"] is False
    for described in section(model)["properties"].values():
        assert re.search(r"\((semantic|operational)\)$", described["description"])


def test_only_what_has_no_default_is_required() -> None:
    assert {model.__name__: section(model).get("required") for model in SECTIONS} == {
        "Job": ["input", "deployments", "output"],
        "InputSpec": ["path"],
        "DeploymentSpec": ["endpoint", "deployment"],
        "Price": None,
        "OutputSpec": ["path"],
        "RunSpec": None,
    }


def test_operation_and_request_are_required_but_for_lines_of_the_batch_api() -> None:
    named, lines = SCHEMA["anyOf"]
    assert named == {"required": ["operation", "request"]}
    assert lines["properties"]["input"]["properties"]["format"] == {"const": "openai-batch"}


def test_the_schema_is_json_and_says_its_draft() -> None:
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert SCHEMA["properties"]["operation"]["enum"] == ["chat", "embeddings"]


def patterns(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["pattern"]] if isinstance(node.get("pattern"), str) else []
        return own + [pattern for item in node.values() for pattern in patterns(item)]
    return [pattern for item in node for pattern in patterns(item)] if isinstance(node, list) else []


def test_durations_sizes_and_secrets_have_patterns_that_fit() -> None:
    found = patterns(SCHEMA)
    for text in ("300s", "1h30m", "512MB", "8GiB", "5%", "${NAME}", "Bearer ${NAME}"):
        assert any(re.search(pattern, text) for pattern in found)
    for text in ("300", "sk-literal", "${NAME:-literal}"):
        assert not any(
            re.search(pattern, text)
            for pattern in found
            if "ms|s" in pattern or "NAME" in pattern or "$" in pattern[1:3]
        )


def test_the_reference_is_what_the_model_says() -> None:
    page = Path(__file__).parents[3] / "docs" / "job-file.md"
    assert page.read_text(encoding="utf-8") == reference()


def test_the_reference_names_every_key() -> None:
    page = reference()
    for prefix, model in (
        ("input.", InputSpec),
        ("deployments[].", DeploymentSpec),
        ("output.", OutputSpec),
        ("run.", RunSpec),
    ):
        for name in section(model)["properties"]:
            assert f"`{prefix}{name}`" in page
