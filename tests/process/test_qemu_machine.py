"""Real QEMU machines that run a boot sector: they boot in milliseconds, and end in every way there is."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import stat
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fleetbox.backends.base import (
    Adopts,
    BackendEnvironment,
    DirectBoot,
    Disk,
    ExitStatus,
    FirmwareBoot,
    Lease,
    State,
    VMConfig,
    timeout_scale,
)
from fleetbox.backends.host import programs
from fleetbox.backends.host.thread import HostThread
from fleetbox.backends.qemu import backend as backend_module
from fleetbox.backends.qemu import create_backend
from fleetbox.backends.qemu import vm as vm_module
from fleetbox.backends.qemu.binary import Qemu
from fleetbox.backends.qemu.vm import QemuVM
from fleetbox.errors import DiskError, HostError, MachineError

pytestmark = pytest.mark.skipif(programs.find(programs.QEMU) is None, reason="QEMU is not installed")

LIMIT_S = 30 * timeout_scale()

SAY_R = "baf803 b052 ee"  # out 0x3f8, 'R'
POWER_OFF = "ba0406 b80020 ef"  # PM1a_CNT: soft off
HALT = "f4 ebfd"
IDLE = SAY_R + HALT
POWERS_OFF = SAY_R + POWER_OFF + HALT
REBOOTS = SAY_R + "baf90c b006 ee" + HALT  # reset control register
# Power button enabled (PM1_EN); halt until an interrupt, look at PM1_STS, go on when it was pressed.
OBEYS = "ba0206 b80001 ef" + SAY_R + "f4 ba0006 ed f6c401 74f6" + POWER_OFF + HALT


class NoNetwork:
    """A network without interfaces: the machine has no network device."""

    subnet = ""
    bridge = ""

    async def reserve(self, name: str, ip_hint: str = "") -> Lease:
        return Lease(name, "192.0.2.2", "02:00:00:00:00:01", 24, "192.0.2.1")

    async def release(self, name: str) -> None: ...

    async def close(self) -> None: ...


class TapBook(NoNetwork):
    """Remembers what is attached; its interface is not a tap."""

    def __init__(self) -> None:
        self.attached: list[str] = []

    async def attach(self, name: str) -> str:
        self.attached.append(name)
        return "lo"

    async def detach(self, name: str) -> None:
        self.attached.remove(name)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETBOX_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FLEETBOX_ACCELERATOR", "tcg")


def machine(folder: Path, program: str) -> VMConfig:
    """A machine that runs `program`; its folder's name has what QEMU's option syntax stumbles over."""
    data = folder / "a, b=c"
    data.mkdir(exist_ok=True)
    (folder / "run").mkdir(mode=0o700, exist_ok=True)
    disk = data / "disk.raw"
    disk.write_bytes(bytes.fromhex(program).ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20))
    return VMConfig(
        name="test/node-1",
        run_dir=folder / "run",
        disks=(Disk(disk, "raw"),),
        seed=None,
        boot=FirmwareBoot(),
        mac="02:00:00:00:00:01",
        cpus=1,
        memory_bytes=128 << 20,
        serial_log=data / "serial.log",
        assigned_ip="192.0.2.2",
    )


def kernel(program: str) -> bytes:
    """A "bzImage" whose real-mode setup code is `program` (Documentation/arch/x86/boot.rst, protocol 2.04)."""
    image = bytearray(2048)
    image[0x1F1] = 1  # setup sectors after the first
    image[0x200:0x202] = b"\xeb\x7e"  # jump over the header, to 0x280
    image[0x202:0x208] = b"HdrS\x04\x02"
    image[0x211] = 1  # loaded high
    image[0x22C:0x230] = b"\xff\xff\xff\x7f"  # an initrd may stand anywhere
    code = bytes.fromhex(program)
    image[0x280 : 0x280 + len(code)] = code
    return bytes(image)


@asynccontextmanager
async def started(config: VMConfig, network: NoNetwork | None = None) -> AsyncIterator[QemuVM]:
    host = HostThread()
    backend = create_backend(BackendEnvironment(host))
    await backend.check()
    vm = await backend.create(config, network or NoNetwork())
    assert isinstance(vm, QemuVM)
    try:
        await vm.start()
        yield vm
    finally:
        await vm.kill()
        host.close()


async def said(config: VMConfig, text: bytes) -> None:
    while text not in config.serial_log.read_bytes():
        await asyncio.sleep(0.02)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(LIMIT_S):
            await test()

    asyncio.run(limited())


def left_in(config: VMConfig) -> list[str]:
    return sorted(path.suffix for path in config.run_dir.iterdir())


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


async def _fails(config: VMConfig, network: NoNetwork | None = None) -> MachineError:
    with pytest.raises(MachineError) as caught:
        async with started(config, network):
            pass
    assert left_in(config) == []
    return caught.value


def test_a_failed_start_says_what_qemu_said_and_undoes_itself(tmp_path: Path) -> None:
    config = machine(tmp_path, IDLE)

    async def test() -> None:
        network = TapBook()
        error = await _fails(config, network)
        assert error.message == "test/node-1 did not start"
        assert "could not configure" in error.why
        assert network.attached == []

        missing = replace(config, disks=(Disk(tmp_path / "none.raw", "raw"),))
        error = await _fails(missing)
        assert "none.raw" in error.why
        assert "No such file" in error.why

        unwritable = replace(config, serial_log=tmp_path / "no-such-folder" / "serial.log")
        assert "no-such-folder" in (await _fails(unwritable)).why

    run(test)


def test_a_disk_in_use_is_refused(tmp_path: Path) -> None:
    config = machine(tmp_path, IDLE)
    (tmp_path / "other").mkdir(mode=0o700)

    async def test() -> None:
        async with started(config):
            with pytest.raises(DiskError, match="in use"):
                async with started(replace(config, run_dir=tmp_path / "other", serial_log=tmp_path / "other.log")):
                    pass
        assert left_in(config) == []

    run(test)


@pytest.mark.parametrize("moment", range(0, 60, 6))
def test_a_start_cancelled_at_any_moment_leaves_nothing(tmp_path: Path, moment: int) -> None:
    config = machine(tmp_path, IDLE)

    async def test() -> None:
        host = HostThread()
        network = TapBook()
        network.attach = lambda name: _attach_nothing(network, name)  # type: ignore[method-assign]
        backend = create_backend(BackendEnvironment(host))
        vm = await backend.create(config, network)
        start = asyncio.create_task(vm.start())
        for _ in range(moment):
            await asyncio.sleep(0)
        await asyncio.sleep(moment / 1000)
        start.cancel()
        await asyncio.gather(start, return_exceptions=True)
        if not start.cancelled():
            await vm.kill()
        assert vm.state() is State.STOPPED
        assert network.attached == []
        assert left_in(config) == []
        assert not _runs(config)
        host.close()

    run(test)


async def _attach_nothing(network: TapBook, name: str) -> str:
    await asyncio.sleep(0)
    network.attached.append(name)
    return ""


def _runs(config: VMConfig) -> bool:
    disk = str(config.disks[0].path)
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if disk.encode() in entry.read_bytes():
                return True
        except OSError:
            continue
    return False


def test_waiting_for_a_machine_ends_with_it(tmp_path: Path) -> None:
    config = machine(tmp_path, IDLE)

    async def test() -> None:
        async with started(config) as vm:
            address = asyncio.create_task(vm.wait_for_ip(LIMIT_S * 10))
            booted = asyncio.create_task(vm.booted_past_calibration(LIMIT_S * 10))
            await said(config, b"R")
            await vm.kill()
            with pytest.raises(MachineError, match="ended before it was ready: killed"):
                await address
            await booted

    run(test)


def test_a_missing_or_foreign_qemu_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = create_backend(BackendEnvironment(HostThread(), {"FLEETBOX_QEMU": str(tmp_path / "none")}))
    with pytest.raises(HostError, match="there is no QEMU"):
        asyncio.run(backend.check())
    true = shutil.which("true")
    assert true is not None
    backend = create_backend(BackendEnvironment(HostThread(), {"FLEETBOX_QEMU": true}))
    with pytest.raises(HostError, match="is not a QEMU"):
        asyncio.run(backend.check())
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(programs, "_EXTRA_PATH", ())
    with pytest.raises(HostError, match="not installed") as caught:
        asyncio.run(create_backend(BackendEnvironment(HostThread())).check())
    assert "doctor --fix" in caught.value.hint


def test_qemu_behind_a_wrapper_is_adopted_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = machine(tmp_path, IDLE)
    wrapper = tmp_path / "my-qemu"
    wrapper.write_text(f'#!/bin/sh\nexec {programs.find(programs.QEMU)} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("FLEETBOX_QEMU", str(wrapper))

    async def test() -> None:
        async with started(config) as vm:
            assert vm.handle is not None
            await vm._monitor.close()
            adopted = QemuVM(config, NoNetwork(), vm._host, vm._qemu, "tcg")
            assert await adopted.adopt(vm.handle)
            assert adopted.state() is State.RUNNING
            await adopted.kill()
            assert (await adopted.wait()).reason == "killed"

    run(test)


def test_a_qemu_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = machine(tmp_path, IDLE)
    hangs = tmp_path / "hangs"
    hangs.write_text(f"#!/bin/sh\n: {config.disks[0].path}\nexec sleep 1000\n")
    hangs.chmod(0o755)
    monkeypatch.setattr(vm_module, "CONNECT_S", 0.2)

    async def test() -> None:
        host = HostThread()
        vm = QemuVM(config, NoNetwork(), host, Qemu(hangs, (9, 0, 0), sandbox=False), "tcg")
        with pytest.raises(MachineError, match="QEMU does not answer"):
            await vm.start()
        assert vm.state() is State.STOPPED
        assert left_in(config) == []
        host.close()

    run(test)


def test_nested_virtualisation_is_as_the_host_module_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameter = tmp_path / "nested"
    monkeypatch.setattr(backend_module, "NESTED", (tmp_path / "absent", parameter))
    environment = BackendEnvironment(HostThread(), {"FLEETBOX_ACCELERATOR": "kvm"})
    for text, nested in (("Y\n", True), ("1\n", True), ("N\n", False), ("0\n", False)):
        parameter.write_text(text)
        assert create_backend(environment).nested_virt_supported() is nested
    parameter.unlink()
    assert not create_backend(environment).nested_virt_supported()
    parameter.write_text("Y\n")
    emulated = create_backend(BackendEnvironment(HostThread(), {"FLEETBOX_ACCELERATOR": "tcg"}))
    assert not emulated.nested_virt_supported()
    assert emulated.capabilities().emulated
    assert "FLEETBOX_ACCELERATOR" in emulated.notes[0]
