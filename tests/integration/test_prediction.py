"""`predicted` of the summary: what a run was expected to take, by its first rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from in_memory import Bench, Service

from pipeline import operations
from pipeline.clock import SystemClock
from pipeline.engines.prediction import LONGEST_TEXT, SAMPLED_ROWS, Prediction
from pipeline.errors import StorageError
from pipeline.job import tokens
from pipeline.job.tokens import count, estimate
from pipeline.plan.ranges import plan_rules
from pipeline.sources import open_source
from pipeline.store.summary import Predicted, PredictedTokens, read_summary

pytestmark = pytest.mark.anyio

PRICED = {
    "endpoint": "https://x.openai.azure.com",
    "deployment": "d",
    "model": "text-embedding-3-small",
    "api": "azure",
    "max_inputs": 4,
    "requests_per_minute": 6_000,
    "price": {"input": 2.0, "output": 0.0},
}


@pytest.fixture(autouse=True)
def tokenizers() -> None:
    """Load them before: a short run waits half a second for its prediction, which a busy machine needs for them."""
    for model in ("text-embedding-3-small", "gpt-4o-mini", "unknown"):
        count(["x"], model)


def bench_of(folder: Path, *, rows: int, **changes: object) -> Bench:
    changed = {"deployments": [PRICED], "output": {"part_rows": 1_000}, **changes}
    return Bench(folder=folder, changes=changed).texts(*(f"quay {n % SAMPLED_ROWS}" for n in range(rows)))


def tokens_of(rows: int) -> int:
    return sum(count([f"quay {n % SAMPLED_ROWS}" for n in range(rows)], "text-embedding-3-small"))


async def test_a_short_input_is_predicted_exactly_and_stands_in_the_summary(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, rows=10)
    summary = await bench.run(Service())
    predicted = summary.predicted
    assert predicted is not None
    assert predicted.requests == summary.requests == 3
    assert (predicted.tokens.input, predicted.tokens.output) == (tokens_of(10), 0)
    assert predicted.cost_usd == pytest.approx(tokens_of(10) * 2 / 1e6)
    assert predicted.seconds == 0.0
    assert read_summary(bench.layout.summary) == summary


async def test_a_long_input_is_predicted_by_its_first_rows(tmp_path: Path) -> None:
    rows = 5 * SAMPLED_ROWS
    predicted = (await bench_of(tmp_path, rows=rows).run(Service())).predicted
    assert predicted is not None
    assert predicted.requests == pytest.approx(rows / 4, rel=0.01)
    assert predicted.tokens.input == pytest.approx(tokens_of(rows), rel=0.01)
    assert predicted.seconds == pytest.approx(rows / 4 / 100, rel=0.02)


async def test_a_continued_run_predicts_what_the_whole_takes(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, rows=10)
    limited = await bench.run(Service(), limit=4)
    assert limited.predicted is None or limited.predicted.requests == 1
    whole = await bench.run(Service())
    assert whole.predicted is not None
    assert whole.predicted.requests == 3


async def test_a_run_with_nothing_left_loads_no_tokenizer_and_keeps_what_was_predicted(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, rows=10)
    first = await bench.run(Service())
    assert first.predicted is not None
    told = first.as_json() | {"predicted": {**first.as_json()["predicted"], "requests": 77}}
    bench.layout.summary.write_text(json.dumps(told), encoding="utf-8")
    again = await bench.run(Service())
    assert (again.state, again.predicted) == ("complete", replace(first.predicted, requests=77))
    bench.layout.summary.unlink()
    assert (await bench.run(Service())).predicted is None
    bench.layout.summary.write_text("cut", encoding="utf-8")
    assert (await bench.run(Service())).predicted is None
    bench.texts(*(f"quay {n}" for n in range(11)))
    grown = (await bench.run(Service())).predicted
    assert grown is not None
    assert grown.requests == 3


async def test_what_is_not_known_beforehand_is_null(tmp_path: Path) -> None:
    bench = Bench(folder=tmp_path, operation="chat").texts("one", "two")
    predicted = (await bench.run(Service())).predicted
    assert predicted is not None
    assert predicted.requests == 2
    assert predicted.tokens.input is not None
    assert (predicted.tokens.output, predicted.cost_usd, predicted.seconds) == (None, None, None)


async def test_a_long_text_is_estimated_and_those_beside_it_are_counted(tmp_path: Path) -> None:
    texts = ["quay " * 20, "quay " * (LONGEST_TEXT // 5), "quay " * (LONGEST_TEXT // 5) + "!", "a quay"]
    bench = Bench(folder=tmp_path, changes={"deployments": [PRICED]}).texts(*texts)
    predicted = (await bench.run(Service())).predicted
    assert predicted is not None
    counted = sum(count([text for text in texts if len(text) <= LONGEST_TEXT], PRICED["model"]))
    assert predicted.tokens.input == counted + estimate(LONGEST_TEXT + 1)


@pytest.mark.parametrize("error", [StorageError("gone"), ValueError("odd"), RecursionError(), MemoryError()])
async def test_whatever_looking_at_rows_raises_leaves_a_run_without_a_prediction(
    tmp_path: Path, error: Exception
) -> None:
    class Broken:
        def open(self, *_: object, **__: object) -> object:
            raise error

    job = bench_of(tmp_path, rows=3).job()
    source = open_source(job.input.path, format=job.input.format, columns=job.input.columns, kept_schema=None)
    begun = anyio.Event()
    prediction = Prediction(
        job=job,
        source=cast("Any", Broken()),
        operation=operations.get(job.operation).factory(job),
        rules=plan_rules(job, source, limit=None),
        simulated=False,
        clock=SystemClock(),
        begun=begun,
        before=Predicted(requests=1, tokens=PredictedTokens(), cost_usd=None, seconds=None),
    )
    assert prediction.of(3) == prediction.before
    assert tokens._tokenizer.cache_info().currsize
    begun.set()
    await prediction.make()
    assert not tokens._tokenizer.cache_info().currsize, "30 MB are kept for the whole run"
    await prediction.made()
    assert prediction.of(3) is None
