"""Rows name files; this opens those below one folder and no others, whatever the rows and the folder hold."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from pipeline.errors import MediaError
from pipeline.media.files import MediaFile, find_media

MOST = 1000
SECRET = b"not below the root"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a file in it, and one in a folder in it; a secret lies beside it."""
    root = tmp_path / "root"
    (root / "inner").mkdir(parents=True)
    (root / "a.wav").write_bytes(b"RIFF and so on")
    (root / "inner" / "b.wav").write_bytes(b"x" * 100)
    (tmp_path / "secret").write_bytes(SECRET)
    return root


def find(root: Path | None, name: object) -> MediaFile:
    return find_media(root, name, max_bytes=MOST)


def refused(root: Path | None, name: object) -> MediaError:
    with pytest.raises(MediaError) as caught:
        find(root, name)
    caught.value.message.encode()
    return caught.value


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_file_is_found_with_its_size_and_its_beginning(root: Path) -> None:
    found = find(root, "inner/b.wav")
    assert (found.name, found.size, found.head) == ("inner/b.wav", 100, b"x" * 64)
    assert found.read() == b"x" * 100
    with found.open() as file:
        assert file.read(3) == b"xxx"


def test_a_file_of_the_most_bytes_is_found_and_one_more_is_too_large(root: Path) -> None:
    (root / "most").write_bytes(b"x" * MOST)
    (root / "more").write_bytes(b"x" * (MOST + 1))
    assert find(root, "most").size == MOST
    assert refused(root, "more").code == "too_large"


def test_the_root_itself_may_be_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    assert find(tmp_path / "link", "a.wav").read() == b"RIFF and so on"


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "inner/../../secret",
        "inner/../a.wav",
        "..",
        ".",
        "./a.wav",
        "inner/./b.wav",
        "inner//b.wav",
        "a.wav/",
        "/",
        "//etc/passwd",
        "/etc/passwd",
        "",
        None,
        7,
        b"a.wav",
        ["a.wav"],
        "a.wav\0",
        "\0",
        "../secret\0.wav",
    ],
)
def test_what_is_no_plain_relative_path_is_refused(root: Path, name: object) -> None:
    assert refused(root, name).code == "path"


def test_an_absolute_path_is_refused_even_where_it_leads_below_the_root(root: Path) -> None:
    assert refused(root, str(root / "a.wav")).code == "path"


@pytest.mark.parametrize(
    "name", ["missing.wav", "missing/a.wav", "..a.wav", "...", "~/a.wav", "a.wav\n", "%2e%2e/secret"]
)
def test_a_file_that_is_not_there_is_not_found(root: Path, name: str) -> None:
    assert refused(root, name).code == "not_found"


def test_a_backslash_is_a_letter_like_any_other(root: Path) -> None:
    (root / "..\\secret").write_bytes(b"mine")
    assert find(root, "..\\secret").read() == b"mine"


def test_a_link_to_a_file_is_not_followed(root: Path, tmp_path: Path) -> None:
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "near").symlink_to("a.wav")
    (root / "dangling").symlink_to("missing")
    for name in ("link", "near", "dangling"):
        assert refused(root, name).code == "path"


def test_a_link_to_a_folder_is_not_followed(root: Path, tmp_path: Path) -> None:
    (root / "up").symlink_to(tmp_path)
    (root / "here").symlink_to("inner")
    (root / "inner" / "back").symlink_to("..")
    for name in ("up/secret", "here/b.wav", "inner/back/a.wav"):
        assert refused(root, name).code == "path"


def test_the_environment_of_the_process_cannot_be_reached_by_a_link(root: Path) -> None:
    (root / "environ").symlink_to("/proc/self/environ")
    (root / "process").symlink_to("/proc/self")
    assert refused(root, "environ").code == "path"
    assert refused(root, "process/environ").code == "path"


def test_a_file_of_the_kernel_that_has_no_size_is_empty() -> None:
    assert refused(Path("/proc/self"), "environ").code == "empty"


def test_a_loop_of_links_ends(root: Path) -> None:
    (root / "one").symlink_to("two")
    (root / "two").symlink_to("one")
    assert refused(root, "one").code == "path"
    assert refused(root, "one/a.wav").code == "path"


def test_a_folder_is_no_file(root: Path) -> None:
    assert refused(root, "inner").code == "not_a_file"


def test_a_file_is_no_folder(root: Path) -> None:
    assert refused(root, "a.wav/b.wav").code == "unreadable"


