"""What every backend with snapshots refuses, and what an interrupted save or restore leaves: nothing."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from dataclasses import replace

import pytest

from fleetbox.backends.base import State
from fleetbox.errors import MachineError
from fleetbox.identity import is_alive

from .conftest import LIMIT_S, Bench, end_from_outside
from .warm import fresh, other_config, paused, pauses, restored, snapshots


def _other_format(text: dict[str, object]) -> None:
    text["format"] = 99


def _other_version(text: dict[str, object]) -> None:
    identity = text["identity"]
    assert isinstance(identity, dict)
    identity["version"] = "0.1"


@pytest.mark.parametrize("damage", [_other_format, _other_version, dict.clear])
def test_what_does_not_fit_this_host_is_refused(bench: Bench, damage: Callable[[dict[str, object]], None]) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            folder = fresh(bench)
            await snapshots(vm := await paused(holder)).snapshot(folder)
            await vm.kill()
            text = json.loads((folder / "machine.json").read_bytes())
            damage(text)
            (folder / "machine.json").write_text(json.dumps(text))
            with pytest.raises(MachineError):
                await restored(holder, await other_config(holder), folder)
            bench.assert_nothing_runs()

    bench.run(scenario)


def test_other_shape_and_missing_files_are_refused(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            folder = fresh(bench)
            await snapshots(await paused(holder)).snapshot(folder)
            config = await other_config(holder)
            shapes: list[dict[str, object]] = [{"cpus": 2}, {"memory_bytes": 128 << 20}, {"disks": config.disks * 2}]
            for shape in shapes:
                with pytest.raises(MachineError):
                    await restored(holder, replace(config, **shape), folder)  # type: ignore[arg-type]
            (folder / "state").unlink()
            with pytest.raises(MachineError):
                await restored(holder, config, folder)
            with pytest.raises(MachineError):
                await restored(holder, config, bench.folder / "nothing")

    bench.run(scenario)


def test_interrupted_save_leaves_nothing_and_a_usable_machine(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder(faults="snapshot=slow:0.01") as holder:
            vm = await paused(holder)
            folder = fresh(bench)
            cancelled = 0
            for delay_s in (0.0, 0.001, 0.005, 0.01, 0.02):
                saving = asyncio.create_task(snapshots(vm).snapshot(folder))
                await asyncio.sleep(delay_s)
                saving.cancel()
                await asyncio.wait({saving}, timeout=LIMIT_S)
                assert vm.state() is State.PAUSED
                if saving.cancelled():
                    cancelled += 1
                    assert list(folder.iterdir()) == []
                else:
                    saving.result()
                    shutil.rmtree(folder)
                    folder.mkdir()
                await pauses(vm).resume()
                await pauses(vm).pause()
            assert cancelled
            await snapshots(vm).snapshot(folder)
            await pauses(vm).resume()
            assert vm.state() is State.RUNNING

    bench.run(scenario)


def test_interrupted_restore_leaves_nothing(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            folder = fresh(bench)
            await snapshots(first := await paused(holder)).snapshot(folder)
            await first.kill()
            cancelled = 0
            for delay_s in (0.0, 0.005, 0.02, 0.1):
                vm = await restored(holder, await other_config(holder), folder)
                starting = asyncio.create_task(vm.start())
                await asyncio.sleep(delay_s)
                starting.cancel()
                await asyncio.wait({starting}, timeout=LIMIT_S)
                cancelled += starting.cancelled()
                if starting.cancelled():
                    assert vm.state() is State.STOPPED
                else:
                    await vm.kill()
                bench.assert_nothing_runs()
            assert cancelled

    bench.run(scenario)


def test_machine_that_has_ended_is_not_saved(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.holder() as holder:
            vm = await paused(holder)
            folder = fresh(bench)
            assert vm.handle is not None
            identity = end_from_outside(vm.handle)
            while is_alive(identity):
                await asyncio.sleep(0.001)
            with pytest.raises(MachineError):
                await snapshots(vm).snapshot(folder)
            assert list(folder.iterdir()) == []
            await vm.wait()
            bench.assert_nothing_runs()

    bench.run(scenario)
