from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.model import BadRow
from pipeline.sources import SourceError, open_source
from pipeline.sources.base import Position

ReadAll = Callable[..., Any]


def table(rows: int, start: int = 0) -> pa.Table:
    numbers = range(start, start + rows)
    return pa.table(
        {
            "id": pa.array([f"id-{number}" for number in numbers], pa.string()),
            "n": pa.array([None if number % 7 == 0 else number for number in numbers], pa.int64()),
            "tags": pa.array([["t"] * (number % 3) for number in numbers], pa.list_(pa.string())),
        }
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.lists(st.tuples(st.integers(0, 150), st.integers(1, 80)), min_size=1, max_size=3),
    cuts=st.lists(st.integers(1, 70), max_size=8),
    bound=st.integers(0, 300),
)
def test_any_cutting_and_any_resume_gives_the_same_rows_and_digests(
    files: list[tuple[int, int]], cuts: list[int], bound: int, tmp_path: Path, read_all: ReadAll
) -> None:
    paths = []
    start = 0
    for index, (rows, group) in enumerate(files):
        path = tmp_path / f"{index}.parquet"
        pq.write_table(table(rows, start), path, row_group_size=group)
        paths.append(str(path))
        start += rows
    source = open_source(paths)
    columns = ["n", "tags"]
    whole = read_all(source, carried=columns)
    expected = table(start)
    assert [row.values for row in whole.rows] == expected.to_pylist()
    assert whole.carried.equals(expected.select(columns))
    cut = read_all(source, carried=columns, cuts=cuts)
    assert cut.rows == whole.rows
    assert cut.digest == whole.digest
    assert cut.carried.equals(whole.carried)
    for position in cut.ends:
        assert read_all(source, start=position, carried=columns).rows == whole.rows[position.ordinal :]
    head = read_all(source, carried=columns, rows=bound)
    head_by_small_steps = read_all(source, carried=columns, rows=bound, cuts=[3, 1, 2] * 100)
    assert head.digest == head_by_small_steps.digest


def test_the_rows_of_all_files_are_counted_beforehand(tmp_path: Path) -> None:
    for index in range(3):
        pq.write_table(table(10), tmp_path / f"{index}.parquet")
    assert open_source([str(tmp_path)]).row_count == 30


def test_only_wanted_columns_are_in_the_rows(tmp_path: Path, read_all: ReadAll) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(table(3), path)
    source = open_source([str(path)])
    assert read_all(source, values=frozenset({"n"}), carried=["id"]).outline == [{"n": None}, {"n": 1}, {"n": 2}]
    read = read_all(source, values=frozenset())
    assert read.outline == [{}, {}, {}]
    assert read.carried.num_columns == 0
    for values, carried in ((frozenset({"x"}), []), (None, ["x"])):
        with pytest.raises(SourceError, match="no column x; it has id, n, tags"):
            source.open(Position(), values=values, carried=carried)


def test_a_column_whose_name_holds_a_dot_is_one_column(tmp_path: Path, read_all: ReadAll) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"a.b": ["x"], "a": ["y"], "s": [{"b": 1}]}), path)
    source = open_source([str(path)])
    assert read_all(source, values=frozenset({"a"}), carried=["a.b"]).outline == [{"a": "y"}]
    assert read_all(source).outline == [{"a.b": "x", "a": "y", "s": {"b": 1}}]


def test_encoded_columns_are_read_as_their_plain_types(tmp_path: Path, read_all: ReadAll) -> None:
    path = tmp_path / "in.parquet"
    words = pa.array(["x", None, "x"])
    pq.write_table(
        pa.table(
            {"d": words.dictionary_encode(), "l": words.cast(pa.large_string()), "v": words.cast(pa.string_view())}
        ),
        path,
    )
    source = open_source([str(path)])
    assert source.schema.types == [pa.string(), pa.large_string(), pa.string()]
    read = read_all(source, carried=["d", "l", "v"])
    assert read.carried.to_pylist() == [{"d": x, "l": x, "v": x} for x in ("x", None, "x")]
    assert read.outline == read.carried.to_pylist()


def test_columns_that_may_not_be_null_still_carry_the_nulls_of_bad_rows(tmp_path: Path, read_all: ReadAll) -> None:
    path = tmp_path / "in.parquet"
    schema = pa.schema([pa.field("a", pa.string(), nullable=False)])
    broken = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"x\xffy")]
    )
    pq.write_table(pa.table([broken], schema=schema), path)
    source = open_source([str(path)])
    read = read_all(source, carried=["a"])
    assert read.outline == [{"a": "x"}, "invalid_utf8", {"a": "y"}]
    assert read.carried.column("a").to_pylist() == ["x", None, "y"]
    assert read.rows[1].error.message == "in.parquet: row 1: column a: not UTF-8"
    assert read_all(source, values=frozenset(), carried=["a"]).outline == [{}, "invalid_utf8", {}]


