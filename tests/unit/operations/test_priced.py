"""What a request can be billed for is never less than what its texts come to, whatever they hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import operations
from pipeline.job.budget import ANSWER_BOUNDS
from pipeline.job.load import load_job
from pipeline.job.tokens import count
from pipeline.model import Item, Row
from pipeline.operations._prompt import MOST_OUTPUT_TOKENS, MOST_PICTURE_TOKENS
from pipeline.operations.base import Priced

TEXTS = [
    "word",
    "你好" * 50,
    "🤷🏽‍♀️" * 9,
    '"\\\n\t' * 20,
    "a" * 1000,
    "\u0000\u0001",
    "<|endoftext|>",
    "0123456789" * 9,
    "ﷺ",
]

BODIES: dict[str, dict[str, Any]] = {
    "chat": {"messages": [{"role": "system", "content": "Say.", "name": "x"}, {"role": "user", "content": "{{ t }}"}]},
    "responses": {"instructions": "Say.", "input": "{{ t }}"},
    "completions": {"prompt": "{{ t }}"},
    "embeddings": {"input": "{{ t }}"},
}


def made(folder: Path, operation: str, body: dict[str, Any], *texts: str) -> tuple[Priced, list[Item]]:
    place = {"endpoint": "https://x.openai.azure.com", "api": "azure-v1", "auth": "none", "deployment": "unknown"}
    job = {
        "operation": operation,
        "input": {"path": "rows.jsonl"},
        "request": body,
        "deployments": [place],
        "output": {"path": "out"},
    }
    (folder / "job.json").write_text(json.dumps(job))
    loaded = load_job(folder / "job.json", environ={}, operations=operations.names())
    made = operations.get(operation).factory(loaded)
    assert isinstance(made, Priced)
    items = made.prepare([Row(ordinal=n, values={"t": text}) for n, text in enumerate(texts)])
    return made, [item for item in items if isinstance(item, Item)]


def test_the_operations_that_are_billed_by_tokens_are_those_that_may_have_a_budget(tmp_path: Path) -> None:
    for name in sorted(ANSWER_BOUNDS):
        made(tmp_path, name, BODIES[name])
    assert set(ANSWER_BOUNDS) == set(BODIES)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("operation", sorted(BODIES))
def test_the_bound_holds_what_the_tokenizer_counts(tmp_path: Path, operation: str, text: str) -> None:
    asking, (item,) = made(tmp_path, operation, BODIES[operation], text)
    prompt = asking.prompt([item])
    assert text in prompt.texts
    assert prompt.tokens + prompt.roles + sum(count(prompt.texts, "gpt-4o")) <= asking.bound([item]).input


@pytest.mark.parametrize(
    ("operation", "field"), [(name, field) for name, fields in ANSWER_BOUNDS.items() for field in fields]
)
def test_an_answer_is_bounded_as_the_request_says(tmp_path: Path, operation: str, field: str) -> None:
    asking, (item,) = made(tmp_path, operation, {**BODIES[operation], field: 77}, "x")
    assert asking.bound([item]).output == 77


@pytest.mark.parametrize(("operation", "copies"), [("chat", 3), ("completions", 3)])
def test_every_one_of_several_answers_counts(tmp_path: Path, operation: str, copies: int) -> None:
    body = {**BODIES[operation], "n": copies}
    asking, (item,) = made(tmp_path, operation, {**body, "max_tokens": 7}, "x")
    assert asking.bound([item]).output == 7 * copies
    asking, (item,) = made(tmp_path, operation, body, "x")
    assert asking.bound([item]).output == MOST_OUTPUT_TOKENS * copies


@pytest.mark.parametrize("operation", ["chat", "responses"])
def test_a_picture_counts_as_the_dearest_one(tmp_path: Path, operation: str) -> None:
    url = "https://pictures.example.com/a.png"
    parts: list[dict[str, Any]] = [{"type": "text", "text": 'Is "image_url":{ a picture?'}]
    parts.append({"type": "image_url", "image_url": {"url": url}})
    if operation == "responses":
        parts = [{"type": "input_text", "text": "What?"}, {"type": "input_image", "image_url": url}]
    messages = [{"role": "user", "content": parts}]
    asking, (item,) = made(tmp_path, operation, {"messages" if operation == "chat" else "input": messages}, "x")
    assert MOST_PICTURE_TOKENS < asking.bound([item]).input < MOST_PICTURE_TOKENS + 1000
    assert url not in asking.prompt([item]).texts


def test_a_pack_is_billed_for_equal_texts_once(tmp_path: Path) -> None:
    asking, items = made(tmp_path, "embeddings", BODIES["embeddings"], "same", "same", "other")
    assert asking.prompt(items).texts == ("same", "other")
    assert asking.bound(items).input == 9
    assert asking.bound(items).output == 0
