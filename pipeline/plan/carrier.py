"""Rows of a changed input: what each is asked is kept, and those that were asked the same before are not asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.model import Item, Target
from pipeline.store.asked import NOT_ASKED, Asked, digest_of
from pipeline.store.ids import hash_of

if TYPE_CHECKING:
    from pipeline.model import ErrorInfo, Row
    from pipeline.operations.base import Operation
    from pipeline.store.asked import AskedTable
    from pipeline.store.predecessors import Predecessors
    from pipeline.store.salvage import Done

# Any deployment will do, as long as it is always the same: which one answers says nothing of what is asked.
_TARGET = Target(deployment="", model="", body_model=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Carrier:
    """`id_column` names rows, None where what they are asked does. `earlier` holds results, None where none do."""

    operation: Operation
    id_column: str | None
    table: AskedTable
    earlier: Predecessors | None

    def take(self, rows: Sequence[Row], prepared: Sequence[Item | ErrorInfo]) -> dict[int, Done]:
        """Keep what rows are asked, and return the results of those that were asked it before, by ordinal. Blocking.

        Raises StorageError, DamageError.
        """
        asked = [one for row, item in zip(rows, prepared, strict=True) if (one := self._asked(row, item)) is not None]
        self.table.keep(asked)
        found = {} if self.earlier is None else self.earlier.find(asked)
        return {
            ordinal: (replace(result, ordinal=ordinal), request) for ordinal, (result, request) in sorted(found.items())
        }

    def _asked(self, row: Row, item: Item | ErrorInfo) -> Asked | None:
        asked = NOT_ASKED
        if isinstance(item, Item):
            asked = digest_of(self.operation.build((item,), _TARGET).body)
        if self.id_column is not None:
            return Asked(ordinal=row.ordinal, row=hash_of(row.values[self.id_column]), asked=asked)
        return Asked(ordinal=row.ordinal, row=asked, asked=asked) if asked else None
