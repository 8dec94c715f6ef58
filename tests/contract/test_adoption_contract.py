"""Machines outlive their holder, and the next one takes them over (`fleetbox.backends.base.Adopts`)."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import msgspec
import pytest

from fleetbox.backends.base import State, VMConfig
from fleetbox.identity import ProcessIdentity, identify, is_alive
from fleetbox.records import MachineHandle

from .conftest import Bench, Holder, end_from_outside


@dataclass(frozen=True)
class Left:
    """What the records say of a machine whose holder is gone."""

    config: VMConfig
    handle: MachineHandle
    subnet: str


def leave_behind(bench: Bench, *, deaf: bool = False) -> Left:
    """A machine that runs on after its holder was killed."""

    async def first(holder: Holder) -> tuple[VMConfig, bytes, str]:
        vm = await holder.running()
        return vm.config, msgspec.json.encode(vm.handle), holder.network.subnet

    config, record, subnet = bench.leave_behind(first, deaf=deaf)
    handle = msgspec.json.decode(record, type=MachineHandle)
    assert is_alive(handle.process)
    return Left(config, handle, subnet)


def test_adopted_machine_is_as_good_as_a_started_one(bench: Bench) -> None:
    left = leave_behind(bench, deaf=True)

    async def second() -> None:
        async with bench.holder(subnet=left.subnet, leases={"node-1": left.config.assigned_ip}, deaf=True) as holder:
            assert holder.network.subnet == left.subnet
            vm = await holder.adopt(left.config, left.handle)
            assert vm is not None
            assert vm.state() is State.RUNNING
            assert vm.handle == left.handle
            await vm.stop(0.3)
            assert vm.state() is State.STOPPED
            assert vm.handle is None
            assert bench.tells_right_code(await vm.wait())
            assert not is_alive(left.handle.process)
            bench.assert_nothing_runs()

    bench.run(second)


def test_end_of_an_adopted_machine_is_noticed(bench: Bench) -> None:
    left = leave_behind(bench)

    async def second() -> None:
        async with bench.holder(subnet=left.subnet, leases={"node-1": left.config.assigned_ip}) as holder:
            vm = await holder.adopt(left.config, left.handle)
            assert vm is not None
            waiting = asyncio.create_task(vm.wait())
            end_from_outside(vm.handle)
            status = await waiting
            assert bench.tells_right_code(status)
            assert status.reason
            assert vm.state() is State.STOPPED
            bench.assert_nothing_runs()

    bench.run(second)


def test_adopted_machine_survives_the_next_holder_too(bench: Bench) -> None:
    left = leave_behind(bench)
    leases = {"node-1": left.config.assigned_ip}

    async def second(holder: Holder) -> None:
        assert await holder.adopt(left.config, left.handle) is not None

    async def third() -> None:
        async with bench.holder(subnet=left.subnet, leases=leases) as holder:
            vm = await holder.adopt(left.config, left.handle)
            assert vm is not None
            assert vm.state() is State.RUNNING
            await vm.kill()
            bench.assert_nothing_runs()

    bench.leave_behind(second, subnet=left.subnet, leases=leases)
    assert is_alive(left.handle.process)
    bench.run(third)


def test_dead_machine_is_not_adopted_and_its_remains_do_not_block_a_start(bench: Bench) -> None:
    left = leave_behind(bench)
    identity = end_from_outside(left.handle)
    while is_alive(identity):
        time.sleep(0.01)
    assert list(bench.run_dir.glob("*.pid"))

    async def second() -> None:
        async with bench.holder(subnet=left.subnet, leases={"node-1": left.config.assigned_ip}) as holder:
            assert await holder.adopt(left.config, left.handle) is None
            vm = await holder.machine(config=left.config)
            await vm.start()
            assert vm.state() is State.RUNNING
            assert vm.handle is not None
            assert vm.handle.process != left.handle.process

    bench.run(second)
    bench.assert_nothing_runs()


@pytest.mark.parametrize("wrong", ["start", "boot", "program"])
def test_reused_pid_is_neither_adopted_nor_harmed(bench: Bench, wrong: str) -> None:
    left = leave_behind(bench)
    real = left.handle.process
    identity = ProcessIdentity(
        real.pid,
        real.start_ticks + (wrong == "start"),
        "another boot" if wrong == "boot" else real.boot_id,
        "another-program" if wrong == "program" else real.program,
    )

    async def second() -> None:
        async with bench.holder(subnet=left.subnet, leases={"node-1": left.config.assigned_ip}) as holder:
            stale = MachineHandle(identity, left.handle.api_socket)
            assert await holder.adopt(left.config, stale) is None
            assert identify(real.pid) == real
            vm = await holder.adopt(left.config, left.handle)
            assert vm is not None
            await vm.kill()

    bench.run(second)
    bench.assert_nothing_runs()
