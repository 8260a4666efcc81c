"""What operations have in common whose requests hold one row each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from pipeline.errors import RowProblem
from pipeline.operations._json import too_deep
from pipeline.operations.base import PackLimits

if TYPE_CHECKING:
    from pipeline.job.template import RequestTemplate
    from pipeline.model import ErrorInfo, Item, Row, RowResult


@dataclass(frozen=True, slots=True, kw_only=True)
class OneRow(ABC):
    """One row, one request; no answer fixes anything for the run. `template` renders the request."""

    template: RequestTemplate
    limits: PackLimits = field(default_factory=PackLimits)

    @property
    def columns(self) -> frozenset[str] | None:
        """The columns that the request's templates read."""
        return self.template.columns

    def prepare(self, rows: Sequence[Row]) -> list[Item | ErrorInfo]:
        """Render and check; what a row is refused for is its own error, never raised."""
        return [self._guarded(row) for row in rows]

    @abstractmethod
    def item(self, row: Row) -> Item:
        """Render and check one row. Raises RowProblem; values that nest too deep may raise RecursionError."""

    def _guarded(self, row: Row) -> Item | ErrorInfo:
        try:
            return self.item(row)
        except RowProblem as problem:
            return problem.info
        except RecursionError:
            return too_deep().info

    def blame(self, items: Sequence[Item], error: ErrorInfo) -> int | None:  # noqa: ARG002 - the protocol's
        """Name nobody: a request holds one row."""
        return None

    def facts(self, results: Sequence[RowResult]) -> Mapping[str, int]:  # noqa: ARG002 - the protocol's
        """Answers fix nothing for the run."""
        return {}

    def settled(self, facts: Mapping[str, int]) -> Self:  # noqa: ARG002 - the protocol's
        """Nothing to bind."""
        return self
