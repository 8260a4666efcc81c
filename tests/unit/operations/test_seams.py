from __future__ import annotations

import pytest

from pipeline.operations._joining import Piece, join_texts
from pipeline.operations._seams import glued, met, parted, shortened

QUIET = Piece(0.0, 10.0, 0.0, 10.0, "x")
LOUD = Piece(0.0, 11.0, 0.0, 10.0, "x")


@pytest.mark.parametrize(
    ("left", "right", "whole"),
    [
        ("One.", "Two.", "One. Two."),
        ("One. ", " Two.", "One. Two."),
        ("", "Two.", "Two."),
        ("One.", "", "One."),
        ("One.", "  ", "One."),
        ("", "", ""),
        ("今日は", "晴れです", "今日は晴れです"),
        ("今日は。", "晴れです", "今日は。晴れです"),
        ("今日は", "sunny", "今日は sunny"),
    ],
)
def test_texts_are_glued_as_their_script_is_written(left: str, right: str, whole: str) -> None:
    assert glued(left, right) == whole


@pytest.mark.parametrize(
    ("left", "right", "whole"),
    [
        ("we went over the hill", "over the hill and home", "we went over the hill and home"),
        ("We went over the hill.", "Over the hill, and home.", "We went Over the hill, and home."),
        ("we went over the hil", "over the hill and home", "we went over the hill and home"),
        ("we went over the hill an", "ver the hill and home", "we went over the hill and home"),
        ("he said yes", "yes to all", "he said yes to all"),
        ("it's John's", "it\u2019s john's house", "it\u2019s john's house"),
        ("今日は天気が", "天気がいいです", "今日は天気がいいです"),
        ("nothing alike", "to be found", "nothing alike to be found"),
        ("the cat sat on a mat", "a dog ran to the cat", "the cat sat on a mat a dog ran to the cat"),
        ("one", "", "one"),
        ("", "two", "two"),
        ("...", "!!!", "... !!!"),
        ("the same words", "the same words", "the same words"),
    ],
)
def test_what_both_heard_is_said_once(left: str, right: str, whole: str) -> None:
    assert join_texts([LOUD, QUIET], [left, right]) == whole


def test_what_two_speakers_say_alike_without_overlap_is_said_twice() -> None:
    assert join_texts([QUIET, QUIET], ["over the hill", "over the hill"]) == "over the hill over the hill"


def test_many_pieces_are_joined_in_order() -> None:
    texts = ["a b c d", "c d e f", "g h", "g h"]
    assert join_texts([LOUD, QUIET, LOUD, QUIET], texts) == "a b c d e f g h"


def test_one_piece_is_itself() -> None:
    assert join_texts([QUIET], ["One."]) == "One."


def test_only_the_ends_are_compared() -> None:
    left = "again and again " + "word " * 100 + "the end"
    right = "the end " + "other " * 100 + "again and again"
    assert parted(left, right) == (left.removesuffix(" the end"), right)


def test_long_texts_take_no_long_time() -> None:
    left, right = "a b " * 200_000, "a b " * 200_000
    before, after = parted(left, right) or ("", "")
    assert before
    assert len(before) + len(after) < len(left) + len(right)


@pytest.mark.parametrize(
    ("left", "right", "place"),
    [
        ([], [], None),
        (["a"], [], None),
        ([" We", " went"], ["went,", "home"], (1, 0)),
        (["x", "y", "z"], ["q", "y", "z", "w"], (1, 1)),
        (["x"], ["y"], None),
        (["…"], ["…"], (0, 0)),
    ],
)
def test_words_meet_where_their_run_begins(left: list[str], right: list[str], place: tuple[int, int] | None) -> None:
    assert met(left, right) == place


@pytest.mark.parametrize(
    ("text", "first", "last", "rest"),
    [
        ("One, two. Three!", [], [], "One, two. Three!"),
        ("One, two. Three!", [" One,"], [], "two. Three!"),
        ("One, two. Three!", [], ["three"], "One, two."),
        ("One, two. Three!", ["x"], ["y"], "two."),
        ("One, two. Three!", ["a", "b"], ["c"], ""),
        ("One, two. Three!", ["a", "b", "c", "d"], [], ""),
        ("twenty-five men", ["twenty-five"], [], "men"),
        ("", ["x"], [], ""),
    ],
)
def test_a_text_is_shortened_by_whole_words(text: str, first: list[str], last: list[str], rest: str) -> None:
    assert shortened(text, first=first, last=last) == rest