@pytest.mark.timeout(10)
def test_a_fifo_is_no_file_and_is_not_waited_for(root: Path) -> None:
    os.mkfifo(root / "fifo")
    assert refused(root, "fifo").code == "not_a_file"


def test_a_device_is_no_file() -> None:
    assert refused(Path("/dev"), "null").code == "not_a_file"
    assert refused(Path("/dev"), "zero").code == "not_a_file"


def test_a_socket_is_no_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)  # a socket's path is bounded to 107 bytes
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        assert refused(root, "socket").code == "not_a_file"


def test_an_empty_file_is_refused(root: Path) -> None:
    (root / "empty").touch()
    assert refused(root, "empty").code == "empty"


def test_a_sparse_file_of_ten_gigabytes_is_refused_by_its_size(root: Path) -> None:
    with (root / "sparse").open("wb") as file:
        file.truncate(10 * 10**9)
    error = refused(root, "sparse")
    assert error.code == "too_large"
    assert "10000000000 bytes" in error.message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_unreadable(root: Path) -> None:
    (root / "a.wav").chmod(0)
    assert refused(root, "a.wav").code == "unreadable"


def test_a_job_without_a_root_has_no_files() -> None:
    assert refused(None, "a.wav").code == "no_media_root"


def test_a_root_that_is_missing_or_no_folder_gives_no_files(root: Path, tmp_path: Path) -> None:
    assert refused(tmp_path / "missing", "a.wav").code == "not_found"
    assert refused(root / "a.wav", "a.wav").code == "unreadable"


@pytest.mark.parametrize("name", ["x" * 256, "x" * 5000, "/".join(["x"] * 5000), "\ud800", "a\udcff", "ü" * 5000])
def test_a_name_that_no_file_can_have_is_a_short_error(root: Path, name: str) -> None:
    error = refused(root, name)
    assert error.code in {"unreadable", "not_found"}
    assert len(error.message) < 300


@pytest.mark.parametrize("name", ["missing\n.wav", "\x1b[31mred", "\u202egnp.exe", "a\udcff"])
def test_a_message_is_one_line_that_every_terminal_can_show(root: Path, name: str) -> None:
    assert refused(root, name).message.isprintable()


def test_a_file_whose_name_is_no_utf_8_is_found(root: Path) -> None:
    Path(os.fsdecode(os.fsencode(root) + b"/\xff.wav")).write_bytes(b"x")
    assert find(root, "\udcff.wav").read() == b"x"


def grown(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def cut(path: Path) -> None:
    os.truncate(path, 3)


def touched(path: Path) -> None:
    os.utime(path, ns=(0, 7))


def replaced(path: Path) -> None:
    found = path.stat()
    other = path.with_name("other")
    other.write_bytes(b"y" * found.st_size)
    os.utime(other, ns=(found.st_atime_ns, found.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", [grown, cut, touched, replaced])
def test_a_file_that_changed_after_it_was_checked_is_not_read(root: Path, change: object) -> None:
    found = find(root, "a.wav")
    assert callable(change)
    change(root / "a.wav")
    with pytest.raises(MediaError) as caught:
        found.read()
    assert caught.value.code == "changed"
    with pytest.raises(MediaError), found.open():
        pass


def test_a_file_that_became_a_link_a_folder_or_nothing_is_not_read(root: Path, tmp_path: Path) -> None:
    found = find(root, "a.wav")
    (root / "a.wav").unlink()
    for become, code in ((None, "not_found"), ("link", "path"), ("folder", "not_a_file")):
        if become == "link":
            (root / "a.wav").symlink_to(tmp_path / "secret")
        elif become == "folder":
            (root / "a.wav").unlink()
            (root / "a.wav").mkdir()
        with pytest.raises(MediaError) as caught:
            found.read()
        assert caught.value.code == code


def test_a_folder_on_the_way_that_became_a_link_is_not_followed(root: Path, tmp_path: Path) -> None:
    found = find(root, "inner/b.wav")
    (root / "inner").rename(tmp_path / "elsewhere")
    (root / "inner").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MediaError) as caught:
        found.read()
    assert caught.value.code == "path"


def test_nothing_stays_open_whatever_happens(root: Path, tmp_path: Path) -> None:
    (root / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(root / "fifo")
    before = descriptors()
    for name in ("a.wav", "inner/b.wav"):
        find(root, name).read()
    for name in ("inner", "fifo", "link", "missing", "inner/missing/x", "a.wav/x", "../x", "\ud800", "x" * 300):
        refused(root, name)
    assert descriptors() == before
