"""Saving: a member, or a whole cluster at one consistent instant.

All members stand still while their memory, their devices and their disks are saved, so that no member knows of anything
that another has not sent yet. What need not be done while they stand is done afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import psutil

from fleetbox import wire
from fleetbox.backends.base import VM, Backend, KeepsDisks, Lease, Restores, Snapshots
from fleetbox.backends.host import disk as disks
from fleetbox.backends.host.files import worker
from fleetbox.errors import HostError
from fleetbox.faultpoint import arrive
from fleetbox.holder.guest.hostkeys import KEY_FILE, make_host_key
from fleetbox.holder.members import Members
from fleetbox.holder.operations import Emit, Steps, in_thread, together, uninterrupted
from fleetbox.holder.provision import disk_in_slot, find_disk
from fleetbox.holder.snapshots.standstill import pause_all
from fleetbox.holder.snapshots.store import SnapshotStore, blobs_under
from fleetbox.names import new_id
from fleetbox.records import ClusterRecord, MemberRecord, MemberState
from fleetbox.snapshot import Snapshot
from fleetbox.template import Origin

ORIGIN = "origin.json"
_KEPT_BESIDE = re.compile(rf"fixture-\d+\.img|{KEY_FILE}")


async def save(
    cluster: ClusterRecord, backend: Backend, running: Members | None, request: wire.SaveRequest, emit: Emit
) -> Snapshot:
    """Save the members that are asked for (none: all): those that run with their memory, the others as disks.

    Failed or cancelled, there is no snapshot and the machines run on. Raises HostError where the backend cannot,
    DiskError, MachineError, ConflictError for a name that is taken.
    """
    names = list(request.members) or list(cluster.members)
    machines = {n: machine.vm for n, machine in running.machines.items() if n in names} if running else {}
    identity = _identity(backend, machines)
    store = SnapshotStore()
    await asyncio.to_thread(store.check_free, request.name)
    members = [_as_saved(cluster.members[name], runs=name in machines) for name in names]
    snapshot = Snapshot(
        id=new_id(),
        name=request.name,
        description=request.description,
        kind="member" if request.members else "cluster",
        created_at=time.time(),
        cluster=cluster.name,
        subnet=cluster.subnet,
        backend=cluster.backend,
        accelerator=cluster.accelerator,
        identity=identity,
        members={member.name: member for member in members},
        blobs=blobs_under(members),
        bound_to=cluster.id if cluster.bound and not request.keep else "",
    )
    with store.staging() as folder:
        await arrive("save.staged")
        await in_thread(store.announce, folder, snapshot)
        await arrive("save.announced")
        disks.free_space_preflight(folder, await asyncio.to_thread(_expected_bytes, members, machines))
        for name in names:
            (folder / name).mkdir(mode=0o700)
        async with AsyncExitStack() as standing:
            with Steps(emit).step("save"):
                await pause_all(machines, standing)
                paused_at = time.monotonic()
                await arrive("save.paused")
                await together(*(_save_still(member, machines.get(member.name), backend, folder) for member in members))
                await standing.aclose()
        pause_s = time.monotonic() - paused_at
        await arrive("save.resumed")
        with Steps(emit).step("store"):
            await worker.run(lambda stop: store.verify(snapshot, stop))  # now, so that a restore need not wait for it
            await together(*(_save_rest(member, folder / member.name, running) for member in members))
            snapshot = await uninterrupted(asyncio.to_thread(store.publish, folder, snapshot))
    if machines:
        emit(wire.Notice(f"the machines stood still for {pause_s:.2f} s"))
    return snapshot


def _identity(backend: Backend, running: Mapping[str, VM]) -> dict[str, str]:
    if not isinstance(backend, Restores) or not all(isinstance(vm, Snapshots) for vm in running.values()):
        raise HostError("this backend cannot save machines", hint="snapshots need a backend that can, such as qemu")
    return backend.snapshot_identity()


def _as_saved(member: MemberRecord, *, runs: bool) -> MemberRecord:
    """The record as a snapshot keeps it: its state says whether there is memory to come back to."""
    return msgspec.structs.replace(
        member, state=MemberState.RUNNING if runs else MemberState.STOPPED, handle=None, error=""
    )


async def _save_still(member: MemberRecord, vm: VM | None, backend: Backend, folder: Path) -> None:
    """What must be saved while the machine stands still."""
    if vm is not None:
        assert isinstance(vm, Snapshots)
        await vm.snapshot(folder / member.name)
        await arrive("save.memory")
    disk = find_disk(Path(member.folder), member.slot)
    if vm is None and isinstance(backend, KeepsDisks):
        await backend.bring_home(disk)
    await disks.copy_disk(disk.path, disk_in_slot(folder / member.name, 0, disk.format).path)
    await arrive("save.disk")


async def _save_rest(member: MemberRecord, folder: Path, running: Members | None) -> None:
    """What nobody changes while the member runs: its fixtures' disks, its host key, and who and where it is."""
    for path in kept_beside(Path(member.folder)):
        await disks.copy_disk(path, folder / path.name)
    if running is not None and member.name in running.machines:
        lease = await running.network.reserve(member.name, member.ip)
        await in_thread(_write_origin, running.provisioner.cluster, member, lease, folder / ORIGIN)


def _write_origin(cluster: str, member: MemberRecord, lease: Lease, path: Path) -> None:
    origin = Origin(
        cluster=cluster,
        ip=lease.ip,
        mac=lease.mac,
        prefix_length=lease.prefix_length,
        gateway=lease.gateway,
        dns=lease.dns,
        host_key=make_host_key(Path(member.folder)).public_text,
    )
    with disks.disk_errors(f"{path} cannot be written"):
        path.write_bytes(msgspec.json.encode(origin))


def kept_beside(folder: Path) -> Sequence[Path]:
    """The files of a member, or of a saved one, that are kept beside its disk and memory."""
    return sorted(path for path in folder.iterdir() if _KEPT_BESIDE.fullmatch(path.name))


def _expected_bytes(members: Sequence[MemberRecord], running: Mapping[str, VM]) -> int:
    """About what the files will take: the disks, and of the memories what the machines have touched."""
    total = 0
    for member in members:
        total += find_disk(Path(member.folder), member.slot).path.stat().st_blocks * 512
        handle = running[member.name].handle if member.name in running else None
        if handle is not None:
            with contextlib.suppress(psutil.Error):
                total += min(psutil.Process(handle.process.pid).memory_info().rss, member.spec.memory_bytes)
    return total
