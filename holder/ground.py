"""What a cluster's members stand on: its backend, its network and their images.

Each is made sure of when an operation first needs it. Callers hold the cluster's lock.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable

from fleetbox import names as naming
from fleetbox import wire
from fleetbox.backends import registry
from fleetbox.backends.base import Backend, BackendEnvironment, NetworkSpec
from fleetbox.backends.host.thread import HostThread
from fleetbox.errors import HostError
from fleetbox.faultpoint import arrive
from fleetbox.holder.bound import OwnerWatch
from fleetbox.holder.images.library import ImageLibrary
from fleetbox.holder.members import Members
from fleetbox.holder.operations import Emit, Steps
from fleetbox.holder.store import ClusterStore
from fleetbox.image import Image
from fleetbox.network import Network, conflict
from fleetbox.records import ClusterRecord, MemberRecord
from fleetbox.specs import MemberSpec

log = logging.getLogger(__name__)


class Ground:
    """The backend, and while something runs or is made the network, of one cluster.

    `members` are there while the network is. `emit` gets what a backend says by itself, `on_end` is called when a
    member's machine has ended.
    """

    def __init__(
        self,
        cluster: str,
        store: ClusterStore,
        host: HostThread,
        owner: OwnerWatch,
        emit: Emit,
        on_end: Callable[[], None],
    ) -> None:
        self.images = ImageLibrary()
        self.backend: Backend | None = None
        self.members: Members | None = None
        self._cluster = cluster
        self._store = store
        self._host = host
        self._owner = owner
        self._emit = emit
        self._on_end = on_end

    async def ensure_backend(
        self, existing: ClusterRecord | None, request: wire.UpRequest, spec: MemberSpec
    ) -> Backend:
        """The cluster's backend; a cluster that is not there yet gets its record, in memory."""
        choice = await asyncio.to_thread(registry.choose, request.backend, existing.backend if existing else "")
        if self.backend is None:
            surroundings = BackendEnvironment(self._host, dict(os.environ), self._emit)
            backend = registry.create(choice.name, surroundings)
            try:
                await backend.check()
            except HostError as e:
                if not choice.otherwise:
                    raise
                choice = registry.Choice(choice.otherwise, f"auto: {choice.name} cannot be used: {e}")
                self._emit(wire.Notice(f"the backend is {choice.name}: {e}"))
                backend = registry.create(choice.name, surroundings)
                await backend.check()
            self.backend = backend
        isolated = self._host.isolation is not None and self.backend.capabilities().private_network
        has = existing.network if existing else "private" if isolated else "host"
        if request.network not in ("auto", has):
            raise conflict(has, request.network)
        if existing is None:
            if request.owner is not None:
                self._owner.watch(request.owner)
            self._store.create(
                ClusterRecord(
                    id=naming.new_id(),
                    name=self._cluster,
                    backend=choice.name,
                    backend_reason=choice.reason,
                    accelerator=self.backend.accelerator,
                    network=has,
                    created_at=time.time(),
                    spec=spec,
                    owner=request.owner,
                )
            )
            await arrive("cluster.created")
        elif existing.accelerator != self.backend.accelerator:
            self._store.change(accelerator=self.backend.accelerator)
        return self.backend

    async def ensure_network(self, backend: Backend, emit: Emit) -> Members:
        """The members on the cluster's network, which is made, or taken over from a dead holder."""
        if self.members is not None:
            return self.members
        record = self._store.current
        leases = {m.name: m.ip for m in record.members.values() if m.ip}
        await arrive("cluster.network")
        with Steps(emit).step("network"):
            mode: Network = "private" if record.network == "private" else "host"
            network = await backend.create_network(
                NetworkSpec(self._cluster, mode, record.subnet, leases, record.bound)
            )
        for note in network.notes:
            emit(wire.Notice(note))
        if record.subnet and network.subnet != record.subnet:
            emit(
                wire.Notice(
                    f"the subnet {record.subnet} has been taken meanwhile: the members come back on {network.subnet}"
                )
            )
        await arrive("cluster.connected")
        self._store.change(subnet=network.subnet, bridge=network.bridge)
        self.members = Members(self._store, backend, network, self._on_end)
        return self.members

    async def close_network(self) -> None:
        """Give the network back; without one, remove what dead holders have left of theirs."""
        members, self.members = self.members, None
        await arrive("cluster.disconnect")
        if members is not None:
            await members.network.close()
        elif self.backend is not None:
            for removed in await self.backend.reconcile():
                log.info("removed %s", removed)

    async def image_for(self, backend: Backend, spec: MemberSpec, emit: Emit) -> Image | None:
        """The image of new members, fetched when it is missing; None where the backend needs none."""
        if not backend.capabilities().needs_images:
            return None
        with Steps(emit).step("image", spec.image):
            return await self.images.ensure(spec.image, emit)

    def image_of(self, backend: Backend, member: MemberRecord) -> Image | None:
        """The image that a member was made of. Raises NotFoundError when it is gone."""
        if not backend.capabilities().needs_images:
            return None
        return self.images.inspect(member.image_digest)
