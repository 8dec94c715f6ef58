"""Every backend's machines keep what `fleetbox.backends.base.VM` promises."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fleetbox.backends.base import Disk, State
from fleetbox.errors import ConflictError, DiskError, MachineError
from fleetbox.identity import is_alive

from .conftest import LIMIT_S, Bench, end_from_outside

GRACE_S = 0.3


def test_never_started_machine_is_stopped_and_guards_itself(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            vm = await holder.machine()
            assert vm.state() is State.STOPPED
            assert vm.handle is None
            await vm.stop(GRACE_S)
            await vm.kill()
            with pytest.raises(MachineError):
                await vm.wait()
            with pytest.raises(MachineError):
                await vm.wait_for_ip(LIMIT_S)
            bench.assert_nothing_runs()

    bench.run(scenario)


def test_started_machine_runs_and_can_be_found_again(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            vm = await holder.running()
            assert vm.state() is State.RUNNING
            assert vm.handle is not None
            assert is_alive(vm.handle.process)
            assert str(vm.handle.process.pid) in bench.pidfile()
            assert Path(vm.handle.api_socket).exists()
            assert vm.config.serial_log.exists()
            with pytest.raises(MachineError):
                await vm.start()
            assert vm.state() is State.RUNNING
            assert is_alive(vm.handle.process)

    bench.run(scenario)


def test_stop_ends_even_a_deaf_guest_and_may_be_repeated(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder(deaf=True) as holder:
            vm = await holder.running()
            assert vm.handle is not None
            identity = vm.handle.process
            await vm.stop(GRACE_S)
            assert vm.state() is State.STOPPED
            assert vm.handle is None
            assert not is_alive(identity)
            status = await vm.wait()
            assert await vm.wait() == status
            await vm.stop(GRACE_S)
            await vm.kill()
            bench.assert_nothing_runs()

    bench.run(scenario)


def test_two_stops_at_once_both_return(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder(deaf=True) as holder:
            vm = await holder.running()
            await asyncio.gather(vm.stop(GRACE_S), vm.stop(GRACE_S), vm.kill())
            assert vm.state() is State.STOPPED
            bench.assert_nothing_runs()

    bench.run(scenario)


def test_kill_ends_at_once(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder(deaf=True) as holder:
            vm = await holder.running()
            waiting = asyncio.create_task(vm.wait())
            await asyncio.sleep(0)
            await vm.kill()
            assert vm.state() is State.STOPPED
            assert (await waiting).code == -9
            bench.assert_nothing_runs()

    bench.run(scenario)


def test_wait_learns_of_an_end_from_outside(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            vm = await holder.running()
            waiting = [asyncio.create_task(vm.wait()) for _ in range(2)]
            end_from_outside(vm.handle)
            first, second = await asyncio.gather(*waiting)
            assert first == second
            assert first.code == -9
            assert first.reason
            assert vm.state() is State.STOPPED
            assert vm.handle is None
            bench.assert_nothing_runs()

    bench.run(scenario)


def test_cancelled_wait_disturbs_nobody(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            vm = await holder.running()
            gives_up, stays = asyncio.create_task(vm.wait()), asyncio.create_task(vm.wait())
            await asyncio.sleep(0)
            gives_up.cancel()
            await asyncio.wait({gives_up})
            assert gives_up.cancelled()
            assert vm.state() is State.RUNNING
            await vm.kill()
            assert (await stays).code == -9

    bench.run(scenario)


def test_same_member_starts_again_after_its_end(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            first = await holder.running()
            assert first.handle is not None
            before = first.handle.process
            await first.kill()
            second = await holder.running()
            assert second.handle is not None
            assert second.handle.process != before
            assert second.state() is State.RUNNING

    bench.run(scenario)


def test_second_machine_on_the_same_member_is_refused(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            first = await holder.running()
            second = await holder.machine(config=first.config)
            with pytest.raises((MachineError, ConflictError, DiskError)):
                await second.start()
            assert second.state() is State.STOPPED
            assert second.handle is None
            assert first.state() is State.RUNNING
            assert first.handle is not None
            assert is_alive(first.handle.process)
            assert str(first.handle.process.pid) in bench.pidfile()
            assert Path(first.handle.api_socket).exists()

    bench.run(scenario)


def test_second_machine_on_the_same_disk_is_refused(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            first = await holder.running("node-1")
            config = await holder.config("node-2")
            second = await holder.machine(config=replace(config, disks=first.config.disks))
            with pytest.raises((MachineError, DiskError)):
                await second.start()
            assert first.handle is not None
            assert str(first.handle.process.pid) in bench.pidfile()
            await first.kill()
            await second.start()

    bench.run(scenario)


def test_siblings_are_left_alone(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            one, two, three = await asyncio.gather(*(holder.running(f"node-{n}") for n in (1, 2, 3)))
            end_from_outside(one.handle)
            await one.wait()
            await two.kill()
            assert three.state() is State.RUNNING
            assert three.handle is not None
            assert is_alive(three.handle.process)
            assert str(three.handle.process.pid) in bench.pidfile()

    bench.run(scenario)


def test_failed_start_says_why_and_undoes_itself(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            config = await holder.config()
            missing = bench.folder / "no, such disk.img"
            vm = await holder.machine(config=replace(config, disks=(Disk(missing, "raw"),)))
            with pytest.raises(MachineError) as failure:
                await vm.start()
            assert "no, such disk.img" in f"{failure.value} {failure.value.details}"
            assert vm.state() is State.STOPPED
            assert vm.handle is None
            bench.assert_nothing_runs()
            await (await holder.machine(config=config)).start()

    bench.run(scenario)


@pytest.mark.parametrize("turns", [0, 1, 2, 5, 10, 20])
def test_start_cancelled_early_leaves_nothing(bench: Bench, turns: int) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            vm = await holder.machine()
            starting = asyncio.create_task(vm.start())
            for _ in range(turns):
                await asyncio.sleep(0)
            await _cancel(starting)
            if starting.cancelled():
                assert vm.state() is State.STOPPED
                assert vm.handle is None
                bench.assert_nothing_runs()
            await vm.kill()
            await (await holder.machine()).start()

    bench.run(scenario)


def test_start_cancelled_at_any_time_leaves_nothing(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            whole_s = 0.0
            for _ in range(2):  # the first start pays for what is looked up once
                began = time.monotonic()
                vm = await holder.running()
                whole_s = time.monotonic() - began
                await vm.kill()
            cancelled = 0
            for part in (0.1, 0.3, 0.5, 0.7, 0.9):
                vm = await holder.machine()
                starting = asyncio.create_task(vm.start())
                await asyncio.sleep(whole_s * part)
                await _cancel(starting)
                if starting.cancelled():
                    cancelled += 1
                    assert vm.state() is State.STOPPED
                else:
                    await vm.kill()
                bench.assert_nothing_runs()
            assert cancelled

    bench.run(scenario)


def test_cancelled_stop_leaves_a_machine_that_can_be_ended(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder(deaf=True) as holder:
            vm = await holder.running()
            stopping = asyncio.create_task(vm.stop(LIMIT_S))
            await asyncio.sleep(GRACE_S)
            assert vm.state() is State.STOPPING
            await _cancel(stopping)
            assert stopping.cancelled()
            assert vm.handle is not None
            assert is_alive(vm.handle.process)
            await vm.stop(GRACE_S)
            assert vm.state() is State.STOPPED
            bench.assert_nothing_runs()

    bench.run(scenario)


def test_address_that_nobody_answers_on_is_an_error_after_its_time(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder(deaf=True) as holder:
            vm = await holder.running()
            began = time.monotonic()
            with pytest.raises(MachineError):
                await vm.wait_for_ip(GRACE_S)
            assert time.monotonic() - began >= GRACE_S
            assert vm.state() is State.RUNNING

    bench.run(scenario)


def test_wait_for_an_address_ends_with_the_machine(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder(deaf=True) as holder:
            vm = await holder.running()
            asking = asyncio.create_task(vm.wait_for_ip(10 * LIMIT_S))
            await asyncio.sleep(GRACE_S)
            end_from_outside(vm.handle)
            with pytest.raises(MachineError):
                await asking
            with pytest.raises(MachineError):
                await vm.wait_for_ip(LIMIT_S)

    bench.run(scenario)


def test_cancelled_wait_for_an_address_leaves_the_machine_running(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder(deaf=True) as holder:
            vm = await holder.running()
            before = len(asyncio.all_tasks())
            asking = asyncio.create_task(vm.wait_for_ip(LIMIT_S))
            await asyncio.sleep(GRACE_S)
            await _cancel(asking)
            assert asking.cancelled()
            assert vm.state() is State.RUNNING
            await asyncio.sleep(0)
            assert len(asyncio.all_tasks()) == before
            await vm.kill()
            bench.assert_nothing_runs()

    bench.run(scenario)


def test_calibration_is_waited_for_no_longer_than_said(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            vm = await holder.running()
            await vm.booted_past_calibration(GRACE_S)
            assert vm.state() is State.RUNNING
            end_from_outside(vm.handle)
            await vm.booted_past_calibration(10 * LIMIT_S)

    bench.run(scenario)


def test_files_and_tasks_do_not_pile_up(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:

            async def once() -> None:
                vm = await holder.running()
                await vm.kill()

            await once()
            await asyncio.sleep(0.05)
            descriptors, tasks = _descriptors(), len(asyncio.all_tasks())
            for _ in range(3):
                await once()
            await asyncio.sleep(0.05)
            assert _descriptors() <= descriptors
            assert len(asyncio.all_tasks()) <= tasks

    bench.run(scenario)


def _descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled() and (error := task.exception()):
        raise error
