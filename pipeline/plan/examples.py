"""Makes files of examples of an input: every row is checked before anything is sent, across rows too."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pipeline.errors import InputChangedError
from pipeline.job.training import asked_of, epochs_of, validation_of
from pipeline.model import BadRow, ErrorInfo, ErrorType, Item, Row
from pipeline.sources import SourceError, open_source
from pipeline.sources.base import Position
from pipeline.sources.digest import RangeDigest
from pipeline.store.files import TEMPORARY_SUFFIX, open_private, publish, storage
from pipeline.store.training import ExamplesFile, Mistake

if TYPE_CHECKING:
    from pipeline.job.spec import Job
    from pipeline.operations.base import Operation
    from pipeline.sources.base import Source

LEAST_EXAMPLES = 10
"""Examples that a training needs (the services' guides)."""
MOST_BYTES = 512_000_000
"""Bytes that a file of examples may have (Azure's and OpenAI's limit for one upload)."""
MOST_TRAINED_TOKENS = 2_000_000_000
"""Tokens times epochs of one training (Azure's limit)."""
_ROWS_AT_ONCE = 512
_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleRules:
    """What the job says of examples.

    `share` of them, chosen by `seed` and content, go to validation; `second` is an input of its own for that.
    `on_duplicate` is `fail` or `keep`. `epochs` is None where the service chooses.
    """

    id_column: str | None
    share: float
    seed: int
    on_duplicate: str
    epochs: int | None
    second: Source | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """What an input came to. `whole` are problems of no row in particular. `files`: training, and validation if any."""

    rows: int
    mistakes: tuple[Mistake, ...]
    whole: tuple[str, ...]
    files: tuple[ExamplesFile, ...]


def second_input(job: Job) -> Source | None:
    """Open the validation input, where it is one of its own. Raises SourceError."""
    path = validation_of(job).path
    if path is None:
        return None
    try:
        return open_source((str(path),), format=job.input.format, columns=job.input.columns)
    except SourceError as error:
        raise SourceError(f"request.validation: {error}") from error


def example_rules(job: Job, second: Source | None) -> ExampleRules:
    """Read the rules of a checked job."""
    seed = job.request.get("seed")
    return ExampleRules(
        id_column=job.input.id,
        share=validation_of(job).share,
        seed=seed if type(seed) is int else 0,
        on_duplicate=job.request.get("on_duplicate") or "fail",
        epochs=epochs_of(asked_of(job.request)),
        second=second,
    )


@dataclass(slots=True)
class _File:
    """A file of examples that is being written."""

    path: Path
    file: BinaryIO
    tokens_of: Callable[[Item], int]
    examples: int = 0
    bytes: int = 0
    tokens: int = 0
    digest: Any = field(default_factory=sha256)

    def add(self, item: Item) -> None:
        line = item.content + b"\n"
        self.file.write(line)
        self.digest.update(line)
        self.examples += 1
        self.bytes += len(line)
        self.tokens += self.tokens_of(item)

    def made(self) -> ExamplesFile:
        return ExamplesFile(
            name=self.path.name,
            examples=self.examples,
            bytes=self.bytes,
            tokens=self.tokens,
            sha256=self.digest.hexdigest(),
        )


def write_examples(
    source: Source, operation: Operation, rules: ExampleRules, *, folder: Path, tag: str, beat: Callable[[], None]
) -> Examples:
    """Write the files of examples whole, or, where there are mistakes, none. Blocking; memory grows with the rows.

    `beat` is called now and then. Raises StorageError, SourceError, InputChangedError.
    """
    with ExitStack() as stack:
        stack.enter_context(storage(f"writing examples into {folder}"))
        paths = [folder / f"{tag}.{kind}.jsonl" for kind in ("training", "validation")]
        stack.callback(_drop, paths)
        files = [_File(path, stack.enter_context(open_private(_temporary(path))), own_tokens) for path in paths]
        reading = _Reading(operation, rules, files)
        reading.read(source, beat)
        if rules.second is not None:
            reading.read_second(rules.second, beat)
        whole = tuple(reading.problems())
        used = [file for file in files if file.examples]
        for file in files:
            file.file.close()
        if not reading.mistakes and not whole:
            for file in used:
                publish(_temporary(file.path), file.path)
        return Examples(
            rows=reading.rows,
            mistakes=tuple(reading.mistakes),
            whole=whole,
            files=tuple(file.made() for file in used),
        )


def count_examples(
    source: Source, operation: Operation, rules: ExampleRules, *, tokens: Callable[[Item], int]
) -> Examples:
    """Count what `write_examples` would write, `tokens` an example, and write nothing. Blocking.

    Raises SourceError, InputChangedError.
    """
    with Path(os.devnull).open("wb") as nowhere:
        files = [_File(Path(kind), nowhere, tokens) for kind in ("a.training", "a.validation")]
        reading = _Reading(operation, rules, files)
        reading.read(source, lambda: None)
        if rules.second is not None:
            reading.read_second(rules.second, lambda: None)
        return Examples(
            rows=reading.rows,
            mistakes=tuple(reading.mistakes),
            whole=tuple(reading.problems()),
            files=tuple(file.made() for file in files),
        )


def own_tokens(item: Item) -> int:
    """The tokens of an example by its model's tokenizer."""
    return item.tokens


class _Reading:
    """One reading of the inputs: what was seen so far."""

    def __init__(self, operation: Operation, rules: ExampleRules, files: Sequence[_File]) -> None:
        self.mistakes: list[Mistake] = []
        self.rows = 0
        self._operation = operation
        self._rules = rules
        self._training, self._validation = files
        self._seen: dict[bytes, str] = {}
        self._ids: dict[Any, int] = {}

    def read(self, source: Source, beat: Callable[[], None]) -> None:
        """Read the rows of the input."""
        for row, made in _made(source, self._operation, self._rules.id_column, beat):
            self.rows += 1
            name = _id(row, self._rules.id_column)
            error = made if isinstance(made, ErrorInfo) else self._known(made, f"row {row.ordinal}")
            error = error or self._second_holder(name, row.ordinal)
            if error is not None:
                self.mistakes.append(Mistake(ordinal=row.ordinal, id=name, error=error))
            elif isinstance(made, Item):
                (self._validation if self._is_chosen(made) else self._training).add(made)

    def read_second(self, source: Source, beat: Callable[[], None]) -> None:
        """Read the rows of the validation input; they are no examples of the training."""
        for row, made in _made(source, self._operation, self._rules.id_column, beat):
            self.rows += 1
            where = f"validation row {row.ordinal}"
            error = made if isinstance(made, ErrorInfo) else self._known(made, where)
            if error is not None:
                name = _id(row, self._rules.id_column)
                self.mistakes.append(Mistake(ordinal=row.ordinal, id=name, error=error, where="validation"))
            elif isinstance(made, Item):
                self._validation.add(made)

    def problems(self) -> Iterator[str]:
        """Say what is wrong with the examples as a whole."""
        right = self._training.examples
        if right < LEAST_EXAMPLES:
            beside = f" besides {self._validation.examples} for validation" if self._rules.share else ""
            yield f"there are {right} right examples{beside}, and a training needs at least {LEAST_EXAMPLES}"
        wanted = self._rules.share > 0 or self._rules.second is not None
        if wanted and not self._validation.examples and not self.mistakes:
            yield "no example is left for validation: raise the share, or leave request.validation out"
        for file in (self._training, self._validation):
            if file.bytes > MOST_BYTES:
                yield f"{file.path.name.split('.')[1]} examples come to {file.bytes:,} bytes of at most {MOST_BYTES:,}"
        tokens = self._training.tokens * (self._rules.epochs or 1)
        if tokens > MOST_TRAINED_TOKENS:
            yield f"the examples come to {tokens:,} tokens over all epochs, of at most {MOST_TRAINED_TOKENS:,}"

    def _known(self, item: Item, where: str) -> ErrorInfo | None:
        """Note an example; say where the same one was met, unless copies are kept."""
        digest = sha256(item.content).digest()[:_DIGEST_BYTES]
        first = self._seen.setdefault(digest, where)
        if first == where:
            return None
        both_sides = where.startswith("validation") and not first.startswith("validation")
        if self._rules.on_duplicate == "keep" and not both_sides:
            return None
        advice = "it cannot test what it taught" if both_sides else "request.on_duplicate: keep takes it all the same"
        return ErrorInfo(type=ErrorType.ROW, code="duplicate", message=f"the example is that of {first}; {advice}")

    def _second_holder(self, name: Any, ordinal: int) -> ErrorInfo | None:
        if name is None or isinstance(name, dict | list):
            return None
        first = self._ids.setdefault(name, ordinal)
        if first == ordinal:
            return None
        return ErrorInfo(type=ErrorType.ROW, code="duplicate_id", message=f"row {first} has the same id")

    def _is_chosen(self, item: Item) -> bool:
        """Whether an example is for validation. The same content is on the same side in every job of the same seed."""
        if not self._rules.share:
            return False
        drawn = sha256(b"%d/" % self._rules.seed + item.content).digest()[:8]
        return int.from_bytes(drawn) < self._rules.share * 2**64


def _made(
    source: Source, operation: Operation, id_column: str | None, beat: Callable[[], None]
) -> Iterator[tuple[Row | BadRow, Item | ErrorInfo]]:
    """Read and render rows in order."""
    values = operation.columns
    if values is not None and id_column is not None and id_column in source.schema.names:
        values |= {id_column}
    with closing(source.open(Position(), values=values, carried=())) as cursor:
        while (batch := cursor.read(_ROWS_AT_ONCE, RangeDigest())).rows:
            whole = [row for row in batch.rows if isinstance(row, Row)]
            prepared = iter(operation.prepare(whole))
            for row in batch.rows:
                yield row, row.error if isinstance(row, BadRow) else next(prepared)
            beat()
    for file in source.files:
        with storage(f"looking at {file.path}"):
            now = file.path.stat()
        if (now.st_size, now.st_mtime_ns) != (file.size, file.mtime_ns):
            raise InputChangedError(f"{file.path} changed while it was read; run the same command again")


def _id(row: Row | BadRow, column: str | None) -> Any:
    return row.values.get(column) if column is not None and isinstance(row, Row) else None


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + TEMPORARY_SUFFIX)


def _drop(paths: Sequence[Path]) -> None:
    for path in paths:
        _temporary(path).unlink(missing_ok=True)
