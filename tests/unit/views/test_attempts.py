from __future__ import annotations

import random
from pathlib import Path

import pytest

from pipeline.store.folder import Layout
from pipeline.store.parts import attempts_batch
from pipeline.views import attempts as module
from pipeline.views.attempts import Attempts, Latencies, Moment, Pauses, Timeline, all_attempts
from tests.report_scene import T0, Scene, attempt, busy, filed, ran, throttled


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return ran(tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.95, 0.99, 1.0])
def test_percentiles_are_within_0_6_percent_of_the_exact_ones(share: float) -> None:
    dice = random.Random(7)
    values = sorted(dice.lognormvariate(6, 1.2) for _ in range(5000))
    found = Attempts()
    for place in range(0, 5000, 1000):
        found.add(attempts_batch([attempt(0, latency_ms=value) for value in values[place : place + 1000]]))

    exact = values[max(0, -int(-share * 5000 // 1) - 1)]
    assert found.latencies["sweden"].percentile(share) == pytest.approx(exact, rel=0.006)
    assert (found.latencies["sweden"].least, found.latencies["sweden"].most) == (values[0], values[-1])


def test_a_percentile_never_lies_outside_of_what_was_measured() -> None:
    found = Attempts()
    found.add(attempts_batch([attempt(0, latency_ms=100.0)]))

    assert {found.latencies["sweden"].percentile(share) for share in (0.0, 0.5, 1.0)} == {100.0}
    assert Latencies().percentile(0.5) is None


def test_pauses_that_overlap_count_once() -> None:
    for seed in range(50):
        dice = random.Random(seed)
        stretches = [(start, start + dice.randint(1, 30)) for start in (dice.randint(0, 300) for _ in range(40))]
        pauses = Pauses()
        for start, end in stretches:
            pauses.add(float(start), float(end))

        covered = {second for start, end in stretches for second in range(start, end)}
        assert pauses.seconds(until=1e9) == len(covered)
        assert pauses.seconds(until=100.0) == len({second for second in covered if second < 100})
        assert pauses.starts == sorted(pauses.starts)


def test_pauses_are_bounded_and_then_tell_a_little_more() -> None:
    pauses = Pauses()
    for number in range(5 * module.MOST_WAITS):
        pauses.add(number * 10.0, number * 10.0 + 1)

    assert len(pauses.starts) == len(pauses.ends) <= 2 * module.MOST_WAITS
    assert 5 * module.MOST_WAITS <= pauses.seconds(until=1e9) <= 50 * module.MOST_WAITS


def test_a_pause_that_goes_on_after_the_last_attempt_counts_up_to_it() -> None:
    found = Attempts()
    found.add(attempts_batch([throttled(0, retry_after_ms=86_400_000.0), attempt(10)]))

    assert found.told_to_wait_s("sweden") == pytest.approx(10.0)
    assert found.told_to_wait_s("nowhere") == 0.0


@pytest.mark.parametrize("hint", [None, 0.0, -5.0])
def test_a_refusal_without_a_time_to_wait_tells_of_none(hint: float | None) -> None:
    found = Attempts()
    found.add(attempts_batch([throttled(0, retry_after_ms=hint), attempt(10)]))

    assert found.told_to_wait_s("sweden") == 0.0


def test_every_attempt_is_of_one_kind_and_three_of_each_are_kept() -> None:
    found = Attempts()
    for _ in range(2):
        found.add(
            attempts_batch(
                [*map(attempt, range(5)), *map(throttled, range(5)), attempt(9, status=None, verdict="transient")]
            )
        )

    kinds = {(kind.verdict, kind.status, kind.code): kind for kind in found.kinds.values()}
    assert {key: kind.attempts for key, kind in kinds.items()} == {
        ("answered", 200, None): 10,
        ("throttled", 429, "rate_limit_exceeded"): 10,
        ("transient", None, None): 2,
    }
    assert [one.ordinal for one in kinds["throttled", 429, "rate_limit_exceeded"].examples] == [0, 1, 2]
    assert [one.request_id for one in kinds["transient", None, None].examples] == ["request-9", "request-9"]
    assert kinds["answered", 200, None].examples == []


def test_a_service_that_makes_up_a_code_for_each_refusal_fills_no_memory() -> None:
    found = Attempts()
    for number in range(0, 3000, 500):
        found.add(
            attempts_batch(
                [attempt(n, status=400, verdict="row_refused", code=f"c{n}") for n in range(number, number + 500)]
            )
        )

    assert len(found.kinds) <= module.MOST_KINDS + 1
    assert sum(kind.attempts for kind in found.kinds.values()) == 3000


def test_a_long_run_has_wider_moments_and_the_same_sums() -> None:
    timeline = Timeline()
    for number in range(20_000):
        timeline.add("a", number * 7, Moment(requests=1, tokens=3))
    timeline.add("b", 5, Moment(requests=1))

    assert max(map(len, timeline.moments.values())) <= module.MOST_BINS
    assert timeline.width_s == 64
    assert sum(moment.tokens for moment in timeline.moments["a"].values()) == 60_000
    assert sum(moment.requests for moment in timeline.moments["b"].values()) == 1


def test_lines_of_a_batch_have_no_latency() -> None:
    found = Attempts()
    found.add(attempts_batch([attempt(number, latency_ms=0.0) for number in range(3)]))

    assert found.latencies == {}
    assert found.count == 3


def test_attempts_of_the_journal_and_of_files_are_each_counted_once(tmp_path: Path) -> None:
    scene = filed(ran(tmp_path), busy(700), a_file=100)

    assert all_attempts(Layout(scene.root)).count == 700


def test_a_file_that_a_crash_left_beside_the_journals_own_attempts_is_not_counted_twice(tmp_path: Path) -> None:
    scene = ran(tmp_path)
    journal = scene.root / "_pipeline" / "journal" / "00.sqlite"
    from pipeline.store.codec import encode_attempt  # noqa: PLC0415
    from pipeline.store.database import open_database, transaction  # noqa: PLC0415

    filed(scene, map(attempt, range(30)), a_file=10)
    connection = open_database(journal)
    with transaction(connection):
        for number in range(20, 34):
            connection.execute("INSERT INTO attempt VALUES (?, ?)", (number + 1, encode_attempt(attempt(number))))
    connection.close()

    found = all_attempts(Layout(scene.root))
    assert found.count == 34
    assert sum(moment.requests for moment in found.timeline.moments["sweden"].values()) == 34


def test_a_file_that_cannot_be_read_is_named_and_the_others_count(tmp_path: Path) -> None:
    scene = filed(ran(tmp_path), map(attempt, range(30)), a_file=10)
    broken = sorted((scene.root / "_pipeline" / "attempts").iterdir())[1]
    broken.write_bytes(b"PAR1" + b"x" * 100)

    found = all_attempts(Layout(scene.root))
    assert (found.count, found.unread) == (20, [broken.name])


def test_moments_and_ends_are_those_of_the_attempts() -> None:
    found = Attempts()
    found.add(attempts_batch([attempt(3), attempt(5, latency_ms=2000.0)]))

    assert (found.first_at, found.last_at) == (T0 + 3, T0 + 7)
    assert {number: moment.tokens for number, moment in found.timeline.moments["sweden"].items()} == {
        int(T0) + 3: 150,
        int(T0) + 5: 150,
    }
