"""Small files and folders: whole or absent, private, never through a link."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from pipeline.errors import StorageError
from pipeline.store.files import (
    create_private,
    private_folder,
    publish,
    remove_temporaries,
    replace_text,
    sha256_of,
    storage,
)


@pytest.mark.parametrize("durable", [True, False])
def test_a_replaced_text_is_whole_private_and_alone(tmp_path: Path, durable: bool) -> None:  # noqa: FBT001
    file = tmp_path / "x.json"
    for text in ("first", "größe\n", ""):
        replace_text(file, text, durable=durable)
        assert file.read_text(encoding="utf-8") == text
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_a_link_planted_under_the_temporary_name_is_replaced_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "x.json.tmp").symlink_to(victim)
    replace_text(tmp_path / "x.json", "new", durable=False)
    assert victim.read_text() == "mine"
    assert not (tmp_path / "x.json").is_symlink()


def test_what_cannot_be_written_leaves_the_old_text(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.mkdir()
    with pytest.raises(OSError, match="directory"):
        replace_text(file, "new", durable=True)
    assert list(tmp_path.iterdir()) == [file]


def test_a_published_file_has_its_name_alone(tmp_path: Path) -> None:
    temporary, final = tmp_path / "a.tmp", tmp_path / "a"
    temporary.write_text("x")
    publish(temporary, final)
    assert list(tmp_path.iterdir()) == [final]


def test_a_private_folder_is_the_owners_even_where_it_was_open(tmp_path: Path) -> None:
    for name in ("new", "old"):
        folder = tmp_path / name
        if name == "old":
            folder.mkdir(mode=0o755)
        private_folder(folder)
        assert folder.stat().st_mode & 0o777 == 0o700


def test_a_private_folder_is_no_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    for target in ("real", "nowhere"):
        link = tmp_path / f"link to {target}"
        link.symlink_to(tmp_path / target)
        with pytest.raises(StorageError, match="symbolic link"):
            private_folder(link)


def test_a_private_file_is_made_anew_or_not_at_all(tmp_path: Path) -> None:
    create_private(tmp_path / "x")
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600
    (tmp_path / "link").symlink_to(tmp_path / "y")
    for name in ("x", "link"):
        with pytest.raises(FileExistsError):
            create_private(tmp_path / name)
    assert not (tmp_path / "y").exists()


def test_only_unfinished_files_are_removed(tmp_path: Path) -> None:
    for name in ("a.tmp", "b.parquet.tmp", "c.parquet", "tmp"):
        (tmp_path / name).touch()
    remove_temporaries(tmp_path, tmp_path / "missing")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["c.parquet", "tmp"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES, errno.EROFS, errno.EFBIG])
def test_an_error_of_the_disk_says_what_was_done_and_what_to_do(number: int) -> None:
    with pytest.raises(StorageError) as caught, storage("writing x"):
        raise OSError(number, "the reason", "/the/file")
    message = str(caught.value)
    assert message.startswith("writing x: the reason (/the/file); ")
    assert ("free some space" in message) == (number in {errno.ENOSPC, errno.EDQUOT})
    assert message.endswith("run the same command again: what was committed is safe")


def test_the_checksum_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_of(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
