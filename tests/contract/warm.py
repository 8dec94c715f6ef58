"""What the warm path's contract tests are told in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fleetbox.backends.base import VM, Pauses, Restores, Snapshots, VMConfig

from .conftest import Bench, Holder


def snapshots(vm: VM) -> Snapshots:
    assert isinstance(vm, Snapshots)
    return vm


def pauses(vm: VM) -> Pauses:
    assert isinstance(vm, Pauses)
    return vm


def fresh(bench: Bench, name: str = "snapshot") -> Path:
    folder = bench.folder / name
    folder.mkdir()
    return folder


async def paused(holder: Holder, name: str = "node-1", **changes: object) -> VM:
    vm = await holder.machine(config=replace(await holder.config(name), **changes))  # type: ignore[arg-type]
    await vm.start()
    await pauses(vm).pause()
    return vm


async def restored(holder: Holder, config: VMConfig, folder: Path) -> VM:
    assert isinstance(holder.backend, Restores)
    vm = await holder.backend.restore(config, holder.network, folder)
    holder.machines.append(vm)
    return vm


async def other_config(holder: Holder, name: str = "node-2", **changes: object) -> VMConfig:
    return replace(await holder.config(name), **changes)  # type: ignore[arg-type]
