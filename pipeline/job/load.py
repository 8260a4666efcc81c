"""Reads a job file: YAML 1.2, JSON or TOML with places, environment variables, and every problem at once."""

from __future__ import annotations

import difflib
import glob
import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from pipeline.errors import JobFileError, PipelineError, Problem, TemplateError
from pipeline.job import availability, document, identity, template
from pipeline.job.batch import BATCH_FORMAT, OPERATION_OF, operation_of
from pipeline.job.budget import budget_problems
from pipeline.job.document import FieldPath, Report
from pipeline.job.paths import MAGIC, exists, is_folder, static_folder
from pipeline.job.spec import (
    DEFAULT_TIMEOUT_S,
    MEDIA_TIMEOUT_S,
    NOT_YET,
    DeploymentSpec,
    InputSpec,
    Job,
    Origin,
    OutputSpec,
    RunSpec,
    Secret,
    Section,
    default_api,
    is_azure,
    parse_duration,
    pasted_api_version,
)
from pipeline.job.training import TRAINING, training_problems

COMMON_COLUMNS = ("ordinal", "status", "error", "usage", "request", "response")

FirstUrl = Callable[[Sequence[str]], str | None]
"""Gives the `url` of the first line of files made for the Batch API. Raises PipelineError where none can be read."""

_SectionT = TypeVar("_SectionT", bound=Section)

