"""Batches: a file of requests, checked, answered line by line in no order, with an output and an error file."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from pipeline.simulator.base import Family, RefusedError, bad_request, estimated_tokens, missing
from pipeline.simulator.config import BatchEnd, DeploymentConfig, OfflineConfig, Quirk
from pipeline.simulator.faults import Faults
from pipeline.simulator.ledger import body_digest
from pipeline.simulator.offline.files import Files, checked_lifetime_s
from pipeline.simulator.offline.rendering import json_object, refusal, time_of
from pipeline.simulator.offline.shelf import Record, Shelf

KIND = "batch"
_BOM = b"\xef\xbb\xbf"
_MOST_ERRORS = 20
_MOST_CUSTOM_ID = 512
_TURN_LINES = 100  # answered before others have their turn
_ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
_WINDOW_S = 86_400
_ENDPOINTS = {
    "/chat/completions": "chat/completions",
    "/v1/chat/completions": "chat/completions",
    "/v1/responses": "responses",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/images/generations": "images/generations",
}
_NOT_ON_AZURE = frozenset({"embeddings", "completions", "images/generations"})


@dataclass(frozen=True, slots=True, kw_only=True)
class LineReply:
    """A line, answered: what a call of its own would have been answered. `keys` name what was asked."""

    status: int
    body: bytes
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """What a batch's lines ask, and where."""

    family: Family
    resource: str
    operation: str


@dataclass(slots=True, kw_only=True)
class _Checked:
    """What the check of a file found. `spans` are the lines' places in it: offset and length."""

    operation: str = ""
    deployment: str = ""
    url: str = ""
    tokens: int = 0
    spans: list[tuple[int, int]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)

    def blame(self, code: str, message: str, line: int | None = None) -> None:
        self.errors.append({"code": code, "message": message, "param": None, "line": line})


class Desk:
    """What batches need of the simulator: its deployments, its answers, its ledger."""

    def __init__(
        self,
        *,
        deployment: Callable[[str, str], DeploymentConfig | None],
        answer: Callable[[Asking, Mapping[str, Any], bytes], Awaitable[LineReply]],
        prompts: Callable[[Asking, Mapping[str, Any]], Sequence[str]],
        note: Callable[..., None],
    ) -> None:
        """`deployment` finds one by resource and name, `prompts` a body's texts; it and `answer` raise RefusedError."""
        self.deployment = deployment
        self.answer = answer
        self.prompts = prompts
        self.note = note


