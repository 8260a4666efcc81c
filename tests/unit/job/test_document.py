from pathlib import Path
from typing import Any

import pytest

from pipeline.job.document import MAX_BYTES, MAX_DEPTH, Report, override, read


def parsed(tmp_path: Path, text: str | bytes, name: str = "job.yaml") -> Report:
    file = tmp_path / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    report = Report(file=name)
    read(file, report)
    return report


def value_of(tmp_path: Path, text: str) -> Any:
    report = parsed(tmp_path, f"x: {text}\n")
    assert not report.problems
    return report.tree.data["x"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2024-10-21", "2024-10-21"),
        ("2024-10-21T01:02:03Z", "2024-10-21T01:02:03Z"),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("0777", 777),
        ("0o17", 15),
        ("0x1F", 31),
        ("0b11", "0b11"),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("-1.5E-2", -0.015),
        ("+7", 7),
        ("true", True),
        ("False", False),
        ("tRue", "tRue"),
        ("", None),
        ("~", None),
        ("null", None),
        ("Nil", "Nil"),
        ('"5"', "5"),
        ("'true'", "true"),
        ("!!str 5", "5"),
        ("<<", "<<"),
        ("=", "="),
        ("[1, a, null]", [1, "a", None]),
        ('{a: 1, "b c": [2]}', {"a": 1, "b c": [2]}),
        ("|\n  two\n  lines\n", "two\nlines\n"),
    ],
)
def test_scalars_are_read_by_yaml_1_2(tmp_path: Path, text: str, value: object) -> None:
    assert value_of(tmp_path, text) == value
    assert type(value_of(tmp_path, text)) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x 1\nb: *x\n", "anchors and aliases"),
        ("a: 1\nb: *nowhere\n", "anchors and aliases"),
        ("a: !!python/object/apply:os.system [id]\n", "tag"),
        ("a: !!binary aGk=\n", "tag"),
        ("a: !!timestamp 2024-10-21\n", "tag"),
        ("a: !!set {x}\n", "tag"),
        ("a: !!int word\n", "tag says"),
        ("a: !own 1\n", "tag"),
        ("a: .nan\n", "no number that JSON knows"),
        ("a: -.inf\n", "no number that JSON knows"),
        ("a: 1e999\n", "no number that JSON knows"),
        ("a: 123456789012345678901234567890\n", "64 bits"),
        ("a: 1\na: 2\n", "given twice"),
        ("a: {b: 1, b: 2}\n", "given twice"),
        ("a: {{ text }}\n", "must stand in quotes"),
        ("- a\n", "holds no job"),
        ("", "holds no job"),
        ("just text\n", "holds no job"),
        ("a: 1\n---\nb: 2\n", "is no YAML"),
        ("a: [1\n", "is no YAML"),
        ("a: @x\n", "is no YAML"),
        ("a: \x01\n", "control characters"),
        ("a: " + "[" * MAX_DEPTH + "]" * MAX_DEPTH, "deep"),
        ("a: " + "[" * 200_000, "deep"),
        ("a: b: c\n", "is no YAML"),
        ("#" * MAX_BYTES + "\na: 1\n", "larger than"),
    ],
)
def test_what_a_job_file_has_no_use_for_is_a_problem(tmp_path: Path, text: str, message: str) -> None:
    assert any(message in problem.message for problem in parsed(tmp_path, text).problems)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("request:\n  input: say: {{ text }}\n", "a text with a colon stands in quotes"),
        ("input:\n  path: x\n   id: y\n", "the keys of a section begin in the same column"),
        ("input:\n    path: x\n  id: y\n", "the keys of a section begin in the same column"),
        ('request:\n  input: "{{ name | default("it") }}"\n', "stands in quotes as a whole, of the other kind"),
        ("request:\n  input: {{ text }} and more\n", "stands in quotes as a whole"),
        ("input:\n\tpath: x\n", "indent with spaces"),
        ("request:\n  input: `x`\n", "a text that begins with this character stands in quotes"),
        ('request:\n  input: "x\n', "a quote is not closed"),
    ],
)
def test_yaml_that_cannot_be_read_is_told_what_it_lacks(tmp_path: Path, text: str, advice: str) -> None:
    (problem,) = parsed(tmp_path, text).problems
    assert problem.message.startswith("is no YAML: ")
    assert advice in problem.message


