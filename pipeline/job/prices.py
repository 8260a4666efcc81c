"""List prices and vector sizes of known models: a small table with a date, which a job file can overrule."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.job.spec import DeploymentSpec, Price

AS_OF = "2026-11"
SOURCE = "litellm 1.109.1, model_prices_and_context_window.json, providers azure and openai (global standard)"

BATCH_SHARE = 0.5
"""What the Batch API costs of the list price (Azure: of Global Standard)."""

# US dollars for a million tokens: input, cached input, output.
_PRICES: dict[str, tuple[float, float | None, float]] = {
    "text-embedding-3-small": (0.02, None, 0.0),
    "text-embedding-3-large": (0.13, None, 0.0),
    "text-embedding-ada-002": (0.10, None, 0.0),
    "gpt-4o": (2.50, 1.25, 10.00),
    "gpt-4o-mini": (0.15, 0.075, 0.60),
    "gpt-4.1": (2.00, 0.50, 8.00),
    "gpt-4.1-mini": (0.40, 0.10, 1.60),
    "gpt-4.1-nano": (0.10, 0.025, 0.40),
    "o3": (2.00, 0.50, 8.00),
    "o4-mini": (1.10, 0.275, 4.40),
    "o3-mini": (1.10, 0.55, 4.40),
    "gpt-5": (1.25, 0.125, 10.00),
    "gpt-5-mini": (0.25, 0.025, 2.00),
    "gpt-5-nano": (0.05, 0.005, 0.40),
    "gpt-5.1": (1.25, 0.125, 10.00),
    "gpt-5.2": (1.75, 0.175, 14.00),
    "gpt-5.4": (2.50, 0.25, 15.00),
    "gpt-5.4-mini": (0.75, 0.075, 4.50),
    "gpt-5.4-nano": (0.20, 0.02, 1.25),
    "gpt-5.5": (5.00, 0.50, 30.00),
    "gpt-5.6-sol": (4.00, 0.40, 20.00),
    "gpt-5.6-terra": (2.00, 0.20, 12.00),
    "gpt-5.6-luna": (0.20, 0.02, 1.20),
}

# Floats of a vector when no `dimensions` are asked for. Source: the services' model pages.
_VECTOR_SIZES = {
    "text-embedding-3-small": 1536,
    "text-embedding-3-large": 3072,
    "text-embedding-ada-002": 1536,
}

_DATED = re.compile(r"-(?:\d{4}-\d{2}-\d{2}|\d{4})$")


def price_for(model: str) -> Price | None:
    """A model's list price, its dated versions included; None, never zero, where the model is not in the table."""
    figures = _PRICES.get(model) or _PRICES.get(_DATED.sub("", model))
    if figures is None:
        return None
    fresh, cached, output = figures
    return Price(input=fresh, cached_input=cached, output=output)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """What a deployment's tokens cost in a lane: US dollars for a million; None where that is not known.

    `listed`: it is the built-in table's, and not the job's own.
    """

    deployment: str
    model: str
    input: float | None
    output: float | None
    listed: bool

    def cost(self, input_tokens: float, output_tokens: float) -> float | None:
        """Dollars for so many tokens; None where they have no price."""
        if self.input is None or (output_tokens and self.output is None):
            return None
        return (input_tokens * self.input + output_tokens * (self.output or 0)) / 1_000_000


def rates(deployments: Sequence[DeploymentSpec], lane: str) -> tuple[Rate, ...]:
    """The rates of a lane's deployments, or of all where it has none. The job's own prices win, and are taken as given.

    List prices are those of the lane: batches cost `BATCH_SHARE` of them.
    """
    mine = [deployment for deployment in deployments if deployment.lane == lane] or deployments
    return tuple(_rates(mine, BATCH_SHARE if lane == "batch" else 1.0))


def _rates(deployments: Sequence[DeploymentSpec], share: float) -> Iterator[Rate]:
    for spec in deployments:
        price, part = (spec.price, 1.0) if spec.price else (price_for(spec.model), share)
        yield Rate(
            deployment=spec.name,
            model=spec.model,
            input=None if price is None or price.input is None else part * price.input,
            output=None if price is None or price.output is None else part * price.output,
            listed=spec.price is None,
        )


def cost_of(rates: Sequence[Rate], input_tokens: float, output_tokens: float) -> float | None:
    """Dollars for so many tokens by the dearest of the rates; None where one of them does not know."""
    if not input_tokens and not output_tokens:
        return 0.0
    costs = [rate.cost(input_tokens, output_tokens) for rate in rates]
    return None if None in costs else max(cost for cost in costs if cost is not None)


def vector_size(model: str) -> int | None:
    """Floats of the model's whole vector; None where the model is not in the table."""
    return _VECTOR_SIZES.get(model)
