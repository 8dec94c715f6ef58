"""Firecracker machines, by the simulator, when something goes wrong: a clear error, and nothing left but the files."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fleetbox.backends.base import BackendEnvironment, DirectBoot, Disk, FirmwareBoot, State, VMConfig, timeout_scale
from fleetbox.backends.firecracker import create_backend
from fleetbox.backends.firecracker.backend import FirecrackerBackend
from fleetbox.backends.firecracker.vm import FirecrackerVM
from fleetbox.backends.host.thread import HostThread
from fleetbox.errors import FleetboxError, HostError, ImageError, MachineError
from tests import tinykernel
from tests.process.qemu_guests import NoNetwork
from tests.simulators import stand_in
from tests.simulators.faults import VARIABLE

LIMIT_S = 60 * timeout_scale()
SETTINGS = stand_in("firecracker", {})


class Book(NoNetwork):
    """Remembers which interfaces are there; the machine is given none."""

    def __init__(self) -> None:
        self.attached: set[str] = set()

    async def attach(self, name: str, *, slot: int = 0, join: bool = True) -> str:
        self.attached.add(name)
        return ""

    async def detach(self, name: str, slot: int = 0) -> None:
        self.attached.discard(name)


class Bench:
    """One machine without a network, and what may be left of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.network = Book()
        (folder / "run").mkdir(mode=0o700)
        disk = folder / "disk, a=b.raw"
        disk.write_bytes(b"content".ljust(1 << 20, b"\0"))
        self.config = VMConfig(
            name="test/node-1",
            run_dir=folder / "run",
            disks=(Disk(disk, "raw"),),
            seed=None,
            boot=DirectBoot(tinykernel.write(folder / "kernel"), None, ""),
            mac="02:00:00:00:00:01",
            cpus=1,
            memory_bytes=32 << 20,
            serial_log=folder / "serial.log",
            assigned_ip="192.0.2.2",
        )

    @asynccontextmanager
    async def backend(self, **settings: str) -> AsyncIterator[FirecrackerBackend]:
        host = HostThread()
        try:
            yield create_backend(BackendEnvironment(host, SETTINGS | settings))
        finally:
            host.close()

    @asynccontextmanager
    async def machine(
        self, config: VMConfig | None = None, snapshot: Path | None = None
    ) -> AsyncIterator[FirecrackerVM]:
        async with self.backend() as backend:
            config = config or self.config
            if snapshot is None:
                vm = await backend.create(config, self.network)
            else:
                vm = await backend.restore(config, self.network, snapshot)
            try:
                yield vm
            finally:
                await vm.kill()
            self.assert_nothing_is_left()

    def assert_nothing_is_left(self) -> None:
        assert list((self.folder / "run").iterdir()) == []
        assert self.network.attached == set()
        assert self.config.disks[0].path.read_bytes().startswith(b"content")

    def processes(self) -> list[str]:
        needle = str(self.folder / "run").encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                argv = path.read_bytes()
            except OSError:
                continue
            if needle in argv:
                found.append(argv.decode(errors="replace"))
        return found

    def run(self, scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def limited() -> None:
            async with asyncio.timeout(LIMIT_S):
                await scenario()

        asyncio.run(limited())
        assert self.processes() == []


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("FLEETBOX_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FLEETBOX_FIRECRACKER", raising=False)
    return Bench(tmp_path)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("launch=exit", "a fault of the test's"),
        ("listening=exit", "a fault of the test's"),
        ("logger=exit", "panicked"),
        ("actions=exit", "panicked"),
        ("boot-source=400", "refused PUT /boot-source: a fault that the test asked for"),
        ("disk0=500", "refused PUT /drives/disk0: a fault that the test asked for"),
        ("machine-config=garbage", "did not answer PUT /machine-config: its answer is no HTTP"),
    ],
)
def test_a_launch_that_fails_says_why(bench: Bench, monkeypatch: pytest.MonkeyPatch, fault: str, words: str) -> None:
    monkeypatch.setenv(VARIABLE, fault)

    async def scenario() -> None:
        async with bench.machine() as vm:
            with pytest.raises(MachineError, match=r"node-1 did not start") as caught:
                await vm.start()
            assert words in str(caught.value)
            assert vm.state() is State.STOPPED

    bench.run(scenario)


def test_a_silent_api_is_given_up_with_the_log(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "actions=silent")
    ask = FirecrackerVM._ask

    async def impatient(self: FirecrackerVM, request: Any, timeout_s: float = 0.0) -> Any:
        return await ask(self, request, 0.5 if request.path == "/actions" else timeout_s)

    monkeypatch.setattr(FirecrackerVM, "_ask", impatient)

    async def scenario() -> None:
        async with bench.machine() as vm:
            with pytest.raises(MachineError, match="did not answer PUT /actions: no answer in") as caught:
                await vm.start()
            assert "the logger is set" in " ".join(caught.value.details)

    bench.run(scenario)


@pytest.mark.parametrize(("fault", "words"), [("vm=500", "refused PATCH /vm"), ("vm=garbage", "no HTTP")])
def test_a_machine_that_cannot_be_held_runs_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, fault: str, words: str
) -> None:
    monkeypatch.setenv(VARIABLE, fault)

    async def scenario() -> None:
        async with bench.machine() as vm:
            await vm.start()
            with pytest.raises(MachineError, match=words):
                await vm.pause()
            assert vm.state() is State.RUNNING

    bench.run(scenario)


def test_a_machine_that_ends_in_the_middle_of_a_request_is_ended(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "vm=exit")

    async def scenario() -> None:
        async with bench.machine() as vm:
            await vm.start()
            with pytest.raises(MachineError):
                await vm.pause()
            status = await vm.wait()
            assert status.reason
            assert vm.state() is State.STOPPED

    bench.run(scenario)


