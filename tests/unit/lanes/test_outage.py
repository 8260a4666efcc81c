"""When a fault is the service's, and when the row's."""

from __future__ import annotations

import pytest

from pipeline.errors import StoppedEarlyError
from pipeline.lanes.outage import FAILURES, Outage
from pipeline.model import NoReply, NoReplyKind, Reply

BUSY = Reply(status=500, headers={}, body=b"", latency_ms=1)


def no_reply(kind: NoReplyKind) -> NoReply:
    return NoReply(kind=kind, message="m", latency_ms=1)


@pytest.mark.parametrize("kind", NoReplyKind)
def test_that_nobody_can_connect_is_never_a_rows_fault(kind: NoReplyKind) -> None:
    assert Outage(max_outage_s=9).explains(no_reply(kind)) is (kind is NoReplyKind.CONNECT)


def test_twenty_faults_without_an_answer_are_an_outage() -> None:
    outage = Outage(max_outage_s=9)
    for number in range(FAILURES):
        assert not outage.explains(BUSY)
        outage.met(number / 10, "m")
    assert outage.explains(BUSY)
    outage.answered()
    assert not outage.explains(BUSY)


def test_an_outage_lasts_from_its_first_fault_and_ends_with_an_answer() -> None:
    outage = Outage(max_outage_s=60)
    outage.met(1000, "m")
    outage.met(1060, "m")
    outage.answered()
    outage.met(5000, "m")
    with pytest.raises(StoppedEarlyError, match=r"nothing for 61 s.*busy"):
        outage.met(5061, "busy")
