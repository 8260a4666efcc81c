"""The fault report: lines of several processes, one table, and nothing skipped in silence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from chaos import report
from chaos.report import FAULTS, Line, main, markdown, merge, read

RECORD = """
import sys
sys.path.insert(0, sys.argv[1])
from chaos.report import record, record_skip
for number in range(200):
    record(fault="F1", what="chat " * 40, tried=1, resent_max=number)
"""


def _recorded_by(place: Path, script: str, *, processes: int = 1) -> list[Line]:
    tests = Path(report.__file__).parents[1]
    environ = {**os.environ, "PIPELINE_FAULT_REPORT": str(place)}
    running = [subprocess.Popen([sys.executable, "-c", script, str(tests)], env=environ) for _ in range(processes)]
    assert [process.wait(60) for process in running] == [0] * processes
    return read(place)


def test_processes_that_record_at_once_leave_whole_lines(tmp_path: Path) -> None:
    lines = _recorded_by(tmp_path / "lines.jsonl", RECORD, processes=4)
    assert len(lines) == 800
    assert merge(lines)[0] == Line(fault="F1", what="chat " * 40, tried=800, resent_max=199)


def test_lines_of_one_variant_are_added_up_and_the_worst_is_kept() -> None:
    one = Line(fault="F4", what="chat", tried=20, resent_max=3, recover_s_max=1.5, notes="seed 1")
    other = Line(fault="F4", what="chat", tried=30, lost=1, doubled=2, resent_max=None, recover_s_max=0.5)
    assert [line for line in merge([one, other]) if not line.skipped] == [
        Line(fault="F4", what="chat", tried=50, lost=1, doubled=2, resent_max=3, recover_s_max=1.5, notes="seed 1")
    ]


def test_every_class_without_a_line_is_shown_as_skipped() -> None:
    table = merge([Line(fault="F2", what="chat", tried=1)])
    assert [line.fault for line in table] == list(FAULTS)
    assert [line.fault for line in table if line.skipped] == [fault for fault in FAULTS if fault != "F2"]
    page = markdown(table)
    assert page.count("**SKIP**") == len(FAULTS) - 1
    assert "Fault classes run: 1 of 24." in page


def test_a_skip_says_why_even_where_its_class_was_tried_in_another_way() -> None:
    why = Line(fault="F4", what="power loss", skipped="no loop device")
    page = markdown(merge([why, Line(fault="F4", what="chat", tried=1)]))
    assert "| F4 | power loss | **SKIP** |  |  |  |  | no loop device |" in page
    assert "Fault classes run: 1 of 24." in page
    assert "Fault classes run: 0 of 24." in markdown(merge([why]))


def test_a_needed_class_that_was_skipped_or_a_row_that_was_lost_fails_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "lines.jsonl"
    place.write_text('{"fault": "F1", "what": "chat", "tried": 1}\n')
    assert main([str(place), "--need", "F1", "--markdown", str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text() == capsys.readouterr().out
    assert main([str(place), "--need", "F1,F4"]) == 1
    assert "F4" in capsys.readouterr().err
    place.write_text('{"fault": "F1", "what": "chat", "tried": 1, "lost": 1}\n')
    assert main([str(place), "--need", "F1"]) == 1


def test_a_class_that_the_machine_cannot_try_is_no_failure_when_it_says_so(tmp_path: Path) -> None:
    place = tmp_path / "lines.jsonl"
    place.write_text('{"fault": "F4", "what": "power loss", "skipped": "no loop device"}\n')
    assert main([str(place), "--need", "F4"]) == 0


def test_what_a_later_file_says_of_a_class_replaces_what_an_earlier_one_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full.jsonl").write_text(
        '{"fault": "F1", "what": "chat", "tried": 11}\n{"fault": "F4", "what": "chat", "tried": 22}\n'
    )
    (tmp_path / "full-F4.jsonl").write_text('{"fault": "F4", "what": "chat", "tried": 33}\n')
    assert main([str(tmp_path / "full.jsonl"), str(tmp_path / "full-F4.jsonl")]) == 0
    page = capsys.readouterr().out
    assert "| F1 | chat | 11 |" in page
    assert "| F4 | chat | 33 |" in page


def test_a_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    place = tmp_path / "lines.jsonl"
    place.write_text('{"fault": "F1", "what": "chat"}\n{"fault": "F2"\n')
    with pytest.raises(ValueError, match="line 2"):
        read(place)


def test_a_class_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="F99"):
        report.record(fault="F99", what="", tried=1)
