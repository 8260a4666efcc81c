"""Inputs that are large, or small and hostile, read in a process of its own so that its memory can be seen."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

READER = """
import json, resource, sys
path, limit = sys.argv[1], int(sys.argv[2])
if limit:
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
from pipeline.model import Row
from pipeline.sources import open_source
from pipeline.sources.base import Position
from pipeline.sources.digest import RangeDigest

def peak_mb():
    # ru_maxrss would begin at the peak of the process that started this one.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024

source = open_source([path])
cursor = source.open(Position(), values=None, carried=source.schema.names)
ok, failed, peaks = 0, [], []
while (batch := cursor.read(1000, RangeDigest())).rows:
    good = sum(isinstance(row, Row) for row in batch.rows)
    ok += good
    if good < len(batch.rows):
        failed += [row.error.code for row in batch.rows if not isinstance(row, Row)]
    peaks.append((batch.end.ordinal, peak_mb()))
middle = next(peak for ordinal, peak in peaks if ordinal >= peaks[-1][0] / 10)
print(json.dumps({"ok": ok, "failed": failed, "growth_mb": peaks[-1][1] - middle, "peak_mb": peaks[-1][1]}))
"""


def read_apart(path: Path, *, address_space: int = 0) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", READER, str(path), str(address_space)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


ROWS = 200_000


@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz", "in.parquet"])
def test_memory_does_not_grow_with_the_rows(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    ids = [f"id-{number}" for number in range(ROWS)]
    texts = [f"a passage of some length, its number is {number}" for number in range(ROWS)]
    if name == "in.parquet":
        pq.write_table(pa.table({"id": ids, "text": texts}), path, row_group_size=50_000)
    else:
        lines = "".join(f'{{"id": "{id_}", "text": "{text}"}}\n' for id_, text in zip(ids, texts, strict=True))
        with pa.output_stream(str(path), compression="detect") as stream:
            stream.write(lines.encode())
    result = read_apart(path)
    assert (result["ok"], result["failed"]) == (ROWS, [])
    assert result["growth_mb"] < 20


@pytest.mark.parametrize(("size_mb", "times", "ok", "failed"), [(33, 64, 1, 64), (31, 64, 65, 0), (2, 1000, 1001, 0)])
def test_a_parquet_bomb_fails_its_rows_within_a_gigabyte(
    size_mb: int, times: int, ok: int, failed: int, tmp_path: Path
) -> None:
    path = tmp_path / "bomb.parquet"
    cells = pa.DictionaryArray.from_arrays(
        pa.array([0] * times + [1], pa.int32()), pa.array(["x" * (size_mb * 2**20), "neighbour"])
    )
    pq.write_table(pa.table({"a": cells}), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 20_000
    result = read_apart(path, address_space=2**30)
    assert (result["ok"], result["failed"]) == (ok, ["row_too_large"] * failed)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_line_of_300_mb_is_one_bad_row_within_a_gigabyte(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"in.jsonl{suffix}"
    with pa.output_stream(str(path), compression="detect") as stream:
        stream.write(b'{"a": "first"}\n{"a": "')
        for _ in range(300):
            stream.write(b"x" * 2**20)
        stream.write(b'"}\n{"a": "last"}\n')
    result = read_apart(path, address_space=2**30)
    assert (result["ok"], result["failed"]) == (2, ["row_too_large"])
    assert result["peak_mb"] < 250
