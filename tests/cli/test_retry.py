from __future__ import annotations

import json

import pytest

from tests.cli.bench import KEY, Bench, Serve


@pytest.fixture
def failed(bench: Bench, served: Serve) -> Bench:
    """A run of which rows 1 and 3 failed, and now a service that answers them."""
    bench.rows(["fine", "poison one", "fine too", "poison two"])
    assert bench.call("run", "job.yaml").exit_code == 1
    bench.environ["TEST_ENDPOINT"] = served({"keys": [KEY]}).url
    return bench


def test_failed_rows_are_sent_again_and_the_exit_code_says_what_is_left(failed: Bench) -> None:
    result = failed.call("retry", "job.yaml", "--only", "content_filter,RateLimitError", "--json")

    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["rows"] == {"total": 4, "ok": 4, "failed": 0, "pending": 0, "not_in_parts": 0}
    assert failed.call("verify", "out").exit_code == 0
    assert failed.call("errors", "out").stdout == "no row failed\n"


def test_where_there_is_nothing_to_send_it_says_so_and_ends_with_0(failed: Bench) -> None:
    first = failed.call("retry", "job.yaml", "--only", "RateLimitError")
    assert (first.exit_code, "no row failed with RateLimitError" in first.stdout) == (0, True)
    assert failed.call("retry", "job.yaml").exit_code == 0
    second = failed.call("retry", "job.yaml")
    assert (second.exit_code, "nothing to send again" in second.stdout) == (0, True)


def test_another_wording_is_for_these_rows_and_the_run_goes_by_the_old_one(failed: Bench) -> None:
    result = failed.call("retry", "job.yaml", "--set", "request.max_completion_tokens=99", "--set", "run.workers=1")
    assert result.exit_code == 0, result.output

    shown = {row: json.loads(failed.call("show", "out", row, "--json").stdout) for row in ("r-0", "r-1")}
    variants = {row: found["values"]["request"]["variant"] for row, found in shown.items()}
    manifest = json.loads((failed.output / "_pipeline" / "manifest.json").read_text())
    assert variants["r-0"] != variants["r-1"]
    assert manifest["variants"][variants["r-1"]]["max_completion_tokens"] == 99
    assert [one["status"] for one in shown["r-1"]["attempts"]] == [400, 200]
    assert [one["error"]["code"] for one in shown["r-1"]["replaced"]] == ["content_filter"]
    assert "before generation 1" in failed.call("show", "out", "r-1").stdout
    assert failed.call("run", "job.yaml").exit_code == 0


def test_a_value_that_the_job_file_may_not_have_is_refused(failed: Bench) -> None:
    result = failed.call("retry", "job.yaml", "--set", "run.workers=many")
    assert result.exit_code == 2


@pytest.mark.parametrize("only", ["", "content_filter,", ","])
def test_an_empty_name_of_a_kind_is_refused(failed: Bench, only: str) -> None:
    result = failed.call("retry", "job.yaml", "--only", only)
    assert (result.exit_code, "between them" in result.stderr) == (2, True)


def test_a_job_that_was_not_run_is_said_to_have_nothing_to_retry(bench: Bench) -> None:
    result = bench.call("retry", "job.yaml")
    assert (result.exit_code, "begin with pipeline run" in result.stderr) == (2, True)


def test_a_rehearsal_can_be_retried(bench: Bench) -> None:
    assert bench.call("run", "job.yaml", "--simulate").exit_code == 0
    result = bench.call("retry", "job.yaml", "--simulate")
    assert (result.exit_code, "nothing to send again" in result.stdout) == (0, True)
