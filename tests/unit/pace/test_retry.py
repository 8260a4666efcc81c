"""What follows every verdict."""

from __future__ import annotations

import typing

import pytest

from pipeline.model import ErrorInfo, ErrorType
from pipeline.pace.retry import (
    Decision,
    Done,
    Fail,
    History,
    Reauthorise,
    Refused,
    Retry,
    RetryRules,
    Spent,
    Throttle,
    TooLong,
    decide,
    full_jitter,
)
from pipeline.pace.verdict import (
    Answered,
    BadReply,
    DeploymentRefused,
    RefusalKind,
    RowRefused,
    SpentMoney,
    Throttled,
    ThrottleKind,
    Transient,
    Unauthorized,
    Verdict,
)

CAP_S, LEAST_S = 30.0, 0.05
ERROR = ErrorInfo(type=ErrorType.INTERNAL_SERVER, code="c", message="m", http_status=500)
RULES = RetryRules(max_attempts=8, max_pause_s=600)
VERDICTS: dict[type[Verdict], tuple[Verdict, type[Decision]]] = {
    Answered: (Answered(), Done),
    BadReply: (BadReply(error=ERROR), Retry),
    Transient: (Transient(error=ERROR), Retry),
    Throttled: (Throttled(error=ERROR, hint_s=1, kind=ThrottleKind.TOKENS), Throttle),
    Unauthorized: (Unauthorized(error=ERROR), Reauthorise),
    DeploymentRefused: (DeploymentRefused(error=ERROR, kind=RefusalKind.FORBIDDEN), Refused),
    SpentMoney: (SpentMoney(error=ERROR), Spent),
    RowRefused: (RowRefused(error=ERROR), Fail),
}


def first(verdict: Verdict, chance: float = 1.0) -> Decision:
    return decide(verdict, History().after(verdict), RULES, random=lambda: chance)


def test_every_verdict_has_its_decision() -> None:
    assert set(VERDICTS) == set(typing.get_args(Verdict))
    for verdict, decision in VERDICTS.values():
        assert type(first(verdict)) is decision


def test_every_verdict_has_a_name_of_its_own() -> None:
    assert len({verdict.name for verdict, _ in VERDICTS.values()}) == len(VERDICTS)


def run(verdict: Verdict, *, rules: RetryRules = RULES, most: int = 100) -> list[Decision]:
    history = History()
    decisions: list[Decision] = []
    while len(decisions) < most and (not decisions or not isinstance(decisions[-1], Fail)):
        history = history.after(verdict)
        decisions.append(decide(verdict, history, rules, random=lambda: 1.0))
    return decisions


@pytest.mark.parametrize("max_attempts", [1, 2, 8])
def test_a_transient_fault_fails_the_row_at_the_last_attempt(max_attempts: int) -> None:
    decisions = run(Transient(error=ERROR), rules=RetryRules(max_attempts=max_attempts))
    assert len(decisions) == max_attempts
    assert decisions[-1] == Fail(error=ERROR)


def test_back_off_is_full_jitter_doubling_from_half_a_second() -> None:
    waits = [decision.after_s for decision in run(Transient(error=ERROR)) if isinstance(decision, Retry)]
    assert waits == [0.5, 1, 2, 4, 8, 16, 30]
    assert [full_jitter(n, lambda: 0.0) for n in range(9)] == [0.0] * 9
    assert full_jitter(10**6, lambda: 0.5) == 15.0


@pytest.mark.parametrize("verdict", [Transient(error=ERROR), BadReply(error=ERROR)])
@pytest.mark.parametrize(("waited_s", "chance", "expected_s"), [
    (0.0, 0.0, LEAST_S), (0.0, 1.0, 0.5), (4.0, 0.0, 5.0), (4.0, 1.0, 5.0), (25.0, 1.0, CAP_S), (600.0, 0.0, CAP_S),
])  # fmt: skip
def test_a_back_off_is_longer_than_the_wait_that_was_in_vain(
    verdict: Transient | BadReply, waited_s: float, chance: float, expected_s: float
) -> None:
    history = History(waited_s=waited_s).after(verdict)
    assert decide(verdict, history, RULES, random=lambda: chance) == Retry(after_s=expected_s)


