"""What replies fix for a whole run, such as the size of vectors, and which models answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import anyio

from pipeline.errors import RefusedError, ReplyError
from pipeline.log import Event, Level
from pipeline.model import RowResult

if TYPE_CHECKING:
    from pipeline.lanes.base import Keeping
    from pipeline.lanes.commit import Commits
    from pipeline.operations.base import Operation


class Findings:
    """The operation as the run knows it; it is replaced when a first reply fixes a fact of the run."""

    def __init__(
        self,
        operation: Operation,
        *,
        facts: dict[str, int],
        models: Sequence[str],
        journal: Keeping,
        commits: Commits,
    ) -> None:
        """`facts` and `models` are those of earlier invocations."""
        self.operation = operation.settled(facts)
        self._facts = facts
        self._models = list(models)
        self._journal = journal
        self._commits = commits

    def agree(self, results: Sequence[RowResult]) -> None:
        """Raise ReplyError when a reply says otherwise than what the run has fixed."""
        for name, value in self.operation.facts(results).items():
            known = self._facts.get(name, value)
            if known != value:
                raise ReplyError(code="bad_reply", message=f"{name} is {value}, but the run began with {known}")

    @property
    def noted(self) -> tuple[dict[str, int], list[str]]:
        """The facts of the run and its models, for another process of it."""
        return self._facts, self._models

    async def hear(self, key: str, value: Any) -> None:
        """Keep what another process of the run has learnt: facts, or models. Raises RefusedError, StorageError.

        A fact is learnt before a second process begins, unless no answer came till then.
        """
        if key == "models":
            self._models += [model for model in value if model not in self._models]
            await self._journal.note(key, self._models)
            return
        for name, fact in value.items():
            if self._facts.setdefault(name, fact) != fact:
                raise RefusedError(
                    f"{name} is {fact} in one answer and {self._facts[name]} in another; name deployments of one model "
                    "and size, then run the same command again"
                )
        self.operation = self.operation.settled(self._facts)
        await self._journal.note(key, self._facts)

    async def learn(self, results: Sequence[RowResult], deployment: str) -> None:
        """Keep what a first reply fixes for the whole run, before any row that rests on it.

        Another model than before is said, for rows of one run should be comparable.
        """
        facts = dict(self.operation.facts(results))
        if facts.keys() - self._facts.keys():
            self._facts.update(facts)
            self.operation = self.operation.settled(self._facts)
            with anyio.CancelScope(shield=True):
                await self._journal.note("facts", self._facts)
        model = results[0].model
        if model is None or model in self._models:
            return
        if self._models:
            before = ", ".join(self._models)
            self._commits.say(Event.ANOTHER_MODEL, Level.WARNING, deployment=deployment, model=model, before=before)
        self._models.append(model)
        with anyio.CancelScope(shield=True):
            await self._journal.note("models", self._models)
