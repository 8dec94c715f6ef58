"""Restoring: running members go back to a snapshot in place, all of them together.

A member has two slots; its record says which is its own. While it is restored the saved machine comes up paused in the
other slot, from a copy of the saved disk and with an interface that is not on the bridge, beside the old machine, which
stands still. Then they change places: all old machines leave the bridge, the new ones join it, and one write of the
cluster's record makes the new slots the members' own. Only then the new machines run, and the old ones end.

That write is the point of no return. Before it, whatever fails or interrupts is undone: the old machines are back on
the bridge and run on; when the holder itself dies, the next one ends the new machines, which no record names, and lets
the old ones run. After it the same happens with the places exchanged. No segment of the future can enter a rewound
socket: an old machine never hears or says anything again once a new one runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fleetbox import paths, wire
from fleetbox.backends.base import VM, Backend, Restores, State
from fleetbox.backends.host import disk as disks
from fleetbox.backends.host.files import worker
from fleetbox.errors import ConflictError, FleetboxError, HostError, NetworkError, UsageError
from fleetbox.faultpoint import arrive
from fleetbox.holder.folders import make_folder, remove_folder
from fleetbox.holder.guest import hostkeys
from fleetbox.holder.members import Machine, Members, close_master
from fleetbox.holder.operations import Emit, Steps, all_of, in_thread, together, uninterrupted
from fleetbox.holder.provision import disk_in_slot, find_disk, packed_fixtures, remove_slot
from fleetbox.holder.snapshots.guest import bring_up_to_date
from fleetbox.holder.snapshots.save import kept_beside
from fleetbox.holder.snapshots.standstill import pause_all, resume_all
from fleetbox.holder.snapshots.store import SnapshotStore, check_identity
from fleetbox.holder.store import ClusterStore
from fleetbox.image import Image
from fleetbox.records import ClusterRecord, MemberRecord, MemberState
from fleetbox.snapshot import Snapshot


@dataclass
class Return:
    """One member's way back. `record` is what its record will be; `now` what it is, None for a member that is gone."""

    record: MemberRecord
    saved: Path
    now: MemberRecord | None
    image: Image | None
    old: VM | None = None
    new: VM | None = None

    @property
    def runs(self) -> bool:
        """Whether it was saved running; else only its disk comes back, and it is stopped."""
        return self.record.state is MemberState.RUNNING


