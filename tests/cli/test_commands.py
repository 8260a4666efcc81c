from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import click
import httpx
import pytest
from click.testing import CliRunner

from pipeline import operations
from pipeline.cli import main
from tests.cli.bench import Bench

COMMANDS = [
    "init",
    "validate",
    "plan",
    "doctor",
    "run",
    "retry",
    "status",
    "pause",
    "resume",
    "drain",
    "set",
    "errors",
    "show",
    "export",
    "runs",
    "report",
    "schedule",
    "verify",
    "simulate",
    "schema",
]
HEAVY = ["pyarrow", "pydantic", "jinja2", "structlog", "rich", "anyio", "azure", "httpx", "yaml"]


def test_help_lists_the_commands_and_the_exit_codes() -> None:
    result = CliRunner().invoke(main, ["--help"])

    assert result.exit_code == 0
    for name in COMMANDS:
        assert f"  {name} " in result.stdout
    for code in ("0", "1", "2", "3", "4", "5", "70", "75", "130"):
        assert f" {code}" in result.stdout


def test_every_command_has_help_and_a_name_of_its_own() -> None:
    assert main.list_commands(click.Context(main)) == COMMANDS
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        assert command.name == name
        result = CliRunner().invoke(main, [name, "--help"])
        assert result.exit_code == 0
        assert (command.help or "nothing")[:20] in result.stdout


@pytest.mark.parametrize("arguments", [[], ["--help"], *[[name, "--help"] for name in COMMANDS]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom pipeline.cli import main\n"
        f"try:\n    main({arguments})\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stderr.splitlines()[-1] == "[]"


def test_importing_the_package_imports_nothing_heavy() -> None:
    script = f"import sys, pipeline\nprint([name for name in {HEAVY} if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("arguments", [["bogus"], ["run"], ["run", "job.yaml", "--bogus"], ["show", "job.yaml"]])
def test_wrong_usage_has_the_exit_code_of_usage(bench: Bench, arguments: list[str]) -> None:
    result = bench.call(*arguments)

    assert result.exit_code == 2
    assert result.stdout == ""
    assert "--help" in result.stderr


@pytest.mark.parametrize(
    ("typed", "meant"), [("rum", "run"), ("statsu", "status"), ("exprt", "export"), ("bogus", None)]
)
def test_a_mistyped_command_is_answered_with_the_nearest(typed: str, meant: str | None) -> None:
    result = CliRunner().invoke(main, [typed])

    assert result.exit_code == 2
    assert (f"Did you mean {meant}?" in result.stderr) == (meant is not None)
    assert f"No such command '{typed}'." in result.stderr


def test_the_version_is_the_distributions() -> None:
    assert CliRunner().invoke(main, ["--version"]).stdout.startswith("pipeline 0.")


def test_the_schema_names_the_operations() -> None:
    schema = json.loads(CliRunner().invoke(main, ["schema"]).stdout)

    assert schema["properties"]["operation"]["enum"] == list(operations.names())


def test_a_first_job_file_overwrites_nothing(bench: Bench) -> None:
    before = bench.job.read_text(), (bench.folder / "rows.jsonl").read_text()

    assert bench.call("init", "chat", "job.yaml").exit_code == 2
    assert bench.call("init", "chat").exit_code == 0
    assert bench.call("init", "chat").exit_code == 2

    assert (bench.job.read_text(), (bench.folder / "rows.jsonl").read_text()) == before
    assert "chat-rows.jsonl" in (bench.folder / "chat.yaml").read_text()


def test_first_job_files_of_all_operations_live_in_one_folder(bench: Bench) -> None:
    for name in operations.names():
        assert bench.call("init", name, f"{name}-first.yaml").exit_code == 0

    for name in operations.names():
        assert bench.call("validate", "--simulate", f"{name}-first.yaml").exit_code == 0


def test_a_first_job_file_is_written_into_a_folder(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["init", "chat", str(tmp_path)])

    assert result.exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chat.yaml", "rows.jsonl"]


@pytest.mark.parametrize("arguments", [["init", "poetry"], ["init", "chat", "job.toml"]])
def test_what_cannot_be_begun_is_refused(bench: Bench, arguments: list[str]) -> None:
    assert bench.call(*arguments).exit_code == 2


def test_the_simulator_is_served_until_it_is_told_to_stop(bench: Bench) -> None:
    (bench.folder / "sim.yaml").write_text("keys: [only-this]\n")
    process = bench.popen("simulate", "--port", "0", "--config", "sim.yaml", "--ledger", "ledger.jsonl")
    assert process.stdout is not None
    port = json.loads(process.stdout.readline())["port"]

    reply = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", headers={"authorization": "Bearer x"}, json={})
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)

    assert reply.status_code == 401
    assert (process.returncode, stderr) == (0, "")
    assert (bench.folder / "ledger.jsonl").stat().st_size > 0


@pytest.mark.parametrize("text", ["bogus: 1", "speed: fast", "[", "seed: x"])
def test_a_wrong_configuration_of_the_simulator_is_wrong_usage(bench: Bench, text: str) -> None:
    (bench.folder / "sim.yaml").write_text(text)

    result = bench.call("simulate", "--config", "sim.yaml")

    assert result.exit_code == 2
    assert "sim.yaml" in result.stderr
    assert "pydantic" not in result.stderr


def test_each_mistake_of_a_configuration_of_the_simulator_is_named(bench: Bench) -> None:
    (bench.folder / "sim.yaml").write_text("latency: {median_ms: fast}\nfalts: {}\n")
    result = bench.call("simulate", "--config", "sim.yaml")
    assert "sim.yaml: latency.median_ms: Input should be a valid number" in result.stderr
    assert "sim.yaml: falts: Extra inputs are not permitted" in result.stderr


def test_a_port_that_is_taken_is_wrong_usage(bench: Bench) -> None:
    port = bench.environ["TEST_ENDPOINT"].rpartition(":")[2]

    process = bench.popen("simulate", "--port", port)
    _, stderr = process.communicate(timeout=20)

    assert process.returncode == 2
    assert "--port" in stderr
