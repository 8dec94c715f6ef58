"""Cloud-hypervisor machines when something goes wrong: a clear error, the machine's files kept, nothing else left."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from fleetbox.backends.base import BackendEnvironment, DirectBoot, Disk, State, VMConfig
from fleetbox.backends.cloud_hypervisor import create_backend
from fleetbox.backends.cloud_hypervisor import vm as vm_module
from fleetbox.backends.cloud_hypervisor.backend import CloudHypervisorBackend
from fleetbox.backends.cloud_hypervisor.vm import CloudHypervisorVM
from fleetbox.backends.host import saved
from fleetbox.backends.host.thread import HostThread
from fleetbox.backends.qemu import accelerator
from fleetbox.backends.qemu.accelerator import Accelerator
from fleetbox.errors import FleetboxError, HostError, MachineError
from fleetbox.identity import identify
from tests.process.qemu_guests import IDLE, NoNetwork, TapBook, left_in, machine, run, said
from tests.simulators import stand_in
from tests.simulators.faults import VARIABLE

SETTINGS = stand_in("cloud-hypervisor", {})


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETBOX_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FLEETBOX_CLOUD_HYPERVISOR", raising=False)


class Interfaces(TapBook):
    """A network that remembers what is attached; its machines have no interface."""

    async def attach(self, name: str, *, slot: int = 0, join: bool = True) -> str:
        self.attached.append(name)
        return ""


@asynccontextmanager
async def backend(**settings: str) -> AsyncIterator[CloudHypervisorBackend]:
    host = HostThread()
    try:
        yield create_backend(BackendEnvironment(host, SETTINGS | settings))  # type: ignore[misc]
    finally:
        host.close()


@asynccontextmanager
async def created(
    config: VMConfig, network: NoNetwork | None = None, snapshot: Path | None = None
) -> AsyncIterator[CloudHypervisorVM]:
    async with backend() as made:
        where = network or NoNetwork()
        vm = await (made.restore(config, where, snapshot) if snapshot else made.create(config, where))
        try:
            yield vm
        finally:
            await vm.kill()


@asynccontextmanager
async def paused(config: VMConfig) -> AsyncIterator[CloudHypervisorVM]:
    async with created(config) as vm:
        await vm.start()
        await said(config, b"R")
        await vm.pause()
        yield vm


async def start_fails(config: VMConfig, snapshot: Path | None = None) -> MachineError:
    """The error of a start; nothing is left of it but the disk."""
    content = config.disks[0].path.read_bytes()
    network = Interfaces()
    async with created(config, network, snapshot) as vm:
        with pytest.raises(MachineError) as caught:
            await vm.start()
        assert vm.state() is State.STOPPED
        assert vm.handle is None
    assert network.attached == []
    assert left_in(config) == []
    assert not runs(config)
    assert config.disks[0].path.read_bytes() == content
    return caught.value


def runs(config: VMConfig) -> bool:
    needle = os.fsencode(config.run_dir)
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if needle in entry.read_bytes():
                return True
        except OSError:
            continue
    return False


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("launch=exit", "is hypervisor interface available"),
        ("listening=exit", "a fault of the test's"),
        ("vmm.ping=exit", "killed by signal 6|panicked"),
        ("vmm.ping=500", "refused GET /vmm.ping: a fault that the test asked for"),
        ("vmm.ping=garbage", "no HTTP"),
        ("vm.info=exit", "killed by signal 6|panicked"),
        ("vm.info=garbage", "no HTTP"),
    ],
)
def test_launch_that_fails_says_why_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, words: str
) -> None:
    monkeypatch.setenv(VARIABLE, fault)
    config = machine(tmp_path, IDLE)

    async def test() -> None:
        error = await start_fails(config)
        assert error.message == "test/node-1 did not start"
        assert [w for w in words.split("|") if w in error.why], error.why

    run(test)


def test_api_that_is_silent_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "vm.info=silent")
    monkeypatch.setattr(vm_module, "CONNECT_S", 10.0)
    config = machine(tmp_path, IDLE)

    async def test() -> None:
        assert "no answer in" in (await start_fails(config)).why

    run(test)


def test_bad_files_are_named(tmp_path: Path) -> None:
    config = machine(tmp_path, IDLE)
    kernel = tmp_path / "no kernel"
    kernel.write_bytes(b"\0" * 4096)

    async def test() -> None:
        error = await start_fails(replace(config, boot=DirectBoot(kernel, None, "")))
        assert "kernel" in error.why
        error = await start_fails(replace(config, boot=DirectBoot(tmp_path / "none", None, "")))
        assert str(tmp_path / "none") in error.why
        missing = Disk(tmp_path / "none.img", "raw", read_only=True)
        assert "none.img" in (await start_fails(replace(config, fixtures=(missing,)))).why
        for name in ('quo"te', "brack[et", "blank "):
            (tmp_path / name).write_bytes(bytes(512))
            odd = Disk(tmp_path / name, "raw", read_only=True)
            assert "no way to say" in (await start_fails(replace(config, fixtures=(odd,)))).why

    run(test)


def test_run_folder_that_is_too_deep_for_a_socket_is_refused(tmp_path: Path) -> None:
    config = replace(machine(tmp_path, IDLE), run_dir=tmp_path / ("d" * 100))

    async def test() -> None:
        async with backend() as made:
            with pytest.raises(FleetboxError, match="too long"):
                await made.create(config, NoNetwork())

    run(test)


@pytest.mark.parametrize("fault", ["exit", "405", "500", "garbage", "silent"])
def test_pause_that_fails_is_told_and_the_machine_can_be_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setenv(VARIABLE, f"vm.pause={fault}")
    config = machine(tmp_path, IDLE)

    async def test() -> None:
        async with created(config) as vm:
            await vm.start()
            await said(config, b"R")
            if fault == "silent":
                monkeypatch.setenv("FLEETBOX_TIMEOUT_SCALE", "0.05")  # of 30 s
            with pytest.raises(MachineError):
                await vm.pause()
            if fault == "exit":
                assert (await vm.wait()).code == -signal.SIGABRT
            else:
                assert vm.state() is State.RUNNING
        assert left_in(config) == []

    run(test)


@pytest.mark.parametrize("fault", ["exit", "500", "garbage"])
def test_save_that_fails_leaves_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    monkeypatch.setenv(VARIABLE, f"vm.snapshot={fault}")
    config = machine(tmp_path, IDLE)
    folder = tmp_path / "snapshot"
    folder.mkdir()

    async def test() -> None:
        async with paused(config) as vm:
            with pytest.raises(MachineError, match="could not be saved"):
                await vm.snapshot(folder)
            assert list(folder.iterdir()) == []
            if fault != "exit":
                await vm.resume()
                assert vm.state() is State.RUNNING

    run(test)


def test_save_is_asked_for_again_while_memory_is_still_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "vm.snapshot=busy:2")
    config = machine(tmp_path, IDLE)
    folder = tmp_path / "snapshot"
    folder.mkdir()

    async def test() -> None:
        async with paused(config) as vm:
            await vm.snapshot(folder)
            assert {p.name for p in folder.iterdir()} == {saved.STATE, saved.MACHINE, saved.MEMORY}
            log = config.run_dir / "node-1.log"
            assert log.read_text().count("/vm.snapshot refused") == 2

    run(test)


def test_stop_by_an_api_that_refuses_comes_to_signals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "vm.power-button=500,vmm.shutdown=500")
    config = machine(tmp_path, IDLE)

    async def test() -> None:
        async with created(config) as vm:
            await vm.start()
            await said(config, b"R")
            await vm.stop(0.2)
            assert "was terminated" in (await vm.wait()).reason
        assert left_in(config) == []

    run(test)


async def snapshot_of(config: VMConfig, folder: Path, memory_file: Path | None = None) -> None:
    folder.mkdir()
    async with paused(replace(config, memory_file=memory_file)) as vm:
        await vm.snapshot(folder)


@pytest.mark.parametrize("damage", ["no memory", "cut memory", "no state", "state", "device state", "foreign disks"])
def test_damaged_snapshot_is_an_error_with_its_reason(tmp_path: Path, damage: str) -> None:
    config = machine(tmp_path, IDLE)
    folder = tmp_path / "a, snapshot"

    async def test() -> None:
        await snapshot_of(config, folder, tmp_path / "memory")
        if damage == "no memory":
            (folder / saved.MEMORY).unlink()
        elif damage == "cut memory":
            os.truncate(folder / saved.MEMORY, 4096)
        elif damage == "no state":
            (folder / saved.STATE).unlink()
            async with backend() as made:
                with pytest.raises(MachineError, match="there is no state"):
                    await made.restore(config, NoNetwork(), folder)
            return
        elif damage == "state":
            (folder / saved.STATE).write_bytes(b"not JSON")
        else:
            document = json.loads((folder / saved.STATE).read_bytes())
            if damage == "device state":
                document["state"]["qemu"] = "AAAA"
            else:
                document["config"]["disks"] = []
            (folder / saved.STATE).write_bytes(json.dumps(document).encode())
        error = await start_fails(config, folder)
        assert error.why

    run(test)


def test_snapshot_of_another_hypervisor_or_version_is_refused(tmp_path: Path) -> None:
    config = machine(tmp_path, IDLE)
    folder = tmp_path / "snapshot"

    async def test() -> None:
        await snapshot_of(config, folder)
        was = saved.read(folder)
        for key, value in (("backend", "qemu"), ("version", "52.0"), ("cpu", "another")):
            saved.write(folder, msgspec.structs.replace(was, identity=was.identity | {key: value}))
            async with backend() as made:
                with pytest.raises(MachineError) as caught:
                    await made.restore(config, NoNetwork(), folder)
                assert value in caught.value.why

    run(test)


def test_restore_that_is_refused_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = machine(tmp_path, IDLE)
    folder = tmp_path / "snapshot"

    async def test() -> None:
        await snapshot_of(config, folder)
        before = {p.name: p.read_bytes() for p in folder.iterdir()}
        for fault, words in (("500", "a fault that the test asked for"), ("exit", "panicked"), ("garbage", "no HTTP")):
            monkeypatch.setenv(VARIABLE, f"vm.restore={fault}")
            assert words in (await start_fails(config, folder)).why
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == before

    run(test)


def test_program_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    plain, old, true = tmp_path / "plain", tmp_path / "old", shutil.which("true")
    plain.write_text("no program")
    old.write_text("#!/bin/sh\necho cloud-hypervisor v41.0\n")
    old.chmod(0o755)
    assert true is not None

    async def test() -> None:
        for named, words in (
            (str(tmp_path / "none"), "there is no cloud-hypervisor"),
            (str(plain), "is not executable"),
            (str(old), "is cloud-hypervisor 41.0"),
            (true, "is not a cloud-hypervisor"),
        ):
            async with backend(FLEETBOX_CLOUD_HYPERVISOR=named) as made:
                with pytest.raises(HostError, match=words) as caught:
                    await made.check()
                assert caught.value.hint
                assert caught.value.exit_code == 6

    run(test)


def test_without_kvm_it_is_refused_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "probe", lambda _: Accelerator("tcg", "this host has no /dev/kvm", False))

    async def test() -> None:
        async with backend(FLEETBOX_ACCELERATOR="") as made:
            assert made.accelerator == "kvm", "nothing else is claimed"
            with pytest.raises(HostError, match="needs KVM") as caught:
                await made.check()
            assert "--backend qemu" in caught.value.hint
            assert caught.value.why == "this host has no /dev/kvm"
            assert caught.value.exit_code == 6

    run(test)


def test_machine_whose_api_is_gone_is_adopted_and_ended(tmp_path: Path) -> None:
    config = machine(tmp_path, IDLE)

    async def test() -> None:
        async with created(config) as vm:
            await vm.start()
            handle = vm.handle
            assert handle is not None
            Path(handle.api_socket).unlink()
            async with backend() as made:
                adopted = await made.adopt(config, NoNetwork(), handle)
                assert adopted is not None
                assert adopted.state() is State.UNKNOWN
                await adopted.stop(0.2)
                assert adopted.state() is State.STOPPED
                assert await made.adopt(config, NoNetwork(), handle) is None
            assert identify(handle.process.pid) != handle.process

    run(test)


@pytest.mark.parametrize("moment", range(0, 400, 80))
def test_start_cancelled_at_any_moment_leaves_nothing(tmp_path: Path, moment: int) -> None:
    config = machine(tmp_path, IDLE)

    async def test() -> None:
        network = Interfaces()
        async with created(config, network) as vm:
            start = asyncio.create_task(vm.start())
            await asyncio.sleep(moment / 1000)
            start.cancel()
            await asyncio.gather(start, return_exceptions=True)
            if not start.cancelled():
                await vm.kill()
            assert vm.state() is State.STOPPED
        assert network.attached == []
        assert left_in(config) == []
        assert not runs(config)

    run(test)
