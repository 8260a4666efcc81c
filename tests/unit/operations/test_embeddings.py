from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from typing import Any

import orjson
import pyarrow as pa
import pybase64
import pytest

from pipeline.errors import ReplyError
from pipeline.job.tokens import count, estimate, max_input_tokens
from pipeline.model import ErrorInfo, ErrorType, Item, Reply, Row, RowResult, Target, Usage
from pipeline.operations.base import Operation

AZURE = Target(deployment="d", model="text-embedding-3-small", body_model=None)
OPENAI = Target(deployment="d", model="text-embedding-3-small", body_model="text-embedding-3-small")
TEXT = {"input": "{{ text }}", "dimensions": 2}
UNKNOWN = ({"model": "nobody-knows", "deployment": "x"},)


def prepared(operation: Operation, *texts: Any) -> list[Item | ErrorInfo]:
    return operation.prepare([Row(ordinal=ordinal, values={"text": text}) for ordinal, text in enumerate(texts)])


def items(operation: Operation, *texts: Any) -> list[Item]:
    found = [one for one in prepared(operation, *texts) if isinstance(one, Item)]
    assert len(found) == len(texts)
    return found


def base64(*floats: float) -> str:
    return pybase64.b64encode(struct.pack(f"<{len(floats)}f", *floats)).decode()


def entries(*vectors: Any) -> list[dict[str, Any]]:
    return [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]


def answer(operation: Operation, asked: Sequence[Item], data: Any, usage: Any = None) -> list[RowResult]:
    body = orjson.dumps({"object": "list", "model": "m", "data": data, "usage": usage})
    return operation.parse(asked, Reply(status=200, headers={}, body=body, latency_ms=1))


def floats(result: RowResult) -> tuple[float, ...]:
    assert result.values is not None
    data = result.values["embedding"]
    return struct.unpack(f"<{len(data) // 4}f", data)


def error(message: str) -> ErrorInfo:
    return ErrorInfo(type=ErrorType.BAD_REQUEST, code="invalid_request_error", message=message, http_status=400)


def test_a_pack_asks_for_base64_and_sends_equal_texts_once(make: Any) -> None:
    embeddings = make("embeddings", {**TEXT, "user": "me"})
    pack = items(embeddings, "b", "a", "b", "c", "a")
    call = embeddings.build(pack, AZURE)
    assert call.endpoint == "embeddings"
    assert json.loads(call.body) == {
        "input": ["b", "a", "c"],
        "dimensions": 2,
        "user": "me",
        "encoding_format": "base64",
    }
    assert call.tokens == 3


def test_the_model_comes_first_and_only_where_the_path_does_not_say_it(make: Any) -> None:
    embeddings = make("embeddings", TEXT)
    pack = items(embeddings, "a")
    assert b"model" not in embeddings.build(pack, AZURE).body
    assert embeddings.build(pack, OPENAI).body.startswith(b'{"model":"text-embedding-3-small",')


def test_what_the_job_says_of_the_wire_and_of_long_texts_is_not_sent(make: Any) -> None:
    embeddings = make("embeddings", {**TEXT, "encoding_format": "float", "on_too_long": "fail"})
    body = json.loads(embeddings.build(items(embeddings, "a"), AZURE).body)
    assert body == {"input": ["a"], "dimensions": 2, "encoding_format": "base64"}


def test_rows_whose_other_fields_differ_have_a_request_each(make: Any) -> None:
    embeddings = make("embeddings", {**TEXT, "user": "{{ who }}"})
    assert embeddings.limits.items == 1
    assert embeddings.columns == {"text", "who"}
    rows = [Row(ordinal=n, values={"text": "a", "who": who}) for n, who in enumerate(("me", "you"))]
    bodies = [json.loads(embeddings.build([one], AZURE).body) for one in embeddings.prepare(rows)]
    assert [body["user"] for body in bodies] == ["me", "you"]


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("", "empty"),
        (None, "empty"),
        (5, "type"),
        (1.5, "type"),
        (True, "type"),
        ({"a": 1}, "type"),
        (["a", "b"], "type"),
        ([], "type"),
        ("\ud800", "type"),
        ("word " * 9000, "too_long"),
        ("é" * 40_000, "too_long"),
    ],
)
def test_texts_that_cannot_be_embedded_are_row_errors_and_their_neighbours_are_not(
    make: Any,
    value: Any,
    code: str,
) -> None:
    before, wrong, after = prepared(make("embeddings", TEXT), "a", value, "b")
    assert isinstance(before, Item)
    assert isinstance(after, Item)
    assert isinstance(wrong, ErrorInfo)
    assert (wrong.type, wrong.code) == (ErrorType.ROW, code)


