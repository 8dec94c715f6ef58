"""Real QEMU machines that run a few bytes of guest: launched, ended in every way, adopted."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from fleetbox.backends.base import (
    Adopts,
    BackendEnvironment,
    DirectBoot,
    Disk,
    ExitStatus,
    State,
)
from fleetbox.backends.host import programs
from fleetbox.backends.host.thread import HostThread
from fleetbox.backends.qemu import create_backend
from fleetbox.backends.qemu.vm import QemuVM
from fleetbox.errors import MachineError
from tests.process.qemu_guests import (
    IDLE,
    LIMIT_S,
    OBEYS,
    POWERS_OFF,
    REBOOTS,
    NoNetwork,
    kernel,
    left_in,
    machine,
    run,
    said,
    started,
)

pytestmark = pytest.mark.skipif(programs.find(programs.QEMU) is None, reason="QEMU is not installed")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETBOX_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FLEETBOX_ACCELERATOR", "tcg")


def test_a_guest_powers_itself_off(tmp_path: Path) -> None:
    config = machine(tmp_path, POWERS_OFF)

    async def test() -> None:
        async with started(config) as vm:
            assert await vm.wait() == ExitStatus(0, "powered off by the guest")
            assert vm.state() is State.STOPPED
            assert vm.handle is None
            assert left_in(config) == []
            await vm.stop(1)  # again, and nothing happens
            await vm.start()  # a stopped machine starts again
            assert (await vm.wait()).code == 0

    run(test)


def test_a_kernel_is_booted_directly_beside_a_bootable_disk(tmp_path: Path) -> None:
    config = machine(tmp_path, IDLE)
    image, initrd = tmp_path / "vm, linuz", tmp_path / "init, rd"
    image.write_bytes(kernel(POWERS_OFF))
    initrd.write_bytes(b"x" * 512)
    config = replace(
        config,
        boot=DirectBoot(image, initrd, "root=/dev/vda"),
        seed=initrd,
        fixtures=(Disk(image, "raw", read_only=True, serial="a, b"),),
    )

    async def test() -> None:
        async with started(config) as vm:
            assert (await vm.wait()).reason == "powered off by the guest"
            assert config.serial_log.read_bytes() == b"R"

    run(test)


def test_a_guest_that_reboots_keeps_running_and_its_log(tmp_path: Path) -> None:
    config = machine(tmp_path, REBOOTS)

    async def test() -> None:
        async with started(config) as vm:
            first = vm.handle
            await said(config, b"RRR")
            assert vm.state() is State.RUNNING
            assert vm.handle == first

    run(test)


def test_stop_presses_the_power_button(tmp_path: Path) -> None:
    config = machine(tmp_path, OBEYS)

    async def test() -> None:
        async with started(config) as vm:
            await said(config, b"R")
            await vm.stop(LIMIT_S)
            assert await vm.wait() == ExitStatus(0, "shut down")

    run(test)


def test_stop_wakes_a_paused_machine_first(tmp_path: Path) -> None:
    config = machine(tmp_path, OBEYS)

    async def test() -> None:
        async with started(config) as vm:
            await said(config, b"R")
            await vm._monitor.execute("stop")
            assert vm.state() is State.PAUSED
            await vm.stop(LIMIT_S)
            assert (await vm.wait()).reason == "shut down"

    run(test)


def test_stop_terminates_a_guest_that_does_not_listen(tmp_path: Path) -> None:
    config = machine(tmp_path, IDLE)

    async def test() -> None:
        async with started(config) as vm:
            await said(config, b"R")
            await vm.stop(0.2)
            status = await vm.wait()
            assert status == ExitStatus(0, "did not shut down in 0 s and was terminated")

    run(test)


def test_a_stop_that_is_cancelled_leaves_the_machine_running(tmp_path: Path) -> None:
    config = machine(tmp_path, IDLE)

    async def test() -> None:
        async with started(config) as vm:
            await said(config, b"R")
            stopping = asyncio.create_task(vm.stop(LIMIT_S))
            while vm.state() is not State.STOPPING:
                await asyncio.sleep(0)
            stopping.cancel()
            await asyncio.gather(stopping, return_exceptions=True)
            assert vm.state() is State.RUNNING

    run(test)


def test_kill_and_a_kill_from_outside(tmp_path: Path) -> None:
    config = machine(tmp_path, IDLE)

    async def test() -> None:
        async with started(config) as vm:
            await vm.kill()
            assert await vm.wait() == ExitStatus(-9, "killed")
            await vm.start()
            assert vm.handle is not None
            os.kill(vm.handle.process.pid, signal.SIGKILL)
            assert await vm.wait() == ExitStatus(-9, "killed by signal 9 (Killed)")
            assert left_in(config) == []

    run(test)


def test_the_api_socket_and_the_serial_log_are_private(tmp_path: Path) -> None:
    config = machine(tmp_path, IDLE)
    config.serial_log.write_text("what an earlier start said")

    async def test() -> None:
        async with started(config) as vm:
            assert vm.handle is not None
            assert stat.S_IMODE(Path(vm.handle.api_socket).stat().st_mode) == 0o600
            await said(config, b"R")
            assert b"earlier" not in config.serial_log.read_bytes()

    run(test)
    fresh = replace(config, serial_log=tmp_path / "fresh.log")

    async def test_fresh() -> None:
        async with started(fresh):
            assert stat.S_IMODE(fresh.serial_log.stat().st_mode) == 0o600

    run(test_fresh)


def test_a_second_holder_adopts_a_running_machine(tmp_path: Path) -> None:
    config = machine(tmp_path, OBEYS)

    async def test() -> None:
        async with started(config) as vm:
            await said(config, b"R")
            handle = vm.handle
            assert handle is not None
            await vm._monitor.close()  # the first holder is gone, and its connection with it
            host = HostThread()
            backend = create_backend(BackendEnvironment(host))
            assert isinstance(backend, Adopts)

            again = await backend.create(config, NoNetwork())
            with pytest.raises(MachineError, match="already runs"):
                await again.start()  # never a second machine on the same disk

            adopted = await backend.adopt(config, NoNetwork(), handle)
            assert adopted is not None
            assert adopted.state() is State.RUNNING
            assert adopted.handle == handle
            await adopted.stop(LIMIT_S)
            assert await adopted.wait() == ExitStatus(None, "shut down")
            assert await backend.adopt(config, NoNetwork(), handle) is None
            host.close()

    run(test)


def test_a_machine_that_cannot_be_talked_to_is_adopted_and_ended(tmp_path: Path) -> None:
    config = machine(tmp_path, OBEYS)

    async def test() -> None:
        async with started(config) as vm:
            assert vm.handle is not None
            Path(vm.handle.api_socket).unlink()
            adopted = QemuVM(config, NoNetwork(), vm._host, vm._qemu, "tcg")
            assert await adopted.adopt(vm.handle)
            assert adopted.state() is State.UNKNOWN
            await adopted.stop(LIMIT_S)
            assert adopted.state() is State.STOPPED

    run(test)
