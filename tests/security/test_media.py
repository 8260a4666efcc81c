"""What a row may name: nothing outside of the media root, nothing that is no file, nothing too large; none is read."""

from __future__ import annotations

import json
import os
import resource
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from in_memory import Bench

from pipeline.errors import MediaError
from pipeline.media.files import find_media
from pipeline.testing import MemoryTransport

CANARY = b"canary-of-another-file"
WAV = (
    b"RIFF\x24\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00\x40\x1f\x00\x00\x80\x3e\x00\x00\x02\x00\x10\x00data"
)
PNG = b"\x89PNG\r\n\x1a\n"
HUGE = 10 * 2**30
FILES: dict[str, Callable[[Path, bytes], object]] = {
    "../outside": lambda root, head: (root.parent / "outside").write_bytes(head + CANARY),
    "/etc/passwd": lambda root, head: None,
    "/proc/self/environ": lambda root, head: None,
    "link": lambda root, head: (root / "link").symlink_to(root.parent / "outside"),
    "folder/outside": lambda root, head: (root / "folder").symlink_to(root.parent),
    "environ": lambda root, head: (root / "environ").symlink_to("/proc/self/environ"),
    "fifo": lambda root, head: os.mkfifo(root / "fifo"),
    "device": lambda root, head: (root / "device").symlink_to("/dev/zero"),
    "directory": lambda root, head: (root / "directory").mkdir(),
    "directory/../../outside": lambda root, head: None,
    "nobody": lambda root, head: None,
    "nothing": lambda root, head: (root / "nothing").touch(),
    "sparse": lambda root, head: _sparse(root / "sparse", head),
    "words.wav": lambda root, head: (root / "words.wav").write_bytes(b"no sound and no picture: " + CANARY),
    "nul\0": lambda root, head: None,
    "x" * 5000: lambda root, head: None,
}
URLS = {
    "metadata": "http://169.254.169.254/latest/meta-data",
    "metadata in IPv6": "https://[::ffff:169.254.169.254]/",
    "a decimal address": "https://2130706433/a.png",
    "loopback": "http://127.0.0.1:8080/a.png",
    "localhost": "https://localhost/a.png",
    "a private network": "https://10.1.2.3/a.png",
    "a file": "file:///etc/passwd",
    "another scheme": "ftp://example.com/a.png",
    "thirty megabytes": "data:image/png;base64," + "A" * 30_000_000,
    "a hundred megabytes": "data:image/png;base64," + "A" * 100_000_000,
}


def _sparse(path: Path, head: bytes) -> None:
    path.write_bytes(head)
    os.truncate(path, HUGE)


def bench_of(tmp_path: Path, operation: str, request: dict[str, Any]) -> Bench:
    deployment = {"endpoint": "https://x.openai.azure.com", "deployment": "d", "model": "m", "api": "azure"}
    changes = {
        "operation": operation,
        "input": {"media_root": "media"},
        "request": request,
        "deployments": [{**deployment, "api_version": "2025-04-01-preview"}],
    }
    return Bench(folder=tmp_path, operation=operation, changes=changes)


def picture(**part: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, part]}]}


REQUESTS: dict[str, tuple[bytes, dict[str, Any]]] = {
    "transcription": (WAV, {"file": "{{ text }}"}),
    "chat": (PNG, picture(type="image_file", image_file={"path": "{{ text }}"})),
}


@pytest.mark.anyio
@pytest.mark.parametrize("operation", REQUESTS)
async def test_a_hostile_file_is_a_media_error_and_nothing_of_it_is_read_or_sent(
    tmp_path: Path, operation: str
) -> None:
    head, request = REQUESTS[operation]
    root = tmp_path / "media"
    root.mkdir()
    for make in FILES.values():
        make(root, head)
    service = MemoryTransport(lambda _: httpx.Response(500))
    summary = await bench_of(tmp_path, operation, request).texts(*FILES).run(service)
    assert (summary.rows.ok, summary.rows.failed, len(service.requests)) == (0, len(FILES), 0)
    table = bench_of(tmp_path, operation, request).table()
    assert {row["text"]: row["error"]["type"] for row in table} == dict.fromkeys(FILES, "MediaError")
    assert CANARY.decode() not in json.dumps([row["error"] for row in table])


@pytest.mark.anyio
async def test_a_url_that_leads_inside_or_holds_too_much_is_a_media_error(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    bench = bench_of(tmp_path, "chat", picture(type="image_url", image_url={"url": "{{ text }}"}))
    bench.changes["input"] = {}
    bench.changes["output"] = {"columns": ["id"]}
    service = MemoryTransport(lambda _: httpx.Response(500))
    # A line holds at most 32 MB, so a larger text comes of two columns.
    bench.texts(*(url[:1000] for url in URLS.values()))
    for row, url in zip(bench.rows, URLS.values(), strict=True):
        row["times"] = max(1, len(url) // 1000)
        row["text"] = url if len(url) < 1000 else url[:22]
    bench.changes["request"] = picture(
        type="image_url", image_url={"url": "{{ text }}{% if times > 1 %}{{ 'A' * (times * 1000) }}{% endif %}"}
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    summary = await bench.run(service)
    assert (summary.rows.ok, summary.rows.failed, len(service.requests)) == (0, len(URLS), 0)
    # What is longer than any text may be is refused before anybody asks what it is.
    types = [row["error"]["type"] for row in bench.table()]
    assert types == ["MediaError"] * (len(URLS) - 1) + ["TemplateError"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000


def test_a_folder_that_is_swapped_for_a_link_meanwhile_is_never_read_through(tmp_path: Path) -> None:
    """A neighbour swaps a folder below the root for a link to a secret and back, as fast as it can."""
    root, outside = tmp_path / "media", tmp_path / "outside"
    for folder, content in ((root / "real", WAV), (outside, CANARY * 4)):
        folder.mkdir(parents=True)
        (folder / "a.wav").write_bytes(content)
    (root / "link").symlink_to(outside)
    (root / "name").symlink_to(outside)
    done = threading.Event()

    def swap() -> None:
        turn = 0
        while not done.is_set():
            turn += 1
            source = root / f"next{turn}"
            if turn % 2:
                source.mkdir()
                (source / "a.wav").write_bytes(WAV)
            else:
                source.symlink_to(outside)
            (root / "name").rename(root / f"old{turn}")
            source.rename(root / "name")

    thread = threading.Thread(target=swap)
    thread.start()
    seen: set[bytes | str] = set()
    try:
        for _ in range(1500):
            try:
                seen.add(find_media(root, "name/a.wav", max_bytes=1000).read())
            except MediaError as error:
                seen.add(error.code)
    finally:
        done.set()
        thread.join()
    assert seen <= {WAV, "path", "not_found", "changed", "unreadable"}
