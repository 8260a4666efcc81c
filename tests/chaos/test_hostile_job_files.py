"""Two hundred hostile job files: each is refused with exit code 2 and words that name a place, and in time."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.report import record
from tests.cli.bench import JOB, Bench

FILES = int(os.environ.get("PIPELINE_JOB_FILES", "200"))
SEED = int(os.environ.get("PIPELINE_SEED", "20"))
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(0 if FILES > 1000 else 120)]
PLACE = re.compile(r"^\S*job\.(yaml|json|toml):\d+:\d+: ", re.MULTILINE)
WITHOUT_PLACE = re.compile(r"^\S*job\.(yaml|json|toml): \S", re.MULTILINE)

FIXED: list[tuple[str, bytes]] = [
    ("yaml", b"a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n"),
    ("yaml", b"operation: !!python/object/apply:os.system ['id']\n"),
    ("yaml", b"a: " + b"[" * 200_000),
    ("yaml", b"? [a]\n: b\n"),
    ("yaml", b"operation: chat\noperation: chat\n"),
    ("yaml", b"\xff\xfeo\x00p\x00"),
    ("yaml", b"\x00" * 100),
    ("yaml", b""),
    ("yaml", b"a: b\n" * 300_000),
    ("yaml", b"--- a\n--- b\n"),
    ("yaml", b"operation: chat\ninput: {path: rows.jsonl}\nrequest: 5\n"),
    ("yaml", b"%YAML 9.9\n---\na: b\n"),
    ("yaml", b"a: '" + b"x" * 900_000),
    ("json", b'{"operation": ' + b"9" * 5000 + b"}"),
    ("json", b'{"a":' * 5000),
    ("json", b'{"operation": NaN}'),
    ("json", b"[]"),
    ("json", b'{"operation": "\\ud800"}'),
    ("toml", b"a = " + b"[" * 20_000),
    ("toml", b"a = 1979-05-27\n"),
    ("toml", b"a = nan\n"),
    ("toml", b"[a]\n[a]\n"),
    ("toml", b"a = " + b"9" * 5000),
]
WORDS = [
    "{{ ",
    "{% if %}",
    "${",
    "${NOBODY}",
    "&a ",
    "*a",
    "!x ",
    "\t",
    "\x07",
    "[",
    "{",
    '"',
    ": :",
    "\u2028",
    "9" * 5000,
    "\x1b[2J",
]


def hostile() -> Iterator[tuple[str, bytes]]:
    """The fixed ones, then copies of a good file in which one line was made a bad one."""
    yield from FIXED
    dice = random.Random(SEED)
    lines = JOB.splitlines()
    while True:
        number = dice.randrange(len(lines))
        word = dice.choice(WORDS)
        line = lines[number]
        at = dice.randrange(len(line) + 1)
        broken = dice.choice([f"{line[:at]}{word}{line[at:]}", f"{line}\n{line}", f"unknown_{number}: {word}", word])
        yield "yaml", "\n".join([*lines[:number], broken, *lines[number + 1 :]]).encode()


def test_every_hostile_job_file_is_refused_in_words_with_a_place(tmp_path: Path) -> None:
    bench = Bench(
        folder=tmp_path, environ={"TEST_ENDPOINT": "https://x.openai.azure.com", "TEST_KEY": "k", "NO_COLOR": "1"}
    )
    bench.rows(["one?"])
    refused = placed = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for suffix, content in hostile():
        if refused >= FILES:
            break
        path = tmp_path / f"job.{suffix}"
        path.write_bytes(content)
        begun = time.process_time()
        said = bench.call("validate", path, "--show", "0")
        assert time.process_time() - begun < 20, content[:200]
        assert said.exit_code in {0, 2}, (content[:300], said.output)
        assert "Traceback" not in said.output
        assert "defect" not in said.output
        if said.exit_code == 0:
            continue  # the change was harmless
        refused += 1
        placed += bool(PLACE.search(said.stderr))
        assert PLACE.search(said.stderr) or WITHOUT_PLACE.search(said.stderr), (content[:300], said.stderr)
        assert said.stderr.replace("\n", "").isprintable()
    # What has no line in the file is what the file as a whole is.
    assert placed >= refused * 0.9
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000
    record(fault="F19", what="hostile job files", tried=refused, notes=f"{placed} named with a line")


def test_the_good_file_of_these_tests_is_good(tmp_path: Path) -> None:
    bench = Bench(folder=tmp_path, environ={"TEST_ENDPOINT": "https://x.openai.azure.com", "TEST_KEY": "k"})
    bench.rows(["one?"])
    bench.write(JOB)
    said = bench.call("validate", "job.yaml", "--json")
    assert json.loads(said.stdout)["ok"]
