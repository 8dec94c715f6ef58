"""Real QEMU machines when something goes wrong: launches that fail or are cancelled, disks in use, hung QEMUs."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fleetbox.backends.base import (
    BackendEnvironment,
    Disk,
    State,
    VMConfig,
)
from fleetbox.backends.host import programs
from fleetbox.backends.host.thread import HostThread
from fleetbox.backends.qemu import backend as backend_module
from fleetbox.backends.qemu import create_backend
from fleetbox.backends.qemu import vm as vm_module
from fleetbox.backends.qemu.binary import Qemu
from fleetbox.backends.qemu.vm import QemuVM
from fleetbox.errors import DiskError, HostError, MachineError
from tests.process.qemu_guests import (
    IDLE,
    LIMIT_S,
    NoNetwork,
    TapBook,
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
