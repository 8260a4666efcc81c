from __future__ import annotations

import datetime as dt
import gzip
import json
from collections.abc import Callable
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.model import BadRow, Row
from pipeline.sources import SourceError, open_source
from pipeline.sources.base import Position
from pipeline.sources.digest import RangeDigest
from pipeline.sources.jsonl import MAX_LINE_BYTES

Jsonl = Callable[..., str]
ReadAll = Callable[..., Any]

GOOD = ('{"a": "first"}', '{"a": "last"}')

POISON: dict[str, list[str | bytes]] = {
    "invalid_json": [
        "{",
        "nonsense",
        '{"a": NaN}',
        '{"a": Infinity}',
        '{"a": 1e400}',
        '{"a": ' + "9" * 5000 + "}",
        '{"a": "x"} {"a": "y"}',
        "{'a': 1}",
        '{"a": "x",}',
        b'{"a": "\x00"}',
        b'{"a": "\x1f"}',
        "\ufeff{}",
        "\u2028",
    ],
    "not_an_object": ["[]", '"text"', "1", "null", "true", '[{"a": "x"}]'],
    "surrogate": [r'{"a": "\ud800"}', r'{"a": "\udfff"}', b'{"a": "\xed\xa0\x80"}', r'{"\ud800": 1}'],
    "invalid_utf8": [b'{"a": "\xff"}', b'{"a": "\xc3"}', b"\xfe\xff"],
    "too_deep": ["[" * 10_000 + "]" * 10_000, '{"a": ' * 10_000 + "1" + "}" * 10_000],
    "column_type": ['{"a": 1}', '{"a": true}', '{"a": ["x"]}', '{"a": {"b": 1}}', '{"a": 1.5}'],
}


@pytest.mark.parametrize(("code", "line"), [(code, line) for code, lines in POISON.items() for line in lines])
def test_a_poisonous_line_is_one_bad_row_and_harms_no_neighbour(
    code: str, line: str | bytes, jsonl: Jsonl, read_all: ReadAll
) -> None:
    path = jsonl(GOOD[0], line, GOOD[1])
    schema = open_source([jsonl(*GOOD, name="sample.jsonl")]).schema
    read = read_all(open_source([path], kept_schema=schema), carried=["a"])
    assert read.outline == [{"a": "first"}, code, {"a": "last"}]
    assert read.carried.column("a").to_pylist() == ["first", None, "last"]
    assert read.rows[1].error.message.startswith("in.jsonl:2: ")


@pytest.mark.parametrize(
    "line",
    [
        r'{"a": "\u0000"}',
        '{"a": "\ufeff"}',
        '{"a": "\u2028\x85"}',
        '  {"a": "indented"}\t',
        '{"a": "first", "a": "second"}',
        '{"a": "12345678901234567890123"}',
    ],
)
def test_an_odd_line_that_is_json_is_a_row(line: str, jsonl: Jsonl, read_all: ReadAll) -> None:
    read = read_all(open_source([jsonl(line)]), carried=["a"])
    assert read.outline == [json.loads(line)]
    assert read.carried.column("a").to_pylist() == [json.loads(line)["a"]]


