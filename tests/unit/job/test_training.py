from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.job.load import Draft, read
from pipeline.job.training import TRAINING, asked_of, epochs_of, most_tokens, validation_of

CHAT: dict[str, Any] = {"messages": [{"role": "assistant", "content": "{{ text }}"}]}
PAIR: dict[str, Any] = {
    "input": {"messages": []},
    "preferred_output": [],
    "non_preferred_output": [],
    "method": {"type": "dpo"},
}


def draft(folder: Path, request: dict[str, Any], **keys: Any) -> Draft:
    deployment = {"endpoint": "https://x.openai.azure.com", "deployment": "gpt-4o-mini-2024-07-18", "api": "azure-v1"}
    job = {
        "operation": TRAINING,
        "input": {"path": "rows.jsonl"},
        "request": request,
        "deployments": [deployment],
        "output": {"path": "out"},
        **keys,
    }
    file = folder / "job.json"
    file.write_text(json.dumps(job))
    return read(file, environ={"AZURE_OPENAI_API_KEY": "k" * 32}, operations=[TRAINING, "chat"])


def said(found: Draft) -> dict[str, str]:
    return {problem.path: problem.message for problem in found.problems}


@pytest.mark.parametrize(
    "request_of",
    [
        CHAT,
        CHAT | {"tools": [], "parallel_tool_calls": False, "validation": "10%", "on_duplicate": "keep"},
        CHAT | {"method": {"type": "supervised"}, "suffix": "a", "seed": 1, "metadata": {"team": "quay"}},
        CHAT | {"hyperparameters": {"n_epochs": "auto"}, "max_example_tokens": 100, "trainingType": "developerTier"},
        PAIR,
    ],
)
def test_what_can_be_trained_is_a_job_that_carries_no_columns(tmp_path: Path, request_of: dict[str, Any]) -> None:
    found = draft(tmp_path, request_of)
    assert not said(found)
    assert found.job is not None
    assert found.job.output.columns == "none"


