"""Failed rows are sent again in batches where that is the lane of the job."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from batch_scene import BatchScene, key_of

from pipeline.engines.again import Retry
from pipeline.errors import StoppedEarlyError
from pipeline.store.verify import verify_folder

BAD = (7, 63)


@pytest.mark.anyio
@pytest.mark.parametrize("goes_on", ["at once", "retry", "run"])
async def test_failed_rows_are_sent_again_in_batches_and_what_is_cut_is_collected(tmp_path: Path, goes_on: str) -> None:
    place = BatchScene(folder=tmp_path, rows=100)
    place.simulator = {"poison": [{"contains": f"Row {n} "} for n in BAD]}
    with place.served():
        assert (await place.run()).rows.failed == len(BAD)
    before = len(place.submitted())
    place.simulator = {"offline": {"in_progress_s": 0.5}} if goes_on != "at once" else {}
    with place.served():
        if goes_on == "at once":
            summary = await place.run(retry=Retry())
        else:
            assert (await place.run(retry=Retry(), wait=False)).exit_code == 4
            assert place.under_way() == 1
            summary = await place.run(retry=Retry() if goes_on == "retry" else None)
    assert (summary.exit_code, summary.rows.ok) == (0, 100)
    assert len(place.submitted()) - before == 1
    answered = place.answered()
    assert answered == Counter(key_of("chat", n) for n in range(100))
    place.assert_each_row_once()
    assert verify_folder(place.layout).findings == ()


@pytest.mark.anyio
async def test_batches_of_other_rows_are_collected_before_a_retry_goes_on(tmp_path: Path) -> None:
    place = BatchScene(folder=tmp_path, rows=100)
    place.simulator = {"poison": [{"contains": "Row 7 "}]}
    with place.served():
        assert (await place.run(limit=40)).rows.failed == 1
    place.simulator = {"offline": {"in_progress_s": 1.0}}
    with place.served():
        assert (await place.run(retry=Retry(), wait=False)).exit_code == 4
        assert (await place.run(wait=False)).exit_code == 4
        assert place.under_way() == 2
        with pytest.raises(StoppedEarlyError, match="collect them first"):
            await place.run(retry=Retry())
        assert (await place.run()).exit_code == 0
    place.assert_each_row_once()
    assert len(place.submitted()) == 3
