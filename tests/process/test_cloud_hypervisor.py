"""Cloud-hypervisor machines that run a few bytes of guest (by the simulator): their ends, and where clones go on."""

from __future__ import annotations

import os
import stat
import termios
import tty
from dataclasses import replace
from pathlib import Path
from typing import Self

import pytest

from fleetbox.backends.base import BackendEnvironment, State, VMConfig
from fleetbox.backends.cloud_hypervisor import create_backend
from fleetbox.backends.cloud_hypervisor.backend import CloudHypervisorBackend
from fleetbox.backends.cloud_hypervisor.vm import CloudHypervisorVM
from fleetbox.backends.host.thread import HostThread
from fleetbox.errors import MachineError
from tests.process.qemu_guests import (
    COUNTS,
    IDLE,
    LIMIT_S,
    OBEYS,
    POWERS_OFF,
    NoNetwork,
    counted,
    goes_round,
    left_in,
    machine,
    run,
    said,
)
from tests.simulators import stand_in


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETBOX_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FLEETBOX_CLOUD_HYPERVISOR", raising=False)


class Machines:
    """Machines of one backend, all of which end with the block."""

    async def __aenter__(self) -> Self:
        self.host = HostThread()
        settings = stand_in("cloud-hypervisor", {})
        backend = create_backend(BackendEnvironment(self.host, settings))
        assert isinstance(backend, CloudHypervisorBackend)
        self.backend = backend
        self.all: list[CloudHypervisorVM] = []
        return self

    async def __aexit__(self, *_: object) -> None:
        for vm in self.all:
            await vm.kill()
        self.host.close()

    async def started(self, config: VMConfig, folder: Path | None = None) -> CloudHypervisorVM:
        backend, network = self.backend, NoNetwork()
        vm = await (backend.restore(config, network, folder) if folder else backend.create(config, network))
        self.all.append(vm)
        await vm.start()
        return vm


def test_guest_that_powers_itself_off(tmp_path: Path) -> None:
    config = machine(tmp_path, POWERS_OFF)

    async def test() -> None:
        async with Machines() as machines:
            vm = await machines.started(config)
            status = await vm.wait()
            assert status.code == 0
            assert "powered off" in status.reason
            assert vm.state() is State.STOPPED
            assert left_in(config) == []

    run(test)


@pytest.mark.parametrize("paused", [False, True])
def test_stop_presses_the_power_button(tmp_path: Path, paused: bool) -> None:
    config = machine(tmp_path, OBEYS)

    async def test() -> None:
        async with Machines() as machines:
            vm = await machines.started(config)
            await said(config, b"R")
            if paused:
                await vm.pause()
            await vm.stop(LIMIT_S)
            assert (await vm.wait()).reason == "shut down"

    run(test)


def test_stop_ends_one_that_does_not_listen_by_the_api(tmp_path: Path) -> None:
    config = machine(tmp_path, IDLE)

    async def test() -> None:
        async with Machines() as machines:
            vm = await machines.started(config)
            await said(config, b"R")
            await vm.stop(0.2)
            status = await vm.wait()
            assert (status.code, status.reason) == (0, "did not shut down in 0 s and was terminated")

    run(test)


def test_its_socket_and_its_terminal_are_its_owner_s(tmp_path: Path) -> None:
    config = machine(tmp_path, IDLE)

    async def test() -> None:
        async with Machines() as machines:
            vm = await machines.started(config)
            assert vm.handle is not None
            assert stat.S_IMODE(Path(vm.handle.api_socket).stat().st_mode) & 0o077 == 0
            terminal = vm.control_line.stat()
            assert stat.S_ISCHR(terminal.st_mode)
            assert stat.S_IMODE(terminal.st_mode) == 0o600
            assert vm.console().path == vm.control_line
            fd = os.open(vm.control_line, os.O_RDWR | os.O_NOCTTY)
            try:
                tty.setraw(fd, termios.TCSANOW)
                os.write(fd, b"nobody listens\n")
            finally:
                os.close(fd)
            await vm.kill()
            without = await machines.started(replace(config, control_line=False))
            for ask in (lambda: without.control_line, without.console):
                with pytest.raises(MachineError):
                    ask()

    run(test)


@pytest.mark.parametrize("shared", [False, True], ids=["copied memory", "shared memory"])
def test_restored_guests_go_on_counting_where_they_were_saved(tmp_path: Path, shared: bool) -> None:
    config = machine(tmp_path, COUNTS)
    folder, second = tmp_path / "a, snapshot", tmp_path / "second"
    folder.mkdir()
    second.mkdir()

    async def test() -> None:
        async with Machines() as machines:
            vm = await machines.started(replace(config, memory_file=tmp_path / "memory" if shared else None))
            await counted(config.serial_log, 5)
            await vm.pause()
            before = config.serial_log.read_bytes()
            assert goes_round(before)
            await vm.snapshot(folder)
            await vm.kill()
            log = tmp_path / "one.log"
            clone = await machines.started(replace(config, name="test/one", serial_log=log), folder)
            assert clone.state() is State.PAUSED
            assert log.read_bytes() == b""
            await clone.resume()
            await counted(log, 20)
            await clone.pause()
            after = before + log.read_bytes()
            assert goes_round(after)
            await clone.snapshot(second)  # a clone's own memory is copied
            await clone.kill()
            log = tmp_path / "two.log"
            again = await machines.started(replace(config, name="test/two", serial_log=log), second)
            await again.resume()
            await counted(log, 5)
            await again.pause()
            assert goes_round(after + log.read_bytes())

    run(test)
