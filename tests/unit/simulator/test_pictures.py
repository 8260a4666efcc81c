"""Pictures are functions of their key, and every decoder sees the key's bits."""

from __future__ import annotations

import io
import struct
from typing import Any

import pytest

from pipeline.simulator.pictures import picture, picture_file, picture_key, picture_name

KEY = "0123456789abcdef"


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_the_key_is_in_the_file_and_another_key_is_another_file(kind: str) -> None:
    content = picture(KEY, 1_024, 1_024, kind)
    assert picture_key(content) == KEY
    assert content != picture(KEY[::-1], 1_024, 1_024, kind)
    assert len(content) < 20_000


def test_a_png_has_the_size_that_was_asked_for() -> None:
    assert struct.unpack(">II", picture(KEY, 1_792, 1_024, "png")[16:24]) == (1_792, 1_024)


@pytest.mark.parametrize("kind", ["png", "jpeg"])
@pytest.mark.parametrize(("width", "height"), [(1_024, 1_024), (1_024, 1_536), (128, 64)])
def test_a_decoder_sees_the_keys_bits(kind: str, width: int, height: int) -> None:
    av: Any = pytest.importorskip("av")
    with av.open(io.BytesIO(picture(KEY, width, height, kind))) as container:
        frame = next(container.decode(video=0)).reformat(format="gray")
    assert (frame.width, frame.height) == (width, height)
    plane = frame.planes[0]
    pixels = bytes(plane)
    middles = [
        pixels[(2 * row + 1) * height // 16 * plane.line_size + (2 * column + 1) * width // 16]
        for row in range(8)
        for column in range(8)
    ]
    bound = (min(middles) + max(middles)) / 2
    assert sum(1 << place for place, value in enumerate(middles) if value > bound) == int(KEY, 16)


def test_a_picture_is_found_by_its_name_and_by_nothing_else() -> None:
    name = picture_name(KEY, 1_024, 1_792, "png")
    assert picture_file(name) == (picture(KEY, 1_024, 1_792, "png"), "image/png")
    for wrong in (
        "",
        "x",
        name.upper(),
        name + "x",
        name.replace("png", "gif"),
        name.replace("1792", "9999"),
        "../" + name,
    ):
        assert picture_file(wrong) is None


def test_other_files_have_no_key() -> None:
    assert picture_key(b"") is None
    assert picture_key(b"simulator:0123") is None
