"""The output folder against hostile rows, hostile replies and curious neighbours."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import httpx
import orjson
import pytest
from in_memory import Bench, Said, Service, refusal

from pipeline.errors import JobFileError, PipelineError, StorageError

CANARY = "canary-7f3a91"
NAMES = re.compile(
    r"part-\d{12}-\d{12}\.parquet|_pipeline(/("
    r"lock|checksums\.json|manifest\.json|summary\.json|log\.jsonl|runs\.jsonl|journal(/(00|ids)\.sqlite(-wal|-shm)?)?|spool(/\d{12}\.arrow)?"
    r"|attempts(/attempts-\d{12}-\d{12}\.parquet)?))?"
)
HOSTILE = [
    "../../x",
    "/etc/passwd",
    "a/b",
    "a\x00b",
    "x" * 300,
    "..",
    ".",
    "con",
    "'; DROP TABLE result; --",
    'a\n{"event":"forged"}',
    "\x1b]0;title\x07",
    "\u202egnp.exe",
    "{{ row }}",
    "=cmd|'/C calc'!A0",
    "__proto__",
    "ordinal",
]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(folder=tmp_path, operation="chat", changes={"run": {"workers": 2}}).texts("a", "b", "c")


def inside(bench: Bench) -> dict[str, os.stat_result]:
    return {str(path.relative_to(bench.out)): path.lstat() for path in bench.out.rglob("*")}


def assert_private(bench: Bench) -> None:
    for name, status in inside(bench).items():
        if name.startswith("_pipeline"):
            assert stat.S_IMODE(status.st_mode) == (0o700 if stat.S_ISDIR(status.st_mode) else 0o600), name


@pytest.mark.anyio
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
async def test_what_is_the_runs_own_is_private_while_it_runs_and_after(bench: Bench, umask: int) -> None:
    def look(texts: list[str], calls: int) -> Said:
        assert_private(bench)
        return refusal(400) if texts == ["b"] else None

    before = os.umask(umask)
    try:
        bench.out.mkdir(mode=0o755)
        assert (await bench.run(Service(look), limit=2)).exit_code is not None
        assert (await bench.run(Service(look))).rows.ok == 2
    finally:
        os.umask(before)
    assert_private(bench)
    assert {stat.S_IMODE(path.stat().st_mode) for path in bench.parts()} == {0o666 & ~umask}


def link(bench: Bench) -> None:
    (bench.folder / "elsewhere").mkdir()
    bench.out.mkdir()
    (bench.out / "_pipeline").symlink_to(bench.folder / "elsewhere")


def everybodys(bench: Bench) -> None:
    bench.out.mkdir()
    bench.out.chmod(0o777)


def somebody_elses(bench: Bench) -> None:
    bench.out.mkdir()
    (bench.out / "thesis.txt").write_text("mine")


@pytest.mark.anyio
@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(
    ("plant", "refusal"), [(link, StorageError), (everybodys, StorageError), (somebody_elses, JobFileError)]
)
async def test_a_folder_that_is_not_safely_its_own_is_refused_before_anything_is_sent(
    bench: Bench, plant: Callable[[Bench], None], refusal: type[PipelineError], fresh: bool  # noqa: FBT001
) -> None:  # fmt: skip
    plant(bench)
    before = sorted(inside(bench))
    service = Service()
    with pytest.raises(refusal):
        await bench.run(service, fresh=fresh)
    assert service.calls == []
    assert sorted(inside(bench)) == before
    assert not list(bench.folder.glob("elsewhere/*"))


@pytest.mark.anyio
async def test_no_name_on_disk_comes_from_a_row_or_a_reply(bench: Bench) -> None:
    bench.rows = [{"id": text, "text": text, "n": n} for n, text in enumerate(HOSTILE)]

    def judge(texts: list[str], calls: int) -> Said:
        return refusal(400, texts[0], texts[0], headers={"x-request-id": "../../x"}) if calls % 2 else None

    await bench.run(Service(judge))
    bench.assert_rows(range(len(HOSTILE)))
    assert [name for name in inside(bench) if not NAMES.fullmatch(name)] == []
    assert {path.name for path in bench.folder.iterdir()} == {"job.json", "rows.jsonl", "out"}


def many_keys() -> dict[str, object]:
    return {f"key{n}": n for n in range(100_000)}


def proto() -> dict[str, object]:
    return {"__proto__": {"polluted": True}, "constructor": {"prototype": 1}, "__class__": "x"}


def sql() -> dict[str, object]:
    return {'"; DROP TABLE result; --': 1, "ordinal": 7, "status": "ok", "error": None}


@pytest.mark.anyio
@pytest.mark.parametrize("extra", [many_keys, proto, sql])
@pytest.mark.parametrize("status", [200, 400])
async def test_whatever_a_reply_holds_is_stored_as_data(
    bench: Bench, extra: Callable[[], dict[str, object]], status: int
) -> None:
    bench.changes["output"] = {"raw": "all"}
    hostile = extra()
    text = "'; DROP TABLE result; -- {{ row }}"
    message = {"role": "assistant", "content": text, **hostile}
    body = {"choices": [{"index": 0, "message": message, "finish_reason": text, **hostile}], **hostile}
    if status != 200:
        # More than a megabyte of it would be read as text.
        body = {"error": {**dict(islice(hostile.items(), 50_000)), "message": text, "code": "__proto__"}}
    service = Service(lambda texts, _: httpx.Response(status, content=orjson.dumps(body)) if texts == ["b"] else None)
    plain = ["a", "c"]
    await bench.run(service)
    table = bench.table()
    assert [row["ordinal"] for row in table] == [0, 1, 2]
    assert [row["text"] for row in table if row["ordinal"] != 1] == plain
    row = table[1]
    if status == 200:
        assert (row["status"], row["output_text"], row["finish_reason"]) == ("ok", text, text)
    else:
        assert row["error"] == {
            "type": "BadRequestError",
            "code": "__proto__",
            "message": text,
            "http_status": 400,
        }
    assert row["response"] is None or json.loads(row["response"]) == body
    with bench.journal() as journal:
        assert journal.problems() == []
        assert journal.counts() == (0, 0)
    assert [name for name in inside(bench) if not NAMES.fullmatch(name)] == []


@pytest.mark.anyio
async def test_what_rows_and_replies_say_is_nowhere_but_in_parts_and_payloads(bench: Bench) -> None:
    bench.texts(f"prompt {CANARY}", f"refused {CANARY}", f"cut {CANARY}", f"slow {CANARY}")
    seen: list[str] = []

    def judge(texts: list[str], calls: int) -> Said:
        seen.append(texts[0])
        if texts[0].startswith("refused"):
            return refusal(400, "content_filter", f"The prompt {texts[0]!r} is refused")
        if texts[0].startswith("cut"):
            return httpx.Response(200, content=f'{{"choices": "{CANARY}'.encode())
        if texts[0].startswith("slow") and seen.count(texts[0]) == 1:
            return httpx.ReadError(f"https://user:{CANARY}@host/?key={CANARY}")
        return None

    await bench.run(Service(judge))
    assert (await bench.run(Service())).rows.failed == 2
    for name in ("log.jsonl", "summary.json", "runs.jsonl", "manifest.json"):
        assert CANARY not in (bench.layout.private / name).read_text(), name
    assert CANARY not in str(bench.attempts())
    assert CANARY not in str(bench.events)
    assert bench.table()[1]["error"]["message"].startswith("The prompt")


@pytest.mark.anyio
async def test_no_secret_is_on_disk_whatever_happened(bench: Bench, tmp_path: Path) -> None:
    answers: list[Said] = [
        refusal(401, "401", "bad key"),
        refusal(500),
        httpx.ConnectError(f"bad key {'k' * 32}"),
        None,
    ]
    await bench.run(Service(lambda texts, calls: answers[calls % len(answers)]))
    secret = b"k" * 32
    for path in bench.out.rglob("*"):
        if path.is_file():
            assert secret not in path.read_bytes(), path
    assert secret.decode() not in str(bench.events)
