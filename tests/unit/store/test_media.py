"""Files of rows: named by ordinal and nothing else, whole or absent."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pipeline.errors import StorageError
from pipeline.model import OutputFile, WrittenFile
from pipeline.store.media import media_name, write_media


def spoken(content: bytes = b"ID3", suffix: str = "mp3") -> OutputFile:
    return OutputFile(column="audio_path", suffix=suffix, content=content)


def test_a_file_is_named_by_its_ordinal_and_says_what_it_is(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"ID3").hexdigest()
    assert write_media(tmp_path, 17, spoken()) == WrittenFile(name="media/000000000017.mp3", bytes=3, sha256=digest)
    assert (tmp_path / "media" / "000000000017.mp3").read_bytes() == b"ID3"


def test_a_file_that_a_crash_left_is_replaced(tmp_path: Path) -> None:
    write_media(tmp_path, 17, spoken(b"old"))
    (tmp_path / "media" / "000000000017.mp3.tmp").write_bytes(b"half")
    write_media(tmp_path, 17, spoken(b"new"))
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "media").iterdir()] == [("000000000017.mp3", b"new")]


@pytest.mark.parametrize("suffix", ["", "../x", "mp3/..", "m p3", ".mp3", "mp3\0", "é"])
def test_a_suffix_is_a_plain_word(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(ValueError, match="no suffix"):
        media_name(1, suffix)
    with pytest.raises(ValueError, match="no suffix"):
        write_media(tmp_path, 1, spoken(suffix=suffix))


def test_a_disk_that_refuses_is_said(tmp_path: Path) -> None:
    (tmp_path / "media").touch()
    with pytest.raises(StorageError, match=r"writing media/000000000001\.mp3"):
        write_media(tmp_path, 1, spoken())
