from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.job.change import difference, fingerprint, semantic, variant
from pipeline.job.load import load_job
from pipeline.job.spec import DeploymentSpec, InputSpec, Job, OutputSpec, Price, RunSpec, Section

JOB: dict[str, Any] = {
    "operation": "embeddings",
    "input": {"path": "rows.jsonl"},
    "request": {"input": "{{ text }}"},
    "deployments": [{"endpoint": "https://x.openai.azure.com", "deployment": "d"}],
    "output": {"path": "out"},
}
ENVIRON = {"KEY": "k", "AZURE_OPENAI_API_KEY": "a"}

# Another value for every key that a job file may hold.
OTHER: dict[str, str] = {
    "name": "other",
    "operation": "chat",
    "request": "{input: '{{ other }}'}",
    "input.path": "[a.jsonl, b.jsonl]",
    "input.format": "jsonl",
    "input.id": "number",
    "input.incremental": "content",
    "input.columns": "{price: 'decimal(10,2)'}",
    "input.media_root": "media",
    "deployments.0.name": "other",
    "deployments.0.endpoint": "https://y.openai.azure.com",
    "deployments.0.deployment": "other",
    "deployments.0.model": "other",
    "deployments.0.api": "azure-v1",
    "deployments.0.api_version": "2024-06-01",
    "deployments.0.auth": "entra",
    "deployments.0.key": "${KEY}",
    "deployments.0.token": "${KEY}",
    "deployments.0.headers": "{X-Key: '${KEY}'}",
    "deployments.0.organization": "org",
    "deployments.0.project": "project",
    "deployments.0.ca_bundle": "job.yaml",
    "deployments.0.scope": "https://x.test/.default",
    "deployments.0.credential": "{type: managed-identity, client_id: x}",
    "deployments.0.lane": "online",
    "deployments.0.enqueued_tokens": "1000",
    "deployments.0.requests_per_minute": "60",
    "deployments.0.tokens_per_minute": "1000",
    "deployments.0.max_inputs": "16",
    "deployments.0.priority": "3",
    "deployments.0.price.input": "1",
    "deployments.0.price.output": "1",
    "deployments.0.price.cached_input": "1",
    "deployments.0.price.training": "1",
    "output.path": "elsewhere",
    "output.columns": "[text]",
    "output.part_rows": "7",
    "output.part_bytes": "1MB",
    "output.media": "files",
    "output.raw": "all",
    "output.compression": "gzip",
    "output.format": "openai-batch",
    "run.lane": "online",
    "run.poll": "7s",
    "run.keep_files": "true",
    "run.processes": "2",
    "run.workers": "7",
    "run.timeout": "7s",
    "run.max_attempts": "7",
    "run.max_pause": "7s",
    "run.leave": "20%",
    "run.right_size": "p99",
    "run.max_outage": "7s",
    "run.max_cost": "7",
    "run.max_tokens_total": "7",
    "run.deadline": "7s",
    "run.fail_on": "never",
    "run.canary": "7",
    "run.dedupe": "content",
    "run.on_truncated": "fail",
    "run.on_invalid_json": "fail",
    "run.window": "1GiB",
    "run.grace": "7s",
    "run.metrics_file": "x.prom",
    "run.otel": "on",
}


def load(tmp_path: Path, overrides: dict[str, str] | None = None, *, job: dict[str, Any] = JOB) -> Job:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(job))
    (tmp_path / "media").mkdir(exist_ok=True)
    return load_job(file, environ=ENVIRON, operations=("embeddings", "chat"), overrides=overrides)


SECTIONS: dict[str, type[Section]] = {
    "": Job,
    "input.": InputSpec,
    "deployments.0.": DeploymentSpec,
    "deployments.0.price.": Price,
    "output.": OutputSpec,
    "run.": RunSpec,
}


def all_keys() -> list[tuple[str, str]]:
    """Every key of a job file with its class; a section is told by its keys."""
    return [
        (path, str(extra["x-class"]))
        for prefix, model in SECTIONS.items()
        for name, info in model.model_fields.items()
        if isinstance(extra := info.json_schema_extra, dict) and not extra["x-later"]
        if (path := prefix + str(info.validation_alias or name)) != "deployments" and f"{path}." not in SECTIONS
    ]


@pytest.mark.parametrize(("path", "kind"), all_keys())
def test_every_key_changes_the_run_by_its_class(tmp_path: Path, path: str, kind: str) -> None:
    before = load(tmp_path)
    overrides = {path: OTHER[path]}
    if path == "deployments.0.deployment":
        overrides["deployments.0.model"] = "d"
    if path == "deployments.0.token":
        overrides["deployments.0.auth"] = "token"
    if path == "run.max_cost":
        overrides |= {"deployments.0.price.input": "1", "deployments.0.price.output": "1"}
    after = load(tmp_path, overrides)
    lines = difference(semantic(before), semantic(after))
    assert bool(lines) is (kind == "semantic")
    assert (fingerprint(before) != fingerprint(after)) is (kind == "semantic")
    for line in lines:
        assert line.startswith(path.replace(".0.", ".") if path.startswith("deployments") else path)


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        ("request", True),
        ("operation", True),
        ("deployments.0.model", True),
        ("input.id", False),
        ("output.columns", False),
    ],
)
def test_a_variant_names_the_wording_of_the_request(tmp_path: Path, path: str, changes: bool) -> None:  # noqa: FBT001 - a table
    before, after = load(tmp_path), load(tmp_path, {path: OTHER[path]})
    assert len(variant(before)) == 12
    assert (variant(before) != variant(after)) is changes


def test_a_folder_may_move_with_its_job(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert fingerprint(load(tmp_path / "a")) == fingerprint(load(tmp_path / "b"))


def test_the_spelling_of_a_path_or_default_is_no_change(tmp_path: Path) -> None:
    plain = load(tmp_path)
    assert semantic(plain) == semantic(load(tmp_path, {"input.path": "./rows.jsonl"}))
    assert semantic(plain) == semantic(load(tmp_path, {"request.on_too_long": "fail"}))


def test_a_second_deployment_of_the_same_model_is_no_change(tmp_path: Path) -> None:
    second = {"name": "b", "endpoint": "https://y.openai.azure.com", "deployment": "e", "model": "d"}
    both = JOB | {"deployments": [*JOB["deployments"], second]}
    assert fingerprint(load(tmp_path)) == fingerprint(load(tmp_path, job=both))
    other = JOB | {"deployments": [*JOB["deployments"], second | {"model": "e"}]}
    assert fingerprint(load(tmp_path)) != fingerprint(load(tmp_path, job=other))


def test_a_difference_is_told_field_by_field() -> None:
    old = {"operation": "chat", "request": {"n": 1, "messages": [{"role": "user", "content": "a"}], "user": "u"}}
    new = {"operation": "chat", "request": {"n": 2, "messages": [{"role": "user", "content": "b"}], "seed": 7}}
    assert difference(old, new) == [
        "request.n: 1 -> 2",
        'request.messages.0.content: "a" -> "b"',
        'request.user: "u" -> (absent)',
        "request.seed: (absent) -> 7",
    ]
    assert difference(old, old) == []


def test_a_long_value_is_cut_to_where_it_differs() -> None:
    (line,) = difference({"a": "x" * 500 + "before" + "y" * 500}, {"a": "x" * 500 + "after" + "y" * 500})
    assert "before" in line
    assert "after" in line
    assert len(line) < 300
