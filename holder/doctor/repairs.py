"""`fleetbox doctor --fix`: missing programs first, then every other finding that says it is fixable."""

from __future__ import annotations

import asyncio
import os
import pwd
from collections.abc import Awaitable, Callable

from fleetbox import paths
from fleetbox.backends.host import process
from fleetbox.errors import FleetboxError
from fleetbox.holder.collection.prune import prune
from fleetbox.holder.doctor import hypervisor, machine, network, packages
from fleetbox.holder.doctor.examination import examine
from fleetbox.host import DoctorReport
from fleetbox.wire import Event, Notice

OnEvent = Callable[[Event], None]


async def fix(on_event: OnEvent) -> DoctorReport:
    """Repair what can be repaired, saying so, and look at the host again.

    Raises HostError when programs are missing and cannot be installed here. Of any other repair that fails a notice
    tells, and the report shows what is still wrong.
    """
    await packages.install_missing(on_event)
    report = await examine()
    repaired = False
    for check in report.checks:
        repair = _REPAIRS.get(check.name)
        if not check.fixable or repair is None:
            continue
        try:
            on_event(Notice(f"{check.name}: {await repair()}"))
            repaired = True
        except (FleetboxError, OSError) as e:
            on_event(Notice(f"{check.name} could not be repaired: {e}"))
    return await examine() if repaired else report


async def _load_modules() -> str:
    await process.run([*_as_root(), "modprobe", "-a", *network.MODULES])
    return f"loaded {', '.join(network.MODULES)}"


def _as_root() -> tuple[str, ...]:
    return () if os.geteuid() == 0 else ("sudo", "-n")


async def _close_folders() -> str:
    return await asyncio.to_thread(close_folders)


def close_folders() -> str:
    """Take group's and others' rights from those of fleetbox's folders that are ours."""
    closed = []
    for path in (paths.data_dir(), paths.state_dir(), paths.cache_dir(), paths.runtime_dir()):
        if machine.may_close(path) and path.stat().st_mode & 0o077:
            path.chmod(0o700)
            closed.append(str(path))
    return f"closed {', '.join(closed)} to others"


async def _join_group() -> str:
    user = pwd.getpwuid(os.geteuid()).pw_name
    await process.run([*_as_root(), "usermod", "-aG", hypervisor.GROUP, "--", user])
    return f"{user} is in the group {hypervisor.GROUP} from the next login on"


async def _clear_away() -> str:
    items = (await prune()).items
    return f"removed {sum(item.removed for item in items)} of {len(items)} leftovers"


_REPAIRS: dict[str, Callable[[], Awaitable[str]]] = {
    "network": _load_modules,
    "firewall": _load_modules,
    "folders": _close_folders,
    "kvm access": _join_group,
    "leftovers": _clear_away,
}
