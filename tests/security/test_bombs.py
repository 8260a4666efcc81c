"""A few kilobytes that stand for gigabytes: a failed row or a clear refusal, in some 600 MB beside an idle run's."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.cli.bench import JOB
from tests.security.raw_server import answer, raw_server

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]
# A run of one row takes 1.4 GiB of it (140 MB of memory): arenas that Arrow reserves, stacks of threads, libraries.
ADDRESSES = 2 * 2**30
WITHIN = (
    f"import resource, sys, runpy; resource.setrlimit(resource.RLIMIT_AS, ({ADDRESSES}, {ADDRESSES})); "
    "sys.argv[0] = 'pipeline'; runpy.run_module('pipeline', run_name='__main__', alter_sys=True)"
)
COMPLETION = (
    b'{"id":"c","object":"chat.completion","model":"m","choices":[{"index":0,"finish_reason":"stop",'
    b'"message":{"role":"assistant","content":"Yes."}}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}'
)
BEFORE, BEHIND = b'{"id": "before", "question": "one?"}\n', b'{"id": "behind", "question": "two?"}\n'


def run(folder: Path, name: str, reply: bytes = b"") -> tuple[int, str, list[tuple[str, str | None]]]:
    """Run over one input under the limit: the exit code, what was said, and how each row ended."""
    with raw_server(lambda request: reply or answer(200, COMPLETION)) as server:
        job = JOB.replace("rows.jsonl", name).replace("path: out", "path: out\n  columns: [id]")
        (folder / "job.yaml").write_text(job.replace("  workers: 4", "  workers: 2"))
        environ = {"TEST_ENDPOINT": server.url, "TEST_KEY": "k", "NO_COLOR": "1", "MALLOC_ARENA_MAX": "2"}
        done = subprocess.run(
            [sys.executable, "-c", WITHIN, "run", "job.yaml"],
            cwd=folder,
            env={**os.environ, **environ},
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
    ends: list[tuple[str, str | None]] = []
    for path in sorted((folder / "out").glob("part-*.parquet")):
        rows = pq.read_table(path, columns=["status", "error"]).to_pylist()
        ends += [(row["status"], row["error"] and row["error"]["code"]) for row in rows]
    return done.returncode, done.stdout + done.stderr, ends


def packed(codec: str, line: bytes, times: int) -> bytes:
    """A line of `times` copies of a piece, packed piece by piece, so that nobody has to hold it to make it."""

    def pack(data: bytes) -> bytes:
        if codec == "gzip":
            return gzip.compress(data, 1)
        buffer = pa.BufferOutputStream()
        with pa.CompressedOutputStream(buffer, "zstd") as stream:
            stream.write(data)
        return bytes(buffer.getvalue())

    return pack(BEFORE + b'{"id": "bomb", "question": "') + pack(line) * times + pack(b'"}\n' + BEHIND)


PIECE = b"a" * (16 * 2**20)
LINES: dict[str, Callable[[], tuple[str, bytes]]] = {
    "800 megabytes of gzip in a line": lambda: ("in.jsonl.gz", packed("gzip", PIECE, 50)),
    "800 megabytes of zstd in a line": lambda: ("in.jsonl.zst", packed("zstd", PIECE, 50)),
    "a line of fifty megabytes": lambda: (
        "in.jsonl",
        BEFORE + b'{"id": "bomb", "question": "' + b"a" * (50 * 2**20) + b'"}\n' + BEHIND,
    ),
    "ten million brackets": lambda: (
        "in.jsonl",
        BEFORE + b'{"id": "bomb", "question": ' + b"[" * 10_000_000 + b"}\n" + BEHIND,
    ),
}


@pytest.mark.parametrize("case", LINES)
def test_a_line_that_grows_is_one_failed_row(tmp_path: Path, case: str) -> None:
    name, content = LINES[case]()
    (tmp_path / name).write_bytes(content)
    code, said, ends = run(tmp_path, name)
    assert (code, [end[0] for end in ends]) == (1, ["ok", "failed", "ok"]), said[-2000:]
    assert ends[1][1] in {"row_too_large", "too_deep"}


def dictionary(path: Path, size: int, rows: int) -> None:
    """Rows that all name the one text of a dictionary."""
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["a" * size]))
    numbers = [f"r{n}" for n in range(rows)]
    pq.write_table(pa.table({"id": numbers, "question": texts}), path, compression="zstd", use_dictionary=True)


@pytest.mark.parametrize(("size", "rows", "code"), [(33 * 2**20, 30, "row_too_large"), (8 * 2**20, 110, "too_long")])
def test_a_small_parquet_file_of_a_gigabyte_is_failed_rows(tmp_path: Path, size: int, rows: int, code: str) -> None:
    dictionary(tmp_path / "in.parquet", size, rows)
    assert (tmp_path / "in.parquet").stat().st_size < 100_000
    exit_code, said, ends = run(tmp_path, "in.parquet")
    assert (exit_code, ends) == (1, [("failed", code)] * rows), said[-2000:]


REPLIES: dict[str, Callable[[], bytes]] = {
    "eighty megabytes of gzip": lambda: answer(200, gzip.compress(PIECE * 5, 1), "content-encoding: gzip"),
    "a hundred megabytes": lambda: answer(200, b'{"choices":"' + b"a" * 100 * 2**20 + b'"}'),
    "a hundred megabytes of error": lambda: answer(400, b"a" * 100 * 2**20),
    "deep": lambda: answer(200, b"[" * 10_000_000),
    "a million keys": lambda: answer(200, json.dumps({f"key{n}": n for n in range(1_000_000)}).encode()),
}


@pytest.mark.parametrize("case", REPLIES)
def test_a_reply_that_grows_is_a_failed_row(tmp_path: Path, case: str) -> None:
    (tmp_path / "in.jsonl").write_bytes(BEFORE)
    code, said, ends = run(tmp_path, "in.jsonl", REPLIES[case]())
    assert (code, ends) == (1, [("failed", "bad_reply")]), said[-2000:]


def keys(count: int) -> bytes:
    return json.dumps({"id": "bomb", "question": "?", **{f"key{n}": n for n in range(count)}}).encode() + b"\n"


def test_a_row_of_many_keys_is_asked_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(BEFORE + keys(100_000) + BEHIND)
    code, said, ends = run(tmp_path, "in.jsonl")
    assert (code, ends) == (0, [("ok", None)] * 3), said[-2000:]


def test_an_input_with_an_extension_type_loads_no_code(tmp_path: Path) -> None:
    """Extension types of Arrow are names in a file's metadata: they are read as their storage."""
    field: Any = pa.field(
        "question",
        pa.string(),
        metadata={
            "ARROW:extension:name": "arrow.py_extension_type",
            "ARROW:extension:metadata": "cos\nsystem\n(S'id'\ntR.",
        },
    )
    table = pa.Table.from_arrays(
        [pa.array(["r0"]), pa.array(["one?"])], schema=pa.schema([pa.field("id", pa.string()), field])
    )
    pq.write_table(table, tmp_path / "in.parquet")
    code, said, ends = run(tmp_path, "in.parquet")
    assert (code, ends) == (0, [("ok", None)]), said[-2000:]
