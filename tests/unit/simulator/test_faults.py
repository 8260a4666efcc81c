"""What goes wrong is a function of the seed, the request and how often it came."""

from __future__ import annotations

import pytest

from pipeline.simulator.config import FaultKind, FaultsConfig, LatencyConfig, Shortage
from pipeline.simulator.faults import Faults, latency_s

DIGESTS = [number.to_bytes(8, "little") for number in range(4000)]


def test_the_same_seed_gives_the_same_faults_whatever_the_order() -> None:
    config = FaultsConfig(rates={"500": 0.1, "reset_before": 0.1})
    forwards = Faults(config, seed=1)
    backwards = Faults(config, seed=1)
    first = {digest: forwards.befalls(digest) for digest in DIGESTS}
    second = {digest: backwards.befalls(digest) for digest in reversed(DIGESTS)}
    assert first == second


def test_another_seed_gives_other_faults() -> None:
    config = FaultsConfig(rates={"500": 0.5})
    one, two = Faults(config, seed=1), Faults(config, seed=2)
    assert [one.befalls(digest) for digest in DIGESTS] != [two.befalls(digest) for digest in DIGESTS]


def test_rates_are_kept() -> None:
    faults = Faults(FaultsConfig(rates={"503": 0.1, "hang": 0.2}), seed=7)
    drawn = [faults.befalls(digest) for digest in DIGESTS]
    assert drawn.count(503) == pytest.approx(400, rel=0.2)
    assert drawn.count(FaultKind.HANG) == pytest.approx(800, rel=0.2)


def test_a_body_sent_again_draws_again() -> None:
    faults = Faults(FaultsConfig(rates={"500": 0.5}), seed=1)
    assert len({faults.befalls(b"same") for _ in range(50)}) == 2


def test_only_the_first_attempts_of_a_body_fail_where_that_is_asked() -> None:
    faults = Faults(FaultsConfig(rates={"500": 1.0}, attempts=2), seed=1)
    assert [faults.befalls(b"same") for _ in range(4)] == [500, 500, None, None]


@pytest.mark.parametrize("kind", [*FaultKind, *Shortage])
def test_every_kind_can_be_asked_for(kind: FaultKind | Shortage) -> None:
    assert Faults(FaultsConfig(rates={kind.value: 1.0}), seed=0).befalls(b"any") is kind


@pytest.mark.parametrize("shortage", list(Shortage))
def test_a_shortage_says_nothing_of_its_end_unless_it_is_told_to(shortage: Shortage) -> None:
    assert Faults(FaultsConfig(), seed=0).headers(shortage) == {}
    assert Faults(FaultsConfig(), seed=0).headers(429)["retry-after"] == "1"
    told = Faults(FaultsConfig(headers={"retry-after": "7"}), seed=0)
    assert told.headers(shortage) == {"retry-after": "7"}


def test_a_fixed_latency_is_fixed() -> None:
    config = LatencyConfig(median_ms=120, per_output_token_ms=5)
    assert latency_s(config, seed=1, digest=b"a", output_tokens=10) == (0.12, 0.05)


def test_a_spread_latency_keeps_its_median_and_is_a_function_of_the_request() -> None:
    config = LatencyConfig(median_ms=100, sigma=0.5)
    drawn = sorted(latency_s(config, seed=1, digest=digest, output_tokens=0)[0] for digest in DIGESTS)
    assert drawn[len(drawn) // 2] == pytest.approx(0.1, rel=0.1)
    assert drawn[-1] > 0.3
    again = sorted(latency_s(config, seed=1, digest=digest, output_tokens=0)[0] for digest in DIGESTS)
    assert again == drawn
