"""Stopping: the first cause counts, waits end at once, calls in flight only when they are abandoned."""

from __future__ import annotations

from functools import partial

import anyio
import anyio.lowlevel
import pytest

from pipeline.lanes.stop import Stop, Stopped, sending_on


@pytest.mark.anyio
async def test_the_first_cause_is_the_one_that_counts() -> None:
    stop = Stop()
    first, second = ValueError("first"), ValueError("second")
    stop.request(first)
    stop.request(second)
    assert stop.cause is first
    assert stop.requested.is_set()


@pytest.mark.anyio
async def test_every_wait_ends_when_a_stop_is_asked_for() -> None:
    stop = Stop()
    ended: list[int] = []

    async def wait(number: int) -> None:
        with pytest.raises(Stopped), stop.waiting():
            await anyio.sleep_forever()
        ended.append(number)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as crowd:
            for number in range(5):
                crowd.start_soon(wait, number)
            await anyio.wait_all_tasks_blocked()
            stop.request(ValueError())
    assert sorted(ended) == [0, 1, 2, 3, 4]


@pytest.mark.anyio
async def test_a_call_in_flight_goes_on_until_it_is_abandoned() -> None:
    stop = Stop()
    answered = anyio.Event()
    ended: list[str] = []

    async def send(name: str, reply: anyio.Event) -> None:
        try:
            with stop.sending():
                await reply.wait()
                ended.append(f"{name} answered")
        except Stopped:
            ended.append(f"{name} abandoned")

    async with anyio.create_task_group() as crowd:
        crowd.start_soon(send, "a", answered)
        crowd.start_soon(send, "b", anyio.Event())
        await anyio.wait_all_tasks_blocked()
        stop.request(ValueError())
        await anyio.wait_all_tasks_blocked()
        assert ended == []
        answered.set()
        await anyio.wait_all_tasks_blocked()
        stop.abandon()
    assert ended == ["a answered", "b abandoned"]


@pytest.mark.anyio
async def test_a_stretch_of_work_is_abandoned_in_its_call_and_nothing_shielded_is_cut() -> None:
    stop = Stop()
    ended: list[str] = []
    committed = anyio.Event()

    async def work(name: str, *, calls: bool) -> None:
        with stop.stretch():
            try:
                if calls:
                    with sending_on():
                        await anyio.sleep_forever()
                with anyio.CancelScope(shield=True):
                    await committed.wait()
                    ended.append(f"{name} committed")
            except Stopped:
                ended.append(f"{name} abandoned")
                with anyio.CancelScope(shield=True):
                    await anyio.lowlevel.checkpoint()
                ended.append(f"{name} kept")
        ended.append(f"{name} over")

    with anyio.fail_after(5):
        async with anyio.create_task_group() as crowd:
            crowd.start_soon(partial(work, "a", calls=True))
            crowd.start_soon(partial(work, "b", calls=False))
            await anyio.wait_all_tasks_blocked()
            stop.request(ValueError())
            await anyio.wait_all_tasks_blocked()
            assert ended == []
            stop.abandon()
            await anyio.wait_all_tasks_blocked()
            assert ended == ["a abandoned", "a kept", "a over"]
            committed.set()
    assert ended[3:] == ["b committed", "b over"]
    assert not stop._stretches


@pytest.mark.anyio
async def test_who_is_in_no_call_when_calls_are_abandoned_goes_on_and_makes_no_other() -> None:
    stop = Stop()
    answered = anyio.Event()
    ended: list[str] = []

    async def work() -> None:
        with stop.stretch():
            with sending_on():
                pass
            await answered.wait()
            ended.append("kept")
            with pytest.raises(Stopped), sending_on():
                pytest.fail("it began")

    with anyio.fail_after(5):
        async with anyio.create_task_group() as crowd:
            crowd.start_soon(work)
            await anyio.wait_all_tasks_blocked()
            stop.request(ValueError())
            stop.abandon()
            await anyio.wait_all_tasks_blocked()
            answered.set()
    assert ended == ["kept"]


@pytest.mark.anyio
async def test_nothing_begins_once_a_stop_was_asked_for() -> None:
    stop = Stop()
    stop.request(ValueError())
    for way in (stop.waiting, stop.sending, sending_on):
        with stop.stretch(), pytest.raises(Stopped), way():
            pytest.fail("it began")


@pytest.mark.anyio
async def test_what_is_over_is_not_held_on_to() -> None:
    stop = Stop()
    for way in (stop.waiting, stop.sending):
        with way():
            pass
        with pytest.raises(KeyError), way():
            raise KeyError
    assert not stop._waits
    assert not stop._sends


@pytest.mark.anyio
async def test_somebody_elses_cancellation_is_not_a_stop() -> None:
    stop = Stop()
    with anyio.move_on_after(0) as scope, stop.waiting():
        await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert stop.cause is None

    with anyio.move_on_after(0) as scope, stop.stretch(), sending_on():
        await anyio.sleep_forever()
    assert scope.cancelled_caught
