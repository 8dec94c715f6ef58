"""Machines with a console and statistics keep what `HasConsole` and `HasStatistics` promise, adopted ones too."""

from __future__ import annotations

import fcntl
import socket
import stat

import pytest

from fleetbox.backends.base import VM, HasConsole, HasStatistics, VMConfig
from fleetbox.errors import MachineError
from fleetbox.records import MachineHandle
from fleetbox.usage import Statistics

from .conftest import Bench, Holder


def check_console(vm: VM, holder: Holder) -> None:
    """It can be opened by its owner, its lock be taken, and it says that it is a console; or the backend has none."""
    assert isinstance(vm, HasConsole) == holder.backend.capabilities().console
    if not isinstance(vm, HasConsole):
        return
    console = vm.console()
    kind = console.path.stat().st_mode
    assert console.path.parent == vm.config.run_dir
    with console.lock.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if stat.S_ISSOCK(kind):
        assert stat.S_IMODE(kind) == 0o600
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(console.path))
            line.sendall(b"\r")
    else:
        assert stat.S_ISCHR(kind)


async def check_statistics(vm: VM) -> Statistics:
    assert isinstance(vm, HasStatistics)
    used = await vm.statistics()
    assert used.memory_bytes > 0
    assert min(used.cpu_seconds, used.disk_read_bytes, used.disk_written_bytes) >= 0
    assert min(used.network_received_bytes, used.network_sent_bytes) >= 0
    return used


def test_a_running_machine_has_both_and_an_ended_one_neither(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            assert holder.backend.capabilities().statistics
            vm = await holder.machine()
            assert isinstance(vm, HasStatistics)
            if isinstance(vm, HasConsole):
                with pytest.raises(MachineError):
                    vm.console()
            await vm.start()
            check_console(vm, holder)
            first = await check_statistics(vm)
            assert (await check_statistics(vm)).cpu_seconds >= first.cpu_seconds
            await vm.kill()
            if isinstance(vm, HasConsole):
                with pytest.raises(MachineError):
                    vm.console()
            with pytest.raises(MachineError):
                await vm.statistics()
            bench.assert_nothing_runs()
            assert [path.name for path in bench.run_dir.iterdir() if path.suffix == ".lock"] == []

    bench.run(scenario)


def test_an_adopted_machine_has_both(bench: Bench) -> None:
    async def first(holder: Holder) -> tuple[VMConfig, MachineHandle]:
        vm = await holder.running()
        assert vm.handle is not None
        return vm.config, vm.handle

    config, handle = bench.leave_behind(first)

    async def scenario() -> None:
        async with bench.holder() as holder:
            vm = await holder.adopt(config, handle)
            assert vm is not None
            check_console(vm, holder)
            await check_statistics(vm)
            await vm.kill()
            bench.assert_nothing_runs()

    bench.run(scenario)
