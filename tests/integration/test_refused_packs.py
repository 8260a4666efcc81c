"""A refused pack is cut down to the rows that are to blame; the others lose nothing but a call."""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import chain, combinations
from pathlib import Path

import httpx
import pytest
from in_memory import Bench, Judge, Said, Service, refusal

NAMES: dict[str, Callable[[int], str]] = {
    "named by path": lambda index: f"'$.input[{index}]' is invalid. Please check the API reference.",
    "named by field": lambda index: f"Invalid 'input[{index}]': input cannot be an empty string.",
    "not named": lambda index: "The input is refused.",
    "named wrongly": lambda index: "Invalid 'input[99999]': no.",
}


def guilty(texts: Collection[str], *, status: int = 400, says: Callable[[int], str] = NAMES["not named"]) -> Judge:
    """Refuse every call that holds one of these texts, naming the first."""

    def judge(asked: list[str], calls: int) -> Said:
        index = next((index for index, text in enumerate(asked) if text in texts), None)
        return None if index is None else refusal(status, "refused", says(index))

    return judge


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(folder=tmp_path, max_inputs=8, changes={"run": {"workers": 1}})


@pytest.mark.anyio
@pytest.mark.parametrize("index", range(8))
async def test_a_row_that_is_named_costs_one_call_more(bench: Bench, index: int) -> None:
    bench.texts(*"abcdefgh")
    service = Service(guilty({"abcdefgh"[index]}, says=NAMES["named by field"]))
    summary = await bench.run(service)
    assert bench.failed() == {index: ("BadRequestError", "refused")}
    bench.assert_rows(range(8))
    assert len(service.calls) == summary.attempts == 2
    assert summary.calls_on_refusals == 1


@pytest.mark.anyio
@pytest.mark.parametrize("index", range(8))
async def test_a_row_that_is_not_named_is_found_by_halving(bench: Bench, index: int) -> None:
    bench.texts(*"abcdefgh")
    service = Service(guilty({"abcdefgh"[index]}))
    summary = await bench.run(service)
    assert bench.failed() == {index: ("BadRequestError", "refused")}
    bench.assert_rows(range(8))
    assert len(service.calls) == summary.attempts == 7
    assert [len(call) for call in service.calls].count(1) == 2
    assert summary.calls_on_refusals == 3


@pytest.mark.anyio
@pytest.mark.parametrize("way", NAMES)
@pytest.mark.parametrize("guilt", [*chain.from_iterable(combinations("abcd", n) for n in range(5))], ids="".join)
async def test_exactly_the_guilty_rows_fail(bench: Bench, guilt: tuple[str, ...], way: str) -> None:
    bench.texts(*"abcd")
    summary = await bench.run(Service(guilty(guilt, says=NAMES[way])))
    assert set(bench.failed()) == {"abcd".index(text) for text in guilt}
    bench.assert_rows(range(4))
    assert (summary.rows.ok, summary.rows.failed) == (4 - len(guilt), len(guilt))
    assert summary.exit_code == (1 if guilt else 0)


@pytest.mark.anyio
@pytest.mark.parametrize(("way", "calls"), [("named by field", 2), ("not named", 11)])
async def test_rows_with_the_text_that_is_named_fail_together(bench: Bench, way: str, calls: int) -> None:
    bench.texts("a", "x", "b", "x", "x", "c")
    service = Service(guilty({"x"}, says=NAMES[way]))
    await bench.run(service)
    assert set(bench.failed()) == {1, 3, 4}
    bench.assert_rows(range(6))
    assert service.calls[0] == ["a", "x", "b", "c"]
    assert len(service.calls) == calls


@pytest.mark.anyio
async def test_a_pack_of_one_text_is_not_cut_down(bench: Bench) -> None:
    bench.texts(*["x"] * 8)
    service = Service(guilty({"x"}))
    await bench.run(service)
    assert service.calls == [["x"]]
    assert set(bench.failed()) == set(range(8))


