"""Where the disk of a `remote` machine is: with the helper while it runs, here afterwards, never lost in between."""

from __future__ import annotations

import asyncio
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from fleetbox.backends.base import Disk, KeepsDisks, VMConfig
from fleetbox.backends.remote import away
from fleetbox.backends.remote.wire import machine_id
from fleetbox.errors import DiskError, HolderError
from fleetbox.records import MachineHandle

from .conftest import Bench, Holder, end_from_outside
from .test_remote import helper_of, remote, until
from .warm import fresh, paused, snapshots

__all__ = ["remote"]


def disk_there(bench: Bench, config: VMConfig) -> Path:
    """The file that the machine writes to."""
    folder = helper_of(bench).folder / "helper/machines" / machine_id(config.name, config.slot)
    [path] = [path for path in folder.glob("disk-0.*") if path.suffix != ".lock"]
    return path


def write_there(bench: Bench, config: VMConfig, text: bytes) -> None:
    """What a guest would do."""
    with disk_there(bench, config).open("r+b") as file:
        file.seek(4096)
        file.write(text)


def has(config: VMConfig, text: bytes) -> bool:
    with config.disks[0].path.open("rb") as file:
        file.seek(4096)
        return file.read(len(text)) == text


def held(bench: Bench) -> list[str]:
    return [path.name for path in (helper_of(bench).folder / "helper/machines").iterdir()]


def test_disk_comes_home_with_the_machines_end_and_goes_along_to_the_next(remote: Bench) -> None:
    async def scenario() -> None:
        async with remote.holder() as holder:
            vm = await holder.running()
            write_there(remote, vm.config, b"first")
            assert not has(vm.config, b"first")
            assert away.read(vm.config.disks[0].path) is not None
            await vm.stop(1.0)
            assert has(vm.config, b"first")
            assert away.read(vm.config.disks[0].path) is None
            assert held(remote) == []
            await vm.start()
            assert disk_there(remote, vm.config).read_bytes()[4096:4101] == b"first"
            write_there(remote, vm.config, b"second")
            end_from_outside(vm.handle)
            await vm.wait()
            assert has(vm.config, b"second")

    remote.run(scenario)


def test_disk_file_is_up_to_date_while_a_snapshot_is_copied(remote: Bench) -> None:
    async def scenario() -> None:
        async with remote.holder() as holder:
            vm = await paused(holder)
            write_there(remote, vm.config, b"written")
            await snapshots(vm).snapshot(fresh(remote))
            assert has(vm.config, b"written")
            write_there(remote, vm.config, b"later")
            await vm.kill()
            assert has(vm.config, b"later")

    remote.run(scenario)


@pytest.mark.parametrize("end", ["while nobody is there", "by the next start"])
def test_disk_of_a_machine_that_outlived_its_holder_comes_home_before_the_next_start(remote: Bench, end: str) -> None:
    async def first(holder: Holder) -> tuple[VMConfig, MachineHandle]:
        vm = await holder.running()
        write_there(remote, vm.config, b"kept")
        assert vm.handle is not None
        return vm.config, vm.handle

    config, handle = remote.leave_behind(first)
    if end == "while nobody is there":
        end_from_outside(handle)

    async def second() -> None:
        async with remote.holder() as holder:
            assert not has(config, b"kept")
            await holder.network.reserve("node-1")
            vm = await holder.machine(config=config)
            await vm.start()
            assert has(config, b"kept")
            assert disk_there(remote, config).read_bytes()[4096:4100] == b"kept"

    remote.run(second)


def test_disk_is_brought_home_without_a_start(remote: Bench) -> None:
    async def first(holder: Holder) -> tuple[VMConfig, MachineHandle]:
        vm = await holder.running()
        write_there(remote, vm.config, b"kept")
        assert vm.handle is not None
        return vm.config, vm.handle

    config, handle = remote.leave_behind(first)
    end_from_outside(handle)

    async def second() -> None:
        async with remote.holder() as holder:
            assert isinstance(holder.backend, KeepsDisks)
            await holder.backend.bring_home(config.disks[0])
            assert has(config, b"kept")
            await holder.backend.bring_home(config.disks[0])
            assert held(remote) == []

    remote.run(second)


def test_disk_of_a_running_machine_is_not_brought_home(remote: Bench) -> None:
    async def scenario() -> None:
        async with remote.holder() as holder:
            vm = await holder.running()
            assert isinstance(holder.backend, KeepsDisks)
            with pytest.raises(DiskError, match="in use"):
                await holder.backend.bring_home(vm.config.disks[0])

    remote.run(scenario)