@pytest.mark.parametrize(
    ("kind", "column", "line"),
    [
        ("int64", "1", '{"a": 12345678901234567890}'),
        ("int64", "1", '{"a": -9223372036854775809}'),
        ("int64", "1", '{"a": 123456789012345678901234567890}'),
        ("double", "1.5", '{"a": 123456789012345678901}'),
        ("double", "1.5", '{"a": 9007199254740993}'),
        ("list", "[1.5]", '{"a": [123456789012345678901]}'),
        ("json", '{"b": 1}', '{"a": {"b": [123456789012345678901]}}'),
        ("json", '{"b": 1}', '{"a": -123456789012345678901}'),
    ],
)
def test_an_integer_that_would_be_changed_is_refused(
    kind: str, column: str, line: str, jsonl: Jsonl, read_all: ReadAll
) -> None:
    good = '{"a": ' + column + "}"
    schema = open_source([jsonl(good)]).schema
    read = read_all(open_source([jsonl(good, line, good)], kept_schema=schema), carried=["a"])
    assert [isinstance(row, BadRow) for row in read.rows] == [False, True, False], kind
    assert read.outline[1] == "integer_range"
    assert read.carried.column("a").null_count == 1


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ('{"a": 9223372036854775807}', 9223372036854775807),
        ('{"a": -9223372036854775808}', -9223372036854775808),
        ('{"a": 3.0}', 3),
        ('{"a": null}', None),
        ("{}", None),
    ],
)
def test_a_number_that_fits_an_integer_column_is_kept(
    line: str, value: int | None, jsonl: Jsonl, read_all: ReadAll
) -> None:
    schema = pa.schema([("a", pa.int64())])
    read = read_all(open_source([jsonl(line)], kept_schema=schema), carried=["a"])
    assert read.carried.column("a").to_pylist() == [value]
    assert read.outline == [{"a": value}]


def test_a_long_integer_in_a_column_that_nobody_reads_is_no_fault(jsonl: Jsonl, read_all: ReadAll) -> None:
    path = jsonl('{"a": "x", "b": 1}', '{"a": "y", "b": 123456789012345678901}')
    read = read_all(open_source([path]), values=frozenset({"a"}), carried=["a"])
    assert all(isinstance(row, Row) for row in read.rows)


def test_a_long_integer_within_text_is_no_fault(jsonl: Jsonl, read_all: ReadAll) -> None:
    path = jsonl('{"n": 1, "a": "123456789012345678901234567890", "b": ["123456789012345678901234567890", 1]}')
    assert all(isinstance(row, Row) for row in read_all(open_source([path]), carried=["n", "a", "b"]).rows)


def test_nesting_is_kept_to_a_depth_that_a_request_can_still_hold(jsonl: Jsonl, read_all: ReadAll) -> None:
    deep = ['{"a": ' + "[" * depth + "]" * depth + "}" for depth in (200, 201, 1000)]
    text = '{"a": ["' + "[" * 500 + '"]}'
    read = read_all(open_source([jsonl('{"a": {}}', *deep, text)]), carried=["a"])
    assert [row.error.code if isinstance(row, BadRow) else "row" for row in read.rows] == [
        "row",
        "row",
        "too_deep",
        "too_deep",
        "row",
    ]


def test_a_deep_line_with_a_long_number_in_a_column_that_nobody_reads_ends_no_run(
    jsonl: Jsonl, read_all: ReadAll
) -> None:
    line = '{"a": 1, "b": ' + "[" * 1000 + "1234567890123456789012" + "]" * 1000 + "}"
    read = read_all(open_source([jsonl('{"a": 1}', line)]), values=frozenset({"a"}))
    assert isinstance(read.rows[0], Row)
    assert len(read.rows) == 2


def test_a_line_over_the_cap_is_read_past(jsonl: Jsonl, read_all: ReadAll) -> None:
    whole = b'{"a": "' + b"x" * (MAX_LINE_BYTES - 9) + b'"}'
    assert len(whole) == MAX_LINE_BYTES
    over = whole[:-2] + b'x"}'
    source = open_source([jsonl(GOOD[0], over, GOOD[1], whole, over, last=b"")])
    read = read_all(source, carried=["a"])
    lengths = [len(value) if value else value for value in read.carried.column("a").to_pylist()]
    assert lengths == [5, None, 4, MAX_LINE_BYTES - 9, None]
    assert [row.error.code for row in read.rows if isinstance(row, BadRow)] == ["row_too_large"] * 2
    assert [row.error.message.split(":")[1] for row in read.rows if isinstance(row, BadRow)] == ["2", "5"]
    resumed = read_all(source, start=read.ends[0], carried=["a"])
    assert [row.ordinal for row in resumed.rows] == [1, 2, 3, 4]
    one_by_one = read_all(source, carried=["a"], cuts=[1] * 5)
    assert one_by_one.digest == read.digest


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [b"", None])
@pytest.mark.parametrize("blanks", [False, True])
def test_bom_line_ends_and_blank_lines_change_neither_rows_nor_digest(
    bom: bytes, end: bytes, last: bytes | None, blanks: object, jsonl: Jsonl, read_all: ReadAll
) -> None:
    plain = read_all(open_source([jsonl(*GOOD, name="plain.jsonl")]), carried=["a"])
    lines = [b"", *(line.encode() for line in GOOD), b" \t", b""] if blanks else [line.encode() for line in GOOD]
    lines[0] = bom + lines[0]
    source = open_source([jsonl(*lines, end=end, last=last)])
    read = read_all(source, carried=["a"])
    assert read.outline == plain.outline
    assert read.digest == plain.digest
    for row, position in enumerate(read_all(source, cuts=[1] * 10).ends, start=1):
        assert read_all(source, start=position).outline == plain.outline[row:]


