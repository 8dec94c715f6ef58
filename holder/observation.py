"""What is told of running machines without an operation: their statistics, and where their consoles are."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping

from fleetbox import wire
from fleetbox.backends.base import VM, HasConsole, HasStatistics
from fleetbox.errors import MachineError, NetworkError, NotFoundError
from fleetbox.usage import Statistics

log = logging.getLogger(__name__)


async def statistics(machines: Mapping[str, VM]) -> wire.ClusterStatistics:
    """What each of the machines uses, all asked at once."""
    asked = {name: vm for name, vm in machines.items() if isinstance(vm, HasStatistics)}
    answers = await asyncio.gather(*(_statistics(name, vm) for name, vm in asked.items()))
    members = {name: answer for name, answer in zip(asked, answers, strict=True) if answer is not None}
    return wire.ClusterStatistics(time.monotonic(), members)


async def _statistics(name: str, vm: HasStatistics) -> Statistics | None:
    try:
        return await vm.statistics()
    except (MachineError, NetworkError) as e:
        log.debug("no statistics of %s: %s", name, e)  # it ends just now
        return None


def console(cluster: str, machines: Mapping[str, VM], member: str) -> wire.ConsoleFile:
    """Where the member's console is opened. Raises NotFoundError, MachineError."""
    vm = machines.get(member)
    if vm is None:
        raise NotFoundError(
            f"{cluster}/{member} has no console", why="it does not run", hint=f"`fleetbox start {cluster}/{member}`"
        )
    if not isinstance(vm, HasConsole):
        raise MachineError(
            f"{cluster}/{member} has no console",
            why="its backend shows what it prints, and takes nothing",
            hint=f"see `fleetbox logs {cluster}/{member}`",
        )
    found = vm.console()
    return wire.ConsoleFile(str(found.path), str(found.lock), found.guest_device)
