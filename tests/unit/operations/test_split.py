"""Texts that are too long for a model, embedded in pieces."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

import orjson
import pyarrow as pa
import pybase64
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.job import tokens
from pipeline.job.tokens import count, estimate
from pipeline.model import ErrorInfo, ErrorType, Item, Reply, Row, RowResult, Target, Usage
from pipeline.operations._text_pieces import split_text
from pipeline.operations.base import Operation

MODEL = "text-embedding-3-small"
AZURE = Target(deployment="d", model=MODEL, body_model=None)
REQUEST = {"input": "{{ text }}", "dimensions": 2, "on_too_long": "split"}
MOST = 8192
WORDS = [" a" * MOST, " a" * (MOST + 1), " a" * (3 * MOST)]


def prepared(operation: Operation, *texts: Any) -> list[Item | ErrorInfo]:
    return operation.prepare([Row(ordinal=ordinal, values={"text": text}) for ordinal, text in enumerate(texts)])


def items(operation: Operation, *texts: str) -> list[Item]:
    found = [one for one in prepared(operation, *texts) if isinstance(one, Item)]
    assert len(found) == len(texts)
    return found


def failure(operation: Operation, text: str) -> ErrorInfo:
    before, wrong, after = prepared(operation, "before", text, "after")
    assert isinstance(before, Item)
    assert isinstance(after, Item)
    assert isinstance(wrong, ErrorInfo)
    assert (wrong.type, wrong.code) == (ErrorType.ROW, "too_long")
    return wrong


def inputs(operation: Operation, asked: Sequence[Item]) -> list[str]:
    texts: list[str] = json.loads(operation.build(asked, AZURE).body)["input"]
    return texts


def vector(*floats: float) -> bytes:
    return struct.pack(f"<{len(floats)}f", *floats)


def answer(operation: Operation, asked: Sequence[Item], usage: Any = None) -> list[RowResult]:
    """Input n gets the vector (n, -n)."""
    data = [
        {"index": n, "embedding": pybase64.b64encode(vector(n, -n)).decode()}
        for n in range(len(inputs(operation, asked)))
    ]
    body = orjson.dumps({"model": "m", "data": data, "usage": usage})
    return operation.parse(asked, Reply(status=200, headers={}, body=body, latency_ms=1))


@pytest.mark.parametrize(("text", "pieces"), [("one", 1), (" a", 1), *zip(WORDS, (1, 2, 4), strict=True)])
def test_a_text_makes_as_many_pieces_as_the_models_length_asks_for(make: Any, text: str, pieces: int) -> None:
    embeddings = make("embeddings", REQUEST)
    (asked,) = items(embeddings, text)
    found = asked.content.pieces
    assert (len(found), asked.inputs) == (pieces, pieces)
    assert "".join(found) == text
    assert max(count(found, MODEL)) <= MOST
    assert asked.tokens == sum(estimate(len(piece)) for piece in found)
    assert asked.reply_bytes == pieces * items(embeddings, "short")[0].reply_bytes


@pytest.mark.parametrize(
    ("unit", "end"),
    [
        ("One sentence. And another one!\n\nA new paragraph begins, ", "\n\n"),
        ("One sentence. And another one, ", "sentence. "),
        ("He said “no.” She left for home, ", "”"),
        ("一句话说完了。另外一句话", "。"),
        ("a line\nanother line and words ", "\n"),
        ("only words and nothing else ", " "),
        ("\n \n \n", "\n"),
        (" " * 100, " "),
    ],
)
def test_a_piece_ends_where_a_reader_would_pause(unit: str, end: str) -> None:
    text = unit * 20_000
    found = split_text(text, MOST, MODEL)
    assert len(found) > 1
    assert "".join(found) == text
    assert all(piece.endswith(end) or piece.rstrip().endswith(end) for piece in found[:-1])
    assert all(MOST * 0.7 <= tokens <= MOST for tokens in count(found[:-1], MODEL))


@pytest.mark.parametrize(
    "unit", ["xxxx", "日本語", "ก็", "é", "e\u0301", "🤷🏽\u200d♀\ufe0f", "한국", "<|endoftext|>", "\x00"]
)
def test_a_text_without_spaces_is_cut_between_characters(unit: str) -> None:
    text = unit * 40_000
    found = split_text(text, MOST, MODEL)
    assert len(found) > 1
    assert "".join(found) == text
    assert max(count(found, MODEL)) <= MOST
    assert min(count(found[:-1], MODEL)) >= MOST - 64


@pytest.mark.parametrize("unit", ["e\u0301", "ก็", "🤷🏽\u200d♀\ufe0f", "👩\u200d👩\u200d👧"])
def test_what_belongs_to_a_character_stays_with_it(unit: str) -> None:
    for shift in range(4):
        found = split_text("x" * shift + unit * 20_000, MOST, MODEL)
        assert len(found) > 1
        assert all(piece.startswith(unit[0]) for piece in found[1:])


@pytest.mark.parametrize("word", ["international", "understanding", "hello"])
def test_a_word_that_grows_in_tokens_when_it_is_cut_is_left_whole(word: str) -> None:
    base = f"_{word}" * 16
    (most,) = count([base], MODEL)
    assert count([base[:-1]], MODEL)[0] > most
    found = split_text(base + "\u0301" * 40, most, MODEL)
    assert found[0] == base
    assert max(count(found, MODEL)) <= most


def test_marks_without_end_are_cut_all_the_same() -> None:
    text = "e" + "\u0301" * 40_000
    found = split_text(text, MOST, MODEL)
    assert "".join(found) == text
    assert max(count(found, MODEL)) <= MOST


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.text(st.sampled_from("ab. \n\r\t!。é🤷🏽\u200d\u0301日")), min_size=1, max_size=8), st.integers(16, 64)
)
def test_pieces_are_never_too_long_and_give_the_text_back(words: list[str], most: int) -> None:
    text = "".join(words) * 20
    found = split_text(text, most, MODEL)
    assert "".join(found) == text
    assert all(found)
    assert all(tokens <= most for tokens in count(found, MODEL))


def test_without_a_tokenizer_pieces_are_estimated(monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    monkeypatch.setattr(tokens, "_tokenizer", lambda _encoding: None)
    text = "x" * (MOST * 4) + "y"
    (asked,) = items(make("embeddings", REQUEST), text)
    assert asked.content.pieces == ("x" * (MOST * 4), "y")


def test_all_pieces_go_into_one_request_and_equal_ones_once(make: Any) -> None:
    embeddings = make("embeddings", REQUEST)
    long = WORDS[2]
    pack = items(embeddings, "short", long, "short", long)
    sent = inputs(embeddings, pack)
    assert sent == list(dict.fromkeys(["short", *pack[1].content.pieces]))
    assert embeddings.build(pack, AZURE).tokens == sum(estimate(len(text)) for text in sent)


def test_a_row_has_the_vectors_of_its_pieces_in_order_and_its_share_of_the_usage(make: Any) -> None:
    embeddings = make("embeddings", REQUEST, raw="all")
    long = "".join(f" {n}" for n in range(10_000))
    first, second, third = answer(
        embeddings, items(embeddings, "short", long, "short"), {"prompt_tokens": 20_004, "total_tokens": 20_004}
    )
    pieces = len(split_text(long, MOST, MODEL))
    assert pieces >= 3
    assert first.values == third.values == {"chunk": [0], "embedding": [vector(0, 0)]}
    assert second.values == {
        "chunk": list(range(pieces)),
        "embedding": [vector(n, -n) for n in range(1, pieces + 1)],
    }
    shares = [row.usage for row in (first, second, third)]
    assert all(isinstance(share, Usage) for share in shares)
    assert sum(share.input_tokens or 0 for share in shares if share) == 20_004
    assert second.usage is not None
    assert (second.usage.input_tokens or 0) > 19_000
    assert json.loads(first.response or b"")["index"] == [0]
    assert json.loads(second.response or b"")["index"] == list(range(1, pieces + 1))


@pytest.mark.parametrize(("named", "row"), [(0, 0), (1, 1), (2, 1), (3, 1), (4, 3), (5, None)])
def test_an_error_that_names_a_piece_leads_to_its_row(make: Any, named: int, row: int | None) -> None:
    embeddings = make("embeddings", REQUEST)
    long = "".join(f" {n}" for n in range(8_000))
    pack = items(embeddings, "short", long, "short", "other")
    assert len(inputs(embeddings, pack)) == 5
    error = ErrorInfo(type=ErrorType.BAD_REQUEST, code="c", message=f"Invalid 'input[{named}]'", http_status=400)
    assert embeddings.blame(pack, error) == row


def test_a_text_of_more_tokens_than_a_request_carries_fails(make: Any) -> None:
    embeddings = make("embeddings", REQUEST)
    (fits,) = items(embeddings, " a" * 299_000)
    assert fits.inputs >= 37
    assert "300001 tokens" in failure(embeddings, " a" * 300_001).message


def test_tokens_that_cutting_adds_count(make: Any) -> None:
    message = failure(make("embeddings", REQUEST), " a" * 300_000).message
    assert "at most 300000" in message


@pytest.mark.parametrize("most", [1, 3])
def test_a_text_of_more_pieces_than_a_deployment_takes_fails(make: Any, most: int) -> None:
    embeddings = make("embeddings", REQUEST, deployments=({"max_inputs": 16}, {"max_inputs": most}))
    message = failure(embeddings, WORDS[2]).message
    assert "4 pieces" in message
    assert f"at most {most} inputs" in message


def test_a_text_of_as_many_pieces_as_a_deployment_takes_is_sent(make: Any) -> None:
    assert items(make("embeddings", REQUEST, deployments=({"max_inputs": 4},)), WORDS[2])[0].inputs == 4


def test_rows_with_requests_of_their_own_are_split_too(make: Any) -> None:
    embeddings = make("embeddings", {**REQUEST, "user": "{{ text[:2] }}"})
    assert embeddings.limits.items == 1
    (asked,) = items(embeddings, WORDS[1])
    body = json.loads(embeddings.build([asked], AZURE).body)
    assert (len(body["input"]), body["user"]) == (2, " a")


def test_a_model_of_unknown_length_takes_every_text_in_one_piece(make: Any) -> None:
    embeddings = make("embeddings", REQUEST, deployments=({"model": "nobody-knows", "deployment": "x"},))
    (asked,) = items(embeddings, WORDS[2])
    assert asked.content.pieces == (WORDS[2],)


def test_the_columns_begin_with_the_number_of_the_piece(make: Any) -> None:
    schema = make("embeddings", REQUEST).schema()
    assert schema.names == ["chunk", "embedding"]
    assert schema.field("chunk").type == pa.int32()
    for policy in ({}, {"on_too_long": "fail"}, {"on_too_long": "truncate"}):
        embeddings = make("embeddings", {"input": "{{ text }}", "dimensions": 2, **policy})
        assert embeddings.schema().names == ["embedding"]


def test_an_unknown_vector_size_is_settled_by_a_piece(make: Any) -> None:
    learning = make(
        "embeddings",
        {"input": "{{ text }}", "on_too_long": "split"},
        deployments=({"model": MODEL}, {"model": "text-embedding-3-large"}),
    )
    results = answer(learning, items(learning, WORDS[2]))
    assert len((results[0].values or {})["embedding"]) == 4
    facts = learning.facts(results)
    assert facts == {"vector_size": 2}
    assert learning.settled(facts).schema().field("embedding").type.list_size == 2
