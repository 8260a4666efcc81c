"""Fine-tuning jobs: a training file looked at, a queue, steps with a falling loss, checkpoints, and a model's name."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import orjson

from pipeline.simulator.base import Family, RefusedError, bad_request, missing
from pipeline.simulator.config import OfflineConfig, Quirk, TrainingEnd
from pipeline.simulator.ledger import body_digest
from pipeline.simulator.offline.files import Files
from pipeline.simulator.offline.rendering import json_object, refusal, time_of
from pipeline.simulator.offline.shelf import Record, Shelf

KIND = "fine-tuning"
_LEAST_EXAMPLES = 10
_KEPT_CHECKPOINTS = 3
_MOST_QUEUED = 20
_MOST_SUFFIX = {Family.CLASSIC: 40, Family.V1: 64, Family.OPENAI: 64}
_ENDED = frozenset({"succeeded", "failed", "cancelled"})
_CLASSIC_STATES = {"validating_files": "created", "queued": "pending"}
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_COLUMNS = ("step", "train_loss", "train_mean_token_accuracy", "valid_loss", "valid_mean_token_accuracy")
_BOM = b"\xef\xbb\xbf"


class FineTuning:
    """The fine-tuning jobs of a resource. Used from one event loop; those under way go on after a restart."""

    def __init__(
        self,
        shelf: Shelf,
        files: Files,
        *,
        config: OfflineConfig,
        quirks: frozenset[Quirk],
        speed: float,
        now: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
        note: Callable[..., None],
    ) -> None:
        """`now` gives epoch seconds; `sleep` waits real ones."""
        self._shelf = shelf
        self._files = files
        self._config = config
        self._quirks = quirks
        self._speed = speed
        self._now = now
        self._sleep = sleep
        self._note = note
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def resume(self) -> None:
        """Go on with what an earlier process left under way."""
        for record in self._shelf.all(KIND):
            if record["status"] not in _ENDED:
                self._begin(record)

    def create(self, body: bytes, family: Family) -> Record:
        """Take a job. Raises RefusedError."""
        record = self._new(json_object(body), family)
        self._shelf.keep(KIND, record)
        self._say(record, "info", f"Created fine-tuning job: {record['id']}")
        self._note("fine_tuning.created", record["id"], metadata=record["metadata"])
        self._begin(record)
        return record

    def get(self, name: str) -> Record:
        """Find a job. Raises RefusedError."""
        record = self._shelf.find(KIND, name)
        if record is None:
            raise refusal(404, "notFound", f"No fine-tuning job with the id '{name}' was found.")
        return record

    def all(self) -> list[Record]:
        """Give all jobs, the newest first."""
        return list(self._shelf.all(KIND))

    def cancel(self, name: str) -> Record:
        """End a job where it is. Raises RefusedError."""
        record = self.get(name)
        if record["status"] in _ENDED:
            raise refusal(409, "unexpectedEntityState", f"The job is {record['status']} and cannot be cancelled.")
        self._tasks[name].cancel()
        self._enter(record, "cancelled", "The job was cancelled.")
        return record

    def events(self, name: str) -> list[Record]:
        """Give a job's events, the newest first. Raises RefusedError."""
        return list(reversed(self.get(name)["events"]))

    def checkpoints(self, name: str) -> list[Record]:
        """Give a job's checkpoints, the newest first. Raises RefusedError."""
        return list(reversed(self.get(name)["checkpoints"]))

    def render(self, record: Record, family: Family) -> dict[str, Any]:
        """Write a job as the family does."""
        status = record["status"]
        if family is Family.CLASSIC:
            status = _CLASSIC_STATES.get(status, status)
        error = record["error"]
        shown = {
            "id": record["id"],
            "object": "fine_tuning.job",
            "created_at": time_of(record["created_at"], self._quirks),
            "finished_at": time_of(record["finished_at"], self._quirks),
            "estimated_finish": None,
            "model": record["model"],
            "fine_tuned_model": record["fine_tuned_model"],
            "status": status,
            "training_file": record["training_file"],
            "validation_file": record["validation_file"],
            "result_files": record["result_files"],
            "hyperparameters": record["hyperparameters"],
            "trained_tokens": record["trained_tokens"],
            "seed": record["seed"],
            "suffix": record["suffix"],
            "metadata": record["metadata"],
            "error": error or ({} if not family.azure else None),
        }
        shown["organisation_id" if family is Family.CLASSIC else "organization_id"] = "org-simulator"
        if record["method"] is not None:
            shown["method"] = record["method"]
        return shown

    def _new(self, asked: Mapping[str, Any], family: Family) -> Record:
        for name in ("model", "training_file"):
            if not isinstance(asked.get(name), str):
                raise missing(name)
        for name in ("training_file", "validation_file"):
            if asked.get(name) is not None and self._files.get(asked[name])["purpose"] != "fine-tune":
                raise bad_request(f"The purpose of {name} is not 'fine-tune'.", param=name)
        suffix = asked.get("suffix")
        if suffix is not None and not 0 < len(str(suffix)) <= _MOST_SUFFIX[family]:
            raise bad_request(f"suffix has at most {_MOST_SUFFIX[family]} characters.", param="suffix")
        if sum(record["status"] not in _ENDED for record in self._shelf.all(KIND)) >= _MOST_QUEUED:
            raise refusal(429, "tooManyRequests", f"{_MOST_QUEUED} jobs are queued already.")
        number = sum(1 for _ in self._shelf.all(KIND))
        ends = self._config.training_ends
        method = asked.get("method")
        return {
            "id": self._shelf.new_id("ftjob-"),
            "model": asked["model"],
            "training_file": asked["training_file"],
            "validation_file": asked.get("validation_file"),
            "hyperparameters": _hyperparameters(asked, method),
            "method": method,
            "seed": asked.get("seed", 0),
            "suffix": suffix,
            "metadata": asked.get("metadata") or {},
            "family": family.value,
            "status": "validating_files",
            "created_at": self._now(),
            "finished_at": None,
            "fine_tuned_model": None,
            "result_files": [],
            "trained_tokens": None,
            "error": None,
            "events": [],
            "checkpoints": [],
            "end": ends[number % len(ends)].value if ends else TrainingEnd.SUCCEEDED.value,
        }

    def _begin(self, record: Record) -> None:
        self._tasks[record["id"]] = asyncio.get_running_loop().create_task(self._work(record))

    def _say(self, record: Record, level: str, message: str, *, data: Mapping[str, Any] | None = None) -> None:
        record["events"].append(
            {
                "id": _part_id("ftevent", record, len(record["events"])),
                "object": "fine_tuning.job.event",
                "created_at": time_of(self._now(), self._quirks),
                "level": level,
                "message": message,
                "type": "message" if data is None else "metrics",
                "data": dict(data) if data is not None else None,
            }
        )
        self._shelf.keep(KIND, record)

    def _enter(self, record: Record, status: str, message: str, *, level: str = "info") -> None:
        record["status"] = status
        if status in _ENDED:
            record["finished_at"] = self._now()
            self._note(f"fine_tuning.{status}", record["id"])
        self._say(record, level, message)

    async def _work(self, record: Record) -> None:
        """Take a job from one state to the next until it ends."""
        config = self._config
        if record["status"] == "validating_files":
            await self._sleep(config.validating_s / self._speed)
            problem, examples, tokens = await asyncio.to_thread(self._check, record["training_file"])
            if problem is not None:
                record["error"] = {"code": "invalid_training_file", "message": problem, "param": "training_file"}
                self._enter(record, "failed", problem, level="error")
                return
            epochs = record["hyperparameters"]["n_epochs"]
            record["trained_tokens"], record["examples"] = tokens * epochs, examples
            self._enter(record, "queued", "Files validated, moving job to queued state")
        if record["status"] == "queued":
            await self._sleep(config.queued_s / self._speed)
            self._enter(record, "running", "Fine-tuning job started")
        await self._train(record)
        if record["end"] == TrainingEnd.FAILED:
            record["error"] = {"code": "internal_error", "message": "The training failed.", "param": None}
            self._enter(record, "failed", "The training failed.", level="error")
            return
        record["fine_tuned_model"] = _model_name(record)
        record["result_files"] = [self._results(record)]
        self._enter(record, "succeeded", "The job has successfully completed")

    async def _train(self, record: Record) -> None:
        """Take the steps that are left, with an event each and a checkpoint after each epoch."""
        total = self._steps(record)
        per_epoch = max(1, total // record["hyperparameters"]["n_epochs"])
        taken = sum(event["type"] == "metrics" for event in record["events"])
        for step in range(taken + 1, total + 1):
            await self._sleep(self._config.running_s / total / self._speed)
            metrics = _metrics(record, step)
            self._say(record, "info", f"Step {step}/{total}: training loss={metrics['train_loss']:.2f}", data=metrics)
            if step % per_epoch == 0:
                record["checkpoints"].append(
                    {
                        "id": _part_id("ftckpt", record, step),
                        "object": "fine_tuning.job.checkpoint",
                        "created_at": time_of(self._now(), self._quirks),
                        "fine_tuned_model_checkpoint": f"{_model_name(record)}:ckpt-step-{step}",
                        "fine_tuning_job_id": record["id"],
                        "metrics": metrics,
                        "step_number": step,
                    }
                )
                del record["checkpoints"][:-_KEPT_CHECKPOINTS]

    def _steps(self, record: Record) -> int:
        hyper = record["hyperparameters"]
        steps = math.ceil(record["examples"] / hyper["batch_size"]) * hyper["n_epochs"]
        return int(min(max(steps, hyper["n_epochs"]), self._config.most_steps))

    def _results(self, record: Record) -> str:
        path = self._shelf.content(f"{record['id']}-results")
        steps = [event["data"] for event in record["events"] if event["type"] == "metrics"]
        rows = [_COLUMNS, *([str(step.get(name, "")) for name in _COLUMNS] for step in steps)]
        path.write_text("".join(f"{','.join(row)}\n" for row in rows))
        name: str = self._files.make("fine-tune-results", "results.csv", path)["id"]
        return name

    def _check(self, file_id: str) -> tuple[str | None, int, int]:
        """Look at a training file: what is wrong with it, its examples and its tokens. Blocking."""
        try:
            path: Path = self._files.content(file_id)
        except RefusedError:
            return "The training file does not exist any more.", 0, 0
        examples = tokens = 0
        for number, line in enumerate(path.read_bytes().removeprefix(_BOM).splitlines(), 1):
            if not line.strip():
                continue
            problem = _example_problem(line)
            if problem is not None:
                return f"Invalid file format. Line {number}: {problem}", 0, 0
            examples += 1
            tokens += len(line) // 4
        if examples < _LEAST_EXAMPLES:
            return f"Training file has {examples} example(s), but must have at least {_LEAST_EXAMPLES} examples", 0, 0
        return None, examples, tokens


def _example_problem(line: bytes) -> str | None:
    """Say what is wrong with a training example, chat or preference pair; None when nothing is."""
    try:
        example = orjson.loads(line)
    except orjson.JSONDecodeError:
        return "it is not valid JSON."
    if not isinstance(example, dict):
        return "it is no object."
    if "preferred_output" in example:
        turns = [
            example.get("input", {}).get("messages"),
            example["preferred_output"],
            example.get("non_preferred_output"),
        ]
    else:
        turns = [example.get("messages")]
    for turn in turns:
        if not isinstance(turn, list) or not turn:
            return "it has no messages."
        if any(not isinstance(message, dict) or message.get("role") not in _ROLES for message in turn):
            return "a message has no known role."
    if "preferred_output" not in example and turns[0][-1]["role"] != "assistant":
        return "the last message is not from the assistant."
    return None


def _hyperparameters(asked: Mapping[str, Any], method: Any) -> dict[str, Any]:
    given = dict(asked.get("hyperparameters") or {})
    if isinstance(method, dict):
        given |= (method.get(str(method.get("type"))) or {}).get("hyperparameters") or {}
    known = {"n_epochs": 3, "batch_size": 1, "learning_rate_multiplier": 1.0}
    return {name: value if (value := given.get(name, "auto")) != "auto" else usual for name, usual in known.items()}


def _metrics(record: Record, step: int) -> dict[str, Any]:
    """Draw a step's figures: a loss that falls towards 0.3, with noise that the job's seed and the step decide."""
    digest = body_digest(f"{record['seed']}/{record['training_file']}/{step}".encode())
    noise = int.from_bytes(digest[:2]) / 65_535 * 0.1
    loss = round(0.3 + 2.0 / (1 + step / 4) + noise, 5)
    metrics = {"step": step, "train_loss": loss, "train_mean_token_accuracy": round(1 / (1 + loss / 2), 5)}
    if record["validation_file"] is not None:
        metrics |= {"valid_loss": round(loss * 1.1, 5), "valid_mean_token_accuracy": round(1 / (1 + loss * 0.55), 5)}
    return metrics


def _part_id(prefix: str, record: Record, number: int) -> str:
    digest = body_digest(b"%b/%d" % (record["id"].encode(), number))
    return f"{prefix}-{digest.hex()}"


def _model_name(record: Record) -> str:
    digest = body_digest(record["id"].encode()).hex()
    if Family(record["family"]).azure:
        suffix = f"-{record['suffix']}" if record["suffix"] else ""
        return f"{record['model']}.ft-{digest}{digest}{suffix}"
    return f"ft:{record['model']}:org:{record['suffix'] or ''}:{digest[:8]}"
