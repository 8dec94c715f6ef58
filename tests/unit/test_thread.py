"""The host thread: in order, never losing what it made."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from fleetbox.backends.host.thread import HostThread


@pytest.fixture
def host() -> Iterator[HostThread]:
    thread = HostThread()
    yield thread
    thread.close()


def test_everything_runs_in_one_thread_in_order(host: HostThread) -> None:
    order: list[int] = []

    def step(number: int) -> int:
        order.append(number)
        return threading.get_ident()

    async def scenario() -> set[int]:
        return set(await asyncio.gather(*(host.run(step, n) for n in range(20))))

    threads = asyncio.run(scenario()) | {host.call(step, 20)}
    assert len(threads) == 1
    assert threads != {threading.get_ident()}
    assert order == list(range(21))


def test_errors_reach_the_caller(host: HostThread) -> None:
    with pytest.raises(ZeroDivisionError):
        host.call(divmod, 1, 0)
    with pytest.raises(ZeroDivisionError):
        asyncio.run(host.run(divmod, 1, 0))


@pytest.mark.parametrize("cancels", [1, 2, 3])
def test_cancelled_call_is_undone_in_the_thread_however_often_it_is_cancelled(host: HostThread, cancels: int) -> None:
    begun, go_on = threading.Event(), threading.Event()
    undone: list[tuple[str, str]] = []

    def make() -> str:
        begun.set()
        go_on.wait(60)
        return "thing"

    async def scenario() -> None:
        making = asyncio.create_task(host.run(make, undo=lambda t: undone.append((t, threading.current_thread().name))))
        await asyncio.to_thread(begun.wait, 60)
        for _ in range(cancels):
            making.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert undone == []
        go_on.set()
        await asyncio.wait({making})
        assert making.cancelled()
        await host.run(int)
        assert undone == [("thing", "host_0")]

    asyncio.run(scenario())


def test_cancelled_call_that_failed_has_nothing_to_undo(host: HostThread) -> None:
    begun, go_on = threading.Event(), threading.Event()
    undone: list[object] = []

    def fail() -> None:
        begun.set()
        go_on.wait(60)
        raise ValueError

    async def scenario() -> None:
        failing = asyncio.create_task(host.run(fail, undo=undone.append))
        await asyncio.to_thread(begun.wait, 60)
        failing.cancel()
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.wait({failing})
        assert failing.cancelled()
        assert undone == []

    asyncio.run(scenario())


def test_call_that_is_cancelled_before_its_turn_never_runs(host: HostThread) -> None:
    go_on = threading.Event()
    ran: list[int] = []

    async def scenario() -> None:
        first = asyncio.create_task(host.run(go_on.wait, 60))
        second = asyncio.create_task(host.run(ran.append, 2, undo=lambda _: ran.append(-2)))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.wait({second})
        assert second.cancelled()
        go_on.set()
        await first
        await host.run(int)
        assert ran == []

    asyncio.run(scenario())


def test_result_that_is_ready_when_the_caller_is_cancelled_is_undone(host: HostThread) -> None:
    undone: list[str] = []

    async def scenario() -> None:
        making = asyncio.create_task(host.run(lambda: "thing", undo=undone.append))
        await asyncio.sleep(0)
        host.call(int)  # blocks the loop until the thread is done, so that nobody has looked at the result yet
        making.cancel()
        await asyncio.wait({making})
        assert making.cancelled()
        assert undone == ["thing"]

    asyncio.run(scenario())
