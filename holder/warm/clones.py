"""What makes a clone of a template a member: its own identity, and its fixtures."""

from __future__ import annotations

import shlex
from pathlib import Path

from fleetbox import ssh
from fleetbox.backends.base import VM, HasControlLine, Lease, Network, timeout_scale
from fleetbox.backends.host.process import run
from fleetbox.backends.host.thread import HostThread
from fleetbox.errors import FleetboxError, MachineError
from fleetbox.holder.guest import fixtures, hostkeys
from fleetbox.holder.guest.seed import mount_command
from fleetbox.holder.warm.identity import NewIdentity, machine_id
from fleetbox.holder.warm.reidentify import LIMIT_S, LinkLocal, reidentify
from fleetbox.records import ClusterRecord, MemberRecord
from fleetbox.specs import Fixture
from fleetbox.template import Template

# A disk that was plugged in just now is found by its label once udev has seen it.
_APPEARS = "n=0; until [ -e /dev/disk/by-label/{label} ] || [ $n -ge 100 ]; do n=$((n+1)); sleep 0.1; done; "


async def become(
    vm: VM, cluster: str, record: MemberRecord, lease: Lease, template: Template, network: Network, host: HostThread
) -> None:
    """Give the running clone of `template`, whose interface is not on the bridge, the member's identity.

    Raises MachineError; the machine is then to be thrown away.
    """
    was = template.origin
    identity = NewIdentity(
        hostname=record.name,
        cluster=cluster,
        old_cluster=was.cluster,
        old=Lease("template", was.ip, was.mac, was.prefix_length, was.gateway, was.dns),
        new=lease,
        machine_id=machine_id(record.id),
        instance_id=record.instance,
        host_key=hostkeys.make_host_key(Path(record.folder)),
    )
    limit_s = LIMIT_S * timeout_scale()
    if template.control_line and isinstance(vm, HasControlLine):
        await reidentify(identity, control_line=vm.control_line, armed=True, timeout_s=limit_s)
        return
    tap = await network.attach(record.name, slot=record.slot, join=False)
    where = LinkLocal(tap=tap, mac=was.mac, host_key=was.host_key, host=host)
    await reidentify(identity, link_local=where, timeout_s=limit_s)


async def mount_fixtures(cluster: ClusterRecord, record: MemberRecord, timeout_s: float) -> None:
    """Mount a clone's fixtures: it was booted without them. Raises MachineError when it cannot."""
    if not record.spec.fixtures:
        return
    script = "; ".join(map(_mount, sorted(record.spec.fixtures, key=lambda f: f.guest)))
    argv = ssh.argv(
        cluster, record, [shlex.join(["sudo", "-n", "sh", "-c", script])], tty=False, multiplex=False, batch=True
    )
    try:
        await run(argv, timeout_s=timeout_s)
    except FleetboxError as e:
        raise MachineError(f"the fixtures of {record.name} cannot be mounted", why=e.why, details=e.details) from e


def _mount(fixture: Fixture) -> str:
    return _APPEARS.format(label=shlex.quote(fixtures.label(fixture.guest))) + mount_command(fixture)
