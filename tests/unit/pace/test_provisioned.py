"""What utilization tells of a leaky bucket that is not ours."""

from __future__ import annotations

import pytest

from pipeline.pace.provisioned import Provisioned

TARGET = 0.9


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


def steady(*, size: float = 2_000.0, drain_s: float = 100.0, replies: int = 4, every_s: float = 1.0) -> Provisioned:
    """A model that was told of a bucket which is filled in turns of 150 and 450 tokens a second, half a second late."""
    model, sent, share = Provisioned(), 1_000.0, 0.5
    for number in range(replies):
        at = number * every_s
        model.learn(at + 0.5, sent_at=at, sent=sent, share=share)
        more = 450.0 if number % 2 else 150.0
        sent, share = sent + more, share + (more - drain_s * every_s) / size
    return model


def test_the_first_reply_names_the_size_and_a_tenth_a_second_is_taken_to_flow_away() -> None:
    model = Provisioned()
    model.learn(1.0, sent_at=0.5, sent=1_000.0, share=0.5)
    assert (model.size, model.drain_s) == (2_000.0, None)
    assert model.fullness(0.5, 1_000.0) == 0.5
    assert model.fullness(1.0, 1_200.0) == pytest.approx(0.5 + 0.1 - 0.05)
    assert model.fullness(4.0, 0.0) == 0.0


def test_the_way_to_the_target_is_made_up_in_ten_seconds_or_three_times_there_and_back() -> None:
    for way_s, within_s in ((0.5, 10.0), (10.0, 30.0)):
        model = Provisioned()
        model.learn(way_s, sent_at=0.0, sent=1_000.0, share=0.5)
        wanted_s = 2_000 / 60 + (0.9 - 0.5) * 2_000 / within_s
        assert model.per_minute(0.0, 1_000.0) == pytest.approx(60 * wanted_s)


def test_where_it_is_too_full_a_tenth_of_what_flows_away_is_still_sent() -> None:
    model = Provisioned()
    model.learn(1.0, sent_at=1.0, sent=1_000.0, share=0.5)
    assert model.per_minute(1.0, 10_000.0) == pytest.approx(60 * 2_000 / 60 / 10)


@pytest.mark.parametrize(("replies", "known"), [(1, False), (3, False), (4, True)])
def test_from_four_replies_on_the_drain_is_known(replies: int, known: bool) -> None:  # noqa: FBT001 - expected
    model = steady(replies=replies)
    assert model.size == pytest.approx(2_000)
    assert model.drain_s == (pytest.approx(100) if known else None)


def test_replies_within_a_second_tell_no_drain() -> None:
    assert steady(replies=10, every_s=0.1).drain_s is None


def test_within_ten_seconds_no_less_is_believed_to_flow_away_than_a_sixtieth_of_the_size() -> None:
    assert steady(replies=8, drain_s=10.0).drain_s == pytest.approx(2_000 / 60)
    assert steady(replies=12, drain_s=20.0).drain_s == pytest.approx(20.0)


def test_old_replies_are_forgotten_after_half_a_minute() -> None:
    model = steady(replies=12)
    for number in range(80):
        at = 100.0 + number
        model.learn(at + 0.5, sent_at=at, sent=10_000.0 + 150 * number, share=0.5)
    assert model.drain_s == pytest.approx(150, rel=0.01)


def test_refusals_count_for_replies_that_came_after_them_alone() -> None:
    model = Provisioned()
    model.refused(2.0, 300.0)
    model.learn(3.0, sent_at=1.0, sent=1_000.0, share=0.5)
    assert model.size == 2_000
    assert model.taken_in(1_300.0) == 1_000
    later = Provisioned()
    later.refused(2.0, 300.0)
    later.learn(3.0, sent_at=2.5, sent=1_300.0, share=0.5)
    assert later.size == 2_000


def test_where_it_is_empty_more_is_tried_by_a_quarter_each_second() -> None:
    model = steady()
    drains = []
    for number in range(4):
        at = 10.0 + number
        model.learn(at, sent_at=at, sent=5_000.0 + 1_000 * number, share=0.0)
        drains.append(model.drain_s)
    assert drains == pytest.approx([100, 125, 156.25, 195.3125])


def test_an_empty_bucket_of_unknown_size_says_nothing() -> None:
    model = Provisioned()
    model.learn(1.0, sent_at=1.0, sent=100.0, share=0.02)
    assert (model.size, model.drain_s, model.per_minute(1.0, 100.0)) == (None, None, None)
    model.learn(2.0, sent_at=2.0, sent=100.0, share=0.021)
    assert model.size is not None


def test_a_size_that_the_first_reply_told_wrongly_is_set_right_by_later_ones() -> None:
    model, sent, share = Provisioned(), 1_000.0, 0.25
    model.learn(0.5, sent_at=0.0, sent=sent, share=share)
    assert model.size == 4_000
    for number in range(1, 40):
        more = 4_100.0 if number % 2 else 100.0
        sent, share = sent + more, share + (more - 2_100.0) / 2_000
        model.learn(number + 0.5, sent_at=float(number), sent=sent, share=share)
    assert model.size == pytest.approx(2_000, rel=0.02)


def test_replies_of_one_moment_tell_no_drain() -> None:
    model = Provisioned()
    for number in range(6):
        model.learn(1.0, sent_at=0.5, sent=1_000.0 + 100 * number, share=0.5)
    assert model.drain_s is None


def test_how_long_replies_span_does_not_depend_on_when_they_began() -> None:
    model, sent, share = Provisioned(), 1_000.0, 0.5
    for number in range(8):
        at = 100.0 + number / 10
        model.learn(at + 0.5, sent_at=at, sent=sent, share=share)
        more = 45.0 if number % 2 else 15.0
        sent, share = sent + more, share + (more - 10.0) / 2_000
    assert model.drain_s is None


def test_after_a_silence_a_tenth_of_the_size_a_second_is_taken_to_flow_away_at_least() -> None:
    model = steady(replies=12, drain_s=20.0)
    (before, soon), (late, later) = ((model.fullness(at, 20_000.0), at) for at in (12.0, 40.0))
    assert before is not None
    assert late is not None
    assert before - late > 2 * 20.0 * (later - soon) / 2_000


def test_less_than_a_token_a_second_is_believed_in_the_end() -> None:
    assert steady(replies=24, drain_s=0.5).drain_s == pytest.approx(0.5, rel=0.1)
