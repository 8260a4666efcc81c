"""The socket at which a run is asked: its owner's alone, and no client can harm the run."""

from __future__ import annotations

import json
import os
import resource
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_memory import Bench, Service
from live_run import Gauge, LiveRun, going

from pipeline.clock import SystemClock
from pipeline.engines.remote import MOST_BYTES, MOST_CLIENTS, Remote
from pipeline.job.spec import Job
from pipeline.lanes.control import Control
from pipeline.lanes.stop import Stop
from pipeline.log import EventLog
from pipeline.run import run_job
from pipeline.store.folder import Layout, hold_folder
from pipeline.store.lock import read_holder
from pipeline.store.meeting import LONGEST_PATH, SOCKET, Peer, listening, may_ask, meeting_place

ME = os.geteuid()
NOBODY = 65_534


@asynccontextmanager
async def live_run(folder: Path, rows: int = 60) -> AsyncIterator[LiveRun]:
    bench = Bench(folder=folder, operation="chat").texts(*(f"text {n}" for n in range(rows)))
    job = bench.job()
    gauge = Gauge(Service(latency_s=0.05))
    async with going(bench.out, lambda watcher: run_job(job, transport=gauge, watcher=watcher)) as live:
        yield live
    assert live.summary is not None
    assert (live.summary.state, live.summary.exit_code) == ("complete", 0)
    bench.assert_rows(range(rows))


def connected(place: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(20)
    client.connect(str(place))
    return client


def hold(root: Path) -> AbstractContextManager[Layout]:
    return hold_folder(root, fresh=False, now=datetime.now(UTC))


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0o002)
    yield
    os.umask(before)


@pytest.mark.anyio
async def test_nobody_but_the_owner_may_use_the_socket_whatever_the_umask(tmp_path: Path, open_umask: None) -> None:
    async with live_run(tmp_path) as live:
        place = Layout(live.root).private / SOCKET
        assert stat.S_ISSOCK(place.lstat().st_mode)
        assert (mode_of(place), mode_of(place.parent), place.lstat().st_uid) == (0o600, 0o700, ME)
        assert meeting_place(Layout(live.root)) == place
    assert not place.exists(), "it goes with the run"


@pytest.mark.parametrize("taken", ["a path that is too long", "a folder in its place"])
def test_elsewhere_it_lies_in_a_folder_of_the_users_own_and_the_lock_tells_where(tmp_path: Path, taken: str) -> None:
    root = tmp_path / ("o" * (LONGEST_PATH if taken.startswith("a path") else 1))
    with tempfile.TemporaryDirectory(dir="/tmp") as short, hold(root) as layout:
        if taken.startswith("a folder"):
            (layout.private / SOCKET).mkdir()
        with listening(layout, environ={"TMPDIR": short}) as listener:
            assert listener is not None
            place = meeting_place(layout)
            assert place is not None
            assert place.parent == Path(short) / f"aoai-pipeline-{os.getuid()}"
            assert (mode_of(place), mode_of(place.parent)) == (0o600, 0o700)
            connected(place).close()
            assert read_holder(layout.lock)["pid"] == os.getpid()
        assert not place.exists()


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o777])
def test_a_folder_that_others_may_look_into_is_no_place_for_it(tmp_path: Path, mode: int) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short, hold(tmp_path / ("o" * LONGEST_PATH)) as layout:
        shared = Path(short) / f"aoai-pipeline-{os.getuid()}"
        shared.mkdir()
        shared.chmod(mode)
        with listening(layout, environ={"TMPDIR": short}):
            place = meeting_place(layout)
            assert place is None or place.parent != shared
        assert not list(shared.iterdir())


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("mine")
    target.chmod(0o640)
    with hold(tmp_path / "out") as layout:
        (layout.private / SOCKET).symlink_to(target)
        with listening(layout, environ={}):
            assert stat.S_ISSOCK((layout.private / SOCKET).lstat().st_mode)
    assert (target.read_text(), mode_of(target)) == ("mine", 0o640)


