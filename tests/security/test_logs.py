"""Nothing foreign makes a line of the log, moves the cursor of a terminal or turns its reading direction."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import pytest

from tests.cli.bench import JOB, Bench
from tests.security.raw_server import answer, raw_server

HOSTILE = [
    'a\n{"event":"forged"}',
    'a\r\n{"event":"forged","level":"error"}',
    "\x1b]0;owned\x07",
    "\x1b[2J\x1b[H",
    "\u202egnp.exe",
    "\u2066hidden\u2069",
    "\u2028{}",
    "\x9b31m",
    "\x00",
    "\x7f",
    "\ufeff",
    "a\tb",
    "\x85forged",
]
COMPLETION = (
    b'{"id":"c","object":"chat.completion","model":"m","choices":[{"index":0,"finish_reason":"stop",'
    b'"message":{"role":"assistant","content":"Yes."}}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}'
)


def refusal(text: str, *, param: str) -> bytes:
    return answer(400, json.dumps({"error": {"code": text, "message": text, "type": text, "param": param}}).encode())


def headers_of(text: str, reply: bytes) -> bytes:
    """A reply with this text in the headers that are logged, so far as it is one line."""
    safe = text.encode("utf-8").translate(None, b"\r\n\0")
    headers = b"".join(b"%b: %b\r\n" % (name, safe) for name in (b"x-request-id", b"apim-request-id", b"x-ms-region"))
    head, _, rest = reply.partition(b"\r\n")
    return head + b"\r\n" + headers + rest


def controls(text: str) -> set[str]:
    """The characters of a text that a terminal obeys, line ends aside."""
    return {one for one in text if one != "\n" and unicodedata.category(one) in {"Cc", "Cf", "Zl", "Zp"}}


def bench_of(folder: Path, url: str) -> Bench:
    bench = Bench(folder=folder, environ={"TEST_ENDPOINT": url, "TEST_KEY": "k", "NO_COLOR": "1"})
    bench.write(JOB)
    lines = [json.dumps({"id": text, "question": f"{text} {n}"}) for n, text in enumerate(HOSTILE)]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return bench


REPLIES: dict[str, tuple[Callable[[str], bytes], int]] = {
    "answers": (lambda _: answer(200, COMPLETION), 0),
    "refusals of rows": (lambda text: refusal(text, param="messages"), 1),
    "refusals of everybody": (lambda text: refusal(text, param=text), 3),
    "headers": (lambda text: headers_of(text, refusal(text, param="messages")), 1),
}


@pytest.mark.parametrize("replies", REPLIES)
def test_hostile_rows_and_replies_stay_within_their_lines(tmp_path: Path, replies: str) -> None:
    turn = cycle(HOSTILE)
    reply, code = REPLIES[replies]
    with raw_server(lambda _: reply(next(turn))) as server:
        bench = bench_of(tmp_path, server.url)
        said = [bench.call("run", "job.yaml", "--log-level", "debug", "--set", "run.max_attempts=1")]
        said += [bench.call(*words) for words in (("errors", "out"), ("status", "out"), ("show", "out", "0"))]
        said += [bench.call(*words) for words in (("show", "out", HOSTILE[2]), ("errors", "out", "--group-by", "code"))]
        requests = len(server.requests)
    assert said[0].exit_code == code, said[0].output
    assert requests >= len(HOSTILE)
    log = (bench.output / "_pipeline" / "log.jsonl").read_bytes()
    events = [json.loads(line) for line in log.split(b"\n") if line]
    assert len(events) >= 2
    assert {event["event"] for event in events}.isdisjoint({"forged"})
    for result in said:
        assert controls(result.output) == set(), result.output
        assert not [line for line in result.output.splitlines() if line.startswith('{"event":"forged"')]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_job_file_is_refused_in_lines_of_its_own(tmp_path: Path, text: str) -> None:
    bench = Bench(folder=tmp_path, environ={"NO_COLOR": "1"})
    job = {"operation": text, text: text, "input": {"path": text, text: 1}, "request": {text: "{{ " + text + " }}"}}
    bench.write(json.dumps(job))
    said = bench.call("validate", "job.yaml", "--set", f"{text}={text}")
    assert said.exit_code == 2
    assert controls(said.output) == set(), said.output
    assert all(
        line.startswith(("job.yaml", "--set: ", "/", "Usage", "Try", "Error", "\n")) or not line
        for line in said.output.split("\n")
    )
