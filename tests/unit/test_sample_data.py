"""The sample data is large enough, all different, whole in both formats, and the demonstration over it works."""

from __future__ import annotations

import importlib.util
import itertools
import re
from collections import Counter, defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

ROOT = Path(__file__).parents[2]
SAMPLE_DATA = ROOT / "sample_data"
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))
BLAND_SHARED_FIVE_WORDS = 3  # "a quarter of an hour" and the like


def read_jsonl(name: str) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in (SAMPLE_DATA / name).read_bytes().splitlines()]


PASSAGES = read_jsonl("passages.jsonl")
PASSAGE_IDS = {passage["passage_id"] for passage in PASSAGES}


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def word_runs(passage: dict[str, Any], length: int) -> set[tuple[str, ...]]:
    found = words(passage["text"])
    return set(zip(*(found[start:] for start in range(length)), strict=False))


def test_there_are_at_least_320_passages_on_at_least_40_subjects() -> None:
    assert len(PASSAGES) >= 320
    assert len({passage["subject"] for passage in PASSAGES}) >= 40


def test_every_subject_has_at_least_three_passages() -> None:
    assert min(Counter(passage["subject"] for passage in PASSAGES).values()) >= 3


def test_every_passage_has_exactly_four_texts() -> None:
    for passage in PASSAGES:
        assert list(passage) == ["passage_id", "subject", "title", "text"]
        assert all(isinstance(value, str) and value == value.strip() and value for value in passage.values())


def test_passage_ids_count_from_one() -> None:
    assert [passage["passage_id"] for passage in PASSAGES] == [f"p-{n:04}" for n in range(1, len(PASSAGES) + 1)]


def test_passages_have_40_to_140_words() -> None:
    lengths = [len(passage["text"].split()) for passage in PASSAGES]
    assert min(lengths) >= 40
    assert max(lengths) <= 140
    assert max(lengths) > 2 * min(lengths)


@pytest.mark.parametrize("field", ["passage_id", "title", "text"])
def test_no_two_passages_share_a(field: str) -> None:
    assert len({passage[field] for passage in PASSAGES}) == len(PASSAGES)


def test_hardly_any_five_words_in_a_row_occur_in_two_passages() -> None:
    holders: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for passage in PASSAGES:
        for run in word_runs(passage, 5):
            holders[run].append(passage["passage_id"])
    shared = {run: ids for run, ids in holders.items() if len(ids) > 1}
    assert len(shared) <= BLAND_SHARED_FIVE_WORDS, shared


def test_no_two_passages_share_more_than_a_quarter_of_their_words() -> None:
    vocabularies = [(passage["passage_id"], set(words(passage["text"]))) for passage in PASSAGES]
    alike = [
        (a, b)
        for (a, first), (b, second) in itertools.combinations(vocabularies, 2)
        if 4 * len(first & second) > len(first | second)
    ]
    assert alike == []


def test_at_most_five_passages_begin_with_the_same_two_words() -> None:
    assert max(Counter(tuple(words(passage["text"])[:2]) for passage in PASSAGES).values()) <= 5


def test_the_parquet_holds_the_same_rows_as_the_jsonl() -> None:
    file = pq.ParquetFile(SAMPLE_DATA / "passages.parquet")
    assert file.read().to_pylist() == PASSAGES
    assert file.schema_arrow == pa.schema([(name, pa.string()) for name in PASSAGES[0]])
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"


@pytest.mark.parametrize(("name", "count"), [("questions.jsonl", 40), ("demo_questions.jsonl", 3)])
def test_every_question_is_its_own_and_names_a_passage_of_its_own(name: str, count: int) -> None:
    questions = read_jsonl(name)
    assert len(questions) == count
    for question in questions:
        assert list(question) == ["question_id", "question", "passage_id"]
        assert question["question"].endswith("?")
        assert question["passage_id"] in PASSAGE_IDS
    for field in ("question_id", "question", "passage_id"):
        assert len({question[field] for question in questions}) == count


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("sentences.jsonl", ["sentence_id", "voice", "place", "text"]),
        ("picture_ideas.jsonl", ["picture_id", "subject", "style", "size"]),
    ],
)
def test_what_is_spoken_and_drawn_is_whole_and_all_different(name: str, columns: list[str]) -> None:
    rows = read_jsonl(name)
    assert 8 <= len(rows) <= 12
    for row in rows:
        assert list(row) == columns
        assert all(isinstance(value, str) and value == value.strip() and value for value in row.values())
    for field in (columns[0], "text" if "text" in columns else "subject"):
        assert len({row[field] for row in rows}) == len(rows)


def test_every_picture_is_a_small_png_that_one_row_names() -> None:
    rows = read_jsonl("pictures.jsonl")
    assert sorted(row["file"] for row in rows) == sorted(file.name for file in (SAMPLE_DATA / "pictures").iterdir())
    for row in rows:
        assert list(row) == ["picture_id", "file", "question"]
        content = (SAMPLE_DATA / "pictures" / row["file"]).read_bytes()
        assert content.startswith(b"\x89PNG\r\n\x1a\n")
        assert len(content) < 5_000