@pytest.mark.anyio
async def test_a_refused_row_keeps_what_was_said_and_the_ids_of_its_call(bench: Bench) -> None:
    bench.texts(*"ab")
    await bench.run(Service(guilty({"b"}, says=NAMES["named by path"])))
    row = bench.table()[1]
    assert row["error"] == {
        "type": "BadRequestError",
        "code": "refused",
        "message": NAMES["named by path"](1),
        "http_status": 400,
    }
    assert row["request"]["attempts"] == 1
    assert row["request"]["client_request_id"] is not None
    assert row["response"] is not None


@pytest.mark.anyio
@pytest.mark.parametrize("status", [400, 413, 422, 415])
async def test_every_refusal_of_a_single_row_fails_it_in_one_call(bench: Bench, status: int) -> None:
    bench.max_inputs = 1
    bench.texts(*"abc")
    service = Service(guilty({"b"}, status=status))
    summary = await bench.run(service)
    assert len(service.calls) == 3
    assert summary.calls_on_refusals == 0
    assert [row["error"] and row["error"]["http_status"] for row in bench.table()] == [None, status, None]


@pytest.mark.anyio
@pytest.mark.parametrize("most", range(1, 8))
async def test_a_pack_that_is_too_large_goes_in_smaller_ones(bench: Bench, most: int) -> None:
    bench.texts(*"abcdefgh")
    service = Service(lambda texts, _: refusal(413) if len(texts) > most else None)
    summary = await bench.run(service)
    bench.assert_rows(range(8))
    assert summary.exit_code == 0
    assert max(len(call) for call in service.calls if len(call) <= most) <= most


@pytest.mark.anyio
async def test_what_was_answered_is_kept_while_the_rest_is_still_asked(bench: Bench) -> None:
    bench.texts(*"abcdefgh")

    def judge(texts: list[str], calls: int) -> Said:
        if calls == 3:
            return refusal(429, "later", headers={"retry-after": "86400"})
        return refusal(400) if "h" in texts else None

    summary = await bench.run(Service(judge))
    assert summary.exit_code == 4
    assert (summary.rows.ok, summary.rows.failed) == (4, 0)
    bench.assert_rows(range(4))
    again = Service(guilty({"h"}))
    assert (await bench.run(again)).exit_code == 1
    bench.assert_rows(range(8))
    assert again.calls[0] == list("efgh")


@pytest.mark.anyio
async def test_a_fault_on_the_way_down_blames_nobody(bench: Bench) -> None:
    bench.texts(*"abcdefgh")
    by_texts = guilty({"c"})
    service = Service(lambda texts, calls: refusal(503) if calls % 2 else by_texts(texts, calls))
    summary = await bench.run(service)
    assert set(bench.failed()) == {2}
    assert bench.failed()[2] == ("BadRequestError", "refused")
    bench.assert_rows(range(8))
    assert summary.attempts == len(service.calls) == 14


@pytest.mark.anyio
async def test_every_call_on_the_way_down_is_an_attempt_on_file(bench: Bench) -> None:
    bench.texts(*"abcdefgh")
    service = Service(guilty({"c", "g"}))
    await bench.run(service)
    attempts = bench.attempts()
    assert [[bench.rows[ordinal]["text"] for ordinal in one["ordinals"]] for one in attempts] == service.calls
    assert {one["verdict"] for one in attempts} == {"pack_refused", "row_refused", "answered"}


@pytest.mark.anyio
async def test_a_parameter_that_the_service_refuses_stops_the_run_and_fails_no_row(bench: Bench) -> None:
    bench.texts(*"abcdefghij")
    body = {"error": {"code": "unsupported_parameter", "message": "Not with this model.", "param": "dimensions"}}
    service = Service(lambda _, __: httpx.Response(400, json=body))
    summary = await bench.run(service)
    assert (summary.state, summary.exit_code) == ("refused", 3)
    assert "unsupported_parameter: Not with this model." in (summary.reason or "")
    assert (summary.rows.ok, summary.rows.failed) == (0, 0)
    assert len(service.calls) == 20
