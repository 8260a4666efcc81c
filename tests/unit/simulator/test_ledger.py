"""The ledger holds whole lines and gives them back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.simulator.ledger import Answered, Arrived, Ledger, messages_key, read_ledger, text_key


def at_once(flush: Callable[[], None]) -> None:
    """Write with the next close: the tests have no loop."""


def write(path: Path, seqs: range) -> None:
    ledger = Ledger(path, now_s=1.0, later=at_once)
    for seq in seqs:
        ledger.arrived(seq=seq, t=2.0, op="chat", deployment="d", digest="00", keys=("a", "b"), client_request_id=None)
        ledger.answered(seq=seq, t=3.0, status=200, tokens=17, fault=None)
    ledger.close()


def test_what_was_noted_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    write(path, range(1, 2))
    assert list(read_ledger(path)) == [
        Arrived(
            session=0, seq=1, t=2.0, op="chat", deployment="d", digest="00", keys=("a", "b"), client_request_id=None
        ),
        Answered(session=0, seq=1, t=3.0, status=200, tokens=17, fault=None),
    ]


def test_who_refused_and_who_served_are_noted_where_there_is_something_to_say(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, now_s=1.0, later=at_once)
    ledger.answered(seq=1, t=3.0, status=429, tokens=0, fault=None, refused_by="utilization")
    ledger.answered(seq=2, t=3.0, status=200, tokens=9, fault=None, served_by="std")
    ledger.answered(seq=3, t=3.0, status=200, tokens=9, fault=None)
    ledger.close()
    found = [(entry.refused_by, entry.served_by) for entry in read_ledger(path) if isinstance(entry, Answered)]
    assert found == [("utilization", None), (None, "std"), (None, None)]
    assert [b"_by" in line for line in path.read_bytes().splitlines()] == [False, True, True, False]


def test_a_second_start_is_a_second_session(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    write(path, range(1, 3))
    write(path, range(1, 3))
    assert [entry.session for entry in read_ledger(path)] == [0] * 4 + [1] * 4


def test_a_flush_is_asked_for_once_and_writes_every_line(tmp_path: Path) -> None:
    asked: list[Callable[[], None]] = []
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, now_s=1.0, later=asked.append)
    ledger.answered(seq=1, t=1.0, status=None, tokens=0, fault="hang")
    ledger.answered(seq=2, t=1.0, status=200, tokens=0, fault=None)
    assert len(asked) == 1
    asked.pop()()
    assert len(list(read_ledger(path))) == 2
    ledger.answered(seq=3, t=1.0, status=200, tokens=0, fault=None)
    assert len(asked) == 1
    ledger.close()
    assert len(list(read_ledger(path))) == 3


@pytest.mark.parametrize("torn", [b"{", b'{"event":"answered","seq":9', b"x" * 200_000])
def test_a_torn_last_line_is_not_read_and_is_cut_off_by_the_next_start(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "ledger.jsonl"
    write(path, range(1, 3))
    with path.open("ab") as file:
        file.write(torn)
    assert len(list(read_ledger(path))) == 4
    write(path, range(1, 3))
    assert len(list(read_ledger(path))) == 8


def test_a_line_that_the_ledger_never_wrote_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b'{"event":"eaten"}\n')
    with pytest.raises(ValueError, match="eaten"):
        list(read_ledger(path))


def test_keys_are_sixteen_hex_digits_and_do_not_depend_on_the_order_of_fields() -> None:
    assert len(text_key("a")) == 16
    assert text_key("a") != text_key("b")
    assert messages_key([{"role": "user", "content": "a"}]) == messages_key([{"content": "a", "role": "user"}])