_SECTIONS: Mapping[str, type[Section]] = {
    "input": InputSpec,
    "deployments": DeploymentSpec,
    "output": OutputSpec,
    "run": RunSpec,
}
_TOP = ("name", "operation", "input", "request", "deployments", "output", "run")
_VARIABLE = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")
_NAME = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(:-(.*))?", re.DOTALL)
_SECRET = re.compile(r"((?:Bearer|Basic) )?\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_STREAMED = frozenset({"chat", "completions", "responses"})
_CUT = frozenset({"transcription", "translation"})
_CARRIED = ("chat", "completions", "embeddings", "responses")
_OF_MEDIA = frozenset({"transcription", "translation", "speech", "image"})
_KEY_VARIABLES = {"azure": "AZURE_OPENAI_API_KEY", "azure-v1": "AZURE_OPENAI_API_KEY", "openai": "OPENAI_API_KEY"}
_TOKEN_VARIABLE = "AZURE_OPENAI_AD_TOKEN"  # noqa: S105 - a variable's name
_SIMULATED_ENDPOINT = "https://simulated.openai.azure.com"
_SIMULATED = "simulated"
_HINTS = {
    "input": "say where the rows are, `path: …`",
    "input.path": "say where the rows are",
    "request": "give the API's body, field by field",
    "deployments": "name at least one, with `endpoint` and `deployment`",
    "endpoint": "give the resource's URL, such as `${AZURE_OPENAI_ENDPOINT}`",
    "deployment": "give the deployment's name, or elsewhere than on Azure the model's id",
    "output": "say where the results go, `path: …`",
    "output.path": "say where the results go",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Environment:
    """`${NAME}` and `${NAME:-default}` read from the environment, or only checked for their form."""

    variables: Mapping[str, str]
    simulate: bool
    report: Report

    def expand(self, value: Any, path: FieldPath, *, placeholder: str | None = None) -> Any:
        """A text with its variables read; None where one is missing, which is then noted. Others pass as they are.

        With `placeholder`, variables stay unread: a default stands for itself, the placeholder for the others.
        """
        if not isinstance(value, str):
            return value
        missing = False

        def read(match: re.Match[str]) -> str:
            nonlocal missing
            if match[0] == "$${":
                return "${"
            name = _NAME.fullmatch(match[1] or "")
            if name is None:
                missing = True
                self.report.add(path, "holds `${` that begins no ${NAME} or ${NAME:-default}: a plain one is `$${`")
                return ""
            if placeholder is not None:
                return name[3] if name[2] else placeholder
            text = self.variables.get(name[1], "").strip()
            if not text and name[2]:
                return name[3]
            if not text:
                missing = True
                self.report.add(path, f"the variable {name[1]} is {_absence(name[1], self.variables, path)}")
            return text

        expanded = _VARIABLE.sub(read, value).strip()
        return None if missing else expanded

    def secret(self, value: Any, path: FieldPath, *, prefix: bool = False) -> Secret | None:
        """The secret that `${NAME}` names; what else stands there is a problem, and is never quoted."""
        match = _SECRET.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None or (match[1] and not prefix):
            self.report.add(path, "must be ${NAME} alone: a secret belongs in the environment, not in the job file")
            return None
        if self.simulate:
            return Secret(_SIMULATED)
        text = self.variables.get(match[2], "").strip()
        if not text:
            self.report.add(path, f"the variable {match[2]} is {_absence(match[2], self.variables, path)}")
            return None
        if not (text.isascii() and text.isprintable()):
            self.report.add(path, f"the variable {match[2]} holds characters that no header can carry")
            return None
        return Secret((match[1] or "") + text)


def _absence(name: str, variables: Mapping[str, str], path: FieldPath) -> str:
    near = [] if name in variables else difflib.get_close_matches(name, variables, 1, cutoff=0.8)
    said = "empty" if name in variables else "not set"
    if near:
        return f"{said} (did you mean {near[0]}?)"
    return f"{said} (a rehearsal needs none: pipeline run --simulate)" if path[0] == "deployments" else said


# What was found wrong is already noted; the key is left out of what is validated.
_FAILED = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateUse:
    """A string of the request, by its path in the job file, and the columns that it reads (None: any)."""

    path: FieldPath
    columns: frozenset[str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What a job file says, as far as it can be understood; `job` is None while there are problems.

    `input`, `output` and `templates` are there as far as they are valid, so that columns can be checked, and an
    output folder be found, in spite of problems elsewhere.
    """

    file: Path
    problems: tuple[Problem, ...]
    operation: str | None
    input: InputSpec | None
    output: OutputSpec | None
    templates: tuple[TemplateUse, ...]
    job: Job | None
    origin: Origin

    def column_problems(self, names: Collection[str], *, result_columns: Collection[str] = ()) -> tuple[Problem, ...]:
        """What the job asks of columns that the input, whose columns are `names`, does not have, or has twice.

        An input without any is empty: a night without rows is no mistake in the job.
        """
        if not names:
            return ()
        report = Report(file=str(self.file))
        report.tree.marks.update(self.origin.marks)
        for use in self.templates:
            for column in sorted((use.columns or frozenset()) - set(names)):
                report.add(use.path, f"the input has no column `{column}`{_suggest(column, names)}")
        if self.input is not None and self.input.id is not None and self.input.id not in names:
            report.add(("input", "id"), f"the input has no column `{self.input.id}`{_suggest(self.input.id, names)}")
        if self.output is not None:
            _check_carried(self.output, names, (*COMMON_COLUMNS, *result_columns), report)
        return _sorted(report.problems)


def _check_carried(output: OutputSpec, names: Collection[str], ours: Collection[str], report: Report) -> None:
    if output.columns == "none":
        return
    carried = names if output.columns == "all" else output.columns
    for index, column in enumerate(() if output.columns == "all" else output.columns):
        if column not in names:
            report.add(("output", "columns", index), f"the input has no column `{column}`{_suggest(column, names)}")
    taken = [column for column in carried if column in ours]
    if taken:
        left = ", ".join(json.dumps(column, ensure_ascii=False) for column in carried if column not in ours)
        report.add(
            ("output", "columns"),
            f"the input's {_listed(taken)} would have the name of a result column: "
            f"carry the others, `columns: [{left}]`",
        )


def check_columns(
    job: Job, schema_names: Collection[str], *, result_columns: Collection[str] = ()
) -> tuple[Problem, ...]:
    """`Draft.column_problems` of a job that is already valid."""
    draft = Draft(
        file=job.file,
        problems=(),
        operation=job.operation,
        input=job.input,
        output=job.output,
        templates=_templates(job.request, Report(file=str(job.file))),
        job=job,
        origin=job.origin,
    )
    return draft.column_problems(schema_names, result_columns=result_columns)


def load_job(
    path: Path,
    *,
    environ: Mapping[str, str],
    operations: Collection[str],
    formats: Collection[str] | None = None,
    overrides: Mapping[str, str] | None = None,
    simulate: bool = False,
    first_url: FirstUrl | None = None,
) -> Job:
    """Read and check a job file. Raises JobFileError with every problem at once. See `read`."""
    draft = read(
        path,
        environ=environ,
        operations=operations,
        formats=formats,
        overrides=overrides,
        simulate=simulate,
        first_url=first_url,
    )
    if draft.job is None:
        raise JobFileError(draft.problems)
    return draft.job


def run_values(values: Mapping[str, str]) -> RunSpec:
    """Check values of `run`, each read as YAML, as those of the job file are; the other keys have their defaults.

    Raises JobFileError with every problem; they are in no file.
    """
    report = Report(file="", override="")
    data: dict[str, Any] = {"run": {}}
    for name, text in values.items():
        document.override(data, f"run.{name}", text, report)
    spec = _section(report, RunSpec, data["run"], ("run",))
    for name, value in data["run"].items():
        if value is None:
            report.add(("run", name), "has no value")
    if report.problems or spec is None:
        raise JobFileError(_sorted(report.problems))
    return spec


def read(
    path: Path,
    *,
    environ: Mapping[str, str],
    operations: Collection[str],
    formats: Collection[str] | None = None,
    overrides: Mapping[str, str] | None = None,
    simulate: bool = False,
    first_url: FirstUrl | None = None,
) -> Draft:
    """Read a job file as far as it can be understood; nothing is raised, every problem is in the draft.

    `operations` and `formats` (of the input) are the names of those that exist; None: whatever opens the input judges
    its format. `overrides` are values by path, `deployments.sweden.priority` for
    instance, each read as YAML. With `simulate`, the variables of deployments are checked for their form and not
    read, and every deployment has the key "simulated". `first_url` tells the operation of lines made for the Batch API
    where the job does not name it; without it, the job must.
    """
    report = Report(file=str(path))
    document.read(path, report)
    if not isinstance(report.tree.data, dict):
        return Draft(
            file=path,
            problems=_sorted(report.problems),
            operation=None,
            input=None,
            output=None,
            templates=(),
            job=None,
            origin=Origin(),
        )
    for name, text in (overrides or {}).items():
        document.override(report.tree.data, name, text, report)
    return _Reader(
        file=path,
        data=report.tree.data,
        report=report,
        variables=_Environment(variables=environ, simulate=simulate, report=report),
        operations=operations,
        formats=formats,
        simulate=simulate,
        first_url=first_url,
    ).draft()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    """One reading of one document."""

    file: Path
    data: dict[str, Any]
    report: Report
    variables: _Environment
    operations: Collection[str]
    formats: Collection[str] | None
    simulate: bool
    first_url: FirstUrl | None

    def draft(self) -> Draft:
        """Check section by section, so that what is wrong in one hides nothing in another."""
        data, report = self.data, self.report
        _refuse_unknown(data, (), _TOP, report)
        name = self._name(data.get("name"))
        written: dict[tuple[str, ...], Any] = {}
        inputs = self._input(data.get("input"), written)
        lines = inputs is not None and inputs.format == BATCH_FORMAT
        operation = self._operation(data.get("operation"), inputs)
        self._incremental(inputs, operation)
        request = self._lines_request(data.get("request")) if lines else self._request(data.get("request"), operation)
        templates = () if request is None else _templates(request, report)
        deployments = self._deployments(data.get("deployments"), operation, request or {})
        output = self._output(data.get("output"), operation, inputs)
        self._pieces(request or {}, output)
        run = self._run(data.get("run") or {}, operation)
        self._dedupe(run, inputs, operation)
        deployments = self._lanes(deployments, run, operation, request or {})
        self._processes(run, operation, inputs)
        if run is not None:
            asked = None if lines else request
            for path, message in budget_problems(operation=operation, request=asked, run=run, deployments=deployments):
                report.add(path, message)
        if operation == TRAINING:
            output = self._training(request, deployments, output, run)
        origin = Origin(
            marks={path: mark for path, mark in report.tree.marks.items() if mark != (0, 0)}, written=written
        )
        job = None
        if not report.problems:
            job = Job(
                name=cast("str", name),
                operation=cast("str", operation),
                input=cast("InputSpec", inputs),
                request=cast("dict[str, Any]", request),
                deployments=deployments,
                output=cast("OutputSpec", output),
                run=cast("RunSpec", run),
                file=self.file,
            ).with_origin(origin)
        return Draft(
            file=self.file,
            problems=_sorted(report.problems),
            operation=operation,
            input=inputs,
            output=output,
            templates=templates,
            job=job,
            origin=origin,
        )

    def _operation(self, value: Any, inputs: InputSpec | None) -> str | None:
        lines = inputs is not None and inputs.format == BATCH_FORMAT
        if value is None and lines and self.first_url is not None:
            return self._operation_of_lines(cast("InputSpec", inputs), self.first_url)
        if value is None:
            self.report.add(("operation",), f"is missing: name one of {', '.join(sorted(self.operations))}")
        elif not isinstance(value, str):
            self.report.add(("operation",), "must be text")
        elif value in self.operations:
            if not lines or value in OPERATION_OF.values():
                return value
            self.report.add(("operation",), f"has no lines of the Batch API: those are {_those(OPERATION_OF.values())}")
        else:
            known = ", ".join(sorted(self.operations))
            hint = _suggest(value, self.operations) or f": there are {known}"
            self.report.add(("operation",), f"there is no operation of this name{hint}")
        return None

    def _operation_of_lines(self, inputs: InputSpec, first_url: FirstUrl) -> str | None:
        """What the url of the input's first line asks for."""
        try:
            url = first_url(inputs.path)
        except PipelineError as error:
            self.report.add(("operation",), f"is missing, and the input does not say it: {error}")
            return None
        operation = operation_of(url)
        if operation in self.operations:
            return operation
        known = _those(url for url, name in OPERATION_OF.items() if name in self.operations)
        self.report.add(("input", "path"), f"the first line's url asks for none of {known}: name the `operation`")
        return None

    def _name(self, value: Any) -> str | None:
        name = self.file.stem if value is None else value
        if not isinstance(name, str) or not name or not name.isprintable():
            self.report.add(("name",), "must be printable text")
            return None
        return name

    def _input(self, value: Any, written: dict[tuple[str, ...], Any]) -> InputSpec | None:
        def prepare(data: dict[str, Any]) -> None:
            paths = data.get("path")
            listed = [paths] if isinstance(paths, str) else paths
            if isinstance(listed, list) and all(isinstance(item, str) for item in listed):
                texts = [
                    self._local(item, ("input", "path", index) if isinstance(paths, list) else ("input", "path"))
                    for index, item in enumerate(listed)
                ]
                found = [text for text in texts if text is not None]
                written["input", "path"] = [os.path.normpath(text) for text in found]
                data["path"] = _FAILED if len(found) < len(texts) else tuple(map(self._pattern, found))
            if isinstance(data.get("media_root"), str):
                written["input", "media_root"] = os.path.normpath(data["media_root"])
                data["media_root"] = self._folder(data["media_root"], ("input", "media_root"))
                if isinstance(data["media_root"], Path) and not is_folder(data["media_root"]):
                    self.report.add(("input", "media_root"), "there is no such folder")
                    data["media_root"] = _FAILED
            if data.get("format") == BATCH_FORMAT:
                data.setdefault("id", "custom_id")

        spec = self._section(InputSpec, value, ("input",), prepare)
        if spec is not None and spec.format == "files" and spec.media_root is None:
            # As written it is absent: the folder may move with its job.
            written["input", "media_root"] = None
            spec = spec.model_copy(update={"media_root": static_folder(spec.path)})
        if spec is not None and self.formats is not None and spec.format not in ("auto", *self.formats):
            known = ("auto", *sorted(self.formats))
            self.report.add(("input", "format"), f"must be one of {', '.join(known)}{_suggest(spec.format, known)}")
            return None
        return spec

    def _incremental(self, inputs: InputSpec | None, operation: str | None) -> None:
        """Results are carried over where they are all in the parts, and where the request says all that is asked."""
        if inputs is None or inputs.incremental is None:
            return
        message = None
        if operation is not None and operation not in _CARRIED:
            message = f"is for {_those(_CARRIED)}"
        elif inputs.media_root is not None:
            message = "is not for rows that name files: leave input.media_root out"
        elif inputs.incremental == "id" and inputs.id is None:
            message = "is id, which needs input.id: name the column, or say content"
        if message is not None:
            self.report.add(("input", "incremental"), message)

    def _processes(self, run: RunSpec | None, operation: str | None, inputs: InputSpec | None) -> None:
        """Several processes send what one can hand to another and what needs no say of all of them together."""
        if run is None or run.processes == 1:
            return
        message = None
        if operation is not None and operation not in _CARRIED:
            message = f"above 1 is for {_those(_CARRIED)}"
        elif run.lane != "online":
            message = "above 1 is for run.lane: online"
        elif inputs is not None and inputs.media_root is not None:
            message = "above 1 is not for rows that name files: leave input.media_root out"
        elif run.max_cost is not None or run.max_tokens_total is not None:
            message = "above 1 knows no budget yet: leave run.max_cost and run.max_tokens_total out, or send from one"
        elif run.otel != "off":
            message = "above 1 tells OpenTelemetry nothing yet: leave run.otel out, or send from one"
        elif run.processes > run.workers:
            message = f"must not be more than run.workers, which is {run.workers}"
        if message is not None:
            self.report.add(("run", "processes"), message)

    def _dedupe(self, run: RunSpec | None, inputs: InputSpec | None, operation: str | None) -> None:
        """Rows share an answer where the request says all that is asked, and where each has its answer at once."""
        if run is None or run.dedupe is None:
            return
        message = None
        if operation is not None and operation not in _CARRIED:
            message = f"is for {_those(_CARRIED)}"
        elif inputs is not None and inputs.media_root is not None:
            message = "is not for rows that name files: leave input.media_root out"
        elif run.lane != "online":
            message = f"is for the online lane: leave it out, or leave out `lane: {run.lane}`"
        elif run.processes > 1:
            message = "is for one process: leave it out, or leave out run.processes"
        if message is not None:
            self.report.add(("run", "dedupe"), message)

    def _pattern(self, text: str) -> str:
        return _resolve(text, self.file, self.variables.variables, pattern=True)

    def _local(self, text: str, path: FieldPath) -> str | None:
        expanded = cast("str | None", self.variables.expand(text, path))
        if expanded is not None and _REMOTE.match(expanded):
            self.report.add(path, f"remote paths are {NOT_YET}: give a local one")
            return None
        if expanded == "":
            self.report.add(path, "must not be empty")
            return None
        return expanded

    def _folder(self, text: str, path: FieldPath) -> object:
        expanded = self._local(text, path)
        return _FAILED if expanded is None else Path(_resolve(expanded, self.file, self.variables.variables))

    def _output(self, value: Any, operation: str | None, inputs: InputSpec | None) -> OutputSpec | None:
        def prepare(data: dict[str, Any]) -> None:
            if isinstance(data.get("path"), str):
                data["path"] = self._folder(data["path"], ("output", "path"))

        spec = self._section(OutputSpec, value, ("output",), prepare)
        return self._lines_output(spec, operation, inputs) if spec is not None and spec.format == BATCH_FORMAT else spec

    def _lines_output(self, spec: OutputSpec, operation: str | None, inputs: InputSpec | None) -> OutputSpec:
        """Result lines of the Batch API hold every reply whole, and each row's id."""
        if operation is not None and operation not in OPERATION_OF.values():
            self.report.add(("output", "format"), f"{BATCH_FORMAT} is for {_those(OPERATION_OF.values())}")
        if spec.raw not in ("auto", "all"):
            self.report.add(("output", "raw"), f"must be all: the lines of `format: {BATCH_FORMAT}` hold whole replies")
        column = None if inputs is None else inputs.id
        if column is not None and spec.columns != "all" and column not in spec.columns:
            message = f"must hold `{column}`, input.id: it is the lines' custom_id"
            self.report.add(("output", "columns"), message)
        return spec.model_copy(update={"raw": "all"})

    def _run(self, value: Any, operation: str | None) -> RunSpec | None:
        def prepare(data: dict[str, Any]) -> None:
            if isinstance(data.get("metrics_file"), str):
                data["metrics_file"] = self._folder(data["metrics_file"], ("run", "metrics_file"))

        spec = self._section(RunSpec, value, ("run",), prepare)
        if spec is None or "timeout_s" in spec.model_fields_set:
            return spec
        timeout_s = MEDIA_TIMEOUT_S if operation in _OF_MEDIA else DEFAULT_TIMEOUT_S
        return spec.model_copy(update={"timeout_s": timeout_s})

    def _lanes(
        self,
        deployments: tuple[DeploymentSpec, ...],
        run: RunSpec | None,
        operation: str | None,
        request: Mapping[str, Any],
    ) -> tuple[DeploymentSpec, ...]:
        """Settle which lane each deployment is for."""
        if run is None or run.lane == "online":
            if run is not None and deployments and all(spec.lane == "batch" for spec in deployments):
                self.report.add(("deployments",), "are all for batches: say `run: {lane: batch}`, or name another one")
            return deployments
        settled = tuple(
            spec if run.lane == "auto" or "lane" in spec.model_fields_set else spec.model_copy(update={"lane": "batch"})
            for spec in deployments
        )
        for lane in ("batch",) if run.lane == "batch" else ("batch", "online"):
            if settled and all(spec.lane != lane for spec in settled):
                self.report.add(("run", "lane"), f"is {run.lane}, but no deployment has `lane: {lane}`")
        if run.lane == "auto" and run.deadline_s is None:
            self.report.add(("run", "lane"), "is auto, which needs a deadline: say `run: {deadline: 20h}`")
        self._batches(settled, run, operation, request)
        return settled

    def _batches(
        self,
        deployments: tuple[DeploymentSpec, ...],
        run: RunSpec,
        operation: str | None,
        request: Mapping[str, Any],
    ) -> None:
        """Refuse what batches cannot do."""
        for index, spec in enumerate(deployments):
            if spec.lane == "batch" and (lack := availability.batch_lack(operation, spec.api)) is not None:
                self.report.add(("deployments", index), lack)
        if run.on_truncated == "retry":
            self.report.add(("run", "on_truncated"), "cannot be retry in the batch lane: use keep or fail")
        if run.right_size is not None:
            self.report.add(("run", "right_size"), "is for the online lane: batches have no quota by the minute")
        if request.get("stream"):
            self.report.add(("request", "stream"), "cannot be true in the batch lane: answers come as a file")

    def _training(
        self,
        request: Mapping[str, Any] | None,
        deployments: tuple[DeploymentSpec, ...],
        output: OutputSpec | None,
        run: RunSpec | None,
    ) -> OutputSpec | None:
        """What is written are the training's events, beside which no column of a row can stand."""
        for path, message in () if request is None else training_problems(request, deployments, run):
            self.report.add(path, message)
        if output is None or "columns" not in output.model_fields_set:
            return None if output is None else output.model_copy(update={"columns": "none"})
        if output.columns != "none":
            self.report.add(("output", "columns"), f"must be none: {TRAINING} writes events, not rows of the input")
        return output

    def _lines_request(self, value: Any) -> dict[str, Any]:
        if value is not None:
            self.report.add(("request",), f"is left out with `format: {BATCH_FORMAT}`: each line holds its own body")
        return {}

    def _request(self, value: Any, operation: str | None) -> dict[str, Any] | None:
        report = self.report
        if not isinstance(value, dict):
            report.add(("request",), f"is missing: {_HINTS['request']}" if value is None else "must be a mapping")
            return None
        if "model" in value:
            report.add(
                ("request", "model"), "is the deployment's business: say `deployments.0.deployment` and `.model`"
            )
        self._stream(value.get("stream"), operation)
        self._policy(value.get("on_too_long"), operation)
        if "cut_after" in value:
            self._cut_after(value["cut_after"], operation)
        return value

    def _stream(self, value: Any, operation: str | None) -> None:
        path = ("request", "stream")
        if not isinstance(value, bool | None):
            self.report.add(path, "must be true or false")
        elif value and operation is not None and operation not in _STREAMED:
            self.report.add(path, f"is for {_those(_STREAMED)}, not for {operation}")

    def _policy(self, value: Any, operation: str | None) -> None:
        path = ("request", "on_too_long")
        if value is None:
            return
        if operation not in (None, "embeddings"):
            self.report.add(path, f"is for embeddings, not for {operation}")
        elif value not in ("fail", "truncate", "split"):
            self.report.add(path, "must be one of fail, truncate, split")

    def _pieces(self, request: Mapping[str, Any], output: OutputSpec | None) -> None:
        """A result line of the Batch API answers a whole row."""
        if request.get("on_too_long") == "split" and output is not None and output.format == BATCH_FORMAT:
            self.report.add(
                ("request", "on_too_long"), f"cannot be split with output.format {BATCH_FORMAT}: a row has one line"
            )

    def _cut_after(self, value: Any, operation: str | None) -> None:
        path = ("request", "cut_after")
        if operation is not None and operation not in _CUT:
            self.report.add(path, f"is for {_those(_CUT)}, not for {operation}")
            return
        try:
            seconds = None if value is None else parse_duration(value)
        except ValueError as error:
            self.report.add(path, str(error))
            return
        if seconds is not None and not 0 < seconds < math.inf:
            self.report.add(path, "must be a duration above zero, such as 10m")

    def _deployments(self, value: Any, operation: str | None, request: Mapping[str, Any]) -> tuple[DeploymentSpec, ...]:
        if not isinstance(value, list) or not value:
            message = f"is missing: {_HINTS['deployments']}" if value in (None, []) else "must be a list"
            self.report.add(("deployments",), message)
            return ()
        specs: list[DeploymentSpec] = []
        seen: dict[str, int] = {}
        for index, item in enumerate(value):
            path = ("deployments", index)
            spec = self._section(DeploymentSpec, item, path, partial(self._deployment, path, operation, request))
            lack = None if spec is None else _lack(spec, operation, request)
            if lack is not None:
                self.report.add((*path, "api_version"), lack)
            if isinstance(item, dict) and isinstance(name := item.get("name", item.get("deployment")), str):
                if name in seen:
                    place = (*path, "name") if "name" in item else path
                    self.report.add(
                        place, f"the name `{name}` is taken by deployments.{seen[name]}: give each a `name` of its own"
                    )
                seen.setdefault(name, index)
            if spec is not None:
                specs.append(_simulated(spec) if self.simulate else spec)
        return tuple(specs)

    def _deployment(
        self, path: FieldPath, operation: str | None, request: Mapping[str, Any], data: dict[str, Any]
    ) -> None:
        """Read the variables of a deployment, and settle what depends on the environment."""
        for name, value in list(data.items()):
            where = (*path, name)
            if name in ("key", "token"):
                data[name] = self.variables.secret(value, where) or _FAILED
            elif name == "headers" and isinstance(value, dict):
                headers = {
                    header: self.variables.secret(text, (*where, header), prefix=True) for header, text in value.items()
                }
                data[name] = _FAILED if None in headers.values() else headers
            elif name == "credential" and isinstance(value, dict):
                data[name] = self._credential(value, where)
            elif isinstance(value, str):
                data[name] = self._deployment_text(name, value, where)
        for name in [name for name, value in data.items() if value is None]:
            del data[name]
        endpoint = data.get("endpoint")
        if isinstance(endpoint, str) and data.get("api", default_api(endpoint)) == "azure":
            named = "" if self.simulate else self.variables.variables.get("OPENAI_API_VERSION", "").strip()
            default = named or availability.default_api_version(operation, request)
            data.setdefault("api_version", pasted_api_version(endpoint) or default)
        self._auth(data, path)

    def _deployment_text(self, name: str, value: str, path: FieldPath) -> object:
        placeholder = None
        if self.simulate:
            whole = _VARIABLE.fullmatch(value.strip()) is not None
            placeholder = _SIMULATED_ENDPOINT if name == "endpoint" and whole else _SIMULATED
        expanded = self.variables.expand(value, path, placeholder=placeholder)
        if expanded is None:
            return _FAILED
        if name == "ca_bundle":
            file = Path(_resolve(expanded, self.file, self.variables.variables))
            if not self.simulate and not file.is_file():
                self.report.add(path, "there is no such file")
                return _FAILED
            return file
        return None if expanded == _SIMULATED and name in ("api", "auth", "lane") else expanded

    def _credential(self, value: dict[str, Any], path: FieldPath) -> object:
        kind = self._credential_text(value.get("type") or "default", (*path, "type"))
        if kind is None or kind == _SIMULATED:  # a rehearsal reads no variables, and uses no credential
            return _FAILED if kind is None else {}
        value = {**value, "type": kind}
        wrong = list(identity.credential_problems(value))
        for place, message in wrong:
            self.report.add((*path, *place), message)
        return _FAILED if wrong else self._credential_options(value, path)

    def _credential_options(self, value: Mapping[str, Any], path: FieldPath) -> object:
        found: dict[str, Any] = {}
        for name, item in value.items():
            match identity.option_of(value, name):
                case identity.Option.SECRET:
                    found[name] = self.variables.secret(item, (*path, name))
                case identity.Option.SOURCES:
                    places = [(*path, name, index) for index in range(len(item))]
                    found[name] = [self._credential_options(*pair) for pair in zip(item, places, strict=True)]
                case identity.Option.FILE:
                    found[name] = self._credential_file(item, (*path, name))
                case _:
                    found[name] = self._credential_text(item, (*path, name))
        failed = [found[name] is None and value[name] is not None for name in value]
        return (
            _FAILED if any(failed) or any(_FAILED in item for item in found.values() if type(item) is list) else found
        )

    def _credential_file(self, value: str, path: FieldPath) -> str | None:
        expanded = self._credential_text(value, path)
        file = None if expanded is None else _resolve(expanded, self.file, self.variables.variables)
        if file is not None and not Path(file).is_file() and not self.simulate:
            self.report.add(path, "there is no such file")
            return None
        return file

    def _credential_text(self, value: Any, path: FieldPath) -> Any:
        return self.variables.expand(value, path, placeholder=_SIMULATED if self.simulate else None)

    def _auth(self, data: dict[str, Any], path: FieldPath) -> None:
        """Choose how to sign by what is given, then by the variables that are set; note what is missing."""
        endpoint = data.get("endpoint")
        if self.simulate or not isinstance(endpoint, str) or _FAILED in (data.get("key"), data.get("token")):
            return
        api = data.get("api") or default_api(endpoint)
        auth, variables = data.get("auth"), self.variables.variables
        variable = _KEY_VARIABLES.get(api, "AZURE_OPENAI_API_KEY") if isinstance(api, str) else "AZURE_OPENAI_API_KEY"
        if auth is None and "key" not in data and "token" not in data:
            if "credential" in data:
                auth = "entra"
            elif variables.get(variable, "").strip():
                auth = "key"
            elif api != "openai" and variables.get(_TOKEN_VARIABLE, "").strip():
                auth = "token"
            elif api == "openai" and not is_azure(endpoint) and _REMOTE.match(endpoint):
                self.report.add(
                    path,
                    f"has no credential: set {variable}, or say `key: ${{NAME}}`, `auth: entra` or `auth: none` "
                    "(by its address it is no Azure endpoint; `api: azure` says that it is)",
                )
                data["auth"] = "none"
                return
            else:
                auth = "entra"
            data["auth"] = auth
        if auth == "key" and "key" not in data:
            data["key"] = self.variables.secret(f"${{{variable}}}", (*path, "auth")) or _FAILED
        if auth == "token" and "token" not in data:
            data["token"] = self.variables.secret(f"${{{_TOKEN_VARIABLE}}}", (*path, "auth")) or _FAILED

    def _section(
        self,
        model: type[_SectionT],
        value: Any,
        path: FieldPath,
        prepare: Callable[[dict[str, Any]], None] = lambda _data: None,
    ) -> _SectionT | None:
        return _section(self.report, model, value, path, prepare)


def _section(
    report: Report,
    model: type[_SectionT],
    value: Any,
    path: FieldPath,
    prepare: Callable[[dict[str, Any]], None] = lambda _data: None,
) -> _SectionT | None:
    """Check one mapping; in spite of problems, give what is valid of it, or None where a needed key is not."""
    top = str(path[0])
    if not isinstance(value, dict):
        problem = "must be a mapping" if value is not None or top not in _HINTS else "is missing"
        report.add(path, f"{problem}: {_HINTS[top]}" if top in _HINTS and len(path) == 1 else problem)
        return None
    names = {info.validation_alias or name: info for name, info in model.model_fields.items()}
    _refuse_unknown(value, path, cast("Collection[str]", names), report)
    data = {name: item for name, item in value.items() if name in names and item is not None}
    for name in list(data):
        if _extra(names[name]).get("x-later"):
            report.add((*path, name), f"is {NOT_YET}")
            del data[name]
    prepare(data)
    failed = {name for name, item in data.items() if item is _FAILED}
    data = {name: item for name, item in data.items() if name not in failed}
    try:
        return model.model_validate(data, by_name=False, by_alias=True)
    except ValidationError as error:
        settled = failed | {name for name, info in names.items() if _extra(info)["x-default"]}
        found = [
            item
            for item in error.errors(include_url=False)
            if not item["loc"] or item["loc"][0] not in (settled if item["type"] == "missing" else failed)
        ]
    by_place: dict[FieldPath, list[ErrorDetails]] = {}
    for item in found:
        by_place.setdefault(_place(item["loc"], value), []).append(item)
    for place, items in by_place.items():
        info = names.get(cast("str", place[0])) if place else None
        report.add((*path, *place), _message(items, top, place, info))
    bad = failed | {str(place[0]) for place in by_place if place}
    try:
        return model.model_validate({name: item for name, item in data.items() if name not in bad}, by_name=False)
    except ValidationError:
        return None


def _simulated(spec: DeploymentSpec) -> DeploymentSpec:
    return spec.model_copy(
        update={"auth": "key", "key": Secret(_SIMULATED), "token": None, "credential": None, "ca_bundle": None}
    )


def _templates(request: Mapping[str, Any], report: Report) -> tuple[TemplateUse, ...]:
    """The request's templates and their columns; what cannot be compiled is noted."""
    uses: list[TemplateUse] = []
    for path, text in template.texts(request, ("request",)):
        try:
            uses.append(TemplateUse(path=path, columns=template.compile_text(text).columns))
        except TemplateError as error:
            report.add(path, error.message)
    return tuple(uses)


def _lack(spec: DeploymentSpec, operation: str | None, request: Mapping[str, Any]) -> str | None:
    """What the deployment's version of the classic API lacks."""
    if spec.api != "azure" or spec.api_version is None:
        return None
    return availability.absence(operation, spec.api_version, request)


def _those(names: Iterable[str]) -> str:
    *most, last = sorted(set(names))
    return f"{', '.join(most)} and {last}" if most else last


def _resolve(text: str, file: Path, variables: Mapping[str, str], *, pattern: bool = False) -> str:
    """An absolute path, relative ones being so to the job file; its folder is escaped where `text` is a pattern."""
    if text == "~" or text.startswith("~/"):
        home = variables.get("HOME") or str(Path.home())
        text = home + text[1:]
    folder = str(file.absolute().parent)
    plain = os.path.normpath(Path(folder) / text)
    # A name that exists means itself, whatever characters it has.
    if pattern and MAGIC.search(text) and not Path(text).is_absolute() and not exists(plain):
        return os.path.normpath(Path(glob.escape(folder)) / text)
    return plain


def _refuse_unknown(data: Mapping[str, Any], path: FieldPath, names: Collection[str], report: Report) -> None:
    for name in data:
        if name in names:
            continue
        where = (*path, name)
        mark = report.tree.keys.get(where)
        hint = _suggest(name, names)
        if not hint:
            others = [
                f"{top}.{name}" for top, model in _SECTIONS.items() if name in _keys(model) and path[:1] != (top,)
            ]
            others += [name] if path and name in _TOP else []
            hint = f" (did you mean `{others[0]}`?)" if others else ""
        report.add(where, f"unknown key{hint}", at=mark)


def _keys(model: type[Section]) -> set[str]:
    return {str(info.validation_alias or name) for name, info in model.model_fields.items()}


def _extra(info: FieldInfo) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", info.json_schema_extra or {})


def _place(loc: tuple[int | str, ...], value: Any) -> FieldPath:
    """The part of a validator's location that is a place in the document."""
    place: list[int | str] = []
    for index, part in enumerate(loc):
        inside = isinstance(value, dict) and part in value
        inside = inside or (isinstance(value, list) and isinstance(part, int) and part < len(value))
        if not inside and index > 0:
            break
        place.append(part)
        value = value[part] if inside else None
    return tuple(place)


_MESSAGES = {
    "string_type": "must be text: put it in quotes",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "tuple_type": "must be a list",
    "path_type": "must be text: put it in quotes",
}


def _message(items: Sequence[ErrorDetails], top: str, place: FieldPath, info: FieldInfo | None) -> str:
    """Say a validator's errors at one place in our words."""
    item = items[0]
    if item["type"] == "missing":
        hint = _HINTS.get(str(place[-1]) if top == "deployments" else f"{top}.{place[-1]}")
        return f"is missing: {hint}" if hint else "is missing"
    if len(items) > 1 and info is not None and len(place) == 1:
        return f"must be {_extra(info)['x-type']}"
    if item["type"] == "extra_forbidden":
        return "unknown key"
    if item["type"] == "literal_error":
        value = item["input"]
        expected = re.findall(r"'([^']*)'", item["ctx"]["expected"])
        hint = _suggest(value, expected) if isinstance(value, str) else ""
        return f"must be {'one of ' if len(expected) > 1 else ''}{', '.join(expected)}{hint}"
    text = _MESSAGES.get(item["type"]) or item["msg"].removeprefix("Value error, ")
    return text.replace("Input should be", "must be")


def _suggest(name: str, names: Collection[str]) -> str:
    near = difflib.get_close_matches(name, [str(known) for known in names], 1)
    return f" (did you mean `{near[0]}`?)" if near else ""


def _listed(names: Sequence[str]) -> str:
    quoted = [f"`{name}`" for name in names]
    return f"column {quoted[0]}" if len(quoted) == 1 else f"columns {', '.join(quoted[:-1])} and {quoted[-1]}"


def _sorted(problems: Sequence[Problem]) -> tuple[Problem, ...]:
    """By place; what has none (`--set`) comes last, by path."""
    return tuple(
        sorted(problems, key=lambda found: (found.line is None, found.line or 0, found.column or 0, found.path))
    )
