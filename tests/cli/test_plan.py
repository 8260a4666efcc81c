"""`pipeline plan`: what it says is what a run then takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.bench import JOB, Bench

JOBS = Path(__file__).parents[2] / "jobs"

SAMPLES = [
    ("summarise_passages", "40"),
    ("embed_passages", "200"),
    ("describe_pictures", "4"),
    ("answer_questions_responses", "30"),
    ("continue_openings", "6"),
    ("transcribe_recordings", "2"),
]


def planned(bench: Bench, *arguments: str) -> dict[str, Any]:
    result = bench.call("plan", *arguments, "--json")
    assert result.exit_code == 0, result.output
    plan: dict[str, Any] = json.loads(result.stdout)
    return plan


@pytest.mark.parametrize(("name", "rows"), SAMPLES)
def test_a_rehearsal_takes_what_was_planned(bench: Bench, name: str, rows: str) -> None:
    price = "{input: 3, output: 7}"
    job = [
        str(JOBS / f"{name}.yaml"),
        *("--set", f"output.path={bench.output}", "--set", f"deployments.0.price={price}"),
        *("--set", "run.on_truncated=keep", "--simulate", "--limit", rows),
    ]
    plan = planned(bench, *job)
    assert plan["rows"]["total"] == plan["rows"]["left"] == int(rows)

    run = bench.call("run", *job, "--simulate-speed", "200", "--json", "--progress", "none")
    assert run.exit_code == 0, run.output
    summary = json.loads(run.stdout)

    assert plan["requests"] == {"value": summary["requests"], "within": 0}
    predicted = summary["predicted"]
    assert (predicted["requests"], predicted["tokens"]["input"]) == (
        plan["requests"]["value"],
        None if plan["tokens"]["input"] is None else plan["tokens"]["input"]["value"],
    )
    again = planned(bench, *job)
    assert (again["rows"]["left"], again["rows"]["ok"], again["requests"]["value"]) == (0, int(rows), 0)
    if plan["tokens"]["input"] is None:
        assert name == "transcribe_recordings"
        assert plan["cost_usd"]["most"] is None
        return
    tokens = summary["tokens"]
    assert plan["tokens"]["input"]["value"] == pytest.approx(tokens["input"], rel=0.01)
    assert plan["tokens"]["output_most"] >= tokens["output"]
    assert plan["cost_usd"]["input"] <= (3 * 1.01 * tokens["input"]) / 1e6
    assert plan["cost_usd"]["most"] >= summary["cost_usd"]
    assert again["cost_usd"]["so_far"] == pytest.approx((3 * tokens["input"] + 7 * tokens["output"]) / 1e6)


TRAINING_PRICE = ("--set", "deployments.0.price={training: 3}")


def test_a_training_takes_the_tokens_and_dollars_that_were_planned(bench: Bench) -> None:
    job = [str(JOBS / "train_titles.yaml"), "--set", f"output.path={bench.output}", *TRAINING_PRICE, "--simulate"]
    plan = planned(bench, *job)
    run = bench.call("run", *job, "--json", "--progress", "none")
    assert run.exit_code == 0, run.output
    summary = json.loads(run.stdout)
    training = summary["training"]
    assert plan["training"]["trained_tokens"] == training["trained_tokens"]
    assert plan["training"]["examples"] == training["examples"]
    assert plan["training"]["validation_examples"] == training["validation_examples"]
    assert plan["cost_usd"]["likely"] == summary["cost_usd"] == pytest.approx(3e-6 * training["trained_tokens"])
    again = planned(bench, *job)
    assert again["cost_usd"] == {**plan["cost_usd"], "likely": None, "so_far": summary["cost_usd"]}
    said = bench.call("plan", *job).stdout
    assert "its training is done already: a run pays for no other" in said
    assert "none more" in said


def test_the_plan_of_a_training_says_what_it_does_not_know(bench: Bench) -> None:
    job = [str(JOBS / "train_titles.yaml"), "--set", f"output.path={bench.output}"]
    job += ["--set", "deployments.0.endpoint=https://x.openai.azure.com", "--set", "deployments.0.key=${TEST_KEY}"]
    epochs = planned(bench, *job)["training"]
    assert epochs["trained_tokens"] == 3 * epochs["tokens_an_epoch"]
    assert "dollars   not known: give deployments.0.price.training" in bench.call("plan", *job).stdout
    open_end = [*job, "--set", "request.method={type: supervised}", *TRAINING_PRICE]
    assert planned(bench, *open_end)["training"]["trained_tokens"] is None
    said = bench.call("plan", *open_end).stdout
    assert "the service chooses how many epochs" in said
    assert "an epoch, at $3 a million tokens trained" in said
    assert "time      not known" in said


def test_the_plan_of_a_training_names_what_a_run_would_refuse(bench: Bench) -> None:
    bench.rows(["fine", "", "fine"])
    job = [
        str(JOBS / "train_titles.yaml"),
        "--set",
        f"input.path={bench.folder / 'rows.jsonl'}",
        "--set",
        "input.id=id",
    ]
    job += ["--set", "request.messages=[{role: user, content: '{{ question }}'}, {role: assistant, content: 'So.'}]"]
    said = bench.call("plan", *job, "--simulate").stdout
    assert "nothing will be uploaded before this is put right" in said
    assert "training row 1: empty" in said
    assert "row 2: duplicate: the example is that of row 0" in said
    assert "a training needs at least 10" in said


def test_nothing_is_written_and_nothing_is_sent(bench: Bench) -> None:
    before = sorted(bench.folder.rglob("*"))
    bench.environ["TEST_ENDPOINT"] = "http://127.0.0.1:9"
    plan = planned(bench, "job.yaml")
    assert sorted(bench.folder.rglob("*")) == before
    assert plan["rows"] == {
        "total": 12,
        "ok": 0,
        "failed": 0,
        "left": 12,
        "cannot_be_asked": {"value": 0, "within": 0},
        "copied": {"value": 0, "within": 0},
        "counted": 12,
    }


def test_what_is_done_is_left_out_and_tells_how_long_answers_are(bench: Bench) -> None:
    fresh = planned(bench, "job.yaml")
    assert (fresh["tokens"]["output_likely"], fresh["cost_usd"]["likely"]) == (None, None)
    bench.call("run", "job.yaml", "--limit", "5", "--progress", "none")
    plan = planned(bench, "job.yaml")
    summary = bench.summary()
    assert (plan["rows"]["ok"], plan["rows"]["left"], plan["requests"]["value"]) == (5, 7, 7)
    assert plan["tokens"]["output_likely"] == round(7 * summary["tokens"]["output"] / 5)
    assert plan["cost_usd"]["so_far"] == summary["cost_usd"]
    assert 0 < plan["cost_usd"]["input"] < plan["cost_usd"]["likely"] <= plan["cost_usd"]["most"]


def test_a_finished_folder_has_no_time_ahead(bench: Bench) -> None:
    bench.call("run", "job.yaml", "--progress", "none")
    result = bench.call("plan", "job.yaml", "--set", "deployments.0.tokens_per_minute=600")
    assert "none: every row is done" in result.stdout
    assert "bound by" not in result.stdout


def test_the_table_says_price_source_and_what_binds(bench: Bench) -> None:
    bench.write(JOB.replace("    api: azure\n", "    api: azure\n    tokens_per_minute: 600\n"))
    result = bench.call("plan", "job.yaml")
    assert result.exit_code == 0
    assert "requests       12" in result.stdout
    assert "gpt-4o-mini: input $0.15, output $0.6 a million tokens (litellm" in result.stdout
    assert ", 2026-11)" in result.stdout
    assert "bound by the tokens a minute" in result.stdout
    assert "output tokens  at most 600" in result.stdout


def test_the_price_of_several_deployments_is_said_once(bench: Bench) -> None:
    first = JOB[JOB.index("  - endpoint") : JOB.index("output:")]
    other = first.replace("- endpoint", "- name: other\n    endpoint")
    bench.write(JOB.replace("output:", f"{other}output:"))
    result = bench.call("plan", "job.yaml")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("a million tokens") == 1
    assert len(planned(bench, "job.yaml")["prices"]) == 2


def test_a_price_that_is_not_known_is_said(bench: Bench) -> None:
    bench.write(JOB.replace("gpt-4o-mini", "unheard-of"))
    result = bench.call("plan", "job.yaml")
    assert "dollars        not known" in result.stdout
    assert "unheard-of: no price known" in result.stdout
    assert "$" not in result.stdout
    assert "not known: the deployments' quotas are not given" in result.stdout
    assert planned(bench, "job.yaml")["cost_usd"]["most"] is None


def test_answers_without_a_bound_are_said(bench: Bench) -> None:
    bench.write(JOB.replace("  max_completion_tokens: 50\n", ""))
    result = bench.call("plan", "job.yaml")
    assert "not known: the request does not bound its answers" in result.stdout
    assert "for the input alone" in result.stdout


def test_batches_cost_half(bench: Bench) -> None:
    online = planned(bench, "job.yaml")
    batch = planned(bench, "job.yaml", "--set", "run.lane=batch")
    assert batch["cost_usd"]["most"] == pytest.approx(online["cost_usd"]["most"] / 2)
    assert batch["minutes"]["longest"] is None


def test_rows_that_cannot_be_asked_are_named(bench: Bench) -> None:
    bench.rows(["fine", "", "fine too", ""])
    result = bench.call("plan", "job.yaml")
    assert result.exit_code == 0
    assert "4, 2 cannot be asked" in result.stdout
    assert "row 1 cannot be asked: RowError empty" in result.stdout
    assert planned(bench, "job.yaml")["requests"]["value"] == 2


def test_rows_are_shown_as_they_would_be_sent(bench: Bench) -> None:
    result = bench.call("plan", "job.yaml", "--show", "2")
    assert "question 1?" in result.stdout
    assert "question 2?" not in result.stdout
    assert len(planned(bench, "job.yaml", "--show", "2")["shown"]) == 2


@pytest.mark.parametrize("text", [JOB.replace("workers", "wrkers"), JOB.replace("rows.jsonl", "gone.jsonl")])
def test_a_broken_job_ends_as_validate_does(bench: Bench, text: str) -> None:
    bench.write(text)
    plan, validate = bench.call("plan", "job.yaml"), bench.call("validate", "job.yaml")
    assert plan.exit_code == validate.exit_code == 2
    assert plan.stderr == validate.stderr
    assert json.loads(bench.call("plan", "job.yaml", "--json").stdout)["ok"] is False


def test_max_cost_on_the_command_line_ends_the_run_with_4(bench: Bench) -> None:
    result = bench.call("run", "job.yaml", "--max-cost", "0.00005", "--progress", "none")
    assert result.exit_code == 4
    assert "run.max_cost of $0.0001" in result.output or "run.max_cost of $0.00005" in result.output
    summary = bench.summary()
    assert summary["cost_usd"] <= 0.00005
    assert bench.call("run", "job.yaml", "--max-cost", "many").exit_code == 2
