"""When a deployment is away, and when it is looked for."""

from __future__ import annotations

import pytest

from pipeline.pace.outage import Outage

FAILURES, SILENCE_S, LAST_PROBE_S = 20, 30.0, 60.0


def answered_once(workers: int = 4) -> Outage:
    outage = Outage(workers=workers)
    outage.answered()
    return outage


@pytest.mark.parametrize(("workers", "least"), [(1, FAILURES), (20, 20), (64, 64)])
def test_it_takes_half_a_minute_and_twenty_failures_or_as_many_as_workers(workers: int, least: int) -> None:
    outage = answered_once(workers)
    assert not any(outage.failed(SILENCE_S * number / least) for number in range(least))
    assert not outage.on
    assert outage.failed(SILENCE_S)
    assert outage.on
    assert not outage.failed(SILENCE_S + 1), "it begins once"


def test_few_failures_in_a_long_time_are_none() -> None:
    outage = answered_once()
    assert not any(outage.failed(100.0 * number) for number in range(FAILURES - 1))


def test_an_answer_in_between_begins_the_silence_anew() -> None:
    outage = answered_once()
    for number in range(1000):
        assert not outage.failed(number)
        if number % FAILURES == 0:
            assert not outage.answered()
    assert not outage.on


def test_probes_go_after_one_two_four_up_to_sixty_seconds_and_the_first_answer_ends_it() -> None:
    outage = answered_once()
    now = 0.0
    while not outage.failed(now):
        now += 2
    pauses, last = [], now
    for _ in range(9):
        pauses.append(outage.probe_at - last)
        last = outage.probe_at
        outage.probed(last)
        outage.failed(last + 0.1)
    assert pauses == [1, 2, 4, 8, 16, 32, LAST_PROBE_S, LAST_PROBE_S, LAST_PROBE_S]
    assert outage.answered()
    assert not outage.on
    assert outage.since is None


def test_a_fault_is_the_services_while_it_has_answered_nobody() -> None:
    outage = Outage(workers=4)
    assert outage.explains
    outage.answered()
    assert not outage.explains


def test_twenty_faults_without_an_answer_are_the_services() -> None:
    outage = answered_once()
    for number in range(FAILURES):
        assert not outage.explains
        outage.failed(number / 10)
    assert outage.explains
    outage.answered()
    assert not outage.explains


def test_refusals_to_be_waited_out_are_silence_but_no_outage() -> None:
    outage = answered_once()
    for number in range(1000):
        outage.throttled(float(number))
    assert (outage.on, outage.since, outage.explains) == (False, 0.0, False)


@pytest.mark.parametrize(
    ("since", "began", "now", "silent_s"),
    [
        pytest.param(10.0, 30.0, 1000.0, 20.0, id="paused after the first failure"),
        pytest.param(40.0, 30.0, 1000.0, 0.0, id="failed while it was paused"),
        pytest.param(10.0, 10.0, 10.0, 0.0, id="paused for no time"),
    ],
)
def test_a_pause_is_no_part_of_a_silence(since: float, began: float, now: float, silent_s: float) -> None:
    outage = answered_once()
    outage.failed(since)
    outage.leave_out(began, now)
    assert outage.since is not None
    assert now - outage.since == silent_s


def test_a_pause_without_a_silence_begins_none() -> None:
    outage = answered_once()
    outage.leave_out(1.0, 100.0)
    assert outage.since is None


def test_as_many_failures_as_workers_are_expected_from_now_on() -> None:
    outage = answered_once(4)
    outage.expect(workers=64)
    assert not any(outage.failed(SILENCE_S + number / 64) for number in range(63))
