"""An allowance that is never passed: what is under way counts at its worst until it is known; pure, whole numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

DOLLAR = 10**12
"""Units of a dollar. A token's price in them is a whole number, so that sums are exact."""
BLOCKS = 100
"""What is at risk is noted in hundredths of the allowance, so that not every request needs a note of its own."""


@dataclass(slots=True, kw_only=True)
class Allowance:
    """So many units, for the life of an output folder.

    `spent` is what its committed rows have cost, `lost` what was, or may have been, billed without a row to show for
    it, in earlier invocations; `secured` is what is noted as being at risk. All else is this invocation's: `reserved`
    for requests under way, at their worst, `answered` by rows that are not committed yet, and `gone` like `lost`.
    `kept` is the part of `reserved` that whoever reserved it will know of again after a kill. `held` is the worst of
    what others, of earlier invocations, have under way.
    """

    most: int
    spent: int = 0
    lost: int = 0
    held: int = 0
    secured: int = 0
    reserved: int = field(default=0, init=False)
    kept: int = field(default=0, init=False)
    answered: int = field(default=0, init=False)
    gone: int = field(default=0, init=False)

    @property
    def used(self) -> int:
        """What was spent, or may have been."""
        return self.spent + self.lost + self.held + self.answered + self.gone

    @property
    def left(self) -> int:
        """What may still be reserved."""
        return self.most - self.used - self.reserved

    def fits(self, worst: int) -> bool:
        """Whether a request that costs at most so much may be sent."""
        return worst <= self.left

    def reserve(self, worst: int) -> None:
        """Count a request that is about to be sent."""
        self.reserved += worst

    def release(self, worst: int) -> None:
        """Count one that was not sent, or not billed."""
        self.reserved -= worst

    def answer(self, worst: int, cost: int) -> None:
        """Count an answer, whose rows are about to be committed."""
        self.reserved -= worst
        self.answered += cost

    def commit(self, cost: int) -> None:
        """Count rows that are committed: what they cost is found there from now on."""
        self.answered -= cost
        self.spent += cost

    def lose(self, worst: int, cost: int) -> None:
        """Count what was, or may have been, billed without an answer."""
        self.reserved -= worst
        self.gone += cost

    def to_secure(self) -> int | None:
        """What is to be noted as being at risk before anything is sent; None where the last note covers it.

        A process that is killed leaves that note behind.
        """
        at_risk = self.gone + self.reserved - self.kept + self.answered
        if at_risk <= self.secured:
            return None
        block = max(1, self.most // BLOCKS)
        return max(at_risk, min(-(-at_risk // block) * block, self.most - self.spent - self.lost))

    @classmethod
    def after_kill(cls, *, most: int, spent: int, lost: int, at_risk: int, held: int, most_then: int | None) -> Self:
        """The allowance of what follows a process that was killed and left a note of what was `at_risk`.

        The note covers what was lost, but is rounded up, and answers that it covers may have been committed since. As
        that process never passed `most_then`, no more can be lost than what `spent` and `held` leave of it; None where
        they were reckoned by other prices.
        """
        gone = at_risk if most_then is None else max(0, min(at_risk, most_then - spent - lost - held))
        return cls(most=most, spent=spent, lost=lost + gone, held=held)

    @property
    def to_keep(self) -> int:
        """What is lost for good when nothing is under way any more."""
        return self.lost + self.gone + self.answered
