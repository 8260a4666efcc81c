"""What is kept of a training: how far it has come, its examples' mistakes, and its events and figures as Parquet."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.model import ErrorInfo, ErrorType
from pipeline.store.files import TEMPORARY_SUFFIX, open_private, storage
from pipeline.store.parts import write_rows

if TYPE_CHECKING:
    from pipeline.store.journal import Journal, JournalReader

EVENTS = "events.parquet"
"""A training's events and checkpoints, in the order of time."""
METRICS = "metrics.parquet"
"""The figures of a training's steps, from the service's result file."""
NOTED = "training"
"""Where the journal keeps the record."""

_NAMES: Mapping[str, tuple[str, ...]] = {
    "train_loss": ("train_loss",),
    "train_mean_token_accuracy": ("train_mean_token_accuracy", "train_accuracy"),
    "valid_loss": ("valid_loss", "validation_loss"),
    "valid_mean_token_accuracy": ("valid_mean_token_accuracy", "validation_mean_token_accuracy"),
    "full_valid_loss": ("full_valid_loss",),
    "full_valid_mean_token_accuracy": ("full_valid_mean_token_accuracy",),
}
"""The figures of a step, with the names that services give them."""
_LEVELS = {"warning": "warn"}


class TrainingStep(StrEnum):
    """How far a training has come; each step is kept before the call that follows it."""

    WRITTEN = "written"  # its examples lie in files of ours, which may have been uploaded
    UPLOADED = "uploaded"
    CREATING = "creating"  # the job may have been created
    CREATED = "created"
    ENDED = "ended"
    COLLECTED = "collected"  # its events are written; what remains is to tidy up
    DONE = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExamplesFile:
    """A file of examples. `sha256` is of its bytes; `file` is the service's id once it is uploaded."""

    name: str
    examples: int
    bytes: int
    tokens: int
    sha256: str
    file: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecord:
    """One training. `since` is when it came to its step, epoch seconds. `files`: training, and validation if there is.

    `job`, `model` and `results` are the service's names; `state` is its word, `problem` why it failed.
    """

    tag: str
    deployment: str
    step: TrainingStep
    since: float
    files: tuple[ExamplesFile, ...]
    job: str | None = None
    state: str | None = None
    model: str | None = None
    results: tuple[str, ...] = ()
    trained_tokens: int | None = None
    problem: str | None = None

    @property
    def counts(self) -> bool:
        """Whether a model is being made of it, may be, or is: another job must not take its place."""
        begun = self.step not in {TrainingStep.WRITTEN, TrainingStep.UPLOADED}
        return begun and self.state not in {"failed", "cancelled"}


async def note_training(journal: Journal, record: TrainingRecord) -> None:
    """Keep how far a training has come. Raises StorageError."""
    await journal.note(NOTED, asdict(record))


def noted_training(reader: JournalReader) -> TrainingRecord | None:
    """Read how far a training has come; None where there is none."""
    value = reader.noted(NOTED)
    if value is None:
        return None
    files = tuple(ExamplesFile(**file) for file in value["files"])
    step, results = TrainingStep(value["step"]), tuple(value["results"])
    return TrainingRecord(**{**value, "step": step, "files": files, "results": results})


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """A row that is no example. `id` is None where the job names no column of ids. `where`: of which other input."""

    ordinal: int
    id: Any
    error: ErrorInfo
    where: str | None = None


def write_mistakes(path: Path, mistakes: Iterable[Mistake]) -> None:
    """Keep the rows that are no examples, for `pipeline errors`. Raises StorageError."""
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    with storage(f"writing {path.name}"):
        with open_private(temporary) as file:
            for mistake in mistakes:
                file.write(json.dumps(asdict(mistake), default=str).encode() + b"\n")
        temporary.replace(path)


