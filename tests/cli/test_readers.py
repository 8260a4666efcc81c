from __future__ import annotations

import json
import os

import pytest

from tests.cli.bench import Bench

READERS = {
    "status": (),
    "errors": (),
    "show": ("r-1",),
    "report": (),
    "runs": (),
    "verify": (),
}


@pytest.fixture
def finished(bench: Bench) -> Bench:
    """A run of which rows 1 and 3 failed."""
    bench.rows(["fine", "poison one", "fine \x1b[31m\u202e", "poison two"])
    assert bench.call("run", "job.yaml").exit_code == 1
    return bench


@pytest.mark.parametrize("command", READERS)
def test_every_reader_takes_a_job_file_or_an_output_folder(finished: Bench, command: str) -> None:
    for target in ("job.yaml", "out", "out/_pipeline"):
        result = finished.call(command, target, *READERS[command])

        assert result.exit_code == 0, result.output
        assert result.stderr == ""
        assert result.stdout == finished.call(command, "job.yaml", *READERS[command]).stdout or command == "verify"


@pytest.mark.parametrize("command", READERS)
def test_every_reader_prints_json(finished: Bench, command: str) -> None:
    result = finished.call(command, "out", *READERS[command], "--json")

    assert isinstance(json.loads(result.stdout), dict)


@pytest.mark.parametrize("command", READERS)
def test_every_reader_says_when_there_is_no_run(bench: Bench, command: str) -> None:
    (bench.folder / "empty").mkdir()
    for target, said in (("job.yaml", "has not been run yet"), ("empty", "holds no run"), ("gone", "does not exist")):
        result = bench.call(command, target, *READERS[command])

        assert result.exit_code == 2
        assert said in result.stderr


def test_every_reader_falls_back_on_a_rehearsal_and_says_so(bench: Bench) -> None:
    assert bench.call("run", "job.yaml", "--simulate").exit_code == 0

    results = {command: bench.call(command, "job.yaml", *options) for command, options in READERS.items()}

    assert {command: result.exit_code for command, result in results.items()} == dict.fromkeys(READERS, 0)
    assert all("there is only a simulated run" in result.stderr for result in results.values())


@pytest.mark.parametrize("command", READERS)
def test_no_reader_needs_the_variables_of_deployments(finished: Bench, command: str) -> None:
    finished.environ.clear()

    assert finished.call(command, "job.yaml", *READERS[command]).exit_code == 0


@pytest.mark.parametrize("command", READERS)
def test_no_reader_lets_a_row_move_the_cursor(finished: Bench, command: str) -> None:
    result = finished.call(command, "out", *(("r-2",) if command == "show" else ()))

    assert not {"\x1b", "\u202e"} & set(result.stdout)


def test_status_says_counts_and_deployments(finished: Bench) -> None:
    result = finished.call("status", "out")

    assert result.stdout.startswith("complete: 2 rows ok, 2 failed\n")
    assert "gpt-4o-mini" in result.stdout
    assert json.loads(finished.call("status", "out", "--json").stdout) == finished.summary()


def test_a_finished_run_is_watched_once_and_in_one_line_of_json(finished: Bench) -> None:
    (line,) = finished.call("status", "out", "--watch", "--json").stdout.splitlines()
    assert json.loads(line) == finished.summary()
    assert finished.call("status", "out", "--watch").stdout == finished.call("status", "out").stdout


def test_errors_lists_failed_rows_in_order(finished: Bench) -> None:
    rows = json.loads(finished.call("errors", "out", "--json").stdout)

    assert rows["failed"] == 2
    assert [(row["ordinal"], row["id"], row["type"], row["code"]) for row in rows["rows"]] == [
        (1, "r-1", "BadRequestError", "content_filter"),
        (3, "r-3", "BadRequestError", "content_filter"),
    ]
    assert all(row["request_id"] and row["client_request_id"] for row in rows["rows"])


def test_errors_says_how_many_it_left_out(finished: Bench) -> None:
    result = finished.call("errors", "out", "--limit", "1")

    assert "r-1" in result.stdout
    assert "r-3" not in result.stdout
    assert "and 1 row more" in result.stdout


