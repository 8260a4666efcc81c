"""The simulator's process begins, ends and writes as it says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import orjson
import psutil
import pytest

from pipeline.simulator import tones
from pipeline.simulator.ledger import Answered, Arrived, content_key, messages_key, read_ledger, text_key
from pipeline.simulator.serve import SimulatorDiedError, start
from pipeline.simulator.sounds import wave_file

MESSAGES = [{"role": "user", "content": "hello"}]
HEADERS = {"api-key": "k", "x-ms-client-request-id": "mine"}
CHAT = "/openai/deployments/d/chat/completions?api-version=2024-10-21"


def test_every_call_is_in_the_ledger_and_in_the_stats(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with start({"vectors": "hash"}, ledger=path) as simulator, httpx.Client(base_url=simulator.url) as client:
        client.post(CHAT, headers=HEADERS, json={"messages": MESSAGES})
        client.post("/v1/embeddings", headers=HEADERS, json={"model": "e", "input": ["a", "b"], "dimensions": 8})
        client.post(CHAT, json={"messages": MESSAGES})
        client.post(CHAT, headers=HEADERS, content=b"no json")
        stats = client.get("/_simulator/stats").json()
    entries = list(read_ledger(path))
    arrived = [entry for entry in entries if isinstance(entry, Arrived)]
    answered = [entry for entry in entries if isinstance(entry, Answered)]
    assert [entry.keys for entry in arrived] == [(messages_key(MESSAGES),), (text_key("a"), text_key("b")), (), ()]
    assert [(entry.op, entry.deployment) for entry in arrived] == [
        ("chat", "d"),
        ("embeddings", "e"),
        ("chat", "d"),
        ("chat", "d"),
    ]
    assert [entry.client_request_id for entry in arrived] == ["mine", "mine", None, "mine"]
    assert [(entry.status, entry.tokens) for entry in answered] == [(200, 2 + 16), (200, 2), (401, 0), (400, 0)]
    assert (stats["answered"], stats["in_flight"], stats["peak_in_flight"]) == (4, 0, 1)
    assert stats["by_status"] == {"200": 2, "400": 1, "401": 1}
    assert stats["deployments"]["d"]["requests"] == 1


def test_every_operation_leaves_its_pairing_key_and_is_charged_by_its_kind(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    sound = wave_file(tones.encode(["Hello."], 16_000), 16_000)
    config = {"vectors": "hash", "audio": "tones", "deployments": {"d": {"tokens_per_minute": 1_000}}}
    with start(config, ledger=path) as simulator, httpx.Client(base_url=simulator.url, headers=HEADERS) as client:
        replies = [
            client.post("/v1/responses", json={"model": "d", "input": "abcd"}),
            client.post("/v1/completions", json={"model": "d", "prompt": "abcd"}),
            client.post("/v1/audio/speech", json={"model": "d", "input": "abcd", "voice": "alloy"}),
            client.post("/v1/images/generations", json={"model": "d", "prompt": "abcd"}),
            client.post("/v1/audio/transcriptions", data={"model": "d"}, files={"file": ("a.wav", sound)}),
            client.post("/v1/audio/translations", data={"model": "d"}, files={"file": ("a.wav", sound)}),
        ]
    assert [reply.status_code for reply in replies] == [200] * 6
    assert all(reply.headers["x-request-id"] for reply in replies)
    entries = list(read_ledger(path))
    arrived = [entry for entry in entries if isinstance(entry, Arrived)]
    assert [(entry.op, entry.deployment, entry.keys) for entry in arrived] == [
        ("responses", "d", (messages_key("abcd"),)),
        ("completions", "d", (text_key("abcd"),)),
        ("speech", "d", (text_key("abcd"),)),
        ("images", "d", (text_key("abcd"),)),
        ("transcription", "d", (content_key(sound),)),
        ("translation", "d", (content_key(sound),)),
    ]
    assert [entry.tokens for entry in entries if isinstance(entry, Answered)] == [17, 17, 0, 0, 0, 0]


def test_it_listens_on_loopback_alone_and_survives_a_ctrl_c_meant_for_its_parent() -> None:
    with start({}) as simulator:
        process = psutil.Process(simulator.pid)
        listening = {connection.laddr.ip for connection in process.net_connections() if connection.status == "LISTEN"}
        assert listening == {"127.0.0.1"}
        assert os.getsid(simulator.pid) != os.getsid(0)
        process.send_signal(signal.SIGINT)
        assert httpx.get(f"{simulator.url}/_simulator/stats").status_code == 200
    assert not simulator.alive
    simulator.stop()


def test_it_outlives_the_thread_that_started_it() -> None:
    started = []
    thread = threading.Thread(target=lambda: started.append(start({})))
    thread.start()
    thread.join()
    with started[0] as simulator:
        assert httpx.get(f"{simulator.url}/_simulator/stats").status_code == 200


def test_it_ends_with_a_parent_that_is_killed() -> None:
    code = """
import os, signal
from pipeline.simulator.serve import start
simulator = start({})
print(simulator.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    pid = int(parent.communicate()[0])
    with_parent_gone = [process for process in psutil.process_iter() if process.pid == pid]
    gone, alive = psutil.wait_procs(with_parent_gone, timeout=10)
    assert not alive
    assert len(gone) <= 1


def test_a_bad_configuration_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="speed"):
        start({"speed": -1})
    command = [sys.executable, "-m", "pipeline.simulator", "--config", "-"]
    done = subprocess.run(command, input=b'{"speed": -1}\n', capture_output=True, check=False)
    assert done.returncode == 2
    assert b"speed" in done.stderr


def test_a_simulator_that_cannot_write_its_ledger_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(SimulatorDiedError, match="No such file or directory"):
        start({}, ledger=tmp_path / "missing" / "ledger.jsonl")


def test_the_command_prints_one_line_and_ends_on_sigterm(tmp_path: Path) -> None:
    config = tmp_path / "simulator.yaml"
    config.write_text("deployments: {d: {model: gpt-4o}}\n")
    command = [sys.executable, "-m", "pipeline.simulator", "--port", "0", "--config", str(config), "--vectors", "hash"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        line = orjson.loads(process.stdout.readline())
        assert (line["event"], line["pid"]) == ("listening", process.pid)
        missing = httpx.post(
            f"http://127.0.0.1:{line['port']}/v1/chat/completions", headers=HEADERS, json={"model": "x"}
        )
        assert missing.status_code == 404
        process.terminate()
        assert process.wait(10) == 0
