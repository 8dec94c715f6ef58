"""Cloning: new members of what was saved, each with an identity of its own.

A saved machine wakes with its interface beside the bridge, is made another one (`fleetbox.holder.warm`), and joins only
then. A member that was saved without memory boots from its disk, as a new instance to cloud-init.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fleetbox.backends.base import VM, Capabilities, HasControlLine, Lease, Pauses, Restores
from fleetbox.backends.host import disk as disks
from fleetbox.backends.host.thread import HostThread
from fleetbox.errors import HostError, MachineError, UsageError
from fleetbox.faultpoint import arrive
from fleetbox.holder.folders import make_folder, remove_folder
from fleetbox.holder.guest import fixtures, hostkeys
from fleetbox.holder.members import Members, with_serial_tail
from fleetbox.holder.operations import Emit, Steps, in_thread, together
from fleetbox.holder.provision import disk_in_slot, find_disk, packed_fixtures
from fleetbox.holder.snapshots.guest import set_machine_id
from fleetbox.holder.snapshots.save import ORIGIN, kept_beside
from fleetbox.holder.store import ClusterStore
from fleetbox.holder.warm.clones import mount_fixtures
from fleetbox.holder.warm.identity import NewIdentity, machine_id
from fleetbox.holder.warm.reidentify import LinkLocal, reidentify
from fleetbox.image import Image
from fleetbox.records import MemberRecord, MemberState
from fleetbox.shapes import UNDECODABLE
from fleetbox.sizes import format_size
from fleetbox.specs import Fixture, MemberSpec
from fleetbox.template import Origin
from fleetbox.wire import SpecChange


@dataclass(frozen=True)
class Clone:
    """One member that is to be: its placeholder, what it was saved as, and where that is."""

    placeholder: MemberRecord
    saved: MemberRecord
    folder: Path
    image: Image | None
    new_fixtures: tuple[Fixture, ...]


class Cloning:
    """Makes clones in one cluster; `host` reaches those that have no control line."""

    def __init__(self, store: ClusterStore, members: Members, host: HostThread, emit: Emit) -> None:
        self._store = store
        self._members = members
        self._host = host
        self._emit = emit

    async def run(self, clones: Sequence[Clone], timeout_s: float) -> None:
        """Make all of them, or none. Their placeholders are recorded first: after a crash they are rolled back."""
        for clone in clones:
            self._store.put_member(clone.placeholder)
        try:
            await self._store.commit()
        except BaseException:
            for clone in clones:
                self._store.drop_member(clone.placeholder.name)
            raise
        async with AsyncExitStack() as undo:
            for clone in clones:
                undo.push_async_callback(self._members.drop, clone.placeholder.name)
            for clone in clones:  # in order: the first gets the lowest free address
                undo.push_async_callback(self._members.network.release, clone.placeholder.name)
                await self._members.network.reserve(clone.placeholder.name)
            await arrive("clone.reserved")
            await together(*(self._make(clone, timeout_s, undo) for clone in clones))
            await arrive("clone.made")
            for clone in clones:
                self._store.change_member(clone.placeholder.name, state=MemberState.RUNNING)
            await self._store.commit()
            undo.pop_all()

    async def _make(self, clone: Clone, timeout_s: float, undo: AsyncExitStack) -> None:
        members, name = self._members, clone.placeholder.name
        steps = Steps(self._emit, name)
        async with members.gate.slot():
            folder = Path(clone.placeholder.folder)
            with steps.step("disk"):
                make_folder(folder)
                undo.push_async_callback(remove_folder, folder)
                await self._copy_files(clone, folder)
                await arrive("clone.copied")
            lease = await members.network.reserve(name)
            undo.push_async_callback(members.network.release, name)
            record = self._store.put_member(msgspec.structs.replace(clone.placeholder, ip=lease.ip, mac=lease.mac))
            undo.callback(hostkeys.remove_known_host, self._store.current.name, name)
            if clone.saved.state is MemberState.RUNNING:
                await self._wake(clone, record, lease, steps, timeout_s, undo)
            else:
                await members.boot(record, clone.image, steps, timeout_s, undo)
                if members.backend.capabilities().ssh:
                    vm = members.machines[name].vm
                    await set_machine_id(self._store.current, record, vm, machine_id(record.id))

    async def _copy_files(self, clone: Clone, folder: Path) -> None:
        saved = find_disk(clone.folder)
        disk = disk_in_slot(folder, 0, saved.format)
        await disks.copy_disk(saved.path, disk.path)
        if clone.placeholder.spec.disk_bytes > clone.saved.spec.disk_bytes:
            await disks.grow_disk(disk, clone.placeholder.spec.disk_bytes)
        for path in kept_beside(clone.folder):
            if path.name != hostkeys.KEY_FILE:  # fixtures that the saved guest may have mounted: as they were
                await disks.copy_disk(path, folder / path.name)

    async def _wake(
        self, clone: Clone, record: MemberRecord, lease: Lease, steps: Steps, timeout_s: float, undo: AsyncExitStack
    ) -> None:
        members, backend = self._members, self._members.backend
        assert isinstance(backend, Restores)
        deadline = asyncio.get_running_loop().time() + members.boot_limit(timeout_s)

        def left() -> float:
            return max(0.1, deadline - asyncio.get_running_loop().time())

        for fixture, disk in zip(record.spec.fixtures, packed_fixtures(record), strict=True):
            if fixture in clone.new_fixtures:
                await fixtures.pack(fixture, disk.path, disk.serial)
        await in_thread(members.provisioner.write_seed, record, lease)
        config = members.provisioner.config(record, clone.image, lease, packed_fixtures(record))
        with steps.step("restore"):
            vm = await backend.restore(config, members.network, clone.folder)
            undo.push_async_callback(members.end_now, record.name, vm)
            await arrive("member.launch")
            await vm.start()
            await arrive("member.launched")
            record = self._store.change_member(record.name, handle=vm.handle)
            members.watch(record.name, vm)
            await self._store.commit()
            await arrive("member.resume")
            assert isinstance(vm, Pauses)
            await vm.resume()
            await arrive("member.resumed")
        async with with_serial_tail(record):
            with steps.step("identity"):
                await self._identify(clone, record, lease, vm)
                await arrive("member.join")
                await members.network.join(record.name, record.slot)
            await members.wait_ready(record, vm, steps, left)
            if clone.new_fixtures and backend.capabilities().ssh:
                only_new = msgspec.structs.replace(record.spec, fixtures=clone.new_fixtures)
                await mount_fixtures(self._store.current, msgspec.structs.replace(record, spec=only_new), left())

    async def _identify(self, clone: Clone, record: MemberRecord, lease: Lease, vm: VM) -> None:
        if not self._members.backend.capabilities().ssh:
            return
        was = _origin(clone.folder)
        identity = NewIdentity(
            hostname=record.name,
            cluster=self._store.current.name,
            old_cluster=was.cluster,
            old=Lease(clone.saved.name, was.ip, was.mac, was.prefix_length, was.gateway, was.dns),
            new=lease,
            machine_id=machine_id(record.id),
            instance_id=record.instance,
            host_key=hostkeys.make_host_key(Path(record.folder)),
            authorized_key=self._members.provisioner.authorized_key,
        )
        has_shell = clone.image is None or clone.image.has_systemd
        if record.control_line and has_shell and isinstance(vm, HasControlLine):
            await reidentify(identity, control_line=vm.control_line)
            return
        tap = await self._members.network.attach(record.name, slot=record.slot, join=False)
        where = LinkLocal(tap=tap, mac=was.mac, host_key=was.host_key, host=self._host)
        await reidentify(identity, link_local=where)


def _origin(folder: Path) -> Origin:
    try:
        return msgspec.json.decode((folder / ORIGIN).read_bytes(), type=Origin)
    except (OSError, *UNDECODABLE) as e:
        raise MachineError(
            f"the saved machine in {folder} cannot be cloned", why=f"who it was is not known: {e}"
        ) from e


def spec_of_clone(saved: MemberRecord, wanted: SpecChange, capabilities: Capabilities) -> MemberSpec:
    """The clone's spec. Raises UsageError for what no clone, HostError for what no running memory can change."""
    for word in ("image", "boot", "kernel"):
        if getattr(wanted, word) is not None:
            raise UsageError(f"a clone keeps its {word}", hint=f"leave --{word} out, or use `fleetbox add`")
    old = saved.spec
    added = tuple(fixture for fixture in wanted.fixtures or () if fixture not in old.fixtures)
    if twice := {fixture.guest for fixture in old.fixtures} & {fixture.guest for fixture in added}:
        raise UsageError(f"{saved.name} has another fixture at {min(twice)}", hint="choose another guest path")
    # The saved guest knows its fixtures by their order.
    spec = msgspec.structs.replace(wanted, fixtures=(*old.fixtures, *added)).apply(old)
    if spec.disk_bytes < old.disk_bytes:
        raise UsageError("a disk cannot shrink", why=f"the saved one has {format_size(old.disk_bytes)}")
    if saved.state is not MemberState.RUNNING:
        return spec
    if added and not capabilities.hotplug:
        raise HostError(
            f"a clone of {saved.name} cannot have further fixtures",
            why="it was saved while it ran, and its hypervisor plugs nothing in",
            hint="leave --fixture out, or save it while it is stopped",
        )
    for field, word in (("cpus", "cpus"), ("memory_bytes", "memory"), ("disk_bytes", "disk")):
        if getattr(spec, field) != getattr(old, field) and word not in capabilities.change_on_restore:
            raise HostError(
                f"the {word} of a clone of {saved.name} cannot be other than it had",
                why="it was saved while it ran, and its kernel knows what it has",
                hint=f"leave --{word} out, or save it while it is stopped",
            )
    return spec
