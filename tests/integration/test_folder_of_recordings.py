"""A folder of 300 recordings in three formats, a job file of ten lines, and DuckDB reading what was heard."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest
from forked import start_simulator

from pipeline import operations, sources
from pipeline.job.load import load_job
from pipeline.run import run_job
from pipeline.simulator.sounds import write_sound

RECORDINGS = 300
KINDS = ("wav", "mp3", "flac")
JOB = """\
name: calls
operation: transcription
input: {path: calls, format: files, id: path}
request: {file: "{{ path }}", timestamp_granularities: [word, segment]}
deployments:
  - endpoint: ${ENDPOINT}
    api: azure
    api_version: 2025-04-01-preview
    deployment: whisper
output: {path: out, part_rows: 100}
"""
HEARD = """\
SELECT path, bytes, output_text, [word.word FOR word IN words], [word.start_s FOR word IN words]
FROM read_parquet(?) ORDER BY ordinal
"""


def said(number: int) -> list[str]:
    """What is said in a recording; no two say the same."""
    return [f"call{number}", f"about{number * 7919 % 1009}", "ends."]


@pytest.mark.anyio
@pytest.mark.timeout(300)
async def test_a_folder_is_transcribed_without_a_list(tmp_path: Path) -> None:
    assert len(JOB.splitlines()) == 10
    for number in range(RECORDINGS):
        kind = KINDS[number % len(KINDS)]
        path = tmp_path / "calls" / f"day{number % 7}" / f"{number:03d}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(write_sound(said(number), kind))
    (tmp_path / "job.yaml").write_text(JOB)
    with start_simulator({"audio": "tones"}) as simulator:
        environ = {"ENDPOINT": simulator.url, "AZURE_OPENAI_API_KEY": "k"}
        names = {"operations": operations.names(), "formats": sources.names()}
        summary = await run_job(load_job(tmp_path / "job.yaml", environ=environ, **names))
    assert (summary.state, summary.rows.ok, summary.rows.failed) == ("complete", RECORDINGS, 0)
    rows = duckdb.execute(HEARD, [f"{tmp_path}/out/*.parquet"]).fetchall()
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    assert {Path(row[0]).suffix[1:] for row in rows} == set(KINDS)
    for path, size, text, words, starts in rows:
        expected = said(int(Path(path).stem))
        assert text.split() == expected
        assert [word.strip() for word in words] == expected
        assert starts == sorted(starts)
        assert size == (tmp_path / "calls" / path).stat().st_size
