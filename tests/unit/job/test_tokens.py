import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.job.tokens import LONG_TEXT, at_most, count, cut, encoding_for, estimate, max_input_tokens


@pytest.mark.parametrize(
    ("model", "encoding"),
    [
        ("gpt-4o", "o200k_base"),
        ("gpt-4o-mini-2024-07-18", "o200k_base"),
        ("gpt-4.1-nano", "o200k_base"),
        ("gpt-5.4-mini", "o200k_base"),
        ("o4-mini", "o200k_base"),
        ("gpt-4", "cl100k_base"),
        ("gpt-4-turbo", "cl100k_base"),
        ("gpt-35-turbo", "cl100k_base"),
        ("gpt-3.5-turbo", "cl100k_base"),
        ("text-embedding-3-small", "cl100k_base"),
        ("text-embedding-ada-002", "cl100k_base"),
        ("gpt-oss-120b", "o200k_harmony"),
        ("whatever-it-is", "o200k_base"),
    ],
)
def test_a_model_has_its_encoding(model: str, encoding: str) -> None:
    assert encoding_for(model) == encoding


def test_counts_are_those_of_the_vocabulary() -> None:
    assert count(["hello world", "", "a" * 400], "gpt-4o") == [2, 0, 50]


def test_a_special_token_written_out_is_ordinary_text() -> None:
    assert count(["<|endoftext|>"], "gpt-4o")[0] > 1


# Agreed on by rs-bpe 0.1.0.
@pytest.mark.parametrize(
    ("text", "model", "tokens"),
    [
        ("The tide turns twice a day at the quay, and 42 boats leave. " * 12, "gpt-4o", 193),
        ("The tide turns twice a day at the quay, and 42 boats leave. " * 12, "text-embedding-3-small", 205),
        (" " * 1_000_000, "gpt-4o", 7_813),
        ("漢" * 300_000, "text-embedding-3-small", 600_000),
    ],
)
def test_counts_are_those_that_other_tokenizers_come_to(text: str, model: str, tokens: int) -> None:
    assert count([text], model) == [tokens]


@pytest.mark.parametrize("size", [100, LONG_TEXT + 100])
def test_a_special_token_in_a_text_of_any_length_is_ordinary(size: int) -> None:
    before, text = "w " * (size // 2), "<|endoftext|>"
    (apart,), (alone,) = count([before], "gpt-4o"), count([text], "gpt-4o")
    assert alone > 1
    assert apart + alone - 1 <= count([before + text], "gpt-4o")[0] <= apart + alone


@pytest.mark.parametrize("text", ["Tides of 漢字, é and 👩‍👩‍👧. ", "<|endoftext|> is said. "])
def test_long_texts_are_counted_and_cut_as_short_ones(text: str) -> None:
    short, long = text * 100, text * 2_000
    (few,) = count([short], "gpt-4o")
    assert abs(count([long], "gpt-4o")[0] - 20 * few) <= 20
    assert long.startswith(cut(long, few, "gpt-4o"))
    assert abs(len(cut(long, few, "gpt-4o")) - len(short)) <= len(text)


@pytest.mark.parametrize(("characters", "tokens"), [(0, 0), (1, 1), (4, 1), (5, 2), (400, 100)])
def test_the_estimate_is_four_characters_to_a_token(characters: int, tokens: int) -> None:
    assert estimate(characters) == tokens


@settings(deadline=None)  # the first call loads the vocabulary
@given(st.text())
def test_a_text_has_at_most_as_many_tokens_as_bytes(text: str) -> None:
    for model in ("gpt-4o", "text-embedding-3-small"):
        assert count([text], model)[0] <= at_most(text) == len(text.encode())


def test_only_known_models_have_a_longest_input() -> None:
    assert max_input_tokens("text-embedding-3-small") == 8192
    assert max_input_tokens("my-model") is None


@settings(deadline=None)
@given(st.text(), st.integers(1, 20))
def test_a_cut_text_is_a_beginning_of_at_most_so_many_tokens(text: str, most: int) -> None:
    beginning = cut(text, most, "text-embedding-3-small")
    assert text.startswith(beginning)
    assert count([beginning], "text-embedding-3-small")[0] <= most
    if count([text], "text-embedding-3-small")[0] <= most:
        assert beginning == text
