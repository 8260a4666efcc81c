from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.store.folder import Layout
from pipeline.store.generations import open_generation
from pipeline.store.journal import JournalReader
from tests.cli.bench import Bench


@pytest.fixture
def finished(bench: Bench) -> Bench:
    """A run of which rows 1 and 3 failed."""
    bench.rows(["fine", "poison one", "fine too", "poison two"])
    assert bench.call("run", "job.yaml").exit_code == 1
    return bench


@pytest.mark.parametrize("target", ["job.yaml", "out", "out/_pipeline"])
@pytest.mark.parametrize("name", ["all.parquet", "all.jsonl", "all.csv", "ALL.CSV"])
def test_the_name_says_the_format(finished: Bench, target: str, name: str) -> None:
    result = finished.call("export", target, name)

    assert (result.exit_code, result.stdout, result.stderr) == (0, f"4 rows in {name}\n", "")
    assert (finished.folder / name).stat().st_size > 0


def test_the_format_can_be_said(finished: Bench) -> None:
    assert finished.call("export", "out", "all.data", "--format", "parquet").exit_code == 0
    assert pq.read_table(finished.folder / "all.data").num_rows == 4


def test_json_says_what_was_exported(finished: Bench) -> None:
    said = json.loads(finished.call("export", "out", "all.csv", "--json").stdout)
    assert said == {"file": "all.csv", "rows": 4, "rows_without_input_columns": 0, "rows_asked_again": 0}


def test_a_dash_writes_to_stdout(finished: Bench) -> None:
    result = finished.call("export", "out", "-", "--format", "jsonl")

    assert [json.loads(line)["ordinal"] for line in result.stdout.splitlines()] == [0, 1, 2, 3]


def test_a_file_that_is_there_is_replaced_only_by_force(finished: Bench) -> None:
    (finished.folder / "all.csv").write_text("mine")
    refused = finished.call("export", "out", "all.csv")
    assert (refused.exit_code, (finished.folder / "all.csv").read_text()) == (2, "mine")
    assert "--force" in refused.stderr

    assert finished.call("export", "out", "all.csv", "--force").exit_code == 0
    assert (finished.folder / "all.csv").read_text() != "mine"


@pytest.mark.parametrize("name", ["out/all.parquet", "out/deep/../all.csv", "link/all.jsonl", "{part}"])
@pytest.mark.parametrize("command", ["export", "report"])
def test_no_file_is_written_into_the_runs_own_folder(finished: Bench, command: str, name: str) -> None:
    (part,) = finished.output.glob("*.parquet")
    (finished.folder / "link").symlink_to(finished.output)
    (finished.output / "deep").mkdir()
    before, bytes_before = sorted(finished.output.iterdir()), part.read_bytes()
    target = name.format(part=part)
    arguments = (target, "--force") if command == "export" else ("--output", target)
    result = finished.call(command, "job.yaml", *arguments)

    assert (result.exit_code, "lies in the run's own folder" in result.stderr) == (2, True)
    assert (sorted(finished.output.iterdir()), part.read_bytes()) == (before, bytes_before)


def test_rows_that_are_being_sent_again_are_left_out_and_counted(finished: Bench) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert open_generation(Layout(finished.output), only=frozenset(), variant="v", wording={}, now=now) == 2
    result = finished.call("export", "job.yaml", "all.jsonl")
    lines = [json.loads(line) for line in (finished.folder / "all.jsonl").read_text().splitlines()]

    assert [(line["ordinal"], line["status"]) for line in lines] == [(0, "ok"), (2, "ok")]
    assert (result.exit_code, result.stdout) == (0, "2 rows in all.jsonl\n")
    assert result.stderr == "2 rows are being sent again, and left out\n"
    assert json.loads(finished.call("export", "out", "all.csv", "--json").stdout)["rows_asked_again"] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("all.xlsx",), "say --format"),
        (("-", "--format", "parquet"), "only JSONL and CSV"),
        (("-", "--format", "csv", "--json"), "only JSONL and CSV"),
        (("nowhere/all.csv",), "nowhere is no folder"),
    ],
)
def test_what_cannot_be_exported_is_said(finished: Bench, arguments: tuple[str, ...], said: str) -> None:
    result = finished.call("export", "out", *arguments)

    assert result.exit_code == 2
    assert said in result.stderr


def test_before_anything_is_finished_there_is_nothing_to_export(bench: Bench) -> None:
    assert bench.call("run", "job.yaml", "--limit", "0").exit_code == 0
    result = bench.call("export", "out", "all.csv")

    assert result.exit_code == 2
    assert "nothing is finished yet" in result.stderr
    assert not Path(bench.folder / "all.csv").exists()


@pytest.mark.parametrize("name", ["all.parquet", "all.jsonl", "all.csv"])
def test_a_finished_input_without_rows_is_exported_as_a_file_without_rows(bench: Bench, name: str) -> None:
    bench.rows([])
    assert bench.call("run", "job.yaml").exit_code == 0
    result = bench.call("export", "out", name)

    assert (result.exit_code, result.stdout) == (0, f"0 rows in {name}\n")
    file = bench.folder / name
    if name == "all.parquet":
        table = pq.read_table(file)
        assert (table.num_rows, {"ordinal", "output_text", "error"} <= set(table.column_names)) == (0, True)
    elif name == "all.csv":
        assert file.read_text().startswith("ordinal,")
    else:
        assert file.read_bytes() == b""


def test_rows_of_a_run_that_was_cut_before_its_first_part_are_exported_with_their_cells(bench: Bench) -> None:
    bench.environ["TEST_KEY"] = "right-key"
    process = bench.popen("run", "job.yaml", "--workers", "1", "--progress", "none")
    journal = bench.output / "_pipeline" / "journal" / "00.sqlite"
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None and not _done(journal):
        time.sleep(0.005)
    process.kill()
    process.communicate()
    rows = _done(journal)
    for target in ("job.yaml", "out"):
        result = bench.call("export", target, "-", "--format", "jsonl")
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        assert (result.exit_code, len(lines)) == (0, rows or 12), result.stderr
        assert all(line["question"] == f"question {line['ordinal']}?" for line in lines)


def _done(journal: Path) -> int:
    try:
        with JournalReader(journal) as reader:
            return sum(reader.counts())
    except FileNotFoundError:
        return 0
