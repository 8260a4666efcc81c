"""A job file that is mangled anyhow is a job, or problems with a place: no other exception, and no waiting."""

from __future__ import annotations

import json
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline import operations
from pipeline.job.document import OVERRIDE
from pipeline.job.load import Draft, read
from tests.contract.test_operations import places, replaced, without
from tests.fuzz.effort import JSON, effort, mangled

JOBS = sorted((Path(__file__).parents[2] / "jobs").glob("*.yaml"))
ENVIRON = {"AZURE_OPENAI_ENDPOINT": "https://x.openai.azure.com", "AZURE_OPENAI_API_KEY": "k" * 32, "EMPTY": ""}
NAMES = operations.names()
SLOWEST_S = 10.0
PIECES = (
    b"\n",
    b"  ",
    b"\t",
    b": ",
    b"- ",
    b"{{ ",
    b" }}",
    b"{% for x in y %}",
    b"${",
    b"${EMPTY}",
    b"${NAME:-x}",
    b"&a ",
    b"*a",
    b"!!python/object:x ",
    b"!!binary ",
    b"<<: ",
    b"? ",
    b"| \n",
    b">-\n",
    b'"\\e]0;": ',
    b"'",
    b'"',
    b"[",
    b"{",
    b"#",
    b"---\n",
    b"%YAML 1.1\n",
    b"\xff",
    b"\x00",
    b"\xef\xbb\xbf",
    b"9" * 30,
    b"9" * 5000,
    b"0x" + b"f" * 30,
    b"1e999",
    b".nan",
    b"2024-10-21",
    b"yes",
    b"operation: chat\n",
    b"request:\n",
)


def readings(folder: Path, name: str, text: bytes, **more: Any) -> Draft:
    """Read a job file. What is wrong has a place and words, or there is a job of which an operation can be made."""
    file = folder / name
    file.write_bytes(text)
    begun = time.process_time()
    draft = read(file, environ=ENVIRON, operations=NAMES, **more)
    assert (draft.job is None) == bool(draft.problems)
    for problem in draft.problems:
        assert problem.message
        assert str(problem).isprintable()
        assert problem.file in {str(file), OVERRIDE}
    if draft.job is not None:
        assert operations.get(draft.job.operation).factory(draft.job).name == draft.job.operation
    assert time.process_time() - begun < SLOWEST_S
    return draft


@given(data=st.data())
@effort(120)
def test_a_mangled_text_is_a_job_or_problems(tmp_path: Path, data: st.DataObject) -> None:
    original = data.draw(st.sampled_from(JOBS)).read_bytes()
    readings(tmp_path, "job.yaml", data.draw(mangled(original, PIECES)), simulate=data.draw(st.booleans()))


@given(data=st.data(), suffix=st.sampled_from(["yaml", "json", "toml"]))
@effort(100)
def test_any_value_anywhere_is_a_job_or_problems(tmp_path: Path, data: st.DataObject, suffix: str) -> None:
    original = yaml.safe_load(data.draw(st.sampled_from(JOBS)).read_text())
    place = data.draw(st.sampled_from(list(places(original))))
    changed = (
        without(original, place) if place and data.draw(st.booleans()) else replaced(original, place, data.draw(JSON))
    )
    text = json.dumps(changed).encode()
    if suffix == "toml":
        text = toml(changed).encode("utf-8", "replace")
    elif data.draw(st.booleans()):
        text = data.draw(mangled(text, PIECES))
    readings(tmp_path, f"job.{suffix}", text)


def toml(value: Any) -> str:
    """Keys of the top as TOML lines, whatever is below as inline values; what TOML does not know is left as it is."""
    if not isinstance(value, dict):
        return json.dumps(value)
    lines = []
    for name, item in value.items():
        lines.append(f"{json.dumps(str(name))} = {inline(item)}")
    return "\n".join(lines)


def inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(name))} = {inline(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(inline, value)) + "]"
    return json.dumps(value)


def test_the_toml_of_these_tests_is_toml() -> None:
    for path in JOBS:
        original = yaml.safe_load(path.read_text())
        assert tomllib.loads(toml(original)) == original


@pytest.mark.parametrize("suffix", ["yaml", "json", "toml"])
@given(text=st.binary(max_size=120))
@effort(40)
def test_any_bytes_are_a_job_or_problems(tmp_path: Path, suffix: str, text: bytes) -> None:
    assert readings(tmp_path, f"job.{suffix}", text).problems


@given(
    name=st.lists(
        st.sampled_from(
            ["deployments", "0", "99999999999", "9" * 5000, "key", "request", "messages", "run", "", "²", "a"]
        ),
        min_size=1,
        max_size=5,
    ).map(".".join)
    | st.text(max_size=20),
    value=st.text(max_size=20)
    | st.sampled_from(["{{ x", "&a [*a]", "[" * 5000, "!!python/name:os.system", "9" * 5000]),
)
@effort(60)
def test_any_override_is_a_job_or_problems(tmp_path: Path, name: str, value: str) -> None:
    readings(tmp_path, "job.yaml", JOBS[0].read_bytes(), overrides={name: value})
