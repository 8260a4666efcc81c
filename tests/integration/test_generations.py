"""A part whose rows were asked again is replaced step by step, and is whole whatever cuts that."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from in_memory import Bench, Service, answer_of, refusal

from pipeline.job import change
from pipeline.model import Outcome, RequestInfo, RowResult
from pipeline.store.export import Finished
from pipeline.store.folder import Sealer
from pipeline.store.generations import open_generation
from pipeline.store.journal import Journal
from pipeline.store.verify import verify_folder

STEPS = ("chosen", "answered", "written", "noted", "named", "counted")


@pytest.mark.anyio
@pytest.mark.parametrize("cut_after", STEPS)
async def test_a_part_that_is_being_replaced_is_whole_at_every_step_and_the_next_run_finishes_it(
    tmp_path: Path, cut_after: str
) -> None:
    bench = Bench(folder=tmp_path, operation="chat").texts(*(f"text {n}" for n in range(10)))
    await bench.run(Service(lambda texts, _: refusal(422) if texts == ["text 3"] else None))
    job, layout = bench.job(), bench.layout
    steps = STEPS[: STEPS.index(cut_after) + 1]
    variant = change.variant(job)
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert open_generation(layout, only=frozenset(), variant=variant, wording=job.request, now=now) == 1
    (layout.private / "checksums.json").unlink()
    layout.summary.unlink()
    journal = Journal(layout.journal)
    if "answered" in steps:
        nothing = dict.fromkeys(("refusal", "tool_calls", "choices", "content_filter", "time_to_first_token_ms"))
        values = {**nothing, "output_text": answer_of("text 3"), "finish_reason": "stop"}
        request = RequestInfo(variant=variant)
        await journal.commit(Outcome(rows=(RowResult(ordinal=3, values=values),), request=request))
    with journal.reader() as reader:
        (again,) = reader.open_ranges()
    schema = pq.read_schema(bench.parts()[0]).remove_metadata()
    sealer = Sealer(layout=layout, schema=schema, carries=True, compression="zstd")
    if "written" in steps:
        part = sealer.renewed_part(again)
    if "noted" in steps:
        await journal.rewrite(part)
    if "named" in steps:
        sealer.publish(part)
    if "counted" in steps:
        await journal.rewritten(part)
    await journal.close()

    assert verify_folder(layout).findings == ()
    assert [row["ordinal"] for row in bench.table()] == list(range(10))
    finished = Finished(layout=layout, schema=schema)
    exported = [(row["ordinal"], row["status"]) for batch in finished.batches() for row in batch.to_pylist()]
    unanswered = {3} if cut_after == "chosen" else set[int]()
    assert exported == [(ordinal, "ok") for ordinal in range(10) if ordinal not in unanswered]
    assert finished.exported.asked_again == len(unanswered)
    service = Service()
    summary = await bench.run(service)
    assert (summary.state, summary.rows.ok, summary.rows.failed, summary.rows.not_in_parts) == ("complete", 10, 0, 0)
    assert service.calls == ([["text 3"]] if cut_after == "chosen" else [])
    bench.assert_rows(range(10))
    assert verify_folder(layout).findings == ()
    assert not list(bench.out.rglob("*.tmp"))
    with bench.journal() as reader:
        assert [one.generation for one in reader.parts()] == [1]
        assert (reader.rewrites(), reader.asks_again) == ([], False)
