from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.store import history
from pipeline.store.folder import Layout
from pipeline.store.history import begin_invocation, end_invocation, invocations
from pipeline.store.summary import RowCounts, Summary, write_summary


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    (tmp_path / "_pipeline").mkdir()
    return Layout(tmp_path)


def _at(minute: int, second: int = 0) -> str:
    return f"2026-11-23T10:{minute:02d}:{second:02d}+00:00"


def _summary(
    minute: int, *, ok: int, state: str = "complete", code: int | None = 0, cost: float | None = None
) -> Summary:
    return Summary(
        state=state,
        exit_code=code,
        rows=RowCounts(total=100, ok=ok),
        cost_usd=cost,
        seconds=30.0,
        started_at=_at(minute),
        updated_at=_at(minute, 30),
    )


def _run(layout: Layout, minute: int, summary: Summary, *, killed: bool = False) -> None:
    begin_invocation(layout, at=_at(minute), version="1")
    write_summary(layout.summary, summary)
    if not killed:
        end_invocation(layout, summary)


def test_each_invocation_has_its_own_rows_and_cost(layout: Layout) -> None:
    _run(layout, 1, _summary(1, ok=40, state="stopped", code=4, cost=1.0))
    _run(layout, 2, _summary(2, ok=100, cost=2.5))

    found = invocations(layout, running=False)
    assert [(one.number, one.state, one.exit_code, one.new_rows, one.new_cost_usd) for one in found] == [
        (1, "stopped", 4, 40, 1.0),
        (2, "complete", 0, 60, 1.5),
    ]
    assert [(one.begun, one.ended) for one in found] == [(_at(1), _at(1, 30)), (_at(2), _at(2, 30))]


def test_a_killed_one_is_called_so_before_and_after_the_next_begins(layout: Layout) -> None:
    _run(layout, 1, _summary(1, ok=40, state="running", code=None), killed=True)
    before = invocations(layout, running=False)
    begin_invocation(layout, at=_at(2), version="1")
    after = invocations(layout, running=True)

    assert [(one.state, one.exit_code, one.ok) for one in before] == [("killed", None, 40)]
    assert after[0] == before[0]
    assert (after[1].state, after[1].ended) == ("running", None)


def test_one_that_was_killed_before_it_wrote_anything_has_done_nothing(layout: Layout) -> None:
    _run(layout, 1, _summary(1, ok=40, cost=1.0))
    begin_invocation(layout, at=_at(2), version="1")

    (_, last) = invocations(layout, running=False)
    assert (last.state, last.exit_code, last.new_rows, last.new_cost_usd, last.ok) == ("killed", None, 0, 0.0, 40)


def test_one_that_ended_by_a_defect_is_known_by_its_summary(layout: Layout) -> None:
    _run(layout, 1, _summary(1, ok=4, state="stopped", code=70), killed=True)

    assert [(one.state, one.exit_code) for one in invocations(layout, running=False)] == [("stopped", 70)]


def test_one_that_goes_on_is_running(layout: Layout) -> None:
    _run(layout, 1, _summary(1, ok=4, state="running", code=None), killed=True)

    (one,) = invocations(layout, running=True)
    assert (one.state, one.ended, one.ok) == ("running", None, 4)


def test_a_folder_without_a_history_has_the_one_that_its_summary_tells_of(layout: Layout) -> None:
    write_summary(layout.summary, _summary(1, ok=40, cost=1.0))
    assert [(one.number, one.ok) for one in invocations(layout, running=False)] == [(1, 40)]

    _run(layout, 2, _summary(2, ok=50, cost=1.5))
    assert [(one.number, one.new_rows, one.new_cost_usd) for one in invocations(layout, running=False)] == [
        (1, 40, 1.0),
        (2, 10, 0.5),
    ]


def test_without_history_and_summary_nothing_is_known(layout: Layout) -> None:
    with pytest.raises(FileNotFoundError):
        invocations(layout, running=False)


@pytest.mark.parametrize(
    "rest", [b'{"run": 2, "beg', b"\xff\xfe\n", b"[" * 100_000 + b"\n", b'{"run": "x", "begun": 1}\n', b"null\n"]
)
def test_a_line_that_was_cut_or_is_not_ours_spoils_no_other(layout: Layout, rest: bytes) -> None:
    _run(layout, 1, _summary(1, ok=40))
    with layout.history.open("ab") as file:
        file.write(rest)
    _run(layout, 2, _summary(2, ok=50))

    assert [(one.number, one.new_rows) for one in invocations(layout, running=False)] == [(1, 40), (2, 10)]


def test_it_is_bounded(layout: Layout) -> None:
    summary = replace(_summary(1, ok=1), reason="r" * 2000)
    _run(layout, 1, summary)
    begun, ended = map(json.loads, layout.history.read_text().splitlines())
    # Each invocation reads what is there, so most of the lines are written here, until the bound is near.
    with layout.history.open("a") as file:
        for number in range(2, 10**6):
            file.write(f"{json.dumps(begun | {'run': number})}\n{json.dumps(ended | {'run': number, 'ok': number})}\n")
            if file.tell() > history.MOST_BYTES - 10_000:
                break
    assert len(invocations(layout, running=False)) == number > history.KEPT
    for more in range(number + 1, number + 51):
        begin_invocation(layout, at=_at(1), version="1")
        end_invocation(layout, replace(summary, rows=RowCounts(total=10**6, ok=more)))

    found = invocations(layout, running=False)
    assert history.KEPT <= len(found) < history.KEPT + 50
    assert layout.history.stat().st_size < history.MOST_BYTES * 1.1
    assert found[-1].number == number + 50
    assert (found[0].new_rows, found[1].new_rows) == (None, 1)  # what went before the first is not known any more


def test_it_is_private_and_a_folder_that_cannot_be_written_stops_no_run(layout: Layout, tmp_path: Path) -> None:
    _run(layout, 1, _summary(1, ok=1))
    assert layout.history.stat().st_mode & 0o777 == 0o600

    gone = Layout(tmp_path / "gone")
    begin_invocation(gone, at=_at(1), version="1")
    end_invocation(gone, _summary(1, ok=1))


def test_a_link_in_its_place_is_not_followed(layout: Layout, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    layout.history.symlink_to(victim)
    begin_invocation(layout, at=_at(1), version="1")

    assert victim.read_text() == "mine"


def test_lines_are_plain_json(layout: Layout) -> None:
    _run(layout, 1, _summary(1, ok=40))

    begun, ended = (json.loads(line) for line in layout.history.read_text().splitlines())
    assert begun == {"run": 1, "begun": _at(1), "version": "1"}
    assert (ended["run"], ended["state"], ended["ok"]) == (1, "complete", 40)