def test_a_text_of_exactly_the_models_length_is_sent_and_one_token_more_is_not(make: Any) -> None:
    model = "text-embedding-3-small"
    most = max_input_tokens(model)
    assert most is not None
    fits, exceeds = " a" * most, " a" * (most + 1)
    assert count([fits, exceeds], model) == [most, most + 1]
    sent, refused = prepared(make("embeddings", TEXT), fits, exceeds)
    assert isinstance(sent, Item)
    assert isinstance(refused, ErrorInfo)
    assert (str(most + 1) in refused.message, str(most) in refused.message) == (True, True)


def test_a_model_of_unknown_length_takes_every_text(make: Any) -> None:
    assert isinstance(prepared(make("embeddings", TEXT, deployments=UNKNOWN), "word " * 9000)[0], Item)


def test_white_space_is_text(make: Any) -> None:
    assert isinstance(prepared(make("embeddings", TEXT), " ")[0], Item)


@pytest.mark.parametrize(
    ("deployments", "most_items", "most_tokens"),
    [
        (({},), 2048, 300_000),
        (({"tokens_per_minute": 60_000},), 2048, 10_000),
        (({"tokens_per_minute": 6_000_000},), 2048, 300_000),
        (({"tokens_per_minute": 1},), 2048, 1),
        (({"max_inputs": 16}, {"tokens_per_minute": 600}, {"max_inputs": 100, "tokens_per_minute": 6000}), 16, 100),
    ],
)
def test_a_pack_is_bounded_by_the_narrowest_deployment(
    make: Any,
    deployments: Any,
    most_items: int,
    most_tokens: int,
) -> None:
    limits = make("embeddings", TEXT, deployments=deployments).limits
    assert (limits.items, limits.tokens, limits.reply_bytes) == (most_items, most_tokens, 8 * 1024 * 1024)


def test_an_items_estimates_are_its_texts_tokens_and_its_vectors_base64(make: Any) -> None:
    (asked,) = items(make("embeddings", {**TEXT, "dimensions": 256}), "x" * 41)
    assert asked.tokens == estimate(41)
    entry = orjson.dumps(entries(base64(*[0.1] * 256))[0])
    assert len(entry) <= asked.reply_bytes <= len(entry) + 32


def test_vectors_find_their_rows_by_index_whatever_their_order(make: Any) -> None:
    embeddings = make("embeddings", TEXT)
    pack = items(embeddings, "b", "a", "b", "c")
    data = entries(base64(1, 2), base64(3, 4), base64(5, 6))[::-1]
    results = answer(embeddings, pack, data)
    assert [result.ordinal for result in results] == [0, 1, 2, 3]
    assert [floats(result) for result in results] == [(1, 2), (3, 4), (1, 2), (5, 6)]


def test_lists_of_floats_are_taken_too(make: Any) -> None:
    embeddings = make("embeddings", TEXT)
    (result,) = answer(embeddings, items(embeddings, "a"), entries([0.5, -1]))
    assert floats(result) == (0.5, -1)