@pytest.mark.parametrize(
    ("group_by", "kind"),
    [
        ("code", {"type": "BadRequestError", "code": "content_filter"}),
        ("type", {"type": "BadRequestError"}),
        ("deployment", {"deployment": "gpt-4o-mini", "type": "BadRequestError", "code": "content_filter"}),
    ],
)
def test_errors_counts_by_kind(finished: Bench, group_by: str, kind: dict[str, str]) -> None:
    (group,) = json.loads(finished.call("errors", "out", "--group-by", group_by, "--json").stdout)["groups"]

    assert group["rows"] == 2
    assert {name: group[name] for name in kind} == kind
    assert group.keys() == {*kind, "rows", "advice", "example"}
    assert group["example"]["ordinal"] == 1
    said = finished.call("errors", "out", "--group-by", group_by).stdout
    assert "BadRequestError" in said
    assert f"first: row 1 (x-request-id {group['example']['request_id']})" in said
    assert ("to do: The service's content filter" in said) == ("code" in kind)


def test_errors_says_once_a_kind_what_to_do(finished: Bench) -> None:
    assert finished.call("errors", "out").stdout.count("The service's content filter refused it") == 1


@pytest.mark.parametrize("arguments", [(), ("--group-by", "code")])
def test_errors_says_when_no_row_failed(bench: Bench, arguments: tuple[str, ...]) -> None:
    assert bench.call("run", "job.yaml").exit_code == 0

    assert bench.call("errors", "out", *arguments).stdout == "no row failed\n"


@pytest.mark.parametrize(("identity", "options"), [("r-1", ()), ("1", ()), ("1", ("--ordinal",))])
def test_show_finds_a_row_by_its_id_or_ordinal(finished: Bench, identity: str, options: tuple[str, ...]) -> None:
    found = json.loads(finished.call("show", "out", identity, *options, "--json").stdout)

    assert found["ordinal"] == 1
    assert found["values"]["question"] == "poison one"
    assert [attempt["status"] for attempt in found["attempts"]] == [400]


def test_an_id_comes_before_an_ordinal(bench: Bench) -> None:
    lines = ['{"id": "1", "question": "first"}', '{"id": "0", "question": "second"}']
    (bench.folder / "rows.jsonl").write_text("\n".join(lines))
    assert bench.call("run", "job.yaml").exit_code == 0

    assert json.loads(bench.call("show", "out", "1", "--json").stdout)["ordinal"] == 0
    assert json.loads(bench.call("show", "out", "1", "--ordinal", "--json").stdout)["ordinal"] == 1


def test_ids_that_are_numbers_are_found(bench: Bench) -> None:
    (bench.folder / "rows.jsonl").write_text('{"id": 70, "question": "a"}\n{"id": 71, "question": "b"}\n')
    assert bench.call("run", "job.yaml").exit_code == 0

    assert json.loads(bench.call("show", "out", "71", "--json").stdout)["ordinal"] == 1


def test_a_row_that_is_not_there_is_said_to_be_not_there(finished: Bench) -> None:
    result = finished.call("show", "out", "r-9")

    assert result.exit_code == 2
    assert "no row has the id or ordinal 'r-9'" in result.stderr


def test_every_attempt_at_a_row_is_shown(bench: Bench) -> None:
    bench.environ["TEST_KEY"] = "wrong-key"
    assert bench.call("run", "job.yaml", "--workers", "1").exit_code == 3
    bench.environ["TEST_KEY"] = "right-key"
    assert bench.call("run", "job.yaml").exit_code == 0

    result = bench.call("show", "out", "r-0")

    assert "unauthorized" in result.stdout
    assert "answered" in result.stdout


@pytest.mark.parametrize("arguments", [("show", "out", "r-1"), ("status", "out", "--json"), ("schema",), ("--help",)])
def test_a_reader_of_ours_that_goes_away_is_no_error(finished: Bench, arguments: tuple[str, ...]) -> None:
    read, write = os.pipe()
    os.close(read)
    process = finished.popen(*arguments)
    process.communicate(timeout=20)
    assert process.returncode == 0

    piped = finished.run_into(write, *arguments)
    os.close(write)

    assert piped.returncode == 141
    assert piped.stderr == ""