def test_the_first_back_off_is_drawn_up_to_half_a_second() -> None:
    assert decide(Transient(error=ERROR), History(), RULES, random=lambda: 1.0) == Retry(after_s=0.5)


def test_faults_and_unusable_answers_count_apart_and_share_their_back_off() -> None:
    history = History()
    for verdict in (BadReply(error=ERROR), BadReply(error=ERROR), Transient(error=ERROR)):
        history = history.after(verdict)
    assert (history.transient, history.bad_replies, history.capacity, history.backoff) == (1, 2, 0, 3)
    assert decide(Transient(error=ERROR), history, RULES, random=lambda: 1.0) == Retry(after_s=2.0)


@pytest.mark.parametrize("max_attempts", [1, 2, 3, 8])
def test_an_unusable_answer_fails_the_row_at_the_third(max_attempts: int) -> None:
    assert len(run(BadReply(error=ERROR), rules=RetryRules(max_attempts=max_attempts))) == min(3, max_attempts)


def test_a_pushback_is_obeyed_and_resets_the_exponent() -> None:
    history = History()
    for _ in range(4):
        history = history.after(Transient(error=ERROR))
    hinted = Transient(error=ERROR, hint_s=10)
    history = history.after(hinted)
    assert decide(hinted, history, RULES, random=lambda: 0.0) == Retry(after_s=10.0)
    assert decide(hinted, history, RULES, random=lambda: 1.0) == Retry(after_s=10.05)
    history = history.after(Transient(error=ERROR))
    assert decide(Transient(error=ERROR), history, RULES, random=lambda: 1.0) == Retry(after_s=0.5)


@pytest.mark.parametrize("kind", ThrottleKind)
def test_being_throttled_is_never_an_attempt(kind: ThrottleKind) -> None:
    throttled = Throttled(error=ERROR, hint_s=None, kind=kind)
    assert not any(isinstance(decision, Fail) for decision in run(throttled, most=1000))
    history = History()
    for _ in range(1000):
        history = history.after(throttled)
    assert history.transient == 0


@pytest.mark.parametrize(
    ("hint_s", "decision", "said"),
    [
        (None, Throttle, False),
        (1, Throttle, False),
        (120, Throttle, False),
        (121, Throttle, True),
        (600, Throttle, True),
        (601, TooLong, None),
        (86400, TooLong, None),
    ],
)
def test_a_long_pause_is_said_and_a_too_long_one_ends_the_deployment(
    hint_s: float | None,
    decision: type[Decision],
    said: bool | None,  # noqa: FBT001 - expected
) -> None:
    found = first(Throttled(error=ERROR, hint_s=hint_s, kind=ThrottleKind.UNNAMED))
    assert type(found) is decision
    if isinstance(found, Throttle):
        assert found.worth_saying is said
    if isinstance(found, TooLong):
        assert found.hint_s == hint_s


def test_a_lack_of_capacity_backs_off_its_own_row_alone() -> None:
    throttled = Throttled(error=ERROR, hint_s=None, kind=ThrottleKind.CAPACITY)
    waits = [decision.after_s for decision in run(throttled, most=10) if isinstance(decision, Retry)]
    assert waits == [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    hinted = first(Throttled(error=ERROR, hint_s=5, kind=ThrottleKind.CAPACITY), chance=0.0)
    assert hinted == Retry(after_s=5)


def test_refusals_of_the_deployment_or_the_credential_use_no_attempt_up() -> None:
    for kind in (Unauthorized, DeploymentRefused, SpentMoney, Throttled):
        assert History().after(VERDICTS[kind][0]) == History()
