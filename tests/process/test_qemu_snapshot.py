"""Real QEMU machines go on where they were saved: a guest that counts in its memory, and one on the control line."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fleetbox.backends.base import BackendEnvironment, State, VMConfig, timeout_scale
from fleetbox.backends.host import programs
from fleetbox.backends.host.thread import HostThread
from fleetbox.backends.qemu import create_backend
from fleetbox.backends.qemu.backend import QemuBackend
from fleetbox.backends.qemu.vm import QemuVM
from fleetbox.errors import MachineError
from tests.process.qemu_guests import COUNTS, NoNetwork, counted, goes_round, machine

pytestmark = pytest.mark.skipif(programs.find(programs.QEMU) is None, reason="QEMU is not installed")

LIMIT_S = 60 * timeout_scale()

# Echo on the second serial port, 0x2f8: wait for the line status's "data ready".
ECHOES = "bafd02 ec a801 74fb baf802 ec ee ebf1"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETBOX_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FLEETBOX_ACCELERATOR", "tcg")


class TapBook(NoNetwork):
    """Remembers which interfaces there are, and which of them were to join at once."""

    def __init__(self) -> None:
        self.there: dict[tuple[str, int], bool] = {}

    async def attach(self, name: str, *, slot: int = 0, join: bool = True) -> str:
        self.there[name, slot] = join
        return ""

    async def detach(self, name: str, slot: int = 0) -> None:
        del self.there[name, slot]


class Machines:
    """Machines of one backend and network, all of which end with the test."""

    def __init__(self, backend: QemuBackend) -> None:
        self.backend = backend
        self.network = TapBook()
        self.all: list[QemuVM] = []

    async def started(self, config: VMConfig, folder: Path | None = None) -> QemuVM:
        if folder is None:
            vm = await self.backend.create(config, self.network)
        else:
            vm = await self.backend.restore(config, self.network, folder)
        self.all.append(vm)
        await vm.start()
        return vm


def run(test: Callable[[Machines], Coroutine[Any, Any, None]]) -> None:
    @asynccontextmanager
    async def machines() -> AsyncIterator[Machines]:
        host = HostThread()
        found = Machines(create_backend(BackendEnvironment(host)))  # type: ignore[arg-type]
        try:
            await found.backend.check()
            yield found
        finally:
            for vm in found.all:
                await vm.kill()
            host.close()

    async def limited() -> None:
        async with asyncio.timeout(LIMIT_S), machines() as found:
            await test(found)

    asyncio.run(limited())


@pytest.mark.parametrize("shared", [False, True], ids=["streamed memory", "shared memory"])
def test_restored_guests_go_on_counting_where_they_were_saved(tmp_path: Path, shared: bool) -> None:
    config = machine(tmp_path, COUNTS)
    folder = tmp_path / "a, snapshot"
    folder.mkdir()

    async def test(machines: Machines) -> None:
        memory = tmp_path / "memory, shared" if shared else None
        vm = await machines.started(replace(config, memory_file=memory))
        await counted(config.serial_log, 5)
        await vm.pause()
        before = config.serial_log.read_bytes()
        assert goes_round(before)
        await vm.snapshot(folder)
        assert (folder / "memory").exists() is shared
        assert vm.state() is State.PAUSED
        await vm.kill()
        assert config.serial_log.read_bytes() == before

        for name in ("one", "two"):
            log = tmp_path / f"{name}.log"
            clone = await machines.started(replace(config, name=f"test/{name}", serial_log=log), folder)
            assert clone.state() is State.PAUSED
            await asyncio.sleep(0.2)
            assert log.read_bytes() == b""  # paused until it is resumed
            await clone.resume()
            await counted(log, 20)
            await clone.pause()
            assert goes_round(before + log.read_bytes())
            await clone.kill()

    run(test)


def test_saved_machine_runs_on_and_its_restored_self_appends_to_the_log(tmp_path: Path) -> None:
    config = machine(tmp_path, COUNTS)
    folder = tmp_path / "snapshot"
    folder.mkdir()

    async def test(machines: Machines) -> None:
        vm = await machines.started(config)
        await counted(config.serial_log, 5)
        await vm.pause()
        await vm.snapshot(folder)
        at_save = config.serial_log.stat().st_size
        await vm.resume()
        await counted(config.serial_log, 5, after=at_save)
        await vm.pause()
        text = config.serial_log.read_bytes()
        assert goes_round(text)
        new = await machines.started(replace(config, slot=1, disks=machine(tmp_path / "new", COUNTS).disks), folder)
        assert machines.network.there == {("node-1", 0): True, ("node-1", 1): False}
        await vm.kill()
        assert machines.network.there == {("node-1", 1): False}
        await new.resume()
        await counted(config.serial_log, 5, after=len(text))
        await new.pause()
        now = config.serial_log.read_bytes()
        assert now.startswith(text)
        assert goes_round(text[:at_save] + now[len(text) :])  # rewound to the save

    (tmp_path / "new").mkdir()
    run(test)


def test_full_disk_is_told_and_the_machine_runs_on(tmp_path: Path) -> None:
    config = machine(tmp_path, COUNTS)
    folder = tmp_path / "snapshot"
    folder.mkdir()

    async def test(machines: Machines) -> None:
        vm = await machines.started(config)
        await counted(config.serial_log, 3)
        await vm.pause()
        assert vm.handle is not None
        pid = vm.handle.process.pid
        limits = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (64 << 10, limits[1]))
        with pytest.raises(MachineError) as caught:
            await vm.snapshot(folder)
        assert "could not be saved" in str(caught.value)
        assert caught.value.why
        assert list(folder.iterdir()) == []
        assert vm.state() is State.PAUSED
        resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
        size = config.serial_log.stat().st_size
        await vm.resume()
        await counted(config.serial_log, 5, after=size)
        await vm.pause()
        assert goes_round(config.serial_log.read_bytes())
        await vm.snapshot(folder)

    run(test)


@pytest.mark.parametrize("name", ["state", "memory"])
def test_damaged_snapshot_is_an_error_with_its_reason(tmp_path: Path, name: str) -> None:
    config = machine(tmp_path, COUNTS)
    folder = tmp_path / "snapshot"
    folder.mkdir()

    async def test(machines: Machines) -> None:
        vm = await machines.started(replace(config, memory_file=tmp_path / "memory"))
        await vm.pause()
        await vm.snapshot(folder)
        await vm.kill()
        (folder / name).write_bytes(b"\0" * 4096)
        with pytest.raises(MachineError) as caught:
            await machines.started(config, folder)
        assert "did not start" in str(caught.value)
        assert caught.value.why
        assert [path.suffix for path in config.run_dir.iterdir()] == []
        assert machines.network.there == {}

    run(test)


def test_control_line_is_the_second_serial_port(tmp_path: Path) -> None:
    config = machine(tmp_path, ECHOES)
    folder = tmp_path / "snapshot"
    folder.mkdir()

    def echoed(vm: QemuVM, text: bytes) -> bytes:
        assert vm.control_line.stat().st_mode & 0o777 == 0o600
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(LIMIT_S)
            line.connect(str(vm.control_line))
            found = b""
            for byte in text:  # one at a time, as this guest has no buffer
                line.sendall(bytes([byte]))
                found += line.recv(1)
            return found

    async def test(machines: Machines) -> None:
        assert machines.backend.capabilities().control_line
        vm = await machines.started(config)
        for text in (b"hello", b"again"):  # one connection after the other
            assert await asyncio.to_thread(echoed, vm, text) == text
        await vm.pause()
        await vm.snapshot(folder)
        await vm.kill()
        assert list(config.run_dir.iterdir()) == []
        clone = await machines.started(replace(config, control_line=False), folder)  # the saved machine decides
        await clone.resume()
        assert await asyncio.to_thread(echoed, clone, b"clone") == b"clone"
        await clone.kill()
        without = await machines.started(replace(config, control_line=False))
        with pytest.raises(MachineError):
            _ = without.control_line

    run(test)
