"""The job files of the cookbook run against the simulator as they stand, and its SQL reads what they wrote."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import duckdb
import pytest
import yaml

from pipeline import RunOptions, load_job, run_job, simulated

ROOT = Path(__file__).parents[2]
COOKBOOK = ROOT / "docs" / "cookbook"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]


def blocks(page: str, language: str) -> list[str]:
    """The blocks of a page in a language."""
    return [text for kind, text in _BLOCK.findall((COOKBOOK / page).read_text()) if kind == language]


JOBS = {page.name: blocks(page.name, "yaml") for page in sorted(COOKBOOK.glob("*.md"))}


async def test_every_job_of_the_cookbook_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "sample_data", tmp_path / "sample_data")
    (tmp_path / "sample_data" / "batch.jsonl").write_text(blocks("from-the-batch-api.md", "json")[0])
    (tmp_path / "jobs").mkdir()
    monkeypatch.chdir(tmp_path)
    names = []
    for page, (text,) in ((page, texts) for page, texts in JOBS.items() if texts):
        names.append(yaml.safe_load(text)["name"])
        file = tmp_path / "jobs" / f"{names[-1]}.yaml"
        file.write_text(text)
        with simulated(load_job(file, simulate=True), speed=600) as job:
            summary = await run_job(job, options=RunOptions(limit=None if names[-1] == "corpus" else 4))
        assert (summary.exit_code, summary.rows.failed) == (0, 0), (page, summary.reason)
        assert summary.rows.ok >= 2
        (tmp_path / "out" / f"{names[-1]}.simulated").rename(tmp_path / "out" / names[-1])
    assert names == ["corpus", "wording-a", "from-a-batch", "nightly", "calls"]
    assert (tmp_path / "out" / "from-a-batch" / "output.jsonl").read_text().count("\n") == 2
    shutil.copytree(tmp_path / "out" / "wording-a", tmp_path / "out" / "wording-b")
    with duckdb.connect() as reader:
        for page in ("results.md", "evaluate-prompts.md"):
            for statement in "".join(blocks(page, "sql")).split(";\n"):
                if statement.strip():
                    found = reader.execute(statement).fetchall()
                    assert "LIMIT 5" not in statement or len(found) == 5


def test_every_page_of_the_cookbook_is_listed() -> None:
    listed = set(re.findall(r"\]\(([\w-]+\.md)\)", (COOKBOOK / "README.md").read_text()))
    assert listed == {page.name for page in COOKBOOK.glob("*.md")} - {"README.md"}
