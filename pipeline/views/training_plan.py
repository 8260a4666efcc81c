"""What training a model would take: examples, tokens over all epochs, dollars, as values and as lines for people."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pipeline import operations
from pipeline.job.tokens import CHARACTERS_A_TOKEN
from pipeline.job.training import training_usd
from pipeline.plan.examples import Examples, count_examples, example_rules, own_tokens, second_input
from pipeline.sources import open_source
from pipeline.store.folder import Layout
from pipeline.store.journal import JournalReader
from pipeline.store.training import TrainingRecord, TrainingStep, noted_training
from pipeline.views.text import dollars, plain, table

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.job.spec import Job
    from pipeline.model import Item

NAMED = 5
"""Mistakes that are told one by one."""


def plan_training(job: Job, *, root: Path, simulated: bool) -> dict[str, Any]:
    """Check and count every example, and say what training on them takes; all of it is exact but for what is None.

    `trained_tokens` is None where the service chooses how many epochs. What was begun in `root` is in `begun`. Raises
    SourceError, InputChangedError, DamageError, StorageError.
    """
    record = _record(root)
    rules = example_rules(job, second_input(job))
    found = count_examples(
        open_source(job.input.path, format=job.input.format, columns=job.input.columns),
        operations.get(job.operation).factory(job),
        rules,
        tokens=_as_simulated if simulated else own_tokens,
    )
    training, validation = found.files
    tokens = None if rules.epochs is None else training.tokens * rules.epochs
    done = record is not None and record.counts
    price = job.deployments[0].price
    return {
        "name": job.name,
        "operation": job.operation,
        "rows": {"total": found.rows, "cannot_be_used": len(found.mistakes)},
        "training": {
            "model": job.deployments[0].model,
            "examples": training.examples,
            "validation_examples": validation.examples,
            "tokens_an_epoch": training.tokens,
            "epochs": rules.epochs,
            "trained_tokens": tokens,
            "begun": None if record is None or not done else _begun(record),
        },
        "cost_usd": {
            "so_far": training_usd(job, None if record is None else record.trained_tokens),
            "likely": None if done else training_usd(job, tokens),
            "an_epoch": training_usd(job, training.tokens),
        },
        "price": None if price is None else price.training,
        "problems": _problems(found),
    }


def _record(root: Path) -> TrainingRecord | None:
    with suppress(FileNotFoundError), JournalReader(Layout(root).journal) as reader:
        return noted_training(reader)
    return None


def _begun(record: TrainingRecord) -> str:
    return "done" if record.step is TrainingStep.DONE else "under way"


def _as_simulated(item: Item) -> int:
    """As the simulator counts a line of a training file."""
    return len(item.content) // CHARACTERS_A_TOKEN


def _problems(found: Examples) -> list[str]:
    told = [
        f"{one.where or 'training'} row {one.ordinal}: {one.error.code}: {one.error.message}" for one in found.mistakes
    ]
    more = [f"and {len(told) - NAMED} more" for _ in told[NAMED : NAMED + 1]]
    return [*told[:NAMED], *more, *found.whole]


def training_plan_lines(report: Mapping[str, Any]) -> list[str]:
    """Lay the plan of a training out for people."""
    facts = [
        ("rows", f"{report['rows']['total']:,}"),
        ("examples", _examples(report["training"])),
        ("tokens", _tokens(report["training"])),
        ("dollars", _money(report)),
        (
            "time",
            "not known: the service trains when it has room; after that, a deployment of the model costs by the hour",
        ),
    ]
    lines = [f"{plain(report['name'])}: {report['operation']}, {plain(report['training']['model'])}"]
    lines += [f"  {line}" for line in table(facts)]
    begun = report["training"]["begun"]
    if begun is not None:
        lines.append(f"its training is {begun} already: a run pays for no other")
    if report["problems"]:
        lines.append("nothing will be uploaded before this is put right:")
        lines += [f"  {plain(problem)}" for problem in report["problems"]]
    return lines


def _examples(training: Mapping[str, Any]) -> str:
    said = f"{training['examples']:,} for training"
    validation = training["validation_examples"]
    return f"{said}, {validation:,} for validation" if validation else said


def _tokens(training: Mapping[str, Any]) -> str:
    each = f"{training['tokens_an_epoch']:,} an epoch"
    if training["epochs"] is None:
        return f"{each}; the service chooses how many epochs, unless n_epochs says it"
    return f"{training['trained_tokens']:,} trained: {each}, {training['epochs']} epochs"


def _money(report: Mapping[str, Any]) -> str:
    cost = report["cost_usd"]
    if report["price"] is None:
        return "not known: give deployments.0.price.training, dollars a million tokens trained"
    if report["training"]["begun"] is not None:
        return "none more" if cost["so_far"] is None else f"none more, {dollars(cost['so_far'])} so far"
    if cost["likely"] is not None:
        return f"about {dollars(cost['likely'])}, at ${report['price']:g} a million tokens trained"
    return f"{dollars(cost['an_epoch'])} an epoch, at ${report['price']:g} a million tokens trained"
