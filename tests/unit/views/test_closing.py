from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.engines.tally import ONLY_FAILED
from pipeline.store.summary import DeploymentUse, RowCounts, Summary
from pipeline.views.closing import closing


def _summary(state: str, *, code: int, rows: RowCounts, reason: str | None = None, aside: str | None = None) -> Summary:
    return Summary(
        state=state,
        reason=reason,
        exit_code=code,
        rows=rows,
        seconds=2.0,
        rows_per_second=5.0,
        deployments=(DeploymentUse(name="sweden", set_aside=aside),),
        output="/data/out",
    )


ALL_OK = RowCounts(total=10, ok=10, failed=0, pending=0)
SOME_FAILED = RowCounts(total=10, ok=8, failed=2, pending=0)
SOME_LEFT = RowCounts(total=10, ok=4, failed=0, pending=6, not_in_parts=1)
UNCOUNTED = RowCounts(ok=3)

ENDINGS = [
    (_summary("complete", code=0, rows=ALL_OK), "complete: 10 rows ok, 0 failed", ()),
    (_summary("complete", code=1, rows=SOME_FAILED), "complete: 8 rows ok, 2 failed", ("pipeline errors job.yaml",)),
    (
        replace(_summary("complete", code=1, rows=SOME_FAILED), job_file="/data/a job.yaml"),
        "complete: 8 rows ok, 2 failed",
        ("to send them again, once that is put right:  pipeline retry '/data/a job.yaml'",),
    ),
    (
        replace(
            _summary("complete", code=1, rows=SOME_FAILED), job_file="/data/job.yaml", output="/data/out.simulated"
        ),
        "complete: 8 rows ok, 2 failed",
        ("to send them again, once that is put right:  pipeline retry /data/job.yaml --simulate",),
    ),
    (
        _summary("stopped", code=0, rows=SOME_LEFT, reason=ONLY_FAILED),
        "stopped: 4 rows ok",
        ("`pipeline run` goes on with the rest",),
    ),
    (
        _summary("stopped", code=0, rows=UNCOUNTED, reason="--limit 3 reached"),
        "stopped: 3 rows ok, 0 failed, the rest of the input pending",
        ("--limit 3 reached", "without --limit"),
    ),
    (
        _summary("stopped", code=4, rows=SOME_LEFT, reason="the deadline passed"),
        "stopped: 4 rows ok, 0 failed, 6 pending, 1 finished and not yet in a part",
        ("the deadline passed", "run the same command again"),
    ),
    (_summary("interrupted", code=130, rows=SOME_LEFT), "interrupted: 4 rows ok", ("run the same command again",)),
    (_summary("stopped", code=5, rows=SOME_LEFT, reason="disk full"), "stopped: ", ("disk full", "same command again")),
    *[
        (
            _summary("refused", code=3, rows=SOME_LEFT, reason="no deployment is left", aside=f"{kind}: no"),
            "refused: 4 rows ok",
            ("no deployment is left", f"sweden: {remedy}", "put right what was refused"),
        )
        for kind, remedy in (
            ("unauthorized", "check its credential"),
            ("refused", "check its endpoint"),
            ("spent", "check the subscription"),
            ("paused", "come back"),
        )
    ],
]


@pytest.mark.parametrize(("summary", "headline", "said"), ENDINGS)
def test_every_ending_says_what_happened_and_what_to_do(summary: Summary, headline: str, said: tuple[str, ...]) -> None:
    lines = closing(summary, reader="job.yaml")

    assert lines[0].startswith(headline)
    for words in said:
        assert any(words in line for line in lines)
    if "pipeline errors" not in said:
        assert "--limit" in (summary.reason or "") or not any("--limit" in line for line in lines)
        assert summary.rows.failed > 0 or not any("pipeline errors" in line for line in lines)


def test_the_command_that_retries_has_the_settings_of_the_run() -> None:
    summary = _summary("complete", code=1, rows=RowCounts(total=5, ok=4, failed=1, pending=0))

    text = "\n".join(closing(summary, reader="out", settings=" --set output.path=../out/b"))

    assert "pipeline retry '' --set output.path=../out/b" in text


def test_a_run_without_parts_points_nobody_at_them() -> None:
    rows = RowCounts(total=5, ok=2, pending=3, not_in_parts=2)

    text = "\n".join(closing(_summary("interrupted", code=130, rows=rows), reader="job.yaml"))

    assert "none readable yet" in text
    assert "duckdb" not in text


def test_an_input_without_rows_is_said_to_have_none() -> None:
    text = "\n".join(closing(_summary("complete", code=0, rows=RowCounts(total=0, pending=0)), reader="job.yaml"))

    assert "results   none: the input has no rows" in text


def test_what_a_reason_holds_moves_no_cursor() -> None:
    text = "\n".join(closing(_summary("refused", code=3, rows=ALL_OK, reason="a\x1b[2J\nb"), reader="job.yaml"))

    assert "\x1b" not in text
    assert "  a\\x1b[2J\n  b\n" in text


def test_the_query_that_it_suggests_is_one(tmp_path: Path) -> None:
    folder = tmp_path / "it's here"
    folder.mkdir()
    pq.write_table(pa.table({"status": ["ok", "ok", "failed"]}), folder / "part-0.parquet")
    summary = Summary(state="complete", rows=ALL_OK, output=str(folder))
    line = next(line for line in closing(summary, reader="job.yaml") if "duckdb" in line)

    query = line.partition('"')[2].rpartition('"')[0]

    assert sorted(duckdb.execute(query).fetchall()) == [("failed", 1), ("ok", 2)]


def test_a_service_that_offers_more_than_the_job_asks_for_is_said() -> None:
    use = DeploymentUse(
        name="sweden", requests_per_minute=100, offered_requests_per_minute=300, tokens_per_minute=5, quota_used=1.0
    )
    lines = closing(replace(_summary("complete", code=0, rows=ALL_OK), deployments=(use,)), reader="job.yaml")
    assert [line for line in lines if "offers" in line] == [
        "sweden: the service offers 300 requests_per_minute, the job 100"
    ]