@pytest.mark.parametrize(
    "data",
    [
        None,
        {},
        "x",
        [],
        entries(base64(1, 2)),
        entries(base64(1, 2), base64(1, 2), base64(1, 2)),
        [*entries(base64(1, 2)), *entries(base64(1, 2))],
        [{"index": 1, "embedding": base64(1, 2)}, {"index": 2, "embedding": base64(1, 2)}],
        [{"index": -1, "embedding": base64(1, 2)}, {"index": 0, "embedding": base64(1, 2)}],
        [{"index": False, "embedding": base64(1, 2)}, {"index": True, "embedding": base64(1, 2)}],
        [{"embedding": base64(1, 2)}, {"index": 1, "embedding": base64(1, 2)}],
        [None, None],
        ["a", "b"],
        entries(base64(1, 2), None),
        entries(base64(1, 2), 5),
        entries(base64(1, 2), ""),
        entries(base64(1, 2), []),
        entries(base64(1, 2), ["x", "y"]),
        entries(base64(1, 2), [1, None]),
        entries(base64(1, 2), {"a": 1, "b": 2}),
        entries(base64(1, 2), "no base64!"),
        entries(base64(1, 2), "äöü"),
        entries(base64(1, 2), base64(1, 2)[:-3]),
        entries(base64(1, 2), base64(1)),
        entries(base64(1, 2), base64(1, 2, 3)),
        entries(base64(1, 2, 3), base64(1, 2, 3)),
        entries(base64(1, 2), base64(1, math.nan)),
        entries(base64(1, 2), base64(math.inf, 1)),
        entries(base64(1, 2), base64(math.inf, -math.inf)),
        entries(base64(1, 2), [1, 1e39]),
        entries(base64(1, 2), [1, 1e300]),
    ],
)
def test_vectors_that_are_not_those_asked_for_are_a_reply_error(make: Any, data: Any) -> None:
    embeddings = make("embeddings", TEXT)
    with pytest.raises(ReplyError) as raised:
        answer(embeddings, items(embeddings, "a", "b"), data)
    assert raised.value.code == "bad_reply"


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null", b'{"data": [{"index": 0', b"[" * 100_000])
def test_a_body_that_is_no_object_is_a_reply_error(make: Any, body: bytes) -> None:
    embeddings = make("embeddings", TEXT)
    with pytest.raises(ReplyError):
        embeddings.parse(items(embeddings, "a"), Reply(status=200, headers={}, body=body, latency_ms=1))


def test_the_largest_finite_floats_pass(make: Any) -> None:
    embeddings = make("embeddings", TEXT)
    most = 3.4028234663852886e38
    (result,) = answer(embeddings, items(embeddings, "a"), entries(base64(most, most)))
    assert floats(result) == (most, most)


@pytest.mark.parametrize("total", [0, 1, 2, 3, 7, 100, 2**62])
@pytest.mark.parametrize("texts", [("a", "b", "c"), ("a", "a", "a"), ("a" * 400, "b", "c" * 37), ("a",)])
def test_shares_of_the_usage_add_up_to_the_services_figures(make: Any, total: int, texts: tuple[str, ...]) -> None:
    embeddings = make("embeddings", TEXT)
    data = entries(*[base64(1, 2)] * len(set(texts)))
    results = answer(
        embeddings,
        items(embeddings, *texts),
        data,
        {"prompt_tokens": total, "total_tokens": total + 1},
    )
    shares = [result.usage for result in results]
    assert sum(share.input_tokens or 0 for share in shares if share) == total
    assert sum(share.total_tokens or 0 for share in shares if share) == total + 1


def test_longer_texts_carry_more_of_the_usage(make: Any) -> None:
    embeddings = make("embeddings", TEXT)
    pack = items(embeddings, "a" * 120, "b" * 40, "c" * 40)
    data = entries(*[base64(1, 2)] * 3)
    results = answer(embeddings, pack, data, {"prompt_tokens": 101, "total_tokens": 101})
    assert [result.usage.input_tokens for result in results if result.usage] == [61, 20, 20]


def test_a_reply_without_usage_leaves_it_null(make: Any) -> None:
    embeddings = make("embeddings", TEXT)
    data = entries(base64(1, 2), base64(1, 2))
    assert [result.usage for result in answer(embeddings, items(embeddings, "a", "b"), data)] == [None, None]
    (first, _) = answer(embeddings, items(embeddings, "a", "b"), data, {"prompt_tokens": None, "total_tokens": 3})
    assert first.usage == Usage(input_tokens=None, total_tokens=2)


def test_the_reply_is_handed_on_row_by_row_without_vectors_only_when_the_job_wants_all(make: Any) -> None:
    data = entries(base64(1, 2), base64(3, 4))
    usage = {"prompt_tokens": 2, "total_tokens": 2}
    plain = make("embeddings", TEXT)
    assert [each.response for each in answer(plain, items(plain, "a", "b"), data, usage)] == [None, None]
    every = make("embeddings", TEXT, raw="all")
    responses = [each.response or b"" for each in answer(every, items(every, "a", "b", "a"), data, usage)]
    assert [json.loads(each)["index"] for each in responses] == [0, 1, 0]
    assert json.loads(responses[1]) == {
        "object": "embedding",
        "model": "m",
        "index": 1,
        "usage": {"prompt_tokens": 1, "total_tokens": 1},
    }


@pytest.mark.parametrize(
    ("request_fields", "deployments", "size"),
    [
        ({"dimensions": 256}, ({},), 256),
        ({}, ({},), 1536),
        ({}, ({"model": "text-embedding-3-large"},), 3072),
        ({}, ({}, {"model": "text-embedding-ada-002"}), 1536),
        ({}, ({}, {"model": "text-embedding-3-large"}), None),
        ({}, UNKNOWN, None),
        ({"dimensions": 7}, UNKNOWN, 7),
    ],
)
def test_the_vector_size_is_the_jobs_else_the_models_else_unknown(
    make: Any,
    request_fields: dict[str, Any],
    deployments: Any,
    size: int | None,
) -> None:
    embeddings = make("embeddings", {"input": "{{ text }}", **request_fields}, deployments=deployments)
    if size is None:
        with pytest.raises(LookupError):
            embeddings.schema()
        return
    field = embeddings.schema().field("embedding")
    assert field.type == pa.list_(pa.field("item", pa.float32(), nullable=False), size)
    assert field.nullable


def test_an_unknown_vector_size_is_settled_by_the_first_reply_and_then_kept(make: Any) -> None:
    learning = make("embeddings", {"input": "{{ text }}"}, deployments=UNKNOWN)
    pack = items(learning, "a")
    facts = learning.facts(answer(learning, pack, entries(base64(1, 2, 3))))
    assert facts == {"vector_size": 3}
    settled = learning.settled(facts)
    assert settled.schema().field("embedding").type.list_size == 3
    assert settled.facts(answer(settled, pack, entries(base64(1, 2, 3)))) == {}
    assert settled.settled({"vector_size": 9}) is settled
    with pytest.raises(ReplyError, match="2 floats where 3"):
        answer(settled, pack, entries(base64(1, 2)))


def test_failed_rows_settle_nothing(make: Any) -> None:
    learning = make("embeddings", {"input": "{{ text }}"}, deployments=UNKNOWN)
    assert learning.facts([RowResult(ordinal=0, error=error("no"))]) == {}
    assert learning.settled({}) is learning


@pytest.mark.parametrize(
    ("message", "row"),
    [
        ("'$.input[2]' is invalid. Please check the API reference: https://platform.openai.com/docs.", 3),
        ("Invalid 'input[2]': maximum input length is 8192 tokens.", 3),
        ("Invalid 'input[0]': empty string. Expected a string, but 'input[0]' was empty.", 0),
        ("input [1] is too long", 1),
        ("The text at index 1 is not valid", 1),
        ("bad value (index: 1)", 1),
        ("'$.input' is invalid.", None),
        ("Invalid 'input': array too long. Expected an array with maximum length 2048.", None),
        ("This model's maximum context length is 8192 tokens, however you requested 20130 tokens", None),
        ("Invalid 'input[1]' and 'input[2]'", None),
        ("Invalid 'input[3]': beyond the three texts that were sent", None),
        ("Invalid 'myinput[1]'", None),
        ("", None),
    ],
)
def test_a_refused_packs_message_leads_to_the_row_that_sent_the_text(make: Any, message: str, row: int | None) -> None:
    embeddings = make("embeddings", TEXT)
    assert embeddings.blame(items(embeddings, "a", "b", "a", "c"), error(message)) == row


@pytest.mark.parametrize("unit", [" a", "word ", "é", "日本語", "🤷🏽‍♀️", "<|endoftext|>"])
def test_a_text_that_is_too_long_is_cut_where_the_job_says_so(make: Any, unit: str) -> None:
    model = "text-embedding-3-small"
    most = max_input_tokens(model)
    assert most is not None
    whole = unit * (most + 1)
    short, cut = prepared(make("embeddings", {**TEXT, "on_too_long": "truncate"}), "short", whole)
    assert isinstance(short, Item)
    assert short.content.pieces == ("short",)
    assert isinstance(cut, Item)
    (sent,) = cut.content.pieces
    assert whole.startswith(sent)
    assert len(sent) < len(whole)
    assert most - 8 <= count([sent], model)[0] <= most
    assert cut.tokens == estimate(len(sent))


def test_how_long_texts_are_treated_is_no_field_of_the_request(make: Any) -> None:
    for request in (TEXT, {**TEXT, "user": "{{ text }}"}):
        embeddings = make("embeddings", {**request, "on_too_long": "truncate"})
        assert "on_too_long" not in json.loads(embeddings.build(items(embeddings, "a"), AZURE).body)


def test_lines_made_for_the_batch_api_are_asked_one_by_one(make: Any) -> None:
    embeddings = make("embeddings", {}, source={"format": "openai-batch"})
    assert embeddings.limits.items == 1
    line = {"method": "POST", "url": "/v1/embeddings", "body": {"model": "m", "input": "hi", "dimensions": 2}}
    (item,) = embeddings.prepare([Row(ordinal=0, values=line)])
    assert json.loads(embeddings.build([item], AZURE).body) == {
        "input": ["hi"],
        "dimensions": 2,
        "encoding_format": "base64",
    }
