from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import operations

FOLDER = Path(operations.__file__).parent


def test_every_module_that_is_no_helper_is_an_operation() -> None:
    modules = {file.stem for file in FOLDER.glob("*.py") if not file.stem.startswith("_")} - {"base"}
    assert set(operations.names()) == {module.replace("_", "-") for module in modules}


def test_names_are_sorted_and_hold_chat_and_embeddings() -> None:
    assert list(operations.names()) == sorted(operations.names())
    assert {"chat", "embeddings"} <= set(operations.names())


@pytest.mark.parametrize("name", operations.names())
def test_an_operation_is_found_under_its_own_name(name: str) -> None:
    assert operations.get(name).name == name


@pytest.mark.parametrize("name", ["", "base", "_json", "-json", "os", "../chat", "Chat", "chat.OPERATION"])
def test_other_names_are_refused_with_those_that_exist(name: str) -> None:
    with pytest.raises(LookupError, match="chat, completions, embeddings"):
        operations.get(name)


def test_listing_names_imports_no_operation_and_nothing_heavy() -> None:
    program = (
        "import sys; from pipeline import operations; operations.names(); "
        "print(sorted({'pyarrow', 'jinja2', 'pydantic', 'pipeline.operations.chat'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