def test_disk_of_another_life_is_not_taken_for_the_new_one(remote: Bench) -> None:
    """A member was destroyed, and made anew under its name, while the helper still had its machine."""

    async def first(holder: Holder) -> VMConfig:
        vm = await holder.running()
        write_there(remote, vm.config, b"old life")
        return vm.config

    config = remote.leave_behind(first)
    away.clear(config.disks[0].path)

    async def second() -> None:
        async with remote.holder() as holder:
            await holder.network.reserve("node-1")
            await (await holder.machine(config=config)).start()
            assert not has(config, b"old life")
            assert disk_there(remote, config).read_bytes()[4096:4104] == bytes(8)

    remote.run(second)


def test_member_that_was_destroyed_while_its_helper_was_away_is_discarded_there(remote: Bench) -> None:
    data = remote.home / "data/clusters/bench/node-1"
    data.mkdir(parents=True)

    async def scenario() -> None:
        async with remote.holder() as holder:
            config = await holder.config()
            disk = Disk(data / "disk.raw", "raw")
            os.truncate(os.open(disk.path, os.O_CREAT | os.O_RDWR), 1 << 20)
            vm = await holder.machine(config=replace(config, disks=(disk,)))
            await vm.start()
            helper_of(remote).kill()
            with pytest.raises(HolderError):
                await vm.kill()
            away.clear(disk.path)
            disk.path.unlink()
            helper_of(remote).start()
            await holder.backend.reconcile()
            assert held(remote) == []
            await vm.wait()
            remote.assert_nothing_runs()
            assert not disk.path.exists()

    remote.run(scenario)


def test_disk_that_cannot_be_stored_here_stays_with_the_helper(remote: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with remote.holder() as holder:
            vm = await holder.running()
            write_there(remote, vm.config, b"kept")
            with monkeypatch.context() as full:

                def no_space(temporary: Path, disk: Disk) -> None:
                    raise DiskError("the disk is full")

                full.setattr("fleetbox.backends.remote.homecoming._put_in_place", no_space)
                await vm.kill()
            assert "stays with the remote helper" in (await vm.wait()).reason
            assert held(remote) != []
            await vm.start()
            assert has(vm.config, b"kept")

    remote.run(scenario)


def test_overlay_keeps_its_base_on_both_sides(remote: Bench) -> None:
    async def scenario() -> None:
        async with remote.holder() as holder:
            config = await holder.config()
            base = remote.folder / "blob"
            base.write_bytes(b"base" * (1 << 18))
            digest = subprocess.run(["sha256sum", base], capture_output=True, text=True, check=True).stdout.split()[0]
            blob = base.rename(base.with_name(f"{digest}.raw"))
            disk = Disk(remote.folder / "overlay.qcow2", "qcow2")
            create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(blob), str(disk.path)]
            subprocess.run(create, check=True)
            vm = await holder.machine(config=replace(config, disks=(disk,)))
            await vm.start()
            there = disk_there(remote, vm.config)
            assert str(helper_of(remote).folder) in _backing(there)
            subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 4096", str(there)], check=True)
            await vm.kill()
            assert _backing(disk.path) == str(blob)
            check = ["qemu-io", "-f", "qcow2", "-c", "read -v 0 16", "-c", "read -v 8192 16", str(disk.path)]
            read = subprocess.run(check, capture_output=True, text=True, check=True).stdout
            assert "07 07 07 07" in read
            assert "basebase" in read

    remote.run(scenario)


def _backing(path: Path) -> str:
    info = subprocess.run(["qemu-img", "info", "-U", str(path)], capture_output=True, text=True, check=True).stdout
    [line] = [line for line in info.splitlines() if line.startswith("backing file:")]
    return line.removeprefix("backing file:").strip()


def test_disk_that_stands_on_a_file_of_the_host_is_refused(remote: Bench) -> None:
    async def scenario() -> None:
        async with remote.holder() as holder:
            config = await holder.config()
            secret = remote.folder / "secret"
            secret.write_bytes(b"secret" * 1000)
            disk = Disk(remote.folder / "overlay.qcow2", "qcow2")
            create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(secret), str(disk.path)]
            subprocess.run(create, check=True)
            vm = await holder.machine(config=replace(config, disks=(disk,)))
            with pytest.raises(DiskError, match="stands on"):
                await vm.start()
            assert held(remote) == []

    remote.run(scenario)


def test_cancelled_launch_has_left_no_disk_away(remote: Bench) -> None:
    async def scenario() -> None:
        async with remote.holder(faults="start=slow:1000") as holder:
            vm = await holder.machine()
            starting = asyncio.create_task(vm.start())
            await until(lambda: held(remote))
            starting.cancel()
            await asyncio.wait({starting})
            assert starting.cancelled()
            assert away.read(vm.config.disks[0].path) is None
            assert held(remote) == []
            remote.assert_nothing_runs()

    remote.run(scenario)