def test_places_are_those_of_the_file(tmp_path: Path) -> None:
    tree = parsed(tmp_path, "a: 1\nb:\n  - c: x\n    d: |\n      y\n").tree
    assert tree.marks["a",] == (1, 4)
    assert tree.marks["b", 0, "c"] == (3, 8)
    assert tree.keys["b", 0, "d"] == (4, 5)


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    assert parsed(tmp_path, "\ufeffa: 1\n").tree.data == {"a": 1}


def test_the_place_of_a_byte_that_is_no_utf8_is_told(tmp_path: Path) -> None:
    (problem,) = parsed(tmp_path, b"a: 1\nb: x\xff\n").problems
    assert (problem.line, problem.column) == (2, 5)


def test_a_file_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    report = Report(file="gone.yaml")
    read(tmp_path / "gone.yaml", report)
    assert [str(problem) for problem in report.problems] == ["gone.yaml: cannot be read: No such file or directory"]


def test_json_is_read_with_places(tmp_path: Path) -> None:
    report = parsed(tmp_path, '{\n\t"a": {"b": "\\ud83d\\ude00", "n": 1}\n}', "job.json")
    assert report.tree.data == {"a": {"b": "😀", "n": 1}}
    assert report.tree.marks["a", "n"][0] == 2
    assert not report.problems


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "given twice"),
        ('{"a": NaN}', "cannot be read"),
        ('{"a": 1,}', "is no JSON"),
        ("a: 1", "is no JSON"),
        ('{"a": ' + "[" * 40 + "]" * 40 + "}", "deep"),
    ],
)
def test_bad_json_is_a_problem(tmp_path: Path, text: str, message: str) -> None:
    assert any(message in problem.message for problem in parsed(tmp_path, text, "job.json").problems)


def test_toml_is_read_with_places(tmp_path: Path) -> None:
    text = 'name = "n"\n[input]\npath = "x"\n[[deployments]]\nname = "a"\n[[deployments]]\nname = "b"\n'
    report = parsed(tmp_path, text, "job.toml")
    assert report.tree.data["deployments"][1] == {"name": "b"}
    assert report.tree.marks["input", "path"] == (3, 8)
    assert report.tree.marks["deployments", 1, "name"] == (7, 8)


@pytest.mark.parametrize(
    ("text", "line"), [("a = 2024-10-21\n", 1), ("a = nan\n", 1), ("b = 1\na =\n", 2), ("a = 1\na = 2\n", 2)]
)
def test_bad_toml_is_a_problem_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    assert [problem.line for problem in parsed(tmp_path, text, "job.toml").problems] == [line]


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("run.workers", "64", {"run": {"workers": 64}}),
        ("run", "{workers: 1}", {"run": {"workers": 1}}),
        ("request.input", "{{ other }}", {"request": {"input": "{{ other }}"}}),
        ("request.input", "2024-10-21", {"request": {"input": "2024-10-21"}}),
        ("deployments.0.priority", "3", {"deployments": [{"name": "a", "priority": 3}, {"deployment": "b"}]}),
        ("deployments.a.priority", "3", {"deployments": [{"name": "a", "priority": 3}, {"deployment": "b"}]}),
        ("deployments.b.priority", "3", {"deployments": [{"name": "a"}, {"deployment": "b", "priority": 3}]}),
        ("a.b.c", "null", {"a": {"b": {"c": None}}}),
    ],
)
def test_an_override_is_put_where_its_path_says(path: str, text: str, expected: dict[str, Any]) -> None:
    data: dict[str, Any] = {"deployments": [{"name": "a"}, {"deployment": "b"}]}
    report = Report(file="job.yaml")
    override(data, path, text, report)
    assert not report.problems
    assert data == {"deployments": [{"name": "a"}, {"deployment": "b"}]} | expected


@pytest.mark.parametrize(
    ("path", "text"), [("deployments.c.priority", "1"), ("name.x", "1"), ("run", "[1"), ("run", "*a")]
)
def test_an_override_that_leads_nowhere_is_a_problem_without_a_place(path: str, text: str) -> None:
    report = Report(file="job.yaml")
    override({"deployments": [{"name": "a"}], "name": "n"}, path, text, report)
    assert [problem.line for problem in report.problems] == [None]
