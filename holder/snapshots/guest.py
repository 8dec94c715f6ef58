"""What is done in a guest that has come back: by its control line, else over SSH."""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Callable

from fleetbox import ssh
from fleetbox.backends.base import VM, HasControlLine, timeout_scale
from fleetbox.backends.host.process import run
from fleetbox.errors import MachineError
from fleetbox.holder.warm.control import open_line
from fleetbox.records import ClusterRecord, MemberRecord

LIMIT_S = 10.0


async def set_clock(cluster: ClusterRecord, member: MemberRecord, vm: VM) -> None:
    """Set its clock, which stands where it stood when it was saved, to the host's. Raises FleetboxError."""
    await _do(cluster, member, vm, lambda: f"date -s @{time.time():.2f} >/dev/null")


async def set_machine_id(cluster: ClusterRecord, member: MemberRecord, vm: VM, machine_id: str) -> None:
    """Give a machine that booted from another's disk a machine-id of its own. Raises FleetboxError."""
    script = (
        f"echo {machine_id} >/etc/machine-id; [ ! -f /var/lib/dbus/machine-id ] || cp /etc/machine-id /var/lib/dbus"
    )
    await _do(cluster, member, vm, lambda: script)


async def _do(cluster: ClusterRecord, member: MemberRecord, vm: VM, script: Callable[[], str]) -> None:
    limit_s = LIMIT_S * timeout_scale()
    try:
        async with asyncio.timeout(limit_s):
            try:
                await _by_line(vm, script)
            except MachineError:
                await _by_ssh(cluster, member, script)
    except TimeoutError:
        raise MachineError(f"{member.name} did not answer", why=f"waited {limit_s:.0f} s") from None


async def _by_line(vm: VM, script: Callable[[], str]) -> None:
    if not isinstance(vm, HasControlLine):
        raise MachineError("this machine has no control line")
    async with open_line(vm.control_line) as line:
        await line.wake()
        await line.run(script())


async def _by_ssh(cluster: ClusterRecord, member: MemberRecord, script: Callable[[], str]) -> None:
    command = shlex.join(["sudo", "-n", "sh", "-c", script()])
    await run(ssh.argv(cluster, member, [command], tty=False, multiplex=False, batch=True))
