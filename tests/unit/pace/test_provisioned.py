"""What utilization tells of a leaky bucket that is not ours."""

from __future__ import annotations

import pytest

from pipeline.pace.provisioned import TARGET, Provisioned


def play(model: Provisioned, *, size: float, drain_s: float, until: float, way_s: float = 0.5) -> float:
    """Send 100 tokens at a time, fast and then at the model's rate; return how full the bucket is at the end."""
    now = level = sent = 0.0
    replies: list[tuple[float, float, float, float]] = []
    while now < until:
        pause_s = 0.05 if now < 1 else 100 / ((model.per_minute(now, sent) or 6000.0) / 60)
        now += min(1.0, pause_s)
        level = max(0.0, level - drain_s * min(1.0, pause_s))
        if pause_s <= 1:
            level += 100
            sent += 100
            replies.append((now + way_s, now, sent, level / size))
        while replies and replies[0][0] <= now:
            came, at, by_then, share = replies.pop(0)
            model.learn(came, sent_at=at, sent=by_then, share=share)
    return level / size


@pytest.mark.parametrize("drain_s", [200.0, 400.0, 800.0])
@pytest.mark.parametrize("size", [4000.0, 8000.0])
def test_size_and_drain_are_learnt_and_the_bucket_is_led_to_the_target(size: float, drain_s: float) -> None:
    model = Provisioned()
    assert play(model, size=size, drain_s=drain_s, until=90.0) == pytest.approx(TARGET, abs=0.12)
    assert model.drain_s == pytest.approx(drain_s, rel=0.1)


def test_nothing_is_told_before_a_reply() -> None:
    model = Provisioned()
    assert (model.per_minute(1.0, 500.0), model.fullness(1.0, 500.0)) == (None, None)


def test_what_was_refused_is_not_taken_in() -> None:
    model = Provisioned()
    model.learn(1.0, sent_at=0.5, sent=1000.0, share=0.5)
    before = model.fullness(1.0, 1200.0)
    model.refused(0.9, 200.0)
    after = model.fullness(1.0, 1200.0)
    assert before is not None
    assert after == pytest.approx(before - 200 / 2000)


def test_where_no_reply_comes_there_is_room_again() -> None:
    model = Provisioned()
    model.learn(1.0, sent_at=0.5, sent=1000.0, share=0.95)
    rates = [model.per_minute(now, 1000.0) or 0.0 for now in (1.0, 5.0, 20.0, 60.0)]
    assert rates == sorted(rates)
    assert rates[-1] > 4 * rates[0]
