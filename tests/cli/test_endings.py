from __future__ import annotations

from collections.abc import Iterator

import click
import pytest

from pipeline import errors
from pipeline.cli.endings import ending
from pipeline.errors import JobFileError, PipelineError, Problem, RefusedError
from pipeline.lanes.stop import Interrupted
from pipeline.sources import SourceError

DOCUMENTED = {
    "JobFileError": 2,
    "JobChangedError": 2,
    "InputChangedError": 2,
    "SourceError": 2,
    "ExamplesError": 2,
    "RefusedError": 3,
    "Drained": 4,
    "StoppedEarlyError": 4,
    "NoTokenYetError": 4,
    "StorageError": 5,
    "DiskFullError": 5,
    "DamageError": 5,
    "DefectError": 70,
    "StalledError": 70,
    "FolderHeldError": 75,
}


def _kinds(kind: type[PipelineError]) -> Iterator[type[PipelineError]]:
    for one in kind.__subclasses__():
        yield one
        yield from _kinds(one)


KINDS = [kind for kind in _kinds(PipelineError) if kind is not Interrupted and kind.__module__.startswith("pipeline.")]


def test_every_error_has_a_documented_exit_code() -> None:
    assert {kind.__name__: kind.exit_code for kind in KINDS} == DOCUMENTED
    assert SourceError in KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_is_said_in_its_own_words_and_ends_with_its_code(
    kind: type[PipelineError], capsys: pytest.CaptureFixture[str]
) -> None:
    problem = Problem(file="job.yaml", line=1, column=2, path="run", message="do that")
    error = JobFileError((problem,)) if kind is JobFileError else kind("do that")

    assert ending(error) == kind.exit_code

    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.endswith("do that\n")
    assert "Traceback" not in said.err


@pytest.mark.parametrize(("error", "code"), [(SystemExit(143), 143), (SystemExit(None), 0)])
def test_an_ending_without_words_says_none(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(error) == code
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_ctrl_c_in_a_command_with_nothing_to_wind_up_is_said(
    error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ending(error) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_what_we_did_not_foresee_is_called_a_defect_and_tells_no_value(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(value: str) -> None:
        raise ValueError(value)

    try:
        fail("canary-" * 2)
    except ValueError as error:
        code = ending(error)

    said = capsys.readouterr().err
    assert code == 70
    assert "a defect of ours (ValueError)" in said
    assert "test_endings.py" in said
    assert "log.jsonl" in said
    assert "canary-canary-" not in said


def test_of_failures_side_by_side_ours_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    group = BaseExceptionGroup("", [ValueError(), BaseExceptionGroup("", [RefusedError("no key")])])

    assert ending(group) == 3
    assert capsys.readouterr().err == "pipeline: no key\n"


def test_the_tree_of_errors_is_exported() -> None:
    import pipeline  # noqa: PLC0415 - the module itself is looked at

    public = {name for name in vars(errors) if name.endswith("Error") and "Row" not in name}
    rows = {"TemplateError", "MediaError", "ReplyError"}
    assert public - rows <= set(pipeline.__all__)
    for name in pipeline.__all__:
        assert getattr(pipeline, name) is not None
    assert dir(pipeline) == sorted(pipeline.__all__)
    with pytest.raises(AttributeError):
        pipeline.bogus  # noqa: B018 - reading it is the test
