from __future__ import annotations

import json
import sys
import unicodedata

import pytest

from pipeline.views.text import count, dollars, duration, json_text, plain, shortened, size, table


def test_nothing_that_moves_a_cursor_or_turns_text_passes() -> None:
    passed = {unicodedata.category(one) for code in range(sys.maxunicode + 1) if plain(one := chr(code)) == one}

    assert not passed & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def test_what_is_printable_stays() -> None:
    assert plain("naïve 猫 🐈 \\n") == "naïve 猫 🐈 \\n"


@pytest.mark.parametrize(
    ("text", "said"), [("a\nb", "a\\nb"), ("\x1b[31m", "\\x1b[31m"), ("\u202e", "\\u202e"), ("\ud800", "\\ud800")]
)
def test_what_is_not_printable_is_escaped(text: str, said: str) -> None:
    assert plain(text) == said


def test_json_says_the_same_escaped_and_readable() -> None:
    value = {"naïve": ["猫", "\u202e\x1b\x7f\U000e0001\ud800", {"n": 1.5}], "none": None}

    text = json_text(value)

    assert json.loads(text) == value
    assert "naïve" in text
    assert all(one.isprintable() or one == "\n" for one in text)


@pytest.mark.parametrize(
    ("text", "most", "said"), [("abc", 3, "abc"), ("abcd", 3, "ab…"), ("a\n", 9, "a\\n"), ("", 3, "")]
)
def test_long_text_is_cut(text: str, most: int, said: str) -> None:
    assert shortened(text, most) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (12.4, "12 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (7_500, "2 h 5 min"),
        (97_200, "1 d 3 h"),
    ],
)
def test_durations_are_said_in_two_figures(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("count_bytes", "said"), [(0, "0 B"), (999, "999 B"), (1_200, "1.2 kB"), (5e8, "500.0 MB"), (2e12, "2.0 TB")]
)
def test_sizes_are_said_by_powers_of_a_thousand(count_bytes: float, said: str) -> None:
    assert size(count_bytes) == said


@pytest.mark.parametrize(
    ("amount", "said"), [(0, "$0.0000"), (0.00123, "$0.0012"), (1, "$1.00"), (1234.5, "$1,234.50")]
)
def test_dollars_have_cents_or_fractions_of_them(amount: float, said: str) -> None:
    assert dollars(amount) == said


def test_nouns_agree_with_their_numbers() -> None:
    assert [count(number, "row") for number in (0, 1, 2_000)] == ["0 rows", "1 row", "2,000 rows"]


def test_cells_stand_in_columns() -> None:
    assert table([("a", "bb", "c"), ("aaa", "b", "")], head=("x", "y", "z")) == ["x    y   z", "a    bb  c", "aaa  b"]
    assert table([]) == []
