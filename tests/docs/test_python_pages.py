"""The Python of the documentation runs, block after block, as it stands there."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shutil
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = ["python.md", "notebook.ipynb"]
pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]


def blocks(page: Path) -> list[str]:
    """The Python of a page of Markdown, or the cells of a notebook."""
    if page.suffix == ".ipynb":
        cells = json.loads(page.read_text())["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return _BLOCK.findall(page.read_text())


def compiled(block: str, name: str) -> CodeType:
    return compile(block, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("page", PAGES)
async def test_the_python_of_a_page_runs_as_it_stands(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("jobs", "sample_data"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("recordings", "pictures"))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    found = blocks(DOCS / page)
    assert len(found) >= 4
    for number, block in enumerate(found):
        code = compiled(block, f"{page}, block {number}")
        waits = eval(code, names)  # noqa: S307 - our own documentation
        if inspect.iscoroutine(waits):
            await waits
    said = capsys.readouterr().out
    assert "complete 392" in said


def test_every_page_that_holds_python_is_run_or_is_named() -> None:
    others = {
        "cookbook/results.md",  # pandas, polars and LanceDB, which only make test-docs installs
        "simulator.md",  # a client of the openai SDK, as in tests/integration/test_simulator_with_openai_sdk.py
    }
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md") if _BLOCK.search(page.read_text())}
    assert pages == {page for page in PAGES if page.endswith(".md")} | others