def read_mistakes(path: Path) -> Iterator[Mistake]:
    """Read them back, in order; none where no input was refused."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            value = json.loads(line)
            error = ErrorInfo(**{**value["error"], "type": ErrorType(value["error"]["type"])})
            yield Mistake(**{**value, "error": error})


def event_rows(
    events: Sequence[Mapping[str, Any]],
    checkpoints: Sequence[Mapping[str, Any]],
    *,
    seconds: Callable[[Any], float | None],
) -> list[dict[str, Any]]:
    """Make rows of what the service says happened, in the order of time; both come in that order. Pure.

    `seconds` reads a time. A checkpoint is a row of the type `checkpoint`; within a second it follows the event
    of its step.
    """
    happened = [_event_row(event) for event in events]
    left = [_checkpoint_row(checkpoint) for checkpoint in checkpoints]
    at_step = {row["step"]: place for place, row in enumerate(happened) if row["step"] is not None}
    places = [*enumerate(happened), *((at_step.get(row["step"], len(happened)), row) for row in left)]
    for _, row in places:
        at = seconds(row["created_at"])
        row["created_at"] = None if at is None else round(at * 1_000_000)
    places.sort(key=lambda place: (place[1]["created_at"] or 0, place[0]))
    return [{"ordinal": ordinal, **row} for ordinal, (_, row) in enumerate(places)]


def _event_row(event: Mapping[str, Any]) -> dict[str, Any]:
    data = event.get("data")
    figures = data if isinstance(data, dict) else {}
    level = str(event.get("level") or "info").lower()
    return {
        "created_at": event.get("created_at"),
        "level": _LEVELS.get(level, level),
        "type": str(event.get("type") or "message"),
        "message": _text(event.get("message")),
        **_figures(figures, step=figures.get("step")),
        "checkpoint": None,
        "id": _text(event.get("id")),
    }


def _checkpoint_row(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    metrics = checkpoint.get("metrics")
    figures = metrics if isinstance(metrics, dict) else {}
    return {
        "created_at": checkpoint.get("created_at"),
        "level": "info",
        "type": "checkpoint",
        "message": None,
        **_figures(figures, step=checkpoint.get("step_number", figures.get("step"))),
        "checkpoint": _text(checkpoint.get("fine_tuned_model_checkpoint")),
        "id": _text(checkpoint.get("id")),
    }


def _figures(values: Mapping[str, Any], *, step: Any) -> dict[str, Any]:
    found = {name: next((_number(values[key]) for key in keys if key in values), None) for name, keys in _NAMES.items()}
    number = _number(step)
    return {"step": None if number is None else int(number), **found}


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or value in (None, ""):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if abs(number) < 2**63 else None


def _text(value: Any) -> str | None:
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else None


def write_events(path: Path, rows: Sequence[Mapping[str, Any]], *, compression: str) -> None:
    """Write the rows of `event_rows`. Raises StorageError."""
    import pyarrow as pa  # noqa: PLC0415 - loaded when a run needs it

    schema = pa.schema(
        [
            ("ordinal", pa.int64()),
            ("created_at", pa.timestamp("us", tz="UTC")),
            ("level", pa.string()),
            ("type", pa.string()),
            ("message", pa.string()),
            ("step", pa.int64()),
            *[(name, pa.float64()) for name in _NAMES],
            ("checkpoint", pa.string()),
            ("id", pa.string()),
        ]
    )
    write_rows(path, rows, schema, compression=compression)


def write_metrics(path: Path, content: bytes, *, compression: str) -> None:
    """Write a result file's figures, one row a step: `step`, and a double for each other column. Raises StorageError.

    A figure that is absent is null. A table that cannot be read has no rows.
    """
    import pyarrow as pa  # noqa: PLC0415 - loaded when a run needs it

    rows, names = _table(content)
    fields = [pa.field(name, pa.int64() if name == "step" else pa.float64()) for name in names]
    write_rows(path, rows, pa.schema(fields), compression=compression)


def _table(content: bytes) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Read a table of plain numbers: no cell of it holds a comma."""
    head, *lines = _decoded(content).splitlines() or [""]
    spelled = {key: name for name, keys in _NAMES.items() for key in keys}
    columns = [spelled.get(name, name) for name in (cell.strip().strip('"') for cell in head.split(","))]
    names = tuple(dict.fromkeys(columns))
    if "step" not in names:
        return [], ("step", *_NAMES)
    rows = []
    for line in lines:
        cells = [_number(cell.strip().strip('"')) for cell in line.split(",")]
        row: dict[str, Any] = dict.fromkeys(names) | dict(zip(columns, cells, strict=False))
        if row["step"] is not None:
            rows.append(row | {"step": int(row["step"])})
    return rows, names


def _decoded(content: bytes) -> str:
    """A result file's text; some come in base64 (OpenAI's cookbook on result files)."""
    with suppress(binascii.Error):
        content = base64.b64decode(content.strip(), validate=True)
    return content.decode("utf-8-sig", "replace")
