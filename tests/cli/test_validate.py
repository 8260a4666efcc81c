from __future__ import annotations

import json

import pytest

from tests.cli.bench import JOB, Bench

FIVE = """\
operation: chatt
input:
  path: rows.jsonl
  id: idd
request:
  messages: "{{ questoin }}"
deployments:
  - endpoint: https://x.openai.azure.com
    deployment: gpt-4o-mini
    key: sk-very-secret
output:
  path: out
run:
  wrkers: 4
"""


@pytest.mark.parametrize("command", ["validate", "run"])
def test_all_problems_are_reported_at_once_with_their_places(bench: Bench, command: str) -> None:
    bench.write(FIVE)

    result = bench.call(command, "job.yaml")

    assert result.exit_code == 2
    assert result.stdout == ""
    places = [line.split(": ")[:2] for line in result.stderr.splitlines()]
    assert places == [
        ["job.yaml:1:12", "operation"],
        ["job.yaml:4:7", "input.id"],
        ["job.yaml:6:13", "request.messages"],
        ["job.yaml:10:10", "deployments.0.key"],
        ["job.yaml:14:3", "run.wrkers"],
    ]
    assert "did you mean `workers`" in result.stderr
    assert "very-secret" not in result.output
    assert not bench.output.exists()


def test_an_input_that_is_not_there_is_a_problem_of_its_path(bench: Bench) -> None:
    bench.write(JOB.replace("rows.jsonl", "nowhere.jsonl"))

    result = bench.call("validate", "job.yaml")

    assert result.exit_code == 2
    assert result.stderr.startswith("job.yaml:4:9: input.path: ")


def test_an_input_that_is_not_there_is_reported_beside_other_problems(bench: Bench) -> None:
    bench.write(JOB.replace("rows.jsonl", "nowhere.jsonl").replace("workers", "wrkers"))

    result = bench.call("validate", "job.yaml")

    assert [line.split(": ")[1] for line in result.stderr.splitlines()] == ["input.path", "run.wrkers"]


def test_a_column_that_the_input_does_not_have_is_a_problem(bench: Bench) -> None:
    bench.write(JOB.replace("{{ question }}", "{{ questoin }}"))

    result = bench.call("validate", "job.yaml")

    assert result.exit_code == 2
    assert "did you mean `question`" in result.stderr


def test_the_first_row_is_shown_as_it_would_be_sent(bench: Bench) -> None:
    result = bench.call("validate", "job.yaml")

    assert result.exit_code == 0
    assert "job.yaml: ok" in result.stdout
    assert "question: string" in result.stdout
    assert "question 0?" in result.stdout
    assert "question 1?" not in result.stdout
    assert "/openai/deployments/gpt-4o-mini/chat/completions" in result.stdout
    assert "right-key" not in result.output


def test_as_many_rows_are_shown_as_asked_for(bench: Bench) -> None:
    result = bench.call("validate", "job.yaml", "--show", "3", "--json")

    report = json.loads(result.stdout)
    assert report["ok"] is True
    (job,) = report["jobs"]
    assert job["input"]["columns"] == {"id": "string", "question": "string"}
    assert [row["body"]["messages"][0]["content"] for row in job["rows"]] == [f"question {n}?" for n in range(3)]


def test_json_holds_the_problems_too(bench: Bench) -> None:
    bench.write(FIVE)

    result = bench.call("validate", "job.yaml", "--json")

    assert result.exit_code == 2
    report = json.loads(result.stdout)
    assert report["ok"] is False
    assert [problem["line"] for problem in report["jobs"][0]["problems"]] == [1, 4, 6, 10, 14]


def test_a_row_that_cannot_be_asked_is_shown_with_its_reason(bench: Bench) -> None:
    (bench.folder / "rows.jsonl").write_text('{"id": "a", "question": null}\n{"id": "b", "question": "q"}\n')
    bench.write(JOB.replace("{{ question }}", "Tell me: {{ question }}"))

    result = bench.call("validate", "job.yaml", "--show", "2")

    assert result.exit_code == 0
    assert "row 0 cannot be asked: TemplateError" in result.stdout
    assert "Tell me: q" in result.stdout


