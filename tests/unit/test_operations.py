"""Work that is done together or not at all, and work that nobody interrupts."""

from __future__ import annotations

import asyncio

import pytest

from fleetbox.errors import DiskError
from fleetbox.holder.operations import together, uninterrupted


def test_together_gives_all_results_in_order() -> None:
    async def number(value: int) -> int:
        await asyncio.sleep(0.01 * (3 - value))
        return value

    async def work() -> list[int]:
        return await together(*(number(i) for i in range(3)))

    assert asyncio.run(work()) == [0, 1, 2]


def test_the_first_failure_cancels_the_rest_and_is_raised_when_all_have_ended() -> None:
    ended = []

    async def fail() -> None:
        raise DiskError("full")

    async def hang() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append("hang")

    with pytest.raises(DiskError, match="full"):
        asyncio.run(together(hang(), fail(), hang()))
    assert ended == ["hang", "hang"]


def test_uninterrupted_work_is_finished_and_its_caller_goes_on() -> None:
    """Also through what else the caller does afterwards: it was cancelled once, and that is over."""
    done = []

    async def finish() -> str:
        await asyncio.sleep(0.02)
        done.append("finished")
        return "result"

    async def fail() -> None:
        raise DiskError("later")

    async def caller() -> str:
        result = await uninterrupted(finish())
        with pytest.raises(DiskError, match="later"):
            await together(fail())
        return result

    async def main() -> str:
        task = asyncio.create_task(caller())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        return await task

    assert asyncio.run(main()) == "result"
    assert done == ["finished"]


def test_uninterrupted_work_raises_its_own_error() -> None:
    async def fail() -> None:
        raise DiskError("full")

    with pytest.raises(DiskError, match="full"):
        asyncio.run(uninterrupted(fail()))
