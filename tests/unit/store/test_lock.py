"""The lock: one holder at a time, named to the others, gone with its process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import FolderHeldError, StorageError
from pipeline.store.lock import hold, is_held


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "_pipeline").mkdir()
    return tmp_path / "_pipeline" / "lock"


def test_a_second_holder_is_told_who_the_first_is(path: Path) -> None:
    with (
        hold(path, started="today"),
        pytest.raises(FolderHeldError, match=f"process {os.getpid()} on .* started today"),
        hold(path, started="later"),
    ):
        pass
    assert json.loads(path.read_text())["started"] == "today"


def test_a_lock_is_free_after_its_block_whatever_ended_it(path: Path) -> None:
    for error in (None, ValueError, KeyboardInterrupt):
        try:
            with hold(path, started="x"):
                assert is_held(path)
                if error is not None:
                    raise error
        except (ValueError, KeyboardInterrupt):
            pass
        assert not is_held(path)


def test_a_killed_holder_holds_nothing(path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from pipeline.store.lock import hold\n"
        f"with hold(Path({str(path)!r}), started='x'):\n    print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert is_held(path)
        with pytest.raises(FolderHeldError, match=f"process {holder.pid} "), hold(path, started="y"):
            pass
        holder.kill()
        holder.wait()
    assert not is_held(path)
    with hold(path, started="y"):
        assert is_held(path)


def test_where_there_is_no_lock_nobody_holds_it(path: Path) -> None:
    assert not is_held(path)
    assert not path.exists()


@pytest.mark.parametrize("content", ["", "null", "[]", "{}", '{"pid": "x"}', "\x00"])
def test_a_holder_that_has_not_written_its_name_is_still_a_holder(path: Path, content: str) -> None:
    with hold(path, started="x"):
        path.write_text(content)
        with pytest.raises(FolderHeldError, match="not written its name"), hold(path, started="y"):
            pass


def test_a_link_in_the_locks_place_is_refused(path: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    path.symlink_to(victim)
    with pytest.raises(StorageError, match="locking"), hold(path, started="x"):
        pass
    assert victim.read_text() == "mine"
