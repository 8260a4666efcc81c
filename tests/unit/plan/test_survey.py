"""Counting what is to be asked, without asking."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from pipeline import operations
from pipeline.job.load import load_job
from pipeline.job.tokens import count
from pipeline.plan import survey as module
from pipeline.plan.ranges import plan_rules
from pipeline.plan.survey import Survey, as_simulated, done_rows, survey, tokenized
from pipeline.sources import open_source


def counted(
    folder: Path,
    rows: list[Any],
    *,
    operation: str = "chat",
    done: set[int] = frozenset(),  # type: ignore[assignment]
    exact: bool = False,
    limit: int | None = None,
    part_rows: int = 10_000,
    max_inputs: int = 2048,
    simulated: bool = False,
) -> Survey:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    request: dict[str, Any] = {"input": "{{ text }}", "dimensions": 8}
    if operation == "chat":
        request = {"messages": [{"role": "user", "content": "{{ text }}"}], "max_tokens": 9}
    job = {
        "operation": operation,
        "input": {"path": "rows.jsonl", "id": "id"},
        "request": request,
        "deployments": [
            {
                "endpoint": "https://x.openai.azure.com",
                "api": "azure",
                "auth": "none",
                "deployment": "gpt-4o",
                "max_inputs": max_inputs,
            }
        ],
        "output": {"path": "out", "part_rows": part_rows},
    }
    file = folder / "job.json"
    file.write_text(json.dumps(job))
    loaded = load_job(file, environ={}, operations=operations.names())
    source = open_source(loaded.input.path, format="jsonl", columns={})
    return survey(
        source,
        operations.get(operation).factory(loaded),
        plan_rules(loaded, source, limit=limit),
        done=lambda first, last: bytearray(ordinal in done for ordinal in range(first, last + 1)),
        counter=as_simulated if simulated else tokenized("gpt-4o"),
        exact=exact,
    )


def texts(number: int) -> list[Any]:
    return [{"id": n, "text": f"This is row {n} of them."} for n in range(number)]


def values(found: Survey) -> tuple[float, ...]:
    return tuple(found.sums.figure(name).value for name in ("requests", "failing", "input_tokens", "most_output"))


def test_every_row_is_counted_with_its_frame(tmp_path: Path) -> None:
    rows = texts(7)
    expected = sum(count([row["text"]], "gpt-4o")[0] + 3 + 1 + 3 for row in rows)
    assert values(counted(tmp_path, rows)) == (7, 0, expected, 63)


def test_rows_that_are_done_are_not_counted_again(tmp_path: Path) -> None:
    found = counted(tmp_path, texts(100), done=set(range(40)))
    assert (found.rows, found.done, found.sums.rows) == (100, 40, 60)
    assert found.sums.figure("requests").value == 60


def test_rows_of_parts_are_done() -> None:
    done = done_rows(
        [(0, 9), (10, 14), (30, 39)], lambda first, last: bytearray(first == 20 for _ in range(last - first + 1))
    )
    assert done(8, 16) == bytearray([1, 1, 1, 1, 1, 1, 1, 0, 0])
    assert done(20, 21) == bytearray([1, 1])
    assert done(25, 31) == bytearray([0, 0, 0, 0, 0, 1, 1])


def test_rows_that_cannot_be_asked_are_counted_and_the_first_are_named(tmp_path: Path) -> None:
    rows: list[Any] = texts(30)
    rows[3]["text"] = ""
    rows[5] = "{"
    rows[7]["id"] = 6
    rows[8]["id"] = None
    for bad in range(20, 28):
        rows[bad]["text"] = None
    found = counted(tmp_path, rows)
    assert values(found)[:2] == (18, 12)
    named = [(one.ordinal, one.error.code) for one in found.unaskable]
    assert named[:4] == [(3, "empty"), (5, "invalid_json"), (7, "duplicate_id"), (8, "id_missing")]
    assert (len(named), named[4][0]) == (5, 20)


@pytest.mark.parametrize(("part_rows", "packs"), [(10_000, 13), (10, 20)])
def test_packs_end_where_ranges_do(tmp_path: Path, part_rows: int, packs: int) -> None:
    found = counted(tmp_path, texts(100), operation="embeddings", max_inputs=8, part_rows=part_rows)
    assert found.sums.figure("requests").value == packs


def test_equal_texts_of_a_pack_are_sent_and_billed_once(tmp_path: Path) -> None:
    rows = [{"id": n, "text": "the same"} for n in range(10)]
    found = counted(tmp_path, rows, operation="embeddings", max_inputs=5)
    assert values(found)[2] == 2 * count(["the same"], "gpt-4o")[0]


def test_a_limit_ends_it(tmp_path: Path) -> None:
    assert counted(tmp_path, texts(100), limit=33).rows == 33


@pytest.mark.parametrize("operation", ["chat", "embeddings"])
def test_a_long_input_is_sampled_and_the_interval_holds_what_all_of_it_is(tmp_path: Path, operation: str) -> None:
    dice = random.Random(1)
    number = 4 * module.COUNTED_ROWS + 777
    rows = [{"id": n, "text": f"{n} " + "word " * (1 + n // 20_000 + dice.randrange(20))} for n in range(number)]
    sample = counted(tmp_path, rows, operation=operation, simulated=True)
    whole = counted(tmp_path, rows, operation=operation, simulated=True, exact=True)
    assert sample.rows == whole.rows == number
    assert sample.sums.seen < 0.75 * number
    assert not sample.ids_checked
    # The last pack of each stretch may be small, which a sample does not see.
    for name, slack in (("requests", 0.05), ("input_tokens", 0.002), ("quota_tokens", 0.002)):
        found, truth = sample.sums.figure(name), whole.sums.figure(name)
        assert truth.within == 0
        assert abs(found.value - truth.value) <= max(2 * found.within, slack * truth.value), name
        assert found.within <= 0.02 * truth.value