class Batches:
    """The batches of a resource. Used from one event loop; those under way go on after a restart on the same folder."""

    def __init__(
        self,
        shelf: Shelf,
        files: Files,
        desk: Desk,
        *,
        config: OfflineConfig,
        quirks: frozenset[Quirk],
        seed: int,
        speed: float,
        now: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        """`now` gives epoch seconds; `sleep` waits real ones."""
        self._shelf = shelf
        self._files = files
        self._desk = desk
        self._config = config
        self._quirks = quirks
        self._seed = seed
        self._speed = speed
        self._now = now
        self._sleep = sleep
        self._line_faults = Faults(config.line_faults, seed=seed)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._cancelled: dict[str, asyncio.Event] = {}

    def resume(self) -> None:
        """Go on with what an earlier process left under way."""
        for record in self._shelf.all(KIND):
            if record["status"] not in _ENDED:
                self._begin(record)

    async def create(self, body: bytes, family: Family, resource: str) -> Record:
        """Take a batch. Raises RefusedError."""
        asked = json_object(body)
        for name in ("input_file_id", "endpoint", "completion_window"):
            if not isinstance(asked.get(name), str):
                raise missing(name)
        if asked["completion_window"] != "24h":
            raise bad_request("Invalid value: only '24h' is a completion_window.", param="completion_window")
        operation = _ENDPOINTS.get(asked["endpoint"])
        if operation is None or (family.azure and operation in _NOT_ON_AZURE):
            raise bad_request(f"'{asked['endpoint']}' is no endpoint that batches can ask.", param="endpoint")
        file = self._files.get(asked["input_file_id"])
        if file["purpose"] != "batch":
            raise bad_request("The input file's purpose is not 'batch'.", param="input_file_id")
        if family.azure and not self._files.is_ready(file):
            raise refusal(400, "invalidPayload", f"The file {file['id']} is not processed yet.", param="input_file_id")
        record = self._new(asked, operation, family, resource)
        if self._config.fail_fast:
            checked = await asyncio.to_thread(self._check, record)
            if not checked.errors and self._is_over_limit(record, checked):
                raise refusal(400, "token_limit_exceeded", _too_many(checked.deployment))
            record["tokens"], record["deployment"] = checked.tokens, checked.deployment
        self._shelf.keep(KIND, record)
        self._desk.note("batch.created", record["id"], metadata=record["metadata"], input=record["input_file_id"])
        self._begin(record)
        return record

    def get(self, name: str) -> Record:
        """Find a batch. Raises RefusedError."""
        record = self._shelf.find(KIND, name)
        if record is None:
            raise refusal(404, "notFound", f"No batch with the id '{name}' was found.")
        return record

    def all(self) -> list[Record]:
        """Give the batches that lists show already, the newest first."""
        seen_by = self._now() - self._config.listing_lag_s
        return [record for record in self._shelf.all(KIND) if record["created_at"] <= seen_by]

    def cancel(self, name: str) -> Record:
        """Ask a batch to stop; it ends with what is done. Raises RefusedError."""
        record = self.get(name)
        if record["status"] in _ENDED:
            raise refusal(409, "conflict", f"The batch is {record['status']} and cannot be cancelled.")
        if record["status"] != "cancelling":
            self._enter(record, "cancelling")
            self._cancelled.setdefault(name, asyncio.Event()).set()
        return record

    def render(self, record: Record) -> dict[str, Any]:
        """Write a batch, oddities included."""
        quirks = self._quirks
        no_file = "" if Quirk.EMPTY_IDS in quirks else None
        status = record["status"]
        counts = record["counts"]
        shown: dict[str, Any] = {
            "id": record["id"],
            "object": "batch",
            "endpoint": None if Quirk.NULL_COUNTS in quirks else record["endpoint"],
            "errors": {"object": "list", "data": record["errors"]} if record["errors"] else None,
            "input_file_id": record["input_file_id"],
            "completion_window": "24h",
            "status": status.capitalize() if Quirk.CAPITAL_STATES in quirks else status,
            "output_file_id": record["output_file_id"] or no_file,
            "error_file_id": record["error_file_id"] or no_file,
            "metadata": record["metadata"],
            "request_counts": dict.fromkeys(counts)
            if Quirk.NULL_COUNTS in quirks and status != "completed"
            else counts,
        }
        for name in ("created", "expires", *(f"{state}" for state in _TIMES)):
            shown[f"{name}_at"] = time_of(record["times"].get(name), quirks)
        return shown

    def _new(self, asked: Mapping[str, Any], operation: str, family: Family, resource: str) -> Record:
        metadata = asked.get("metadata") or {}
        if not isinstance(metadata, dict) or len(metadata) > 16:  # noqa: PLR2004 - the documented bound
            raise bad_request("metadata holds at most 16 pairs.", param="metadata")
        expiry = asked.get("output_expires_after")
        now = self._now()
        number = sum(1 for _ in self._shelf.all(KIND))
        ends = self._config.ends
        return {
            "id": self._shelf.new_id("batch_"),
            "input_file_id": asked["input_file_id"],
            "endpoint": asked["endpoint"],
            "operation": operation,
            "family": family.value,
            "resource": resource,
            "metadata": metadata,
            "lives_s": checked_lifetime_s(expiry.get("seconds"), family) if isinstance(expiry, dict) else None,
            "status": "validating",
            "created_at": now,
            "times": {"created": now, "expires": now + _WINDOW_S},
            "counts": {"total": 0, "completed": 0, "failed": 0},
            "errors": [],
            "output_file_id": None,
            "error_file_id": None,
            "tokens": 0,
            "deployment": "",
            "end": ends[number % len(ends)].value if ends else BatchEnd.COMPLETED.value,
        }

    def _begin(self, record: Record) -> None:
        self._cancelled.setdefault(record["id"], asyncio.Event())
        if record["status"] == "cancelling":
            self._cancelled[record["id"]].set()
        self._tasks[record["id"]] = asyncio.get_running_loop().create_task(self._work(record))

    def _enter(self, record: Record, status: str) -> None:
        record["status"] = status
        record["times"][status] = self._now()
        self._shelf.keep(KIND, record)
        if status in _ENDED:
            self._desk.note(f"batch.{status}", record["id"], **record["counts"])

    async def _work(self, record: Record) -> None:
        """Take a batch from one state to the next until it ends."""
        await self._pause(record, self._config.validating_s)
        checked = await asyncio.to_thread(self._check, record)
        if record["end"] == BatchEnd.FAILED:
            checked.blame("invalid_request", "The batch failed for a reason of the service's own.")
        elif not checked.errors and not self._config.fail_fast and self._is_over_limit(record, checked):
            checked.blame("token_limit_exceeded", _too_many(checked.deployment))
        if checked.errors:
            record["errors"] = checked.errors[:_MOST_ERRORS]
            self._enter(record, "failed")
            return
        record["counts"]["total"] = len(checked.spans)
        record["tokens"], record["deployment"] = checked.tokens, checked.deployment
        if record["status"] == "validating":
            self._enter(record, "in_progress")
        await self._pause(record, self._config.in_progress_s)
        end = await self._answer_lines(record, checked)
        if end != BatchEnd.CANCELLED:
            self._enter(record, "finalizing")
            await self._pause(record, self._config.finalizing_s)
        else:
            await self._sleep(self._config.cancelling_s / self._speed)
        self._enter(record, end.value)

    async def _pause(self, record: Record, seconds: float) -> None:
        """Let a state last, unless somebody cancels."""
        cancelled = self._cancelled[record["id"]]
        if seconds <= 0 or cancelled.is_set():
            return
        sleeping = asyncio.ensure_future(self._sleep(seconds / self._speed))
        waiting = asyncio.ensure_future(cancelled.wait())
        await asyncio.wait({sleeping, waiting}, return_when=asyncio.FIRST_COMPLETED)
        sleeping.cancel()
        waiting.cancel()

    async def _answer_lines(self, record: Record, checked: _Checked) -> BatchEnd:
        """Answer the lines in an order of its own, and write what came of them; gives how the batch ends."""
        end = BatchEnd(record["end"])
        order = list(range(len(checked.spans)))
        random.Random(f"{self._seed}/{record['id']}").shuffle(order)  # noqa: S311 - an order, no secret
        most = len(order) if end is BatchEnd.COMPLETED else int(len(order) * self._config.done_share)
        cancelled = self._cancelled[record["id"]]
        output, errors = (self._shelf.content(f"{record['id']}-{name}") for name in ("output", "errors"))
        record["counts"].update(completed=0, failed=0)
        with (
            self._files.content(record["input_file_id"]).open("rb") as source,
            output.open("wb") as good,
            errors.open("wb") as bad,
        ):
            done = 0
            for number in order[:most]:
                if cancelled.is_set():
                    end = BatchEnd.CANCELLED
                    break
                line = _line(source, checked.spans[number])
                reply = await self._answer(record, line)
                fine = reply.status == 200  # noqa: PLR2004 - OK
                (good if fine else bad).write(_written(record, line, reply))
                record["counts"]["completed" if fine else "failed"] += 1
                done += 1
                if done % _TURN_LINES == 0:
                    await self._sleep(0 if self._config.lines_per_s is None else _TURN_LINES / self._lines_per_s)
            if end is BatchEnd.EXPIRED:
                for number in order[done:]:
                    bad.write(_expired(record, _line(source, checked.spans[number])))
                    record["counts"]["failed"] += 1
        self._file_results(record, output, errors)
        return end

    @property
    def _lines_per_s(self) -> float:
        return (self._config.lines_per_s or 1.0) * self._speed

    def _file_results(self, record: Record, output: Path, errors: Path) -> None:
        azure = Family(record["family"]).azure
        for name, path in (("output", output), ("error", errors)):
            # Azure names an error file although there is nothing in it.
            if path.stat().st_size or (azure and name == "error"):
                made = self._files.make(
                    f"batch_{'output' if name == 'output' else 'error'}",
                    f"{record['id']}_{name}.jsonl",
                    path,
                    lives_s=record["lives_s"],
                )
                record[f"{name}_file_id"] = made["id"]
            else:
                path.unlink()

    async def _answer(self, record: Record, line: Mapping[str, Any]) -> LineReply:
        body = orjson.dumps(line["body"])
        fault = self._line_faults.befalls(body_digest(body))
        if isinstance(fault, int):
            said = {"error": {"code": str(fault), "message": "The server had an error while processing your request."}}
            reply = LineReply(status=fault, body=orjson.dumps(said))
        else:
            try:
                reply = await self._desk.answer(_asking(record), line["body"], body)
            except RefusedError as refused:
                reply = LineReply(status=refused.status, body=refused.body)
        self._desk.note("line", record["id"], custom_id=line["custom_id"], keys=list(reply.keys), status=reply.status)
        return reply

    def _is_over_limit(self, record: Record, checked: _Checked) -> bool:
        config = self._desk.deployment(record["resource"], checked.deployment)
        if config is None or config.enqueued_tokens is None:
            return False
        waiting = sum(
            other["tokens"]
            for other in self._shelf.all(KIND)
            if (other["resource"], other["deployment"]) == (record["resource"], checked.deployment)
            and other["status"] not in _ENDED
            and other["id"] != record["id"]
        )
        return bool(waiting + checked.tokens > config.enqueued_tokens)

    def _check(self, record: Record) -> _Checked:
        """Look at every line of the input file. Blocking."""
        checked = _Checked(operation=record["operation"])
        family = Family(record["family"])
        seen: set[str] = set()
        position = 0
        with self._files.content(record["input_file_id"]).open("rb") as source:
            for number, line in enumerate(source, 1):
                if number == 1 and line.startswith(_BOM):
                    checked.blame("invalid_request", "A valid model deployment name couldn't be extracted.", 1)
                    return checked
                if line.strip():
                    checked.spans.append((position, len(line)))
                    self._check_line(checked, line, number, seen, record, family)
                position += len(line)
                if len(checked.errors) >= _MOST_ERRORS:
                    return checked
        if not checked.spans:
            checked.blame("empty_file", "The input file is empty.")
        elif len(checked.spans) > self._config.most_lines:
            checked.blame("too_many_tasks", f"The file holds more than {self._config.most_lines} requests.")
        return checked

    def _check_line(
        self, checked: _Checked, line: bytes, number: int, seen: set[str], record: Record, family: Family
    ) -> None:
        try:
            asked = orjson.loads(line)
        except orjson.JSONDecodeError:
            checked.blame("invalid_json_line", "This line is not parseable as valid JSON.", number)
            return
        problem = _problem(asked, seen)
        if problem is not None:
            checked.blame(*problem, number)
            return
        seen.add(asked["custom_id"])
        body = asked["body"]
        checked.url = checked.url or asked["url"]
        model = body.get("model")
        if not isinstance(model, str) or not model:
            checked.blame("model_not_found", "The line's body names no model.", number)
            return
        checked.deployment = checked.deployment or model
        if asked["url"] != checked.url or not _fits(asked["url"], record["endpoint"], family):
            checked.blame("url_mismatch", f"The line's url is not the batch's endpoint {record['endpoint']}.", number)
        elif model != checked.deployment:
            checked.blame("model_mismatch", "All lines of a file must name the same model.", number)
        elif (config := self._desk.deployment(record["resource"], model)) is None:
            checked.blame("model_not_found", f"The deployment {model} does not exist.", number)
        elif config.batch == "never":
            checked.blame("invalid_request", f"The deployment {model} is none for batches.", number)
        else:
            try:
                texts = self._desk.prompts(_asking(record), body)
            except RefusedError:
                texts = ()  # it is answered with an error of its own
            checked.tokens += sum(estimated_tokens(text) for text in texts)


_TIMES = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


def _asking(record: Record) -> Asking:
    return Asking(family=Family(record["family"]), resource=record["resource"], operation=record["operation"])


def _problem(asked: Any, seen: set[str]) -> tuple[str, str] | None:
    """Say what is wrong with a line's frame: code and message; None when nothing is."""
    if not isinstance(asked, dict) or not isinstance(asked.get("body"), dict) or asked.get("method") != "POST":
        return "invalid_request", "A line needs custom_id, method POST, url and body."
    name = asked.get("custom_id")
    if not isinstance(name, str) or not 0 < len(name) <= _MOST_CUSTOM_ID:
        return "invalid_request", "A line needs a custom_id."
    if name in seen:
        return "duplicate_custom_id", f"The custom_id {name[:64]} comes twice."
    if not isinstance(asked.get("url"), str):
        return "url_mismatch", "A line needs a url."
    return None


def _fits(url: str, endpoint: str, family: Family) -> bool:
    """Whether a line's url may be sent to an endpoint: Azure takes /chat/completions for lines of both spellings."""
    if url == endpoint:
        return True
    return family.azure and _ENDPOINTS.get(url) is not None and _ENDPOINTS.get(url) == _ENDPOINTS.get(endpoint)


def _too_many(deployment: str) -> str:
    return (
        f"Enqueued token limit reached for {deployment}. Please try again once some in_progress batches have been "
        "completed."
    )


def _line(source: Any, span: tuple[int, int]) -> dict[str, Any]:
    offset, length = span
    source.seek(offset)
    values = orjson.loads(source.read(length))
    assert isinstance(values, dict)  # noqa: S101 - it was checked
    return values


def _framed(record: Record, line: Mapping[str, Any], response: Any, error: Any) -> bytes:
    framed = {"custom_id": line["custom_id"], "response": response, "error": error}
    if not Family(record["family"]).azure:
        digest = body_digest(f"{record['id']}/{line['custom_id']}".encode()).hex()
        framed = {"id": f"batch_req_{digest}", **framed}
    return orjson.dumps(framed, option=orjson.OPT_APPEND_NEWLINE)


def _written(record: Record, line: Mapping[str, Any], reply: LineReply) -> bytes:
    digest = body_digest(f"{record['id']}/{line['custom_id']}".encode()).hex()
    request_id = f"{digest[:8]}-0000-4000-a000-{digest[4:]:0>12}"
    response = {"status_code": reply.status, "request_id": request_id, "body": orjson.loads(reply.body)}
    return _framed(record, line, response, None)


def _expired(record: Record, line: Mapping[str, Any]) -> bytes:
    message = "This request could not be executed before the completion window expired."
    return _framed(record, line, None, {"code": "batch_expired", "message": message})