@pytest.mark.parametrize(
    ("request_of", "path", "message"),
    [
        ({}, "request", "has no messages"),
        (CHAT | {"mesages": []}, "request.mesages", "unknown field (did you mean `messages`?)"),
        (CHAT | {"training_file": "f"}, "request.training_file", "is made of the rows"),
        (CHAT | {"validation_file": "f"}, "request.validation_file", "is made of the rows"),
        (CHAT | {"model": "m"}, "request.model", "is the deployment's business"),
        (CHAT | {"suffix": "{{ text }}"}, "request.suffix", "is said once for the whole job"),
        (CHAT | {"method": {"type": "supervised", "x": ["{{ a }}"]}}, "request.method", "is said once"),
        (CHAT | {"suffix": ""}, "request.suffix", "must be text of at most 64 characters"),
        (CHAT | {"suffix": "a" * 65}, "request.suffix", "must be text of at most 64 characters"),
        (CHAT | {"method": {"type": "reinforcement"}}, "request.method", "must be a mapping whose `type` is one of"),
        (CHAT | {"method": "dpo"}, "request.method", "must be a mapping whose `type` is one of"),
        (CHAT | {"method": {"type": ["dpo"]}}, "request.method", "must be a mapping whose `type` is one of"),
        (CHAT | {"method": {"type": "dpo"}}, "request.method", "is dpo, which needs input"),
        ({**PAIR, "method": None}, "request.method", "must be {type: dpo}"),
        (PAIR | {"messages": []}, "request.messages", "is no field of an example that has input"),
        ({name: PAIR[name] for name in PAIR if name != "input"}, "request", "has no input"),
        (CHAT | {"validation": "120%"}, "request.validation", "must be a share below 100%"),
        (CHAT | {"validation": 1}, "request.validation", "must be a share below 100%"),
        (CHAT | {"validation": True}, "request.validation", "must be a share below 100%"),
        (CHAT | {"validation": ["a"]}, "request.validation", "must be a share below 100%"),
        (CHAT | {"on_duplicate": "drop"}, "request.on_duplicate", "must be one of fail, keep"),
        (CHAT | {"max_example_tokens": 0}, "request.max_example_tokens", "must be a whole number above zero"),
        (CHAT | {"metadata": {str(n): "x" for n in range(16)}}, "request.metadata", "must be a mapping of at most 15"),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path: Path, request_of: dict[str, Any], path: str, message: str) -> None:
    found = said(draft(tmp_path, request_of))
    assert path in found, found
    assert found[path].startswith(message)


@pytest.mark.parametrize(
    ("keys", "path"),
    [
        ({"output": {"path": "out", "columns": "all"}}, "output.columns"),
        ({"output": {"path": "out", "format": "openai-batch"}}, "output.format"),
        ({"run": {"lane": "batch"}}, "run.lane"),
        ({"run": {"lane": "auto", "deadline": "1h"}}, "run.lane"),
        ({"run": {"right_size": "p99"}}, "run.right_size"),
        ({"deployments": [{"endpoint": "https://x.openai.azure.com", "deployment": n} for n in "ab"]}, "deployments"),
    ],
)
def test_keys_of_other_operations_are_refused(tmp_path: Path, keys: dict[str, Any], path: str) -> None:
    assert path in said(draft(tmp_path, CHAT, **keys))


def test_the_classic_api_takes_shorter_suffixes(tmp_path: Path) -> None:
    deployment = {"endpoint": "https://x.openai.azure.com", "deployment": "m", "api": "azure"}
    assert not said(draft(tmp_path, CHAT | {"suffix": "a" * 40}, deployments=[deployment]))
    assert "request.suffix" in said(draft(tmp_path, CHAT | {"suffix": "a" * 41}, deployments=[deployment]))


@pytest.mark.parametrize(
    ("value", "path", "share"),
    [(None, None, 0.0), ("10%", None, 0.1), (0.25, None, 0.25), ("more/rows.jsonl", "more/rows.jsonl", 0.0)],
)
def test_validation_is_a_share_or_a_path_beside_the_job(
    tmp_path: Path, value: Any, path: str | None, share: float
) -> None:
    job = draft(tmp_path, CHAT | {"validation": value}).job
    assert job is not None
    found = validation_of(job)
    assert found.share == pytest.approx(share)
    assert found.path == (None if path is None else tmp_path / path)


@pytest.mark.parametrize(
    ("model", "stated", "most"),
    [("gpt-4.1-2025-04-14", None, 65_536), ("gpt-35-turbo-0125", None, 16_385), ("gpt-35-turbo", 99, 99)],
)
def test_an_example_has_as_many_tokens_as_its_model_takes(
    tmp_path: Path, model: str, stated: int | None, most: int
) -> None:
    deployment = {"endpoint": "https://x.openai.azure.com", "deployment": model}
    job = draft(tmp_path, CHAT | {"max_example_tokens": stated}, deployments=[deployment]).job
    assert job is not None
    assert most_tokens(job) == most


def test_what_is_asked_for_is_what_the_job_says_once() -> None:
    request = {**CHAT, "seed": 0, "suffix": None, "validation": "10%", "metadata": {"a": "b"}, "tools": []}
    assert asked_of(request) == {"seed": 0, "metadata": {"a": "b"}}


@pytest.mark.parametrize(
    ("request_", "epochs"),
    [
        ({}, None),
        ({"hyperparameters": {"n_epochs": 4}}, 4),
        ({"hyperparameters": {"n_epochs": "auto"}}, None),
        ({"hyperparameters": {"n_epochs": -1}}, None),
        ({"method": {"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 2}}}, "hyperparameters": {}}, 2),
        ({"method": {"type": "dpo", "supervised": {"hyperparameters": {"n_epochs": 2}}}}, None),
    ],
)
def test_epochs_are_known_where_the_job_says_a_number(request_: dict[str, Any], epochs: int | None) -> None:
    assert epochs_of(request_) == epochs
