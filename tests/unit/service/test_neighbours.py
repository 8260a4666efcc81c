"""Seats: as many as there are runs, gone when their process is, never another user's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.service.neighbours import Seat, shared_folder

PLACE = {"origin": "https://x.openai.azure.com", "deployment": "d"}
HOLD = """
import sys
from pathlib import Path
from pipeline.service.neighbours import Seat
seat = Seat(Path(sys.argv[1]), origin="https://x.openai.azure.com", deployment="d")
print("seated", flush=True)
sys.stdin.read()
"""


def test_runs_on_one_deployment_see_each_other_and_no_others(tmp_path: Path) -> None:
    with Seat(tmp_path, **PLACE) as first:
        assert first.others() == 0
        with Seat(tmp_path, **PLACE) as second, Seat(tmp_path, origin=PLACE["origin"], deployment="e") as elsewhere:
            assert (first.others(), second.others(), elsewhere.others()) == (1, 1, 0)
        assert first.others() == 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_seat_is_free_once_its_process_is_dead_however_it_died(tmp_path: Path, how: signal.Signals) -> None:
    with Seat(tmp_path, **PLACE) as mine:
        other = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert other.stdout is not None
        assert other.stdout.readline() == b"seated\n"
        assert mine.others() == 1
        other.send_signal(how)
        other.communicate()
        assert mine.others() == 0
        assert len(list(next(tmp_path.iterdir()).iterdir())) == 1


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o777])
def test_a_folder_that_others_may_use_is_not_used(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(mode)
    with Seat(folder, **PLACE) as seat:
        assert seat.others() == 0
    assert not list(folder.iterdir())


def test_a_link_in_the_place_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "shared").symlink_to(tmp_path / "elsewhere")
    with Seat(tmp_path / "shared", **PLACE) as seat:
        assert seat.others() == 0
    assert not list((tmp_path / "elsewhere").iterdir())


def test_where_there_is_no_folder_to_be_had_a_run_is_alone(tmp_path: Path) -> None:
    (tmp_path / "shared").touch()
    with Seat(tmp_path / "shared", **PLACE) as seat:
        assert seat.others() == 0


def test_the_folder_is_the_users_own(tmp_path: Path) -> None:
    assert shared_folder({"XDG_RUNTIME_DIR": str(tmp_path)}) == tmp_path / "aoai-pipeline"
    gone = shared_folder({"XDG_RUNTIME_DIR": str(tmp_path / "gone"), "TMPDIR": str(tmp_path)})
    assert gone == tmp_path / f"aoai-pipeline-{os.getuid()}"


def test_a_seat_that_was_given_back_is_taken_again(tmp_path: Path) -> None:
    with Seat(tmp_path, **PLACE) as first, Seat(tmp_path, **PLACE) as second:
        first.close()
        assert (first.others(), second.others()) == (0, 0)
        first.take()
        first.take()
        assert (first.others(), second.others()) == (1, 1)
