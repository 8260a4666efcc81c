"""`pipeline schedule`: what it prints, for whom, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.cli.bench import Bench


@pytest.mark.parametrize("target", ["cron", "systemd", "kubernetes"])
def test_paths_are_absolute_and_options_of_run_are_handed_on(bench: Bench, target: str) -> None:
    result = bench.call(
        "schedule", "job.yaml", "--at", "02:15", "--for", target, "--image", "i", "--", "--deadline", "3h"
    )

    assert result.exit_code == 0, result.output
    words = result.stdout.replace("\n", " ").replace("- ", "")
    assert f"{bench.job.resolve()} " in words or f"{bench.job} " in words
    assert "--log-format json --progress plain --deadline 3h" in " ".join(words.split())


def test_nothing_is_read_from_the_environment(bench: Bench) -> None:
    bench.environ.clear()

    assert bench.call("schedule", "job.yaml", "--at", "hourly").exit_code == 2
    assert bench.call("schedule", "job.yaml", "--at", "every hour").exit_code == 0


def test_files_are_written_under_the_names_that_systemd_wants(bench: Bench) -> None:
    result = bench.call("schedule", "job.yaml", "--at", "02:15", "--for", "systemd", "--write", "units")

    assert result.stdout.splitlines() == ["units/pipeline-asked.service", "units/pipeline-asked.timer"]
    assert "OnCalendar=*-*-* 02:15:00" in (bench.folder / "units" / "pipeline-asked.timer").read_text()


def test_github_needs_a_repository_and_names_paths_within_it(bench: Bench) -> None:
    refused = bench.call("schedule", "job.yaml", "--at", "02:15", "--for", "github")
    assert refused.exit_code == 2
    assert "git repository" in refused.stderr

    (bench.folder / ".git").mkdir()
    value = yaml.safe_load(bench.call("schedule", "job.yaml", "--at", "02:15", "--for", "github").stdout)
    (step,) = [step for step in value["jobs"]["run"]["steps"] if step.get("name") == "run"]
    assert step["env"] == {
        "JOB": "job.yaml",
        "TEST_ENDPOINT": "${{ secrets.TEST_ENDPOINT }}",
        "TEST_KEY": "${{ secrets.TEST_KEY }}",
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--at", "soon"), "is no time"),
        (("--at", "02:15", "--for", "kubernetes"), "--image"),
        (("--at", "02:15", "--timezone", "Europe/Berlin"), "time zone"),
        ((), "--at"),
    ],
)
def test_what_cannot_be_scheduled_ends_with_2_and_says_why(bench: Bench, options: tuple[str, ...], said: str) -> None:
    result = bench.call("schedule", "job.yaml", *options)

    assert result.exit_code == 2
    assert said in result.stderr


def test_a_job_that_cannot_run_is_not_scheduled(bench: Bench) -> None:
    bench.write("operation: chat\n")

    assert bench.call("schedule", "job.yaml", "--at", "02:15").exit_code == 2
    assert bench.call("schedule", str(Path("gone.yaml")), "--at", "02:15").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--bogus",), "No such option"),
        (("--deadline",), "requires an argument"),
        (("--set", "nonsense"), "path=value"),
        (("another.yaml",), "unexpected extra argument"),
    ],
)
def test_what_run_would_refuse_at_night_is_refused_now(bench: Bench, arguments: tuple[str, ...], said: str) -> None:
    result = bench.call("schedule", "job.yaml", "--at", "02:15", "--", *arguments)

    assert (result.exit_code, result.stdout) == (2, "")
    assert "pipeline run would not take that: " in result.stderr
    assert said in result.stderr