def test_what_a_killed_run_left_is_replaced_and_what_a_later_one_has_is_not_removed(tmp_path: Path) -> None:
    with hold(tmp_path / "out") as layout:
        place = layout.private / SOCKET
        with socket.socket(socket.AF_UNIX) as killed:
            killed.bind(str(place))
        with listening(layout, environ={}):
            connected(place).close()
            with listening(layout, environ={}):
                pass
            assert not place.exists()
            with socket.socket(socket.AF_UNIX) as later:
                later.bind(str(place))
        assert place.exists()


SENT: dict[str, Callable[[socket.socket], object]] = {
    "nothing": lambda client: client.settimeout(0.05),
    "an end at once": lambda client: client.shutdown(socket.SHUT_WR),
    "half a line": lambda client: client.sendall(b'{"do": "pau'),
    "no line": lambda client: client.sendall(b"x" * MOST_BYTES),
    "no JSON": lambda client: client.sendall(b"pause\n"),
    "bytes": lambda client: client.sendall(bytes(range(256)) + b"\n"),
    "a list": lambda client: client.sendall(b'["do", "drain"]\n'),
    "deep JSON": lambda client: client.sendall(b"[" * (MOST_BYTES - 1) + b"\n"),
    "another word": lambda client: client.sendall(b'{"do": "erase"}\n'),
    "too much": lambda client: client.sendall(b'{"do": "drain", "force": true}\n'),
    "no texts": lambda client: client.sendall(b'{"do": "set", "values": {"workers": 3}}\n'),
    "no values": lambda client: client.sendall(b'{"do": "set", "values": {}}\n'),
    "deep YAML": lambda client: client.sendall(
        json.dumps({"do": "set", "values": {"workers": "[" * 3000}}).encode() + b"\n"
    ),
    "many of one": lambda client: client.sendall(
        json.dumps({"do": "set", "values": {"leave": "&a [*a, *a, *a]"}}).encode() + b"\n"
    ),
}


@pytest.mark.anyio
async def test_no_request_that_is_none_harms_a_run_or_keeps_another_from_being_heard(tmp_path: Path) -> None:
    async with live_run(tmp_path) as live:
        await live.ask("pause")
        place = Layout(live.root).private / SOCKET
        clients = []
        for send in SENT.values():
            client = await anyio.to_thread.run_sync(connected, place)
            await anyio.to_thread.run_sync(send, client)
            clients.append(client)
        assert (await live.ask("state"))["state"] == "paused"
        assert (await live.ask("state"))["workers"] == 4
        for client in clients:
            client.close()
        await live.ask("resume")


@pytest.mark.anyio
async def test_clients_that_say_nothing_are_sent_away_and_nobody_waits_for_them_for_long(tmp_path: Path) -> None:
    async with live_run(tmp_path) as live:
        await live.ask("pause")
        place = Layout(live.root).private / SOCKET
        silent = [await anyio.to_thread.run_sync(connected, place) for _ in range(2 * MOST_CLIENTS)]
        assert (await live.ask("resume"))["changed"]
        for client in silent:
            client.close()


@pytest.mark.anyio
async def test_a_client_that_sends_without_end_is_cut_off(tmp_path: Path) -> None:
    async with live_run(tmp_path) as live:
        place = Layout(live.root).private / SOCKET

        def flood() -> int:
            sent, block = 0, b"x" * 1_000_000
            with connected(place) as client:
                try:
                    while sent < 1_000_000_000:
                        sent += client.send(block)
                except (BrokenPipeError, ConnectionResetError):
                    return sent
            raise AssertionError("a gigabyte was taken")

        assert await anyio.to_thread.run_sync(flood) < 10_000_000


@pytest.mark.anyio
async def test_a_client_that_reads_no_reply_harms_nobody(tmp_path: Path) -> None:
    async with live_run(tmp_path) as live:
        place = Layout(live.root).private / SOCKET
        clients = [await anyio.to_thread.run_sync(connected, place) for _ in range(4)]
        for client in clients:
            client.sendall(b'{"do": "state"}\n')
        clients[0].close()
        assert (await live.ask("state"))["ok"]
        for client in clients:
            client.close()


