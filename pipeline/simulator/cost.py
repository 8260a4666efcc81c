"""What admission charges for a request: an estimate that differs by model, made before anything is answered."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

_CHARACTERS_PER_TOKEN = 4.0
_PIECE = re.compile(r"\w{1,8}|[^\w\s]")


class PromptCount(StrEnum):
    """How the prompt is counted."""

    CHARACTERS = "characters"  # by their number
    TOKENS = "tokens"  # words and marks, as a tokenizer cuts them: eight letters of a word at most
    NONE = "none"  # not at all


class Rounding(StrEnum):
    """Where a part of a token is rounded up."""

    EACH = "each"  # for every text
    SUM = "sum"  # once for the request


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What a request is charged in tokens, `answer` of them for what has not been answered yet."""

    tokens: int
    answer: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One model's estimate: prompt, pictures, and the most that may be answered, times `factor`.

    `answer_when_absent` counts where the request bounds its answer by nothing; `answers` says whether the bound
    counts, `choices` whether it counts once for each of n or best_of. `rounding` None leaves it to the operation.
    """

    prompt: PromptCount = PromptCount.CHARACTERS
    characters_per_token: float = _CHARACTERS_PER_TOKEN
    rounding: Rounding | None = None
    answers: bool = True
    answer_when_absent: int = 16
    choices: bool = True
    picture_tokens: int = 765
    picture_low_tokens: int = 85
    factor: float = 1.0

    def charge(
        self,
        *,
        texts: Sequence[str],
        rounding: Rounding,
        tokens: int = 0,
        most: int | None = None,
        choices: int = 1,
        pictures: Sequence[str] = (),
    ) -> Charge:
        """Charge a request: its texts and its prompts that came as `tokens`, the bound on its answer, its pictures.

        `rounding` is the operation's own, `most` the bound (None where there is none, 0 where nothing is written),
        `choices` how many answers are written, `pictures` the detail of each.
        """
        bound = self.answer_when_absent if most is None else most
        answer = bound * (choices if self.choices else 1) if self.answers else 0
        seen = sum(self.picture_low_tokens if detail == "low" else self.picture_tokens for detail in pictures)
        prompt = 0 if self.prompt is PromptCount.NONE else tokens + self._texts(texts, self.rounding or rounding)
        return Charge(tokens=math.ceil((prompt + seen + answer) * self.factor), answer=math.ceil(answer * self.factor))

    def _texts(self, texts: Sequence[str], rounding: Rounding) -> int:
        if self.prompt is PromptCount.TOKENS:
            return sum(sum(1 for _ in _PIECE.finditer(text)) for text in texts)
        if rounding is Rounding.EACH:
            return sum(math.ceil(len(text) / self.characters_per_token) for text in texts)
        return math.ceil(sum(map(len, texts)) / self.characters_per_token)


DOCUMENTED = Cost()
"""Prompt and bound, as Azure's pages say; 16 without a bound, as in Microsoft's own simulator of Azure OpenAI."""

_COSTS = {
    # The model that Microsoft's own simulator of Azure OpenAI was calibrated on: the prompt does not count.
    "gpt-35-turbo": Cost(prompt=PromptCount.NONE),
    "gpt-3.5-turbo": Cost(prompt=PromptCount.NONE),
    # Seen: 5 tokens for a short request without max_tokens, so that nothing was set aside for its answer.
    "gpt-4.1": Cost(answer_when_absent=0),
}


def cost_of(model: str) -> Cost:
    """Give what is known of a model by the beginning of its name, else `DOCUMENTED`."""
    return next((cost for name, cost in _COSTS.items() if model.startswith(name)), DOCUMENTED)
