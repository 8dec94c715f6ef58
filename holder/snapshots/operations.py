"""The operations on snapshots that a cluster's holder serves, each with the cluster's lock held."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from fleetbox import wire
from fleetbox.backends.base import Capabilities, generate_mac
from fleetbox.backends.host.thread import HostThread
from fleetbox.errors import ConflictError, NotFoundError, UsageError
from fleetbox.holder import admission
from fleetbox.holder.bound import check_owner
from fleetbox.holder.ground import Ground
from fleetbox.holder.operations import Emit, Steps
from fleetbox.holder.provision import new_member
from fleetbox.holder.server import decode
from fleetbox.holder.snapshots.clone import Clone, Cloning, spec_of_clone
from fleetbox.holder.snapshots.restore import check_usable, members_to_restore, restore
from fleetbox.holder.snapshots.save import save
from fleetbox.holder.snapshots.store import SnapshotStore
from fleetbox.holder.store import ClusterStore
from fleetbox.image import Image
from fleetbox.names import new_id
from fleetbox.records import ClusterRecord, MemberRecord
from fleetbox.snapshot import Snapshot

OPERATIONS = ("save", "restore", "clone")

Run = Callable[[Emit], Awaitable[dict[str, Any]]]


def _names(snapshot: Snapshot, record: ClusterRecord | None, wanted: str) -> dict[str, str]:
    """The clones' names, each with the name that it was saved under. Raises ConflictError for one that is taken."""
    if snapshot.kind == "cluster":
        if record is not None:
            raise ConflictError(
                f"there is a cluster {record.name!r} already",
                hint="a cluster's snapshot becomes a new cluster: choose another name",
            )
        return {name: name for name in snapshot.members}
    was = next(iter(snapshot.members))
    if record is None:
        return {wanted or was: was}
    return {admission.names_for_add(record, wire.AddRequest(names=(wanted,) if wanted else ()))[0]: was}


def _anew(snapshot: Snapshot) -> Snapshot:
    """The snapshot with members that are other records than those that were saved, whatever they are to the guests."""
    now = time.time()
    members = {
        name: msgspec.structs.replace(member, id=new_id(), created_at=now) for name, member in snapshot.members.items()
    }
    return msgspec.structs.replace(snapshot, members=members)


@dataclass(frozen=True)
class SnapshotOperations:
    """What the orchestrator lends: its record, what its members stand on, and how an empty cluster is given up."""

    store: ClusterStore
    ground: Ground
    host: HostThread
    abandon_if_empty: Callable[[], Awaitable[None]]

    def work(self, operation: str, body: bytes) -> Run:
        """The work of one of `OPERATIONS`. Raises UsageError."""
        if operation == "save":
            to_save = decode(body, wire.SaveRequest)
            return lambda emit: self.save(to_save, emit)
        if operation == "restore":
            to_restore = decode(body, wire.RestoreRequest)
            return lambda emit: self.restore(to_restore, emit)
        to_clone = decode(body, wire.CloneRequest)
        return lambda emit: self.clone(to_clone, emit)

    async def save(self, request: wire.SaveRequest, emit: Emit) -> dict[str, Any]:
        """Save one member or all at one instant."""
        record = self.store.current
        unknown = [name for name in request.members if name not in record.members]
        if unknown:
            raise NotFoundError(f"the cluster {record.name!r} has no member {unknown[0]!r}")
        if len(request.members) > 1:
            raise UsageError("one member is saved, or the whole cluster")
        backend = await self.ground.ensure_backend(record, wire.UpRequest(), record.spec)
        return {"snapshot": await save(self.store.current, backend, self.ground.members, request, emit)}

    async def restore(self, request: wire.RestoreRequest, emit: Emit) -> dict[str, Any]:
        """Put one member or all back, in place."""
        snapshot = await asyncio.to_thread(SnapshotStore().find, request.snapshot)
        record = self.store.current
        names = members_to_restore(record, snapshot, request)
        backend = await self.ground.ensure_backend(record, wire.UpRequest(), record.spec)
        images = self._images_of(snapshot)
        admission.check_room(len(names))
        admission.check_memory([snapshot.members[name].spec for name in names], emit)
        members = await self.ground.ensure_network(backend, emit)
        await restore(self.store, members, snapshot, names, images, request, emit)
        return {"members": names}

    async def clone(self, request: wire.CloneRequest, emit: Emit) -> dict[str, Any]:
        """Make a new member of a member's snapshot, or the cluster of a cluster's.

        On a private network a whole cluster is *forked*: nobody outside hears it, so its members come up exactly as
        they were saved, with their addresses, names and open connections. Elsewhere each gets an identity of its own.
        """
        snapshot = await asyncio.to_thread(SnapshotStore().find, request.snapshot)
        record = self.store.record
        names = _names(snapshot, record, request.name)
        first = snapshot.members[next(iter(names.values()))].spec
        check_owner(record, request.owner)
        founding = wire.UpRequest(
            backend="" if record else snapshot.backend, network=request.network, owner=request.owner
        )
        backend = await self.ground.ensure_backend(record, founding, msgspec.structs.replace(first, fixtures=()))
        try:
            with Steps(emit).step("check"):
                await check_usable(snapshot, backend)
                images = self._images_of(snapshot)
                clones = [
                    self._planned(name, snapshot, snapshot.members[was], images, request, backend.capabilities())
                    for name, was in names.items()
                ]
                admission.check_room(len(clones))
                admission.check_memory([clone.placeholder.spec for clone in clones], emit)
            alike = snapshot.kind == "cluster" and request.spec == wire.SpecChange()
            forks = alike and self.store.current.network == "private"
            if forks:
                self.store.change(subnet=snapshot.subnet)
            members = await self.ground.ensure_network(backend, emit)
            if forks and members.network.subnet == snapshot.subnet:
                wanted = wire.RestoreRequest(snapshot.id, timeout_s=request.timeout_s)
                await restore(self.store, members, _anew(snapshot), list(names), images, wanted, emit)
            else:
                await Cloning(self.store, members, self.host, emit).run(clones, request.timeout_s)
        except BaseException:
            await asyncio.shield(self.abandon_if_empty())
            raise
        return {"members": list(names)}

    def _planned(
        self,
        name: str,
        snapshot: Snapshot,
        saved: MemberRecord,
        images: dict[str, Image],
        request: wire.CloneRequest,
        capabilities: Capabilities,
    ) -> Clone:
        cluster = self.store.current
        spec = spec_of_clone(saved, request.spec, capabilities)
        added = tuple(fixture for fixture in spec.fixtures if fixture not in saved.spec.fixtures)
        # The saved fixtures' disks come with the snapshot: their folders need not be here any more.
        admission.check_spec(msgspec.structs.replace(spec, fixtures=added))
        mac = generate_mac(f"{cluster.name}/{name}")
        placeholder = msgspec.structs.replace(
            new_member(cluster, name, new_id(), spec, mac, time.time(), saved.image_digest),
            base=saved.base,
            warm=saved.warm,
            control_line=saved.control_line and request.control_line,
        )
        folder = SnapshotStore().folder(snapshot) / saved.name
        return Clone(placeholder, saved, folder, images.get(saved.image_digest), added)

    def _images_of(self, snapshot: Snapshot) -> dict[str, Image]:
        """Its members' images by digest. Raises NotFoundError for one that is gone."""
        digests = {member.image_digest for member in snapshot.members.values()} - {""}
        return {digest: self.ground.images.inspect(digest) for digest in digests}