@pytest.mark.parametrize(("uid", "may"), [(ME, True), (0, True), (None, True), (ME + 1, False), (NOBODY, False)])
def test_a_run_heeds_its_own_user_and_root_alone(
    tmp_path: Path,
    uid: int | None,
    may: bool,  # noqa: FBT001 - a parameter
) -> None:
    stop = Stop()
    peer = Peer(pid=1, uid=uid)
    assert may_ask(peer) == may
    answer = remote(tmp_path, stop).answer(b'{"do": "drain"}\n', peer)
    assert (answer["ok"], stop.cause is not None) == (may, may)
    if not may:
        assert "heeds no other" in answer["error"]


AS_NOBODY = f"""
import os, socket, sys
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1])
client.sendall(b'{{"do": "drain"}}\\n')
print(client.recv(9999).decode())
"""


@pytest.mark.skipif(ME != 0, reason="only root can be another user")
@pytest.mark.anyio
async def test_another_user_is_refused_even_where_the_socket_is_left_open(tmp_path: Path) -> None:
    def asked(place: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", AS_NOBODY, str(place)], capture_output=True, text=True, check=False, cwd="/"
        )

    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        os.chmod(short, 0o755)  # noqa: PTH101, S103 - for another user to come in
        async with live_run(Path(short)) as live:
            await live.ask("pause")
            place = Layout(live.root).private / SOCKET
            denied = await anyio.to_thread.run_sync(asked, place)
            assert "PermissionError" in denied.stderr
            live.root.chmod(0o755)
            place.parent.chmod(0o755)
            place.chmod(0o666)
            refused = await anyio.to_thread.run_sync(asked, place)
            assert "heeds no other" in refused.stdout, refused.stderr
            assert (await live.ask("state"))["state"] == "paused"
            await live.ask("resume")


def remote(folder: Path, stop: Stop, *, job: Job | None = None, control: Control | None = None) -> Remote:
    clock = SystemClock()
    return Remote(
        job=job or Bench(folder=folder, operation="chat").texts("a").job(),
        control=control or Control(workers=4, leave=0.0, clock=clock),
        stop=stop,
        log=EventLog(wall=clock.wall),
    )


TEXTS = st.text(max_size=40) | st.sampled_from(
    ["workers", "leave", "run.leave", "8", "10%", "!!python/object:x", "a.b"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
REQUESTS = st.one_of(
    st.dictionaries(st.sampled_from(["do", "values", "more"]), VALUES),
    st.builds(lambda values: {"do": "set", "values": values}, st.dictionaries(TEXTS, TEXTS, max_size=3)),
    VALUES,
)


@settings(max_examples=300, deadline=None)
@given(line=st.binary(max_size=200) | REQUESTS.map(lambda value: json.dumps(value).encode() + b"\n"))
def test_every_request_has_an_answer(tmp_path_factory: pytest.TempPathFactory, line: bytes) -> None:
    stop = Stop()
    one = remote(tmp_path_factory.getbasetemp(), stop)
    answer = one.answer(line, Peer(pid=1, uid=ME))
    assert set(answer) >= ({"ok", "state"} if answer["ok"] else {"ok", "error", "exit_code"})
    assert 1 <= one.control.workers <= 10_000
    assert 0 <= one.control.leave < 1
    assert len(json.dumps(answer)) < 10_000


def test_more_workers_than_the_system_has_files_for_are_refused(tmp_path: Path) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY or hard > 10_000_000:
        pytest.skip("the system sets no limit that a run could pass")
    bench = Bench(folder=tmp_path, operation="chat").texts("a")
    one = {"endpoint": "https://x.openai.azure.com", "model": "m", "api": "azure"}
    bench.changes["deployments"] = [{**one, "deployment": f"d{n}", "name": f"d{n}"} for n in range(hard // 10_000 + 1)]
    control = Control(workers=4, leave=0.0, clock=SystemClock())
    asked = remote(tmp_path, Stop(), job=bench.job(), control=control)
    answer = asked.answer(b'{"do": "set", "values": {"workers": "10000"}}\n', Peer(pid=1, uid=ME))
    assert not answer["ok"]
    assert "10000 workers need" in answer["error"]
    assert control.workers == 4