class Restoration:
    """The restore of members of one cluster to one snapshot."""

    def __init__(self, store: ClusterStore, members: Members, snapshot: Snapshot, emit: Emit) -> None:
        self._store = store
        self._members = members
        self._snapshot = snapshot
        self._saved = SnapshotStore().folder(snapshot)
        self._emit = emit

    async def run(self, names: list[str], images: Mapping[str, Image], timeout_s: float) -> None:
        """Put the members of these names back; `images` are theirs, by digest. See the module for what happens when."""
        returns = [self._plan(name, images) for name in names]
        async with AsyncExitStack() as undo:
            await self._recreate([r for r in returns if r.now is None], undo)
            with Steps(self._emit).step("disk"):
                await together(*(self._lay_out(r, undo) for r in returns))
                await arrive("restore.laid")
                await asyncio.gather(*(close_master(self._store.current.name, name) for name in names))
            with Steps(self._emit).step("restore"):
                for r in returns:
                    machine = self._members.machines.get(r.record.name)
                    r.old = machine.vm if machine else None
                # One that neither runs nor stands still (its kernel has panicked) cannot be paused, but replaced.
                paused = (r.old for r in returns if r.old is not None and r.old.state() is State.RUNNING)
                await pause_all({vm.config.name: vm for vm in paused}, undo)
                await arrive("restore.paused")
                await together(*(self._bring_up(r, undo) for r in returns if r.runs))
                await self._exchange(returns, undo)
                await arrive("restore.joined")
                before = await uninterrupted(self._commit(returns))
                undo.pop_all()
                await uninterrupted(self._go_on(returns, before))
        running = {r.record.name: r.new for r in returns if r.new is not None}
        limit_s = self._members.boot_limit(timeout_s)
        await all_of({name: self._ready(name, vm, limit_s) for name, vm in running.items()}, "reached")

    def _plan(self, name: str, images: Mapping[str, Image]) -> Return:
        saved, now = self._snapshot.members[name], self._store.current.members.get(name)
        record = msgspec.structs.replace(
            saved,
            folder=str(paths.member_dir(self._store.current.name, name)),
            slot=1 - now.slot if now else 0,
            started_at=time.time() if saved.state is MemberState.RUNNING else saved.started_at,
        )
        return Return(record, self._saved / name, now, images.get(saved.image_digest))

    async def _recreate(self, gone: list[Return], undo: AsyncExitStack) -> None:
        """Reserve the place of members that were destroyed since: after a crash they are known as half made."""
        if not gone:
            return
        for r in gone:
            self._store.put_member(msgspec.structs.replace(r.record, state=MemberState.CREATING))
            undo.push_async_callback(self._members.drop, r.record.name)
        await self._store.commit()
        for r in gone:
            await self._reserve(r.record, undo)

    async def _reserve(self, record: MemberRecord, undo: AsyncExitStack) -> None:
        undo.push_async_callback(self._members.network.release, record.name)
        lease = await self._members.network.reserve(record.name, record.ip)
        if lease.ip != record.ip:
            raise ConflictError(
                f"{record.name} cannot have its address {record.ip} back",
                why="another member has it",
                hint="destroy that member, or use `fleetbox clone`, which gives new addresses",
            )

    async def _lay_out(self, r: Return, undo: AsyncExitStack) -> None:
        """Put the saved disk into the member's folder, beside the one that it has."""
        folder = Path(r.record.folder)
        if r.now is None:
            make_folder(folder)
            undo.push_async_callback(remove_folder, folder)
        saved = find_disk(r.saved)
        disk = disk_in_slot(folder, r.record.slot, saved.format)
        undo.push_async_callback(asyncio.to_thread, remove_slot, r.record, r.record.slot)
        await disks.copy_disk(saved.path, disk.path)
        for path in kept_beside(r.saved):
            # A machine that runs keeps the fixtures' disks that it has open; a later cold start packs them anew.
            if path.name != hostkeys.KEY_FILE or r.now is None:
                await disks.copy_disk(path, folder / path.name)
        if r.now is None:
            undo.callback(hostkeys.remove_known_host, self._store.current.name, r.record.name)
            lease = await self._members.network.reserve(r.record.name, r.record.ip)
            await in_thread(self._members.provisioner.write_seed, r.record, lease)

    async def _bring_up(self, r: Return, undo: AsyncExitStack) -> None:
        """The saved machine, paused, with its interface beside the bridge."""
        backend = self._members.backend
        assert isinstance(backend, Restores)
        lease = await self._members.network.reserve(r.record.name, r.record.ip)
        config = self._members.provisioner.config(r.record, r.image, lease, packed_fixtures(r.record))
        vm = await backend.restore(config, self._members.network, r.saved)
        undo.push_async_callback(vm.kill)
        await vm.start()
        r.new = vm
        await arrive("restore.up")

    async def _exchange(self, returns: list[Return], undo: AsyncExitStack) -> None:
        """All old machines leave the bridge before a new one joins it."""
        network = self._members.network
        for r in returns:
            if r.old is not None and r.now is not None:
                undo.push_async_callback(network.join, r.record.name, r.now.slot)
                await network.leave(r.record.name, r.now.slot)
                await arrive("restore.left")
        for r in returns:
            if r.new is not None:
                undo.push_async_callback(network.leave, r.record.name, r.record.slot)
                await network.join(r.record.name, r.record.slot)

    async def _commit(self, returns: list[Return]) -> list[Machine]:
        """Make the new machines the members' own, durably; returns the old ones. Failed, nothing is changed."""
        records, machines = self._store.current.members, dict(self._members.machines)
        replaced = []
        for r in returns:
            self._store.put_member(msgspec.structs.replace(r.record, handle=r.new.handle if r.new else None))
            before = self._members.replace(r.record.name, r.new)
            if before is not None:
                replaced.append(before)
        try:
            await self._store.commit()
        except BaseException:
            for name in [r.record.name for r in returns]:
                self._store.put_member(records[name])
                self._members.replace(name, None)
                if name in machines:
                    self._members.machines[name] = machines[name]
            with contextlib.suppress(FleetboxError):  # it may have been replaced before what failed
                await self._store.commit()
            raise
        return replaced

    async def _go_on(self, returns: list[Return], before: list[Machine]) -> None:
        """Let the new machines run, and be rid of the old ones."""
        try:
            await arrive("restore.committed")
            await resume_all({r.record.name: r.new for r in returns if r.new is not None})
            await arrive("restore.resumed")
        finally:
            await asyncio.gather(*(machine.vm.kill() for machine in before), return_exceptions=True)
            await arrive("restore.replaced")
            for r in returns:
                if r.now is not None:
                    await asyncio.to_thread(remove_slot, r.record, r.now.slot)

    async def _ready(self, name: str, vm: VM, limit_s: float) -> None:
        """The member answers again, and knows what time it is."""
        with Steps(self._emit, name).step("address"):
            await together(vm.wait_for_ip(limit_s), self._bring_up_to_date(name, vm))

    async def _bring_up_to_date(self, name: str, vm: VM) -> None:
        if self._members.backend.capabilities().ssh:
            try:
                await bring_up_to_date(self._store.current, self._store.current.members[name], vm)
            except FleetboxError as e:
                self._emit(wire.Notice(f"the clock of {name} could not be set: {e}", name))