def test_the_demo_questions_do_not_quote_their_passages() -> None:
    passages = {passage["passage_id"]: passage for passage in PASSAGES}
    for question in read_jsonl("demo_questions.jsonl"):
        quoted = word_runs({"text": question["question"]}, 3) & word_runs(passages[question["passage_id"]], 3)
        assert quoted == set()


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_a_job_reads_sample_data_and_asks_only_for_its_columns(path: Path) -> None:
    job = yaml.safe_load(path.read_text(encoding="utf-8"))
    source = (path.parent / job["input"]["path"]).resolve()
    assert source.parent == SAMPLE_DATA
    files = job["input"].get("format") == "files"
    row = {"path": "", "bytes": 0, "modified": None} if files else read_jsonl(source.name)[0]
    assert job["input"]["id"] in row
    assert set(re.findall(r"\{\{ (\w+) \}\}", str(job["request"]))) <= set(row)


def test_the_jobs_write_to_folders_of_their_own() -> None:
    jobs = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in JOBS]
    assert len(jobs) >= 6
    assert {job["output"]["path"] for job in jobs} == {f"../out/{job['name']}" for job in jobs}
    assert len({job["name"] for job in jobs}) == len(jobs)


def test_passages_and_demo_questions_are_embedded_alike() -> None:
    first, second = (
        yaml.safe_load((ROOT / "jobs" / name).read_text(encoding="utf-8"))
        for name in ("embed_passages.yaml", "embed_questions.yaml")
    )
    assert first["request"]["dimensions"] == second["request"]["dimensions"]
    assert first["deployments"][0]["deployment"] == second["deployments"][0]["deployment"]


def load_nearest() -> ModuleType:
    spec = importlib.util.spec_from_file_location("nearest", SAMPLE_DATA / "nearest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


NEAREST = load_nearest()


def write_part(folder: Path, first: int, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(exist_ok=True)
    ordinals = range(first, first + len(rows))
    columns: dict[str, Any] = {"ordinal": list(ordinals)}
    columns |= {name: [row[name] for row in rows] for name in rows[0] if name not in ("status", "embedding")}
    columns["status"] = [row.get("status", "ok") for row in rows]
    columns["embedding"] = pa.array([row["embedding"] for row in rows], pa.list_(pa.float32(), 2))
    pq.write_table(pa.table(columns), folder / f"part-{ordinals[0]:012}-{ordinals[-1]:012}.parquet")


def passage(number: int, embedding: list[float] | None, status: str = "ok") -> dict[str, Any]:
    return {
        "passage_id": f"p-{number}",
        "title": f"Title {number}",
        "text": f"Text {number}.",
        "status": status,
        "embedding": embedding,
    }


def question(expected: str, embedding: list[float]) -> dict[str, Any]:
    return {"question_id": "d-1", "question": "Which?", "passage_id": expected, "embedding": embedding}


@pytest.fixture
def passages(tmp_path: Path) -> Path:
    folder = tmp_path / "passages"
    write_part(folder, 0, [passage(0, [1.0, 0.0]), passage(1, [0.0, 2.0]), passage(2, None, "failed")])
    write_part(folder, 3, [passage(3, [1.0, 1.0]), passage(4, [-1.0, 0.0])])
    return folder


def test_the_three_nearest_are_printed_closest_first(
    tmp_path: Path, passages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_part(tmp_path / "questions", 0, [question("p-3", [0.0, 1.0])])
    assert NEAREST.main([str(passages), str(tmp_path / "questions")]) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"(-?\d\.\d{3})  (p-\d)  Title", printed) == [
        ("1.000", "p-1"),
        ("0.707", "p-3"),
        ("0.000", "p-0"),
    ]
    assert "1 of 1 questions found their passage" in printed


def test_a_question_whose_passage_is_not_among_the_three_exits_1(
    tmp_path: Path, passages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_part(tmp_path / "questions", 0, [question("p-4", [1.0, 0.1])])
    assert NEAREST.main([str(passages), str(tmp_path / "questions")]) == 1
    assert "expected p-4" in capsys.readouterr().out


def test_a_folder_without_parts_exits_2_and_is_named(
    tmp_path: Path, passages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert NEAREST.main([str(passages), str(tmp_path / "none")]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err


def test_folders_in_the_wrong_order_exit_2(tmp_path: Path, passages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_part(tmp_path / "questions", 0, [question("p-4", [1.0, 0.1])])
    assert NEAREST.main([str(tmp_path / "questions"), str(passages)]) == 2
    assert "right order" in capsys.readouterr().err


def test_passages_that_all_failed_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_part(tmp_path / "passages", 0, [passage(0, None, "failed")])
    write_part(tmp_path / "questions", 0, [question("p-0", [1.0, 0.0])])
    assert NEAREST.main([str(tmp_path / "passages"), str(tmp_path / "questions")]) == 2
    assert "no row was embedded" in capsys.readouterr().err


def test_vectors_of_different_sizes_exit_2(tmp_path: Path, passages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "questions"
    write_part(folder, 0, [question("p-0", [1.0, 0.0])])
    part = next(folder.iterdir())
    table = pq.ParquetFile(part).read().drop_columns(["embedding"])
    pq.write_table(table.append_column("embedding", pa.array([[1.0, 0.0, 0.0]], pa.list_(pa.float32(), 3))), part)
    assert NEAREST.main([str(passages), str(folder)]) == 2
    assert "differ in size" in capsys.readouterr().err
