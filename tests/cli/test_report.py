"""The page of a run: written when it ends, and by `pipeline report` at any time."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import pytest

from tests.cli.bench import Bench


def _figures(path: Path) -> dict[str, str]:
    return dict(re.findall(r'<data id="([a-z-]+)" value="([^"]*)">', path.read_text(encoding="utf-8")))


@pytest.fixture
def finished(bench: Bench) -> Bench:
    """A run of which one row failed."""
    bench.rows(["fine", "poison one", "fine"])
    assert bench.call("run", "job.yaml").exit_code == 1
    return bench


def test_a_run_leaves_its_page_and_names_it(bench: Bench) -> None:
    result = bench.call("run", "job.yaml")
    page = bench.output / "_pipeline" / "report.html"

    assert str(page) in result.stdout
    assert _figures(page)["rows-ok"] == "12"
    assert _figures(page)["exit-code"] == "0"
    assert bench.call("verify", "job.yaml").exit_code == 0


def test_the_page_is_no_part_of_what_verify_compares(finished: Bench) -> None:
    page = finished.output / "_pipeline" / "report.html"
    page.write_text("another")

    assert finished.call("verify", "job.yaml").exit_code == 0
    page.unlink()
    assert finished.call("verify", "job.yaml").exit_code == 0


def test_report_writes_the_page_anew_and_prints_where(finished: Bench) -> None:
    page = finished.output / "_pipeline" / "report.html"
    page.unlink()
    result = finished.call("report", "job.yaml")

    assert (result.exit_code, result.stdout) == (0, f"{page}\n")
    assert _figures(page)["rows-failed"] == "1"


def test_report_writes_elsewhere_and_to_stdout(finished: Bench) -> None:
    path = finished.folder / "page.html"
    assert finished.call("report", "job.yaml", "--output", "page.html").stdout == f"{path}\n"
    page = path.read_text()

    assert page.startswith("<!DOCTYPE html>")
    assert finished.call("report", "job.yaml", "-o", "-").stdout.startswith("<!DOCTYPE html>")


def test_report_where_nothing_may_be_written_ends_with_5_and_says_what_to_do(finished: Bench) -> None:
    result = finished.call("report", "job.yaml", "--output", "no/such/folder/page.html")

    assert result.exit_code == 5
    assert "no/such/folder" in result.stderr


def test_report_as_json_has_the_summary_and_the_kinds_of_failures(finished: Bench) -> None:
    value = json.loads(finished.call("report", "out", "--json").stdout)

    assert value["summary"] == finished.summary()
    (kind,) = value["failed_rows"]
    assert (kind["code"], kind["rows"], kind["examples"][0]["id"]) == ("content_filter", 1, "r-1")
    assert kind["examples"][0]["request_id"]
    assert sum(one["attempts"] for one in value["deployments"]) == finished.summary()["attempts"] == 3


def test_a_page_that_cannot_be_written_changes_no_exit_code(bench: Bench) -> None:
    (bench.output / "_pipeline").mkdir(parents=True, mode=0o700)
    (bench.output / "_pipeline" / "report.html").mkdir()
    result = bench.call("run", "job.yaml")

    assert result.exit_code == 0
    assert "the report could not be written" in result.stderr
    assert "12 rows ok" in result.stdout


def test_a_second_run_on_a_held_folder_leaves_the_page_alone(bench: Bench) -> None:
    from pipeline.store.lock import hold  # noqa: PLC0415

    assert bench.call("run", "job.yaml").exit_code == 0
    page = bench.output / "_pipeline" / "report.html"
    page.write_text("mine")
    with hold(bench.output / "_pipeline" / "lock", started="now"):
        assert bench.call("run", "job.yaml").exit_code == 75

    assert page.read_text() == "mine"


def test_a_folder_is_told_while_it_runs_and_after_it_was_killed(bench: Bench, served: object) -> None:
    simulator = served({"keys": ["right-key"], "latency": {"median_ms": 400}})  # type: ignore[operator]
    bench.environ["TEST_ENDPOINT"] = simulator.url
    bench.rows([f"question {number}?" for number in range(400)])
    process = bench.popen("run", "job.yaml", "--set", "run.workers=2", "--progress", "none")
    try:
        summary = bench.output / "_pipeline" / "summary.json"
        until = time.monotonic() + 60
        while not summary.exists() or not json.loads(summary.read_text())["rows"]["ok"]:
            assert time.monotonic() < until
            time.sleep(0.1)
        running = bench.call("report", "out")
        page = bench.output / "_pipeline" / "report.html"
        assert (running.exit_code, running.stderr) == (0, "")
        assert "The run goes on" in page.read_text()
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()

    assert bench.call("report", "out").exit_code == 0
    assert "killed, or the machine stopped" in page.read_text()
    assert int(_figures(page)["rows-ok"]) == bench.summary()["rows"]["ok"]
