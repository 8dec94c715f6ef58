"""What is done in a guest that has come back: by its control line, else over SSH."""

from __future__ import annotations

import asyncio
import os
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


# Host bytes credited and the generator reseeded (random(4): RNDADDENTROPY, RNDRESEEDCRNG); writing to the device does
# neither. A guest without perl, which Debian and Ubuntu never are, keeps its own.
_RESEED = (
    "perl -e '$e = pack(q(H*), q({entropy})); open $f, q(>), q(/dev/urandom) or exit; "
    "ioctl $f, 0x40085203, pack(q(iia*), 8 * length $e, length $e, $e); ioctl $f, 0x5207, 0' 2>/dev/null || :"
)


async def bring_up_to_date(cluster: ClusterRecord, member: MemberRecord, vm: VM) -> None:
    """Give a guest that was saved other random numbers than it had then, and would have a second time, and the time.

    Its clock stands where it stood when it was saved. Raises FleetboxError.
    """

    def script() -> str:
        return f"{_RESEED.format(entropy=os.urandom(32).hex())}; date -s @{time.time():.2f} >/dev/null"

    await _do(cluster, member, vm, script)


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
