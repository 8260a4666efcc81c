from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.store.files import sha256_of
from pipeline.store.manifest import spelled
from tests.cli.bench import JOB, Bench


@pytest.fixture
def finished(bench: Bench) -> Bench:
    """A run of three parts; row 1 failed."""
    bench.rows([*["fine", "poison"], *["fine"] * 10])
    bench.write(JOB.replace("path: out", "path: out\n  part_rows: 4"))
    assert bench.call("run", "job.yaml").exit_code == 1
    return bench


def _flip(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 0b100
    path.write_bytes(content)


def _part(root: Path) -> Path:
    return sorted(root.glob("part-*.parquet"))[1]


def _reword_manifest(root: Path) -> None:
    path = root / "_pipeline" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["parts"][0]["ok"] += 1
    path.write_text(spelled({name: value for name, value in manifest.items() if name != "sha256"}))


def _put_a_part_there(root: Path) -> None:
    (root / "part-000000000012-000000000013.parquet").write_bytes(_part(root).read_bytes())


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit of a part": (lambda root: _flip(_part(root), 0.5), "part-000000000004-000000000007.parquet: is not what"),
    "a part's end": (lambda root: _part(root).write_bytes(b"PAR1"), "part-000000000004-000000000007.parquet: is not"),
    "a part": (lambda root: _part(root).unlink(), "part-000000000004-000000000007.parquet: is missing"),
    "a part too many": (_put_a_part_there, "part-000000000012-000000000013.parquet: is not counted"),
    "a word of the manifest": (_reword_manifest, "_pipeline/manifest.json: does not agree with the journal on: parts"),
    "the manifest": (lambda root: (root / "_pipeline/manifest.json").unlink(), "_pipeline/manifest.json: is missing"),
    "the manifest's form": (
        lambda root: _flip(root / "_pipeline/manifest.json", 0.0),
        "_pipeline/manifest.json: cannot be read",
    ),
    "the journal": (lambda root: (root / "_pipeline/journal/00.sqlite").unlink(), "00.sqlite: is missing"),
    "the journal's head": (lambda root: _flip(root / "_pipeline/journal/00.sqlite", 0.0), "00.sqlite"),
    "the summary": (lambda root: _flip(root / "_pipeline/summary.json", 0.0), "_pipeline/summary.json: cannot be read"),
    "attempts": (
        lambda root: next((root / "_pipeline/attempts").iterdir()).unlink(),
        ".parquet: is missing since the run ended",
    ),
}


def test_a_run_is_as_it_was_written(finished: Bench) -> None:
    before = {path: sha256_of(path) for path in finished.output.rglob("*") if path.is_file()}

    result = finished.call("verify", "job.yaml")

    assert result.exit_code == 0
    assert "3 parts" in result.stdout
    assert "11 rows ok, 1 failed, 0 of them not yet in a part: all as it was written" in result.stdout
    assert {path: sha256_of(path) for path in before} == before


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_named(finished: Bench, damage: str) -> None:
    harm, said = DAMAGES[damage]
    harm(finished.output)

    result = finished.call("verify", "job.yaml")
    as_json = finished.call("verify", "job.yaml", "--json")

    assert result.exit_code == as_json.exit_code == 5
    assert said in result.stdout
    report = json.loads(as_json.stdout)
    assert report["ok"] is False
    assert all(finding["advice"] for finding in report["findings"])


def test_a_run_that_was_limited_is_as_it_was_written(bench: Bench) -> None:
    assert bench.call("run", "job.yaml", "--limit", "5").exit_code == 0

    assert bench.call("verify", "job.yaml").exit_code == 0


def test_a_refused_run_is_as_it_was_written(bench: Bench) -> None:
    bench.environ["TEST_KEY"] = "wrong-key"
    assert bench.call("run", "job.yaml").exit_code == 3

    assert bench.call("verify", "job.yaml").exit_code == 0


@pytest.mark.parametrize("target", ["job.yaml", "out"])
def test_the_input_is_read_again_for_the_asking(finished: Bench, target: str) -> None:
    assert finished.call("verify", target, "--input").exit_code == 0


INPUTS: dict[str, tuple[Callable[[str], str], str]] = {
    "another value": (lambda text: text.replace("poison", "poisonous"), "its rows 0 to 3"),
    "one row less": (lambda text: "\n".join(text.splitlines()[:-1]) + "\n", "its rows 8 to 11"),
    "one row more": (lambda text: text + '{"id": "r-12", "question": "new"}\n', "has rows after 11"),
}


@pytest.mark.parametrize("change", INPUTS)
def test_an_input_that_changed_is_found(finished: Bench, change: str) -> None:
    edit, said = INPUTS[change]
    rows = finished.folder / "rows.jsonl"
    rows.write_text(edit(rows.read_text()))

    assert finished.call("verify", "job.yaml").exit_code == 0
    result = finished.call("verify", "job.yaml", "--input")

    assert result.exit_code == 5
    assert said in result.stdout


def test_an_input_that_is_gone_is_found(finished: Bench) -> None:
    (finished.folder / "rows.jsonl").unlink()

    result = finished.call("verify", "job.yaml", "--input")

    assert result.exit_code == 5
    assert "the input: " in result.stdout


def test_a_repair_says_what_it_did_and_what_it_costs_and_then_nothing_is_found(finished: Bench) -> None:
    _flip(_part(finished.output), 0.99)
    assert finished.call("verify", "out").exit_code == 5

    result = finished.call("run", "job.yaml", "--repair", "--log-format", "json")

    assert result.exit_code == 1  # row 1 failed before, too
    said = [json.loads(line) for line in result.stderr.splitlines() if line.startswith("{")]
    (part,) = [event for event in said if event["event"] == "repaired"]
    assert (part["file"], part["rows_again"]) == ("part-000000000004-000000000007.parquet", 4)
    assert [event["rows_again"] for event in said if event["event"] == "repair_ended"] == [4]
    assert finished.call("verify", "out").exit_code == 0


def test_repair_and_fresh_exclude_each_other(finished: Bench) -> None:
    assert finished.call("run", "job.yaml", "--repair", "--fresh").exit_code == 2


def test_an_unreadable_journal_names_the_repair(finished: Bench) -> None:
    _flip(finished.output / "_pipeline/journal/00.sqlite", 0.0)

    result = finished.call("run", "job.yaml")

    assert result.exit_code == 5
    assert "--repair" in result.stderr


def test_what_mends_a_rehearsal_is_a_rehearsal(bench: Bench) -> None:
    """Without --simulate it would be the real job that runs."""
    assert bench.call("run", "job.yaml", "--simulate").exit_code == 0
    root = bench.folder / "out.simulated"
    (part,) = root.glob("part-*.parquet")
    part.chmod(0o644)
    _flip(part, 0.3)

    said, told = (bench.call("verify", target, *options) for target, options in ((bench.job, ()), (root, ("--json",))))

    assert said.exit_code == told.exit_code == 5
    assert "`pipeline run JOB --simulate --repair`" in said.stdout
    assert "`pipeline run JOB --simulate --repair`" in json.loads(told.stdout)["findings"][0]["advice"]
