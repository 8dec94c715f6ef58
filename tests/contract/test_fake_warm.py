"""The fake backend's memory, interfaces and faults on the warm path."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fleetbox.backends.base import State
from fleetbox.backends.fake import FakeBackend, FakeNetwork, FakeVM, recall, tell
from fleetbox.errors import MachineError, NetworkError

from .conftest import Bench
from .test_fake import script, until


@pytest.fixture
def bench(fleetbox_home: Path) -> Bench:
    folder = fleetbox_home / "bench"
    (folder / "run").mkdir(mode=0o700, parents=True)
    return Bench("fake", fleetbox_home, folder)


@pytest.mark.parametrize("shared", [False, True], ids=["streamed memory", "shared memory"])
def test_restored_guest_remembers_what_the_saved_one_was_told(bench: Bench, shared: bool) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            folder = bench.folder / "snapshot"
            folder.mkdir()
            file = bench.folder / "memory" if shared else None
            vm = await holder.machine(config=replace(await holder.config(), memory_file=file))
            assert isinstance(vm, FakeVM)
            await vm.start()
            assert vm.handle is not None
            handle = vm.handle
            tell(handle, "before")
            await until(lambda: recall(handle) == ["before"])
            await vm.pause()
            tell(handle, "while paused")
            await vm.snapshot(folder)
            assert recall(handle) == ["before"]
            await vm.kill()
            assert isinstance(holder.backend, FakeBackend)
            for name in ("node-2", "node-3"):
                clone = await holder.backend.restore(await holder.config(name), holder.network, folder)
                holder.machines.append(clone)
                await clone.start()
                assert isinstance(clone, FakeVM)
                assert clone.handle is not None
                found = clone.handle
                assert recall(found) == ["before"]
                tell(found, name)
                await clone.resume()
                await until(lambda found=found, name=name: recall(found) == ["before", name])  # type: ignore[misc]
            clone.guest("reboot")
            await until(lambda: recall(found) == [])

    bench.run(scenario)


def test_interface_of_a_restored_machine_joins_when_told_to(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            folder = bench.folder / "snapshot"
            folder.mkdir()
            vm = await holder.running()
            assert isinstance(vm, FakeVM)
            assert isinstance(holder.network, FakeNetwork)
            assert isinstance(holder.backend, FakeBackend)
            assert holder.network.members_on_bridge == {("node-1", 0)}
            await vm.pause()
            await vm.snapshot(folder)
            new = await holder.backend.restore(
                replace(bench.config("copy", mac="", ip=""), name=vm.config.name, slot=1), holder.network, folder
            )
            holder.machines.append(new)
            await new.start()
            assert holder.network.members_on_bridge == {("node-1", 0)}
            await holder.network.leave("node-1")
            assert holder.network.members_on_bridge == set()
            await holder.network.join("node-1", 1)
            await vm.kill()
            assert holder.network.members_on_bridge == {("node-1", 1)}
            await new.kill()
            assert holder.network.members_on_bridge == set()
            with pytest.raises(NetworkError):
                await holder.network.join("node-1", 1)

    bench.run(scenario)


@pytest.mark.parametrize("step", ["pause", "snapshot", "resume", "restore"])
def test_faults_of_the_warm_path(bench: Bench, step: str) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            assert isinstance(holder.backend, FakeBackend)

            async def go_through(vm: FakeVM, folder: Path) -> None:
                await vm.pause()
                await vm.snapshot(folder)
                await vm.resume()
                config = replace(bench.config("copy", mac="", ip=""), name=vm.config.name, slot=1)
                assert isinstance(holder.backend, FakeBackend)
                await (await holder.backend.restore(config, holder.network, folder)).start()

            for action in ("fail", "die"):
                folder = bench.folder / action
                folder.mkdir()
                vm = await holder.running()
                assert isinstance(vm, FakeVM)
                script(holder, f"{step}={action}")
                with pytest.raises(MachineError):
                    await go_through(vm, folder)
                assert step in ("resume", "restore") or list(folder.iterdir()) == []
                script(holder, "")
                if action == "fail" and step != "restore":
                    assert vm.state() is (State.RUNNING if step == "pause" else State.PAUSED)
                await vm.kill()
                bench.assert_nothing_runs()

    bench.run(scenario)