def test_line_numbers_count_blank_lines_and_go_on_after_a_resume(jsonl: Jsonl, read_all: ReadAll) -> None:
    source = open_source([jsonl('{"a": "x"}', "", "bad", "", "", "bad", '{"a": "y"}', "bad", last=b"")])
    read = read_all(source, cuts=[1] * 9)
    assert [row.error.message.split(":")[1] for row in read.rows if isinstance(row, BadRow)] == ["3", "6", "8"]
    for index, position in enumerate(read.ends, start=1):
        assert read_all(source, start=position).rows == read.rows[index:]


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n\r\n", b"\xef\xbb\xbf", b"  "])
def test_an_empty_file_has_no_rows_and_no_columns(content: bytes, tmp_path: Path, read_all: ReadAll) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)
    source = open_source([str(path)])
    assert source.schema.names == []
    assert read_all(source).rows == []


def test_rows_run_on_over_files_and_batches_are_never_empty_before_the_end(jsonl: Jsonl, read_all: ReadAll) -> None:
    paths = [
        jsonl('{"a": "1"}', name="1.jsonl"),
        jsonl("", name="2.jsonl"),
        jsonl('{"a": "3"}', '{"a": "4"}', name="3.jsonl", last=b""),
        jsonl("", name="4.jsonl"),
    ]
    source = open_source(paths)
    read = read_all(source, cuts=[1] * 9, carried=["a"])
    assert [row.values["a"] for row in read.rows] == ["1", "3", "4"]
    for index, position in enumerate(read.ends, start=1):
        assert read_all(source, start=position).outline == read.outline[index:]


def test_a_grown_file_goes_on_from_its_old_end(jsonl: Jsonl, tmp_path: Path, read_all: ReadAll) -> None:
    path = jsonl(*GOOD, last=b"")
    end = read_all(open_source([path])).ends[-1]
    with (tmp_path / "in.jsonl").open("ab") as file:
        file.write(b'\n{"a": "new"}\nbad\n')
    read = read_all(open_source([path]), start=end)
    assert read.outline == [{"a": "new"}, "invalid_json"]
    assert read.rows[1].error.message.startswith("in.jsonl:4: ")


def test_missing_keys_are_null_for_every_column_wanted(jsonl: Jsonl, read_all: ReadAll) -> None:
    source = open_source([jsonl('{"a": "x"}', '{"b": 1}', "{}")])
    assert read_all(source, carried=["a", "b"]).outline == [
        {"a": "x", "b": None},
        {"a": None, "b": 1},
        {"a": None, "b": None},
    ]
    rows = read_all(source, values=frozenset({"a", "unseen"})).rows
    assert [row.values["unseen"] for row in rows] == [None] * 3


def test_a_wrong_type_matters_only_in_columns_that_are_read(jsonl: Jsonl, read_all: ReadAll) -> None:
    path = jsonl('{"a": "x", "b": 1}')
    schema = open_source([path]).schema
    source = open_source([jsonl('{"a": "x", "b": "text"}')], kept_schema=schema)
    assert read_all(source, values=frozenset({"a"}), carried=["a"]).outline == [{"a": "x", "b": "text"}]
    assert read_all(source, values=frozenset({"b"})).outline == ["column_type"]
    assert read_all(source, values=frozenset(), carried=["b"]).outline == ["column_type"]


