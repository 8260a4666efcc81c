"""A lowest row that is never answered lets nothing pile up behind it, and status says which row is waited for."""

from __future__ import annotations

from pathlib import Path

import anyio
import httpx
import pytest
from in_memory import Bench, Service

from pipeline.run import run_job
from pipeline.store.summary import Summary
from pipeline.views.progress import status_line

PART_ROWS = 20
ROWS = 60 * PART_ROWS


class FirstRowStuck(Service):
    """Answers everything but the first row, and counts what lies in the output folder's spool and journal."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.spooled = 0
        self._bench = bench

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if b'"row 0"' in await request.aread():
            await anyio.sleep_forever()
        if len(self.calls) % 50 == 0:
            self.spooled = max(self.spooled, len(list(self._bench.layout.spool.iterdir())))
        return await super().handle_async_request(request)


@pytest.mark.anyio
@pytest.mark.parametrize(("window", "all_others"), [("1B", False), ("1GiB", True)])
async def test_a_stuck_lowest_row_lets_neither_calls_nor_disk_run_away(
    tmp_path: Path,
    window: str,
    all_others: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    bench = Bench(folder=tmp_path, operation="chat").texts(*(f"row {n}" for n in range(ROWS)))
    bench.changes = {
        "run": {"workers": 4, "window": window, "deadline": "6s", "grace": "0s"},
        "output": {"path": "out", "part_rows": PART_ROWS},
    }
    service = FirstRowStuck(bench)
    seen: list[Summary] = []

    summary = await run_job(bench.job(), dice=lambda: 0.0, transport=service, watcher=seen.append)

    assert summary.exit_code == 4
    assert summary.rows.failed == 0
    # Ranges that are complete become parts and are forgotten. With a large window only the sealer's pace, which is the
    # machine's, says how many wait for that: few of the sixty.
    assert service.spooled <= (12 if all_others else 4)
    lowest = {one.waits_for for one in seen if one.waits_for is not None}
    if all_others:
        assert summary.rows.ok > 10 * PART_ROWS
        assert summary.rows.not_in_parts <= 6 * PART_ROWS
    else:
        assert summary.rows.ok <= 2 * PART_ROWS
        assert lowest == {0}
        assert "waits for row 0" in status_line(next(one for one in seen if one.waits_for == 0))
