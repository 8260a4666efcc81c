"""The program that compares a transcription run with what was said."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

PROGRAM = Path(__file__).parents[2] / "sample_data" / "word_error_rate.py"


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("word_error_rate", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compare(program: ModuleType, folder: Path, heard: dict[str, str | None], *extra: str) -> int:
    reference = folder / "said.jsonl"
    said = [{"id": "a", "text": "One, two three!"}, {"id": "b", "text": "Four"}]
    reference.write_text("\n".join(map(json.dumps, said)) + "\n\n", encoding="utf-8")
    table = {
        "id": list(heard),
        "status": ["failed" if text is None else "ok" for text in heard.values()],
        "output_text": pa.array(list(heard.values()), pa.string()),
    }
    pq.write_table(pa.table(table), folder / "part-0.parquet")
    code: int = program.main([str(folder), "--reference", str(reference), *extra])
    return code


@pytest.mark.parametrize(
    ("said", "heard", "count"),
    [
        ("a b c", "a b c", 0),
        ("a b c", "", 3),
        ("", "a b", 2),
        ("a b c", "a x c", 1),
        ("a b c", "b c", 1),
        ("a b c", "a b b c", 1),
        ("a b c d", "d c b a", 4),
    ],
)
def test_errors_are_changed_added_and_missing_words(program: ModuleType, said: str, heard: str, count: int) -> None:
    assert program.errors(said.split(), heard.split()) == count


def test_case_and_punctuation_are_no_errors(
    program: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(program, tmp_path, {"a": "one two THREE.", "b": "four"}, "--most", "0") == 0
    assert "0.0 % of the words are wrong in 2 recordings" in capsys.readouterr().out


def test_too_many_errors_are_exit_code_1(program: ModuleType, tmp_path: Path) -> None:
    heard: dict[str, str | None] = {"a": "one two", "b": "four"}
    assert compare(program, tmp_path, heard, "--most", "25") == 0
    assert compare(program, tmp_path, heard, "--most", "24.9") == 1


@pytest.mark.parametrize("heard", [{"a": "One two three"}, {"a": "One two three", "b": None}])
def test_a_recording_that_is_missing_is_exit_code_1(
    program: ModuleType, tmp_path: Path, heard: dict[str, str | None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(program, tmp_path, heard, "--most", "100") == 1
    assert "missing: b" in capsys.readouterr().err


def test_nothing_to_compare_is_exit_code_2(program: ModuleType, tmp_path: Path) -> None:
    assert program.main([str(tmp_path)]) == 2
    assert program.main([str(tmp_path), "--reference", str(tmp_path / "none.jsonl")]) == 2
    assert compare(program, tmp_path, {}) == 2
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "part-0.parquet")
    assert program.main([str(tmp_path)]) == 2
