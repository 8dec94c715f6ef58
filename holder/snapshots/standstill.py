"""Machines that stand still together, so that what is saved of them is one instant."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack

from fleetbox.backends.base import VM, Pauses, State
from fleetbox.errors import HostError
from fleetbox.holder.operations import together


async def pause_all(machines: Mapping[str, VM], undo: AsyncExitStack) -> None:
    """Pause all of the machines; `undo` lets them run on, those too that had been paused when another could not be."""
    undo.push_async_callback(resume_all, machines)
    await together(*(_pauses(vm).pause() for vm in machines.values()))


async def resume_all(machines: Mapping[str, VM]) -> None:
    """Let all of the machines that are paused run, whatever becomes of the others; raises the first failure."""
    results = await asyncio.gather(
        *(_pauses(vm).resume() for vm in machines.values() if vm.state() in (State.PAUSING, State.PAUSED)),
        return_exceptions=True,
    )
    for result in results:
        if isinstance(result, BaseException):
            raise result


def _pauses(vm: VM) -> Pauses:
    if not isinstance(vm, Pauses):
        raise HostError("this backend cannot pause machines", hint="snapshots need a backend that can, such as qemu")
    return vm