def members_to_restore(cluster: ClusterRecord, snapshot: Snapshot, request: wire.RestoreRequest) -> list[str]:
    """The members that the request means, once it is sure that the snapshot is theirs.

    A member that was destroyed since is made again. Members of whom the snapshot knows nothing are never touched: a
    whole cluster is only restored without them. Raises UsageError, ConflictError.
    """
    title = snapshot.name or snapshot.id
    if snapshot.cluster != cluster.name:
        raise ConflictError(
            f"the snapshot {title} is not of the cluster {cluster.name!r}",
            why=f"it was taken of {snapshot.cluster!r}",
            hint=f"`fleetbox clone {title}` makes new members from it",
        )
    if not request.members and snapshot.kind == "member":
        raise UsageError(
            f"the snapshot {title} is of one member",
            hint=f"fleetbox restore {cluster.name}/{next(iter(snapshot.members))} {title}",
        )
    unknown = [name for name in request.members or cluster.members if name not in snapshot.members]
    if unknown:
        raise ConflictError(
            f"the snapshot {title} does not have {', '.join(unknown)}",
            why=f"it has {', '.join(snapshot.members)}",
            hint="destroy members that were added since, or restore the others one by one",
        )
    names = list(request.members or snapshot.members)
    for name in names:
        now, saved = cluster.members.get(name), snapshot.members[name]
        if now is not None and now.id != saved.id:
            raise ConflictError(
                f"{name} is not the member that was saved",
                why="it was destroyed and made anew since",
                hint=f"`fleetbox destroy {cluster.name}/{name}` first, or use `fleetbox clone`",
            )
        if now is not None and now.ip != saved.ip:
            raise ConflictError(
                f"{name} has another address than it was saved with",
                why=f"{now.ip}, not {saved.ip}: the cluster's subnet has changed",
                hint="use `fleetbox clone`, which gives new addresses",
            )
    return names


async def check_usable(snapshot: Snapshot, backend: Backend) -> None:
    """Raise HostError or DiskError when its machines cannot be brought up here, before anything is touched."""
    if not isinstance(backend, Restores):
        raise HostError(f"the backend {backend.name} cannot restore machines", hint="snapshots need one that can")
    check_identity(snapshot, backend.snapshot_identity())
    await worker.run(lambda stop: SnapshotStore().verify(snapshot, stop))


async def restore(
    store: ClusterStore,
    members: Members,
    snapshot: Snapshot,
    names: list[str],
    images: Mapping[str, Image],
    request: wire.RestoreRequest,
    emit: Emit,
) -> None:
    """Restore the members `names` in place; a failure before the exchange leaves all as it was."""
    with Steps(emit).step("check"):
        await check_usable(snapshot, members.backend)
        if members.network.subnet != snapshot.subnet:
            raise NetworkError(
                f"the snapshot {snapshot.name or snapshot.id} belongs to the subnet {snapshot.subnet}",
                why=f"the cluster is on {members.network.subnet} now",
                hint="use `fleetbox clone`, which gives new addresses",
            )
    await arrive("restore.check")
    await Restoration(store, members, snapshot, emit).run(names, images, request.timeout_s)
