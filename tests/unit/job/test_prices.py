import pytest

from pipeline.job.prices import price_for, vector_size
from pipeline.job.spec import Price


@pytest.mark.parametrize(
    ("model", "price"),
    [
        ("text-embedding-3-small", Price(input=0.02, output=0.0)),
        ("gpt-4o-mini", Price(input=0.15, cached_input=0.075, output=0.60)),
        ("gpt-4o-2024-11-20", Price(input=2.50, cached_input=1.25, output=10.0)),
        ("gpt-4.1-nano-2025-04-14", Price(input=0.10, cached_input=0.025, output=0.40)),
    ],
)
def test_a_known_model_has_its_list_price(model: str, price: Price) -> None:
    assert price_for(model) == price


@pytest.mark.parametrize("model", ["my-deployment", "", "gpt-4o-realtime", "gpt-99"])
def test_an_unknown_model_has_no_price_and_never_zero(model: str) -> None:
    assert price_for(model) is None


def test_vector_sizes_are_those_of_the_models() -> None:
    assert vector_size("text-embedding-3-small") == 1536
    assert vector_size("text-embedding-3-large") == 3072
    assert vector_size("text-embedding-ada-002") == 1536
    assert vector_size("my-model") is None