def test_a_save_that_fails_leaves_an_empty_folder_and_a_paused_machine(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "create=500")
    (folder := bench.folder / "snapshot").mkdir()

    async def scenario() -> None:
        async with bench.machine() as vm:
            await vm.start()
            await vm.pause()
            with pytest.raises(MachineError, match="could not be saved: a fault"):
                await vm.snapshot(folder)
            assert list(folder.iterdir()) == []
            assert vm.state() is State.PAUSED
            await vm.resume()

    bench.run(scenario)


def saved(bench: Bench) -> Path:
    """A snapshot of the machine."""
    (folder := bench.folder / "snapshot").mkdir()

    async def scenario() -> None:
        async with bench.machine() as vm:
            await vm.start()
            await vm.pause()
            await vm.snapshot(folder)

    bench.run(scenario)
    return folder


def rewrite(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_bytes()) | changes))


def test_memory_is_saved_with_holes(bench: Bench) -> None:
    memory = saved(bench) / "memory"
    assert memory.stat().st_size == bench.config.memory_bytes
    assert memory.stat().st_blocks * 512 < memory.stat().st_size // 2


def test_a_damaged_snapshot_is_refused_by_firecracker_and_nothing_is_left(bench: Bench) -> None:
    folder = saved(bench)
    rewrite(folder / "state", version="1.0.0")

    async def scenario() -> None:
        async with bench.machine(snapshot=folder) as vm:
            with pytest.raises(MachineError, match=r"refused PUT /snapshot/load.*Invalid snapshot version"):
                await vm.start()

    bench.run(scenario)


@pytest.mark.parametrize(
    ("key", "value"), [("backend", "cloud-hypervisor"), ("version", "1.15.0"), ("cpu", "another processor")]
)
def test_a_snapshot_of_another_hypervisor_or_version_is_refused(bench: Bench, key: str, value: str) -> None:
    folder = saved(bench)
    was = json.loads((folder / "machine.json").read_bytes())
    rewrite(folder / "machine.json", identity=was["identity"] | {key: value})

    async def scenario() -> None:
        with pytest.raises(MachineError, match=f"the snapshot is of {key} {value}"):
            async with bench.machine(snapshot=folder):
                pass

    bench.run(scenario)


def test_a_snapshot_without_its_memory_is_refused(bench: Bench) -> None:
    folder = saved(bench)
    (folder / "memory").unlink()

    async def scenario() -> None:
        with pytest.raises(MachineError, match="there is no memory"):
            async with bench.machine(snapshot=folder):
                pass

    bench.run(scenario)


def test_a_guest_that_is_typed_at_resets_and_ends_its_machine(bench: Bench) -> None:
    kernel = tinykernel.write(bench.folder / "resets", tinykernel.RESETS)

    async def scenario() -> None:
        async with bench.machine(replace(bench.config, boot=DirectBoot(kernel, None, ""))) as vm:
            await vm.start()
            [stdin] = (bench.folder / "run").glob("*.d/stdin")
            stdin.write_bytes(b"\r")
            status = await vm.wait()
            assert (status.code, status.reason) == (0, "powered off by the guest")

    bench.run(scenario)


def _no_kernel(bench: Bench) -> VMConfig:
    (kernel := bench.folder / "no kernel").write_bytes(b"MZ" + bytes(5000))
    return replace(bench.config, boot=DirectBoot(kernel, None, ""))


def _firmware(bench: Bench) -> VMConfig:
    return replace(bench.config, boot=FirmwareBoot())


def _endless_cmdline(bench: Bench) -> VMConfig:
    return replace(bench.config, boot=DirectBoot(bench.folder / "kernel", None, "x" * 2048))


def _qcow2(bench: Bench) -> VMConfig:
    return replace(bench.config, disks=(Disk(bench.config.disks[0].path, "qcow2"),))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (_no_kernel, ImageError, "cannot boot the kernel"),
        (_firmware, MachineError, "not firmware"),
        (_endless_cmdline, MachineError, "command line is too long"),
        (_qcow2, MachineError, "raw disks"),
    ],
)
def test_what_firecracker_cannot_boot_is_refused_before_its_launch(
    bench: Bench, change: Callable[[Bench], VMConfig], error: type[FleetboxError], words: str
) -> None:
    async def scenario() -> None:
        async with bench.machine(change(bench)) as vm:
            with pytest.raises(error, match=words):
                await vm.start()
            assert vm.state() is State.STOPPED

    bench.run(scenario)


def test_a_socket_path_that_is_too_long_is_said(bench: Bench) -> None:
    async def scenario() -> None:
        with pytest.raises(HostError, match=r"socket path .* is too long"):
            async with bench.machine(replace(bench.config, run_dir=bench.folder / ("r" * 100))):
                pass

    bench.run(scenario)


@pytest.mark.parametrize(("content", "words"), [(None, "there is no firecracker"), ("#!/bin/sh\n", "is not a")])
def test_a_program_that_is_none_is_refused(bench: Bench, content: str | None, words: str) -> None:
    program = bench.folder / "program"
    if content is not None:
        program.write_text(content)
        program.chmod(0o755)

    async def scenario() -> None:
        async with bench.backend(FLEETBOX_FIRECRACKER=str(program)) as backend:
            with pytest.raises(HostError, match=words):
                await backend.check()

    bench.run(scenario)


def test_without_kvm_the_real_program_is_not_tried(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from fleetbox.backends.qemu import accelerator

    monkeypatch.setattr(accelerator, "DEVICE", bench.folder / "no kvm")

    async def scenario() -> None:
        async with bench.backend(FLEETBOX_ACCELERATOR="") as backend:
            with pytest.raises(HostError, match="needs KVM"):
                await backend.check()

    bench.run(scenario)
