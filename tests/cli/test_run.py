from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import operations
from pipeline.job.training import TRAINING
from tests.cli.bench import JOB, Bench


def _table(folder: Path) -> list[dict[str, object]]:
    return [row for path in sorted(folder.glob("part-*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_a_run_answers_every_row_and_says_what_it_did(bench: Bench) -> None:
    result = bench.call("run", "job.yaml")

    assert result.exit_code == 0
    assert result.stdout.startswith("complete: 12 rows ok, 0 failed\n")
    assert str(bench.output) in result.stdout
    rows = _table(bench.output)
    assert [row["ordinal"] for row in rows] == list(range(12))
    assert {row["status"] for row in rows} == {"ok"}


def test_events_on_stderr_are_json_where_there_is_no_terminal(bench: Bench) -> None:
    result = bench.call("run", "job.yaml")

    events = [json.loads(line) for line in result.stderr.splitlines()]
    assert [event["event"] for event in events] == ["run_started", "run_ended"]


@pytest.mark.parametrize(
    ("level", "said"),
    [
        ("debug", {"run_started", "attempt", "part_sealed", "row_failed", "run_ended"}),
        ("info", {"run_started", "row_failed", "run_ended"}),
        ("warning", {"row_failed", "run_ended"}),
        ("error", set()),
    ],
)
def test_the_log_level_decides_what_is_said(bench: Bench, level: str, said: set[str]) -> None:
    bench.rows(["fine", "poison"])

    result = bench.call("run", "job.yaml", "--log-level", level)

    assert {json.loads(line)["event"] for line in result.stderr.splitlines()} == said


def test_json_leaves_stdout_to_the_summary(bench: Bench) -> None:
    result = bench.call("run", "job.yaml", "--json")

    assert json.loads(result.stdout) == bench.summary()


def test_lines_for_people_are_there_for_the_asking(bench: Bench) -> None:
    result = bench.call("run", "job.yaml", "--log-format", "console")

    assert "run_started" in result.stderr
    assert not result.stderr.startswith("{")


@pytest.mark.parametrize(("processes", "kept"), [(1, ["begun", "ended"]), (2, [])])
def test_a_run_of_one_process_is_kept_to_one_core_while_it_is_busy(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, processes: int, kept: list[str]
) -> None:
    said: list[str] = []

    @contextmanager
    def watched() -> Iterator[None]:
        said.append("begun")
        yield
        assert _table(bench.output)
        said.append("ended")

    monkeypatch.setattr("pipeline.cores.on_one_core", watched)

    assert bench.call("run", "job.yaml", "--set", f"run.processes={processes}").exit_code == 0
    assert said == kept


def test_a_complete_run_does_nothing_the_second_time(bench: Bench) -> None:
    assert bench.call("run", "job.yaml").exit_code == 0
    attempts = bench.summary()["attempts"]
    parts = {path.name: path.stat().st_mtime_ns for path in bench.output.glob("*.parquet")}

    result = bench.call("run", "job.yaml")

    assert result.exit_code == 0
    assert "nothing was left to do" in result.stdout
    assert bench.summary()["attempts"] == attempts
    assert {path.name: path.stat().st_mtime_ns for path in bench.output.glob("*.parquet")} == parts


def test_a_wrong_key_is_refused_and_no_row_fails(bench: Bench) -> None:
    bench.environ["TEST_KEY"] = "wrong-key"

    result = bench.call("run", "job.yaml")

    assert result.exit_code == 3
    headline = result.stdout.splitlines()[0]
    assert headline.startswith("refused: 0 rows ok, 0 failed, ")
    assert headline.endswith(" pending")
    assert "check its credential" in result.stdout
    bench.environ["TEST_KEY"] = "right-key"
    assert bench.call("run", "job.yaml").exit_code == 0
    assert bench.summary()["rows"] == {"total": 12, "ok": 12, "failed": 0, "pending": 0, "not_in_parts": 0}


def test_a_limit_leaves_as_many_readable_rows(bench: Bench) -> None:
    result = bench.call("run", "job.yaml", "--limit", "10")

    assert result.exit_code == 0
    assert "--limit 10" in result.stdout
    assert [row["ordinal"] for row in _table(bench.output)] == list(range(10))
    assert bench.call("run", "job.yaml").exit_code == 0
    assert [row["ordinal"] for row in _table(bench.output)] == list(range(12))


def test_an_input_that_is_not_there_is_told_with_its_place_in_the_job_file(bench: Bench) -> None:
    (bench.folder / "rows.jsonl").unlink()

    told = bench.call("run", "job.yaml")

    assert told.exit_code == 2
    checked = bench.call("validate", "job.yaml")
    assert told.stderr.strip() == checked.stderr.strip()
    assert told.stderr.startswith("job.yaml:")
    assert "input.path: " in told.stderr
    assert "no such file or folder" in told.stderr


@pytest.mark.parametrize("limit", ["5", "12", "13"])
@pytest.mark.parametrize("before", [True, False], ids=["done before", "anew"])
def test_a_run_is_complete_where_its_limit_leaves_nothing_out(bench: Bench, limit: str, *, before: bool) -> None:
    whole = before or int(limit) >= 12
    if before:
        assert bench.call("run", "job.yaml").exit_code == 0
    result = bench.call("run", "job.yaml", "--limit", limit)

    assert result.exit_code == 0
    assert bench.summary()["state"] == ("complete" if whole else "stopped")
    assert bench.summary()["rows"]["total"] == (12 if whole else None)
    assert ("--limit" in result.stdout) is not whole


@pytest.mark.parametrize(("fail_on", "code"), [("any", 1), ("never", 0), ("5%", 1), ("50%", 0)])
def test_failed_rows_decide_the_exit_code_as_the_job_says(bench: Bench, fail_on: str, code: int) -> None:
    bench.rows(["fine", "poison", "fine", "fine"])

    result = bench.call("run", "job.yaml", "--fail-on", fail_on)

    assert result.exit_code == code
    assert "pipeline errors job.yaml" in result.stdout
    assert [row["status"] for row in _table(bench.output)] == ["ok", "failed", "ok", "ok"]


def test_only_the_first_failures_of_a_kind_are_printed(bench: Bench) -> None:
    bench.rows(["poison"] * 12)

    result = bench.call("run", "job.yaml", "--fail-on", "never")

    failed = [event for line in result.stderr.splitlines() if (event := json.loads(line))["event"] == "row_failed"]
    assert len(failed) == 5
    assert "pipeline errors job.yaml" in failed[-1]["advice"]
    log = (bench.output / "_pipeline" / "log.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["event"] == "row_failed" for line in log) == 12


def test_fresh_moves_the_old_results_aside(bench: Bench) -> None:
    assert bench.call("run", "job.yaml").exit_code == 0

    changed = bench.call("run", "job.yaml", "--set", "request.max_completion_tokens=7")
    assert changed.exit_code == 2
    assert "request.max_completion_tokens: 50 -> 7" in changed.stderr
    assert bench.call("run", "job.yaml", "--set", "request.max_completion_tokens=7", "--fresh").exit_code == 0

    (aside,) = bench.folder.glob("out.2*")
    assert len(_table(aside)) == len(_table(bench.output)) == 12


def test_options_are_checked_as_the_job_file_is(bench: Bench) -> None:
    result = bench.call("run", "job.yaml", "--workers", "many", "--deadline", "soon", "--fail-on", "120%")

    assert result.exit_code == 2
    assert [line.split(": ")[1] for line in result.stderr.splitlines()] == [
        "run.deadline",
        "run.fail_on",
        "run.workers",
    ]


def test_a_speed_without_a_rehearsal_is_wrong_usage(bench: Bench) -> None:
    result = bench.call("run", "job.yaml", "--simulate-speed", "60")

    assert result.exit_code == 2
    assert "add --simulate" in result.stderr


def test_last_words_that_nobody_reads_change_no_exit_code(bench: Bench) -> None:
    bench.rows(["fine", "poison"])
    read, write = os.pipe()
    os.close(read)

    done = bench.run_into(write, "run", "job.yaml", "--log-level", "error")
    os.close(write)

    assert (done.returncode, done.stderr) == (1, "")


def test_a_missing_column_is_found_before_anything_is_written(bench: Bench) -> None:
    bench.write(JOB.replace("{{ question }}", "{{ text }}"))

    result = bench.call("run", "job.yaml")

    assert result.exit_code == 2
    assert result.stderr.startswith("job.yaml:9:16: request.messages.0.content: ")
    assert not bench.output.exists()


@pytest.mark.parametrize("operation", sorted(set(operations.names()) - {TRAINING}))
def test_the_first_job_file_of_every_operation_runs_without_an_account(bench: Bench, operation: str) -> None:
    written = bench.call("init", operation)
    assert written.exit_code == 0
    command = next(line for line in written.stdout.splitlines() if "run --simulate" in line)

    result = bench.call(*command.partition("pipeline ")[2].split())

    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("complete: 3 rows ok, 0 failed\n")
    folder = bench.output / f"{operation}.simulated"
    assert {row["status"] for row in _table(folder)} == {"ok"}
    assert Path(f"{folder}.ledger.jsonl").stat().st_size > 0
    assert not (bench.output / operation).exists()


def test_the_first_job_file_of_a_training_names_a_model_and_how_to_deploy_it(bench: Bench) -> None:
    assert bench.call("init", "fine-tuning").exit_code == 0

    result = bench.call("run", "--simulate", "fine-tuning.yaml")

    assert result.exit_code == 0, result.output
    folder = bench.output / "fine-tuning.simulated"
    summary = bench.summary(folder)
    assert result.stdout.startswith("complete: 12 rows ok, 0 failed\n")
    assert summary["fine_tuned_model"] in result.stdout
    assert f"{folder}/events.parquet" in result.stdout
    assert f"--model-name {summary['fine_tuned_model']}" in result.stdout
    assert "az cognitiveservices account deployment create" in result.stdout
    assert summary["training"]["job"] in bench.call("status", str(folder)).stdout
    assert bench.call("verify", str(folder)).exit_code == 0
    again = bench.call("run", "--simulate", "fine-tuning.yaml", "--json")
    assert json.loads(again.stdout)["fine_tuned_model"] == summary["fine_tuned_model"]


def test_rows_that_are_no_examples_are_listed(bench: Bench) -> None:
    assert bench.call("init", "fine-tuning").exit_code == 0
    bench.rows(["fine"] * 3)  # without the columns of the job's templates
    rows = [json.dumps({"id": str(n), "country": "Peru", "capital": ["", "Lima"][n < 9]}) for n in range(40)]
    (bench.folder / "fine-tuning-rows.jsonl").write_text("\n".join(rows))

    result = bench.call("run", "--simulate", "fine-tuning.yaml")

    assert result.exit_code == 2, result.output
    assert "nothing was uploaded" in result.stdout
    assert "there are 1 right examples, and a training needs at least 10" in result.stdout
    listed = json.loads(bench.call("errors", str(bench.output / "fine-tuning.simulated"), "--json").stdout)
    assert listed["failed"] == 39
    assert {row["code"] for row in listed["rows"]} == {"duplicate", "empty"}


@pytest.mark.parametrize(
    ("api", "endpoint"),
    [
        ("azure", "https://x.openai.azure.com"),
        ("azure-v1", "https://x.openai.azure.com"),
        ("openai", "https://api.openai.com/v1"),
    ],
)
def test_a_rehearsal_keeps_the_url_family_and_reads_no_variable(bench: Bench, api: str, endpoint: str) -> None:
    job = JOB.replace("api: azure", f"api: {api}").replace("${TEST_ENDPOINT}", endpoint)
    bench.write(job.replace("TEST_KEY", "NOWHERE_SET"))

    result = bench.call("run", "job.yaml", "--simulate", "--limit", "2")

    assert result.exit_code == 0, result.output
    assert len(_table(bench.folder / "out.simulated")) == 2


def test_deployments_of_one_name_are_rehearsed_side_by_side_with_their_own_quotas(bench: Bench) -> None:
    second = (
        '  - {name: second, endpoint: "https://y.openai.azure.com", deployment: gpt-4o-mini, api: azure, auth: none,'
    )
    bench.write(JOB.replace("output:", f"{second} requests_per_minute: 600}}\noutput:"))

    result = bench.call("run", "job.yaml", "--simulate", "--simulate-speed", "60")

    assert result.exit_code == 0, result.output
    used = bench.summary(bench.folder / "out.simulated")["deployments"]
    assert [(one["name"], one["requests_per_minute"]) for one in used] == [("gpt-4o-mini", None), ("second", 36_000)]


def test_a_rehearsal_that_may_write_nothing_beside_the_output_says_so(bench: Bench) -> None:
    (bench.folder / "out.simulated.ledger.jsonl").mkdir()

    result = bench.call("run", "job.yaml", "--simulate")

    assert result.exit_code == 5
    assert "out.simulated.ledger.jsonl cannot be written (Is a directory)" in result.stderr
    assert "report" not in result.stderr


@pytest.mark.parametrize(("fail_on", "code"), [("5%", 0), ("any", 1)])
def test_a_nightly_job_with_one_row_that_is_always_filtered_ends_as_the_job_says(
    bench: Bench, fail_on: str, code: int
) -> None:
    bench.write(JOB.replace("  id: id\n", "  id: id\n  incremental: id\n"))
    questions = [f"question {number}?" for number in range(30)] + ["a poison question?"]
    for night in range(3):
        bench.rows([*questions, *(f"later question {number}?" for number in range(night))])
        assert bench.call("run", "job.yaml", "--fail-on", fail_on).exit_code == code
        assert bench.call("run", "job.yaml", "--fail-on", fail_on).exit_code == code, "called again by the scheduler"
        summary = bench.summary()
        assert (summary["state"], summary["rows"]["failed"]) == ("complete", 1)
        assert summary["rows"]["ok"] == 30 + night
    assert bench.call("retry", "job.yaml", "--fail-on", fail_on).exit_code == code, "it is filtered again"
    (failed,) = json.loads(bench.call("errors", "job.yaml", "--json").stdout)["rows"]
    assert (failed["code"], failed["ordinal"]) == ("content_filter", 30)
