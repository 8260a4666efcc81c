"""The fakes that ship."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from pipeline.testing import ManualClock, MemoryTransport

pytestmark = pytest.mark.anyio


async def test_time_passes_only_when_told_and_calls_back_in_order() -> None:
    clock = ManualClock(start=5.0)
    seen: list[tuple[str, float]] = []
    clock.call_at(7.0, lambda: seen.append(("b", clock.now())))
    clock.call_at(6.0, lambda: seen.append(("a", clock.now())))
    clock.call_at(6.5, lambda: seen.append(("never", clock.now()))).cancel()
    clock.call_at(7.0, lambda: seen.append(("c", clock.now())))
    await asyncio.sleep(0)
    assert seen == []
    clock.advance(1.5)
    assert seen == [("a", 6.0)]
    clock.advance(10.0)
    assert seen == [("a", 6.0), ("b", 7.0), ("c", 7.0)]
    assert clock.now() == 16.5


async def test_the_wall_clock_jumps_alone() -> None:
    clock = ManualClock(start=0.0, wall=1000.0)
    clock.jump_wall(-86_400)
    assert (clock.now(), clock.wall()) == (0.0, 1000.0 - 86_400)


async def test_autojump_runs_hours_of_sleeping_in_order() -> None:
    clock = ManualClock()
    woken: list[float] = []

    async def sleeper(seconds: float) -> None:
        for _ in range(3):
            await clock.sleep(seconds)
            woken.append(clock.now())

    async with clock.autojump():
        await asyncio.gather(*(sleeper(3600.0 * hours) for hours in (3, 1, 2)))
    assert woken == sorted(woken)
    assert clock.now() == 9 * 3600


async def test_a_cancelled_sleep_leaves_nothing_behind() -> None:
    clock = ManualClock()
    task = asyncio.create_task(clock.sleep(10))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    clock.advance(20)
    assert task.cancelled()


async def test_a_memory_transport_answers_after_its_latency_and_keeps_what_was_asked() -> None:
    clock = ManualClock()
    transport = MemoryTransport(lambda _: httpx.Response(200, text="hello"), latency_s=2.5, clock=clock)
    async with clock.autojump():
        response = await transport.handle_async_request(httpx.Request("POST", "https://h/x", content=b"asked"))
    assert (await response.aread(), clock.now()) == (b"hello", 2.5)
    assert [request.content for request in transport.requests] == [b"asked"]


async def test_a_memory_transport_raises_what_its_handler_returns() -> None:
    transport = MemoryTransport(lambda _: httpx.ConnectError("down"))
    with pytest.raises(httpx.ConnectError):
        await transport.handle_async_request(httpx.Request("POST", "https://h/x"))