def test_messages_name_file_line_column_and_types_and_quote_no_content(jsonl: Jsonl, read_all: ReadAll) -> None:
    path = jsonl('{"a": 1}')
    schema = open_source([path]).schema
    quoted = "hunter2"
    lines = [f'{{"a": "{quoted}"}}', f'{{"a": {quoted}}}', f'["{quoted}"]', f'"{quoted}']
    rows = read_all(open_source([jsonl(*lines)], kept_schema=schema), carried=["a"]).rows
    assert "in.jsonl:1: column a: expected int64, found text" in rows[0].error.message
    assert all(quoted not in row.error.message for row in rows)


def test_an_unknown_carried_column_is_refused(jsonl: Jsonl) -> None:
    source = open_source([jsonl(*GOOD)])
    with pytest.raises(SourceError, match="no column b; it has a"):
        source.open(Position(), values=None, carried=["b"])


@pytest.mark.parametrize("content", [b'[\n{"a": 1}\n]', b'{\n  "a": 1\n}'])
def test_json_over_several_lines_is_named_as_such(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "in.json"
    path.write_bytes(content)
    with pytest.raises(SourceError, match="JSON Lines has one object a line"):
        open_source([str(path)])


def test_utf16_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes('{"a": 1}\n'.encode("utf-16"))
    with pytest.raises(SourceError, match="UTF-16"):
        open_source([str(path)])


def _compressed(content: bytes, suffix: str) -> bytes:
    if suffix == ".gz":
        return gzip.compress(content)
    return bytes(pa.compress(content, codec="zstd", asbytes=True))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("named", [True, False])
def test_compressed_files_read_like_plain_ones(suffix: str, named: object, tmp_path: Path, read_all: ReadAll) -> None:
    lines = [json.dumps({"a": f"text {index}", "n": index}).encode() for index in range(3000)]
    content = b"\n".join(lines)
    plain, packed = tmp_path / "plain.jsonl", tmp_path / ("in.jsonl" + (suffix if named else ""))
    plain.write_bytes(content)
    # Two members, as `cat a.gz b.gz` gives them.
    packed.write_bytes(_compressed(content[:50_000], suffix) + _compressed(content[50_000:], suffix))
    expected = read_all(open_source([str(plain)]), carried=["a", "n"], cuts=[7, 500])
    source = open_source([str(packed)])
    actual = read_all(source, carried=["a", "n"], cuts=[7, 500])
    assert actual.outline == expected.outline
    assert actual.digest == expected.digest
    assert actual.ends == expected.ends
    assert actual.carried.equals(expected.carried)
    for position in (actual.ends[0], actual.ends[1], actual.ends[-1]):
        rest = read_all(source, start=position, carried=["a", "n"])
        assert rest.outline == expected.outline[position.ordinal :]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_damaged_compression_is_an_error_of_the_input(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"in.jsonl{suffix}"
    content = b"".join(b'{"a": %d}\n' % index for index in range(5000))
    packed = _compressed(content, suffix)
    for broken in (packed[:-20], packed[:10] + b"\xff" * 50 + packed[60:]):
        path.write_bytes(broken)
        with pytest.raises(SourceError, match="damaged or cut"):
            open_source([str(path)])


LINE = st.one_of(
    st.fixed_dictionaries({"a": st.text(max_size=5) | st.none(), "n": st.integers(-5, 5)}).map(
        lambda row: json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass")
    ),
    st.sampled_from([b"", b" ", b"{}", b"bad", b"[]", b'{"a": 1}', b'{"n": 123456789012345678901}', b"\xff", b"\r"]),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.lists(st.tuples(st.lists(LINE, max_size=8), st.sampled_from([b"\n", b"\r\n"]), st.booleans()), max_size=3),
    cuts=st.lists(st.integers(1, 4), max_size=10),
    bounds=st.lists(st.integers(0, 24), max_size=3),
)
def test_any_cutting_and_any_resume_gives_the_same_rows_and_digests(
    files: list[tuple[list[bytes], bytes, bool]],
    cuts: list[int],
    bounds: list[int],
    tmp_path: Path,
    read_all: ReadAll,
) -> None:
    paths = []
    for index, (lines, end, closed) in enumerate([*files, ([b'{"a": "x", "n": 1}'], b"\n", True)]):
        path = tmp_path / f"{index}.jsonl"
        path.write_bytes(end.join(lines) + (end if closed else b""))
        paths.append(str(path))
    types: dict[str, pa.DataType] = {"a": pa.string(), "n": pa.int64()}
    schema = pa.schema(types)
    source = open_source(paths, kept_schema=schema)
    columns = ["a", "n"]
    whole = read_all(source, carried=columns)
    cut = read_all(source, carried=columns, cuts=cuts)
    assert cut.rows == whole.rows
    assert cut.digest == whole.digest
    assert cut.carried.equals(whole.carried)
    for position in cut.ends:
        rest = read_all(source, start=position, carried=columns)
        assert rest.rows == whole.rows[position.ordinal :]
        assert rest.carried.equals(whole.carried.slice(position.ordinal))
    position = Position()
    for bound in sorted(bounds):
        length = bound - position.ordinal
        if length <= 0:
            continue
        by_ones = read_all(source, start=position, carried=columns, cuts=[1] * 30, rows=length)
        at_once = read_all(source, start=position, carried=columns, rows=length)
        assert by_ones.digest == at_once.digest
        position = at_once.ends[-1] if at_once.ends else position


DECLARED: dict[str, tuple[list[tuple[Any, Any]], list[Any]]] = {
    "string": ([("x", "x"), (7, "7"), (1.10, "1.1"), (True, "true"), (None, None)], [[], {}]),
    "decimal(10,2)": (
        [(1, Decimal("1.00")), (1.5, Decimal("1.50")), ("2.25", Decimal("2.25")), (-0.0, Decimal("0.00"))],
        [1.005, "x", True, "NaN", "Infinity", 123456789, 1e300, [1], ""],
    ),
    "date": ([("2024-10-21", dt.date(2024, 10, 21))], ["21.10.2024", 20241021, True]),
    "timestamp": (
        [
            ("2024-10-21T12:00:00Z", dt.datetime(2024, 10, 21, 12, tzinfo=dt.UTC)),
            ("2024-10-21T12:00:00", dt.datetime(2024, 10, 21, 12, tzinfo=dt.UTC)),
            ("2024-10-21T12:00:00+02:00", dt.datetime(2024, 10, 21, 10, tzinfo=dt.UTC)),
        ],
        ["yesterday", 1729512000, "0001-01-01T00:00:00+12:00"],
    ),
    "binary": ([("aGk=", b"hi"), ("", b"")], ["%", "aGk", 5]),
    "double": ([(1, 1.0), (1.5, 1.5)], ["1", True]),
    "float": ([(1.5, 1.5)], [1e300, "x"]),
    "int8": ([(127, 127), (-128, -128), (2.0, 2)], [128, 1.5, "1", True]),
    "int64": ([(1, 1)], [1.5, "1"]),
    "bool": ([(True, True), (False, False)], [0, "true"]),
    "list<double>": ([([1, 2.5, None], [1.0, 2.5, None]), ([], [])], [[True], ["1"], 1, {"a": 1}, "12"]),
    "list<string>": ([(["a", None], ["a", None])], [[1], "text"]),
    "json": ([(1, "1"), ("x", '"x"'), ({"b": [1]}, '{"b":[1]}'), (None, None), (1.5, "1.5")], []),
}


@pytest.mark.parametrize("type_", DECLARED)
def test_declared_types_take_what_they_say_and_refuse_the_rest(type_: str, jsonl: Jsonl, read_all: ReadAll) -> None:
    good, bad = DECLARED[type_]
    lines = [json.dumps({"a": value}) for value in [*(value for value, _ in good), *bad]]
    read = read_all(open_source([jsonl(*lines)], columns={"a": type_}), carried=["a"])
    assert read.carried.column("a").to_pylist() == [expected for _, expected in good] + [None] * len(bad)
    assert [isinstance(row, BadRow) for row in read.rows] == [False] * len(good) + [True] * len(bad)
    assert {row.error.code for row in read.rows if isinstance(row, BadRow)} <= {"column_type", "integer_range"}


@pytest.mark.parametrize(
    ("type_", "written", "value"),
    [
        ("decimal(38,2)", "123456789012345678901234567890.25", Decimal("123456789012345678901234567890.25")),
        ("decimal(60,0)", "1" + "0" * 50, Decimal(10) ** 50),
        ("decimal(20,0)", "12345678901234567890", Decimal(12345678901234567890)),
        ("decimal(5,1)", "1.0e2", Decimal("100.0")),
        ("string", "1.10", "1.10"),
        ("string", "123456789012345678901234567890", "123456789012345678901234567890"),
    ],
)
def test_declared_text_and_decimals_keep_every_digit_as_written(
    type_: str, written: str, value: Any, jsonl: Jsonl, read_all: ReadAll
) -> None:
    read = read_all(open_source([jsonl('{"a": ' + written + "}")], columns={"a": type_}), carried=["a"])
    assert read.carried.column("a").to_pylist() == [value]
    assert read.outline == [{"a": value}]


def test_json_columns_carry_text_while_rows_keep_the_object(jsonl: Jsonl, read_all: ReadAll) -> None:
    messages = [{"role": "user", "content": "hi"}]
    read = read_all(open_source([jsonl(json.dumps({"m": messages}))]), carried=["m"])
    assert read.outline == [{"m": messages}]
    assert json.loads(read.carried.column("m")[0].as_py()) == messages


def test_a_declared_column_that_no_row_holds_is_a_column_of_nulls(jsonl: Jsonl, read_all: ReadAll) -> None:
    read = read_all(open_source([jsonl("{}")], columns={"a": "date"}), carried=["a"])
    assert read.carried.column("a").to_pylist() == [None]


def test_the_schema_survives_serialisation_with_all_that_it_says(jsonl: Jsonl, read_all: ReadAll) -> None:
    path = jsonl('{"j": {"x": 1}, "s": 7, "d": 1.5}')
    source = open_source([path], columns={"s": "string", "d": "decimal(5,2)"})
    kept = pa.ipc.read_schema(source.schema.serialize())
    again = open_source([path], kept_schema=kept)
    names = source.schema.names
    first, second = read_all(source, carried=names), read_all(again, carried=names)
    assert first.outline == second.outline
    assert first.carried.equals(second.carried, check_metadata=True)


def test_the_share_before_a_position_is_that_of_all_bytes(jsonl: Jsonl) -> None:
    files = [jsonl(*['{"a": "xx"}'] * rows, name=f"{name}.jsonl") for name, rows in (("a", 3), ("b", 1))]
    source = open_source(files)
    with closing(source.open(Position(), values=None, carried=())) as cursor:
        ends = [cursor.read(1, RangeDigest()).end for _ in range(4)]
    shares = [source.share_before(end) for end in ends]  # type: ignore[attr-defined]
    assert shares == [0.25, 0.5, 0.75, 1.0]
    assert source.share_before(Position()) == 0.0  # type: ignore[attr-defined]


def test_compressed_or_empty_files_tell_no_share(tmp_path: Path, jsonl: Jsonl) -> None:
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n'))
    for path in (str(tmp_path / "in.jsonl.gz"), jsonl(end=b"", name="empty.jsonl")):
        source = open_source([path], format="jsonl", kept_schema=pa.schema([pa.field("a", pa.int64())]))
        assert source.share_before(Position(ordinal=1, offset=5)) is None  # type: ignore[attr-defined]