def test_a_request_that_lacks_what_every_row_needs_is_a_fault_of_the_job_file(bench: Bench) -> None:
    bench.write(JOB.replace("messages:", "mesages:"))

    result = bench.call("validate", "job.yaml")

    assert result.exit_code == 2
    assert "job.yaml:7:3: request.messages: is missing (did you mean it by `mesages`?)" in result.stderr


def test_control_characters_of_a_row_reach_no_terminal(bench: Bench) -> None:
    bench.rows(["bell \x07, escape \x1b[31m, turned \u202e"])

    result = bench.call("validate", "job.yaml")

    assert not {"\x07", "\x1b", "\u202e"} & set(result.stdout)
    assert "\\u202e" in result.stdout


def test_several_jobs_are_checked_in_one_call(bench: Bench) -> None:
    (bench.folder / "other.yaml").write_text(FIVE)

    result = bench.call("validate", "job.yaml", "other.yaml")

    assert result.exit_code == 2
    assert "job.yaml: ok" in result.stdout
    assert all(line.startswith("other.yaml:") for line in result.stderr.splitlines())


def test_variables_of_deployments_are_not_read_for_a_rehearsal(bench: Bench) -> None:
    bench.write(JOB.replace("TEST_KEY", "NOWHERE_SET").replace("TEST_ENDPOINT", "NOWHERE_SET"))

    assert bench.call("validate", "job.yaml").exit_code == 2
    assert bench.call("validate", "job.yaml", "--simulate").exit_code == 0


def test_a_folder_of_other_files_is_refused_as_output(bench: Bench) -> None:
    bench.output.mkdir()
    (bench.output / "holiday.jpg").write_bytes(b"")

    result = bench.call("validate", "job.yaml")

    assert result.exit_code == 2
    assert "job.yaml:17:9: output.path: holds files that are not a run's" in result.stderr


def test_a_job_that_changed_since_its_run_is_refused_field_by_field(bench: Bench) -> None:
    assert bench.call("run", "job.yaml").exit_code == 0

    result = bench.call("validate", "job.yaml", "--set", "request.max_completion_tokens=7")

    assert result.exit_code == 2
    assert "request.max_completion_tokens: 50 -> 7" in result.stderr


@pytest.mark.parametrize("text", ["workers", "=3", ""])
def test_set_needs_a_path_and_a_value(bench: Bench, text: str) -> None:
    result = bench.call("validate", "job.yaml", "--set", text)

    assert result.exit_code == 2
    assert "path=value" in result.stderr


def test_a_rehearsal_is_checked_with_the_folder_that_it_writes_to(bench: Bench) -> None:
    simulated, real = (bench.call("validate", "job.yaml", *more) for more in (("--simulate",), ()))

    assert f"output      {bench.output}.simulated\n" in simulated.stdout
    assert f"output      {bench.output}\n" in real.stdout


@pytest.mark.parametrize("command", ["validate", "run"])
def test_an_output_that_is_not_the_runs_to_have_is_a_fault_of_the_job_file(bench: Bench, command: str) -> None:
    bench.output.mkdir()
    (bench.output / "thesis.txt").write_text("mine")
    result = bench.call(command, "job.yaml")

    assert result.exit_code == 2
    assert "output.path: " in result.stderr
    assert "holds files that are not a run's: name an empty or new folder" in result.stderr
    assert [path.name for path in bench.output.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("command", ["validate", "plan", "run"])
def test_an_empty_input_is_no_mistake_of_the_job(bench: Bench, command: str) -> None:
    (bench.folder / "rows.jsonl").write_text("")
    result = bench.call(command, "job.yaml", "--set", "input.id=id")
    assert (result.exit_code, "no column" in result.stderr) == (0, False), result.stderr
