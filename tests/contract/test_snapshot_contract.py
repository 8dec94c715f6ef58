"""Every backend with snapshots keeps what `Pauses`, `Snapshots` and `Restores` of `fleetbox.backends.base` promise."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from fleetbox.backends.base import Disk, Restores, State, VMConfig
from fleetbox.errors import MachineError
from fleetbox.identity import is_alive

from .conftest import LIMIT_S, Bench, Holder, end_from_outside
from .warm import fresh, other_config, paused, pauses, restored, snapshots


def test_backend_says_what_it_can(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            assert holder.backend.capabilities().snapshots
            assert isinstance(holder.backend, Restores)
            identity = holder.backend.snapshot_identity()
            assert identity["backend"] == bench.hypervisor
            assert set(identity) == {"backend", "version", "accelerator", "cpu", "machine", "architecture"}
            assert identity == holder.backend.snapshot_identity()

    bench.run(scenario)


def test_pause_and_resume_may_be_repeated_and_guard_their_state(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            vm = await holder.machine()
            for call in (pauses(vm).pause, pauses(vm).resume):
                with pytest.raises(MachineError):
                    await call()
            await vm.start()
            await pauses(vm).resume()
            assert vm.state() is State.RUNNING
            for _ in range(2):
                await pauses(vm).pause()
                assert vm.state() is State.PAUSED
            for _ in range(2):
                await pauses(vm).resume()
                assert vm.state() is State.RUNNING

    bench.run(scenario)


def test_paused_machine_can_be_ended(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            await (await paused(holder)).kill()
            await (await paused(holder)).stop(0.3)
            end_from_outside((vm := await paused(holder)).handle)
            await vm.wait()
            bench.assert_nothing_runs()

    bench.run(scenario)


def test_only_a_paused_machine_is_saved(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            folder = fresh(bench)
            vm = await holder.machine()
            with pytest.raises(MachineError):
                await snapshots(vm).snapshot(folder)
            await vm.start()
            with pytest.raises(MachineError):
                await snapshots(vm).snapshot(folder)
            assert list(folder.iterdir()) == []
            assert vm.state() is State.RUNNING

    bench.run(scenario)


def test_saved_machine_goes_on_and_can_be_saved_again(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            vm = await paused(holder)
            for name in ("first", "second"):
                await snapshots(vm).snapshot(fresh(bench, name))
                assert vm.state() is State.PAUSED
                await pauses(vm).resume()
                assert vm.state() is State.RUNNING
                await pauses(vm).pause()
            files = {p.name for p in (bench.folder / "second").iterdir()}
            assert {"state", "machine.json"} <= files <= {"state", "machine.json", "memory"}
            assert files == {p.name for p in (bench.folder / "first").iterdir()}

    bench.run(scenario)


def test_restored_machine_comes_up_paused_and_runs_when_told_to(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            folder = fresh(bench)
            await snapshots(await paused(holder)).snapshot(folder)
            before = {p.name: p.read_bytes() for p in folder.iterdir()}
            vm = await restored(holder, await other_config(holder), folder)
            assert vm.state() is State.STOPPED
            await vm.start()
            assert vm.state() is State.PAUSED
            assert vm.handle is not None
            assert is_alive(vm.handle.process)
            await pauses(vm).resume()
            assert vm.state() is State.RUNNING
            await holder.network.join("node-2")
            await pauses(vm).pause()
            await snapshots(vm).snapshot(fresh(bench, "of the restored"))
            assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
            again = await restored(holder, await other_config(holder, "node-3"), bench.folder / "of the restored")
            await again.start()
            assert again.state() is State.PAUSED

    bench.run(scenario)


def test_member_may_have_its_old_and_its_new_machine_at_once(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            folder = fresh(bench)
            old = await paused(holder)
            await snapshots(old).snapshot(folder)
            disk = bench.folder / "new disk.img"
            shutil.copyfile(old.config.disks[0].path, disk)
            config = replace(old.config, slot=1, disks=(Disk(disk, "raw"),))
            new = await restored(holder, config, folder)
            await new.start()
            assert old.state() is new.state() is State.PAUSED
            assert old.handle is not None
            assert new.handle is not None
            assert old.handle.api_socket != new.handle.api_socket
            await holder.network.leave("node-1", 0)
            await holder.network.join("node-1", 1)
            await pauses(new).resume()
            await old.kill()
            assert new.state() is State.RUNNING
            assert is_alive(new.handle.process)
            await new.kill()
            bench.assert_nothing_runs()

    bench.run(scenario)


def test_machine_of_the_other_slot_is_adopted(bench: Bench) -> None:
    async def first(holder: Holder) -> tuple[VMConfig, object]:
        folder = fresh(bench)
        await snapshots(old := await paused(holder)).snapshot(folder)
        await old.kill()
        new = await restored(holder, replace(old.config, slot=1), folder)
        await new.start()
        await pauses(new).resume()
        return new.config, new.handle

    config, handle = bench.leave_behind(first)

    async def scenario() -> None:
        async with bench.holder(leases={config.member: config.assigned_ip}) as holder:
            vm = await holder.adopt(config, handle)  # type: ignore[arg-type]
            assert vm is not None
            assert vm.state() is State.RUNNING
            await vm.kill()
            bench.assert_nothing_runs()

    bench.run(scenario)


def test_fixtures_are_added_at_a_restore_and_stay(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            folder, second = fresh(bench), fresh(bench, "second")
            await snapshots(await paused(holder)).snapshot(folder)
            fixtures = []
            for number in range(3):
                path = bench.folder / f"fixture, {number}=.img"
                path.write_bytes(bytes(1 << 16))
                fixtures.append(Disk(path, "raw", read_only=True, serial=f"fixture-{number}"))
            if not holder.backend.capabilities().hotplug:
                with pytest.raises(MachineError):
                    await restored(holder, await other_config(holder, fixtures=tuple(fixtures[:2])), folder)
                return
            vm = await restored(holder, await other_config(holder, fixtures=tuple(fixtures[:2])), folder)
            await vm.start()
            await pauses(vm).resume()
            await pauses(vm).pause()
            await snapshots(vm).snapshot(second)
            with pytest.raises(MachineError):
                await restored(holder, await other_config(holder, "node-3", fixtures=tuple(fixtures[:1])), second)
            vm = await restored(holder, await other_config(holder, "node-3", fixtures=tuple(fixtures)), second)
            await vm.start()
            assert vm.state() is State.PAUSED
            await pauses(vm).resume()
            assert vm.state() is State.RUNNING

    bench.run(scenario)


def test_fixtures_that_were_there_are_there_after_a_restore(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            folder = fresh(bench)
            path = bench.folder / "fixture, 0=.img"
            path.write_bytes(bytes(1 << 16))
            fixtures = (Disk(path, "raw", read_only=True, serial="fixture-0"),)
            await snapshots(await paused(holder, fixtures=fixtures)).snapshot(folder)
            vm = await restored(holder, await other_config(holder, fixtures=fixtures), folder)
            await vm.start()
            await pauses(vm).resume()
            assert vm.state() is State.RUNNING

    bench.run(scenario)


def test_template_gives_its_memory_to_clones_and_can_only_be_ended(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            folder = fresh(bench)
            file = bench.folder / "memory in the making"
            template = await paused(holder, "template", memory_file=file)
            assert file.stat().st_mode & 0o777 == 0o600
            await snapshots(template).snapshot(folder)
            for call in (pauses(template).resume(), snapshots(template).snapshot(fresh(bench, "other"))):
                with pytest.raises(MachineError):
                    await call
            assert template.state() is State.PAUSED
            memory = (folder / "memory").read_bytes()
            await template.stop(LIMIT_S)
            assert not file.exists()
            assert (folder / "memory").read_bytes() == memory
            clones = [await restored(holder, await other_config(holder, f"clone-{n}"), folder) for n in (1, 2)]
            for vm in clones:
                await vm.start()
                await pauses(vm).resume()
                assert vm.state() is State.RUNNING
            assert (folder / "memory").read_bytes() == memory

    bench.run(scenario)


def test_template_that_could_not_be_saved_runs_on(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            vm = await paused(holder, memory_file=bench.folder / "memory")
            with pytest.raises(MachineError):
                await snapshots(vm).snapshot(bench.folder / "no such folder")
            assert vm.state() is State.PAUSED
            await pauses(vm).resume()
            await pauses(vm).pause()
            await snapshots(vm).snapshot(fresh(bench))

    bench.run(scenario)


def test_paused_machine_is_adopted_paused(bench: Bench) -> None:
    async def first(holder: Holder) -> tuple[VMConfig, object]:
        vm = await paused(holder)
        return vm.config, vm.handle

    config, handle = bench.leave_behind(first)

    async def scenario() -> None:
        async with bench.holder(leases={config.member: config.assigned_ip}) as holder:
            vm = await holder.adopt(config, handle)  # type: ignore[arg-type]
            assert vm is not None
            assert vm.state() is State.PAUSED
            await snapshots(vm).snapshot(fresh(bench))
            await pauses(vm).resume()
            assert vm.state() is State.RUNNING
            await vm.kill()
            bench.assert_nothing_runs()

    bench.run(scenario)