def test_times_are_read_to_the_microsecond_and_carried_as_they_are(tmp_path: Path, read_all: ReadAll) -> None:
    path = tmp_path / "in.parquet"
    column = pa.array([1_700_000_000_123_456_789, None], pa.timestamp("ns"))
    pq.write_table(pa.table({"t": column}), path)
    read = read_all(open_source([str(path)]), carried=["t"])
    assert read.outline == [{"t": dt.datetime(2023, 11, 14, 22, 13, 20, 123456)}, {"t": None}]  # noqa: DTZ001 - no zone
    assert read.carried.column("t").combine_chunks() == column


def test_a_value_that_python_cannot_hold_is_one_bad_row(tmp_path: Path, read_all: ReadAll) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"t": pa.array([0, 2**61, 1], pa.timestamp("us"))}), path)
    read = read_all(open_source([str(path)]))
    assert [isinstance(row, BadRow) for row in read.rows] == [False, True, False]
    assert read.outline[1] == "value_range"


def test_files_must_agree_by_name_and_type_in_any_order(tmp_path: Path, read_all: ReadAll) -> None:
    pq.write_table(table(2), tmp_path / "a.parquet")
    pq.write_table(table(2).select(["tags", "n", "id"]), tmp_path / "b.parquet")
    read = read_all(open_source([str(tmp_path)]), carried=["id", "n"])
    assert read.carried.num_rows == 4
    pq.write_table(table(2).drop_columns(["n"]), tmp_path / "c.parquet")
    with pytest.raises(SourceError, match=r"c\.parquet: does not agree with the files before it: column n is missing"):
        open_source([str(tmp_path)])
    pq.write_table(table(2).append_column("more", pa.array([1, 2])), tmp_path / "c.parquet")
    with pytest.raises(SourceError, match=r"c\.parquet: has columns that the files before it lack: more"):
        open_source([str(tmp_path)])
    other = table(2).set_column(1, "n", pa.array(["x", "y"]))
    pq.write_table(other, tmp_path / "c.parquet")
    with pytest.raises(SourceError, match=r"c\.parquet: does not agree .*: column n is string, not int64"):
        open_source([str(tmp_path)])


def test_a_column_without_any_value_in_one_file_takes_its_type_from_the_others(
    tmp_path: Path, read_all: ReadAll
) -> None:
    for name, cells in (("a", [None, None]), ("b", ["x", None]), ("c", [None])):
        pq.write_table(pa.table({"t": cells}), tmp_path / f"{name}.parquet")
    source = open_source([str(tmp_path)])
    assert source.schema.field("t").type == pa.string()
    read = read_all(source, carried=["t"])
    assert read.carried.column("t").to_pylist() == [None, None, "x", None, None]
    assert read_all(source, carried=["t"], cuts=[1] * 9).digest == read.digest


def test_a_kept_schema_is_held_against_the_files(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(table(2), path)
    kept = pa.ipc.read_schema(open_source([str(path)]).schema.serialize())
    assert open_source([str(path)], kept_schema=kept).schema.equals(kept)
    pq.write_table(table(2).append_column("more", pa.array([1, 2])), path)
    assert open_source([str(path)], kept_schema=kept).schema.equals(kept)
    pq.write_table(table(2).drop_columns(["id"]), path)
    with pytest.raises(SourceError, match="column id is missing"):
        open_source([str(path)], kept_schema=kept)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), path)
    with pytest.raises(SourceError, match="several columns a"):
        open_source([str(path)])


def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, read_all: ReadAll) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(table(5000), path, compression="zstd")
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(SourceError, match=r"in\.parquet: cannot be read as Parquet"):
        open_source([str(path)])
    path.write_bytes(whole[:100] + b"\xff" * 2000 + whole[2100:])
    source = open_source([str(path)])
    with pytest.raises(SourceError, match=r"in\.parquet: damaged"):
        read_all(source, carried=["id"])


def test_types_are_not_declared_for_parquet(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(table(2), path)
    with pytest.raises(SourceError, match=r"input\.columns"):
        open_source([str(path)], columns={"n": "string"})


def test_an_empty_file_has_columns_and_no_rows(tmp_path: Path, read_all: ReadAll) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(table(0), path)
    source = open_source([str(path)])
    read = read_all(source, carried=["tags"])
    assert read.rows == []
    assert source.schema.names == ["id", "n", "tags"]


def test_a_grown_file_goes_on_from_its_old_end(tmp_path: Path, read_all: ReadAll) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(table(70), path)
    before = read_all(open_source([str(path)]))
    pq.write_table(table(80), path)
    source = open_source([str(path)])
    assert read_all(source, rows=70).digest == before.digest
    assert read_all(source, start=before.ends[-1]).outline == table(80).slice(70).to_pylist()
