"""The cluster's operations: up, add, start, stop, destroy; and taking over from a dead holder.

Mutations are serialised by one lock; reads never wait. A cluster whose last machine has ended gives its network back,
and its holder ends: its records are all that a stopped cluster needs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from fleetbox import names as naming
from fleetbox import paths, wire
from fleetbox.backends import registry
from fleetbox.backends.base import VM, Backend, BackendEnvironment, NetworkSpec, generate_mac
from fleetbox.backends.host.thread import HostThread
from fleetbox.errors import FleetboxError, HostError, NotFoundError
from fleetbox.faultpoint import arrive
from fleetbox.holder import admission
from fleetbox.holder.images.library import ImageLibrary
from fleetbox.holder.members import Members, erase
from fleetbox.holder.operations import Emit, Steps, Work, all_of, log_event
from fleetbox.holder.provision import new_member
from fleetbox.holder.server import decode
from fleetbox.holder.snapshots import operations as snapshots
from fleetbox.holder.store import ClusterStore
from fleetbox.holder.takeover import take_over
from fleetbox.holder.warm.making import TemplateSource, source_for
from fleetbox.image import Image
from fleetbox.records import ClusterRecord, MemberRecord, MemberState
from fleetbox.specs import MemberSpec

log = logging.getLogger(__name__)


class Orchestrator:
    """Everything that one cluster's holder does. `on_idle` is called when nothing of the cluster runs any more."""

    def __init__(self, cluster: str, store: ClusterStore, host: HostThread, on_idle: Callable[[], None]) -> None:
        self.cluster = cluster
        self.closing = False
        self._store = store
        self._host = host
        self._on_idle = on_idle
        self._backend: Backend | None = None
        self._members: Members | None = None
        self._images = ImageLibrary()
        self._mutation = asyncio.Lock()
        self._emit: Emit = log_event  # of the operation that has the lock
        self._pending = 0
        self._started = time.monotonic()
        self._settling: set[asyncio.Task[None]] = set()
        self._snapshots = snapshots.SnapshotOperations(
            store,
            self._images,
            host,
            lambda: self._members,
            self._ensure_backend,
            self._ensure_network,
            self._abandon_if_empty,
        )

    @property
    def busy(self) -> bool:
        """Whether a machine runs or an operation is under way."""
        return self._pending > 0 or (self._members is not None and bool(self._members.machines))

    # --- what the server serves

    def status(self) -> wire.ClusterStatus:
        notes = self._backend.notes if self._backend else ()
        return wire.ClusterStatus(self._store.current, True, time.monotonic() - self._started, notes)

    @property
    def machines(self) -> dict[str, VM]:
        """The running machines by their members' names."""
        return {name: machine.vm for name, machine in self._members.machines.items()} if self._members else {}

    def work(self, operation: str, body: bytes) -> Work:
        """The work of an operation by name. Raises UsageError, NotFoundError."""
        run: Callable[[Emit], Awaitable[Any]]
        if operation == "up":
            up = decode(body, wire.UpRequest)
            run = lambda emit: self.up(up, emit)  # noqa: E731
        elif operation == "add":
            add = decode(body, wire.AddRequest)
            run = lambda emit: self.add(add, emit)  # noqa: E731
        elif operation in ("start", "stop", "destroy"):
            targets = decode(body, wire.TargetsRequest)
            act = {"start": self.start, "stop": self.stop, "destroy": self.destroy}[operation]
            run = lambda emit: act(targets, emit)  # noqa: E731
        elif operation in snapshots.OPERATIONS:
            run = self._snapshots.work(operation, body)
        else:
            raise NotFoundError(f"there is no operation {operation!r}")

        async def serialised(emit: Emit) -> Any:
            self._pending += 1
            try:
                if self._mutation.locked():
                    emit(wire.Notice(f"waiting for another operation on {self.cluster!r} to end"))
                async with self._mutation:
                    self._emit = emit
                    try:
                        result = await run(emit)
                    finally:
                        self._emit = log_event
                        if self._pending == 1:
                            await asyncio.shield(self._settle())
                    return result | {"ends": self.closing}
            finally:
                self._pending -= 1
                self._settle_soon()

        return serialised

    # --- operations, each with the lock held

    async def up(self, request: wire.UpRequest, emit: Emit) -> dict[str, Any]:
        """Create what is missing, start what is stopped."""
        existing = self._store.record
        base = existing.spec if existing else MemberSpec()
        spec = admission.check_spec(request.spec.apply(base))
        wanted = admission.names_for_up(existing, request, emit)
        backend = await self._ensure_backend(existing, request, spec)
        missing = [name for name in wanted if name not in self._store.current.members]
        stopped = [name for name in wanted if name in self._store.current.members and not self._runs(name)]
        if existing and missing == [] and request.spec != wire.SpecChange() and spec != existing.spec:
            emit(wire.Notice("existing members keep their image and resources; only new ones take the given ones"))
        admission.check_memory([spec] * len(missing) + [self._store.current.members[n].spec for n in stopped], emit)
        try:
            image = await self._image_for(backend, spec, emit) if missing else None
            members = await self._ensure_network(backend, emit)
            source = await source_for(self._store, members, self._host, spec, image, request, emit) if missing else None
            made = await self._bring_up(missing, stopped, spec, image, request, emit, source)
        except BaseException:
            await asyncio.shield(self._abandon_if_empty())
            raise
        return {"cluster": self.cluster, "members": wanted, "created": made, "started": stopped}

    async def add(self, request: wire.AddRequest, emit: Emit) -> dict[str, Any]:
        """Create further members."""
        record = self._store.current
        wanted = admission.names_for_add(record, request)
        spec = admission.check_spec(request.spec.apply(record.spec))
        admission.check_memory([spec] * len(wanted), emit)
        backend = await self._ensure_backend(record, wire.UpRequest(), spec)
        image = await self._image_for(backend, spec, emit)
        members = await self._ensure_network(backend, emit)
        source = await source_for(self._store, members, self._host, spec, image, request, emit)
        made = await self._bring_up(wanted, [], spec, image, request, emit, source)
        return {"cluster": self.cluster, "members": made}

    async def start(self, request: wire.TargetsRequest, emit: Emit) -> dict[str, Any]:
        """Start stopped members."""
        targets = self._targets(request)
        stopped = [name for name in targets if not self._runs(name)]
        if stopped:
            admission.check_memory([self._store.current.members[n].spec for n in stopped], emit)
            backend = await self._ensure_backend(self._store.current, wire.UpRequest(), self._store.current.spec)
            await self._ensure_network(backend, emit)
            await self._bring_up([], stopped, self._store.current.spec, None, request, emit)
        return {"cluster": self.cluster, "members": targets, "started": stopped}

    async def stop(self, request: wire.TargetsRequest, emit: Emit) -> dict[str, Any]:
        """Shut members down."""
        targets = self._targets(request)
        running = [name for name in targets if self._runs(name)]
        members = self._members
        if members is not None:
            await all_of({n: members.stop(n, Steps(emit, n), request.timeout_s) for n in running}, "stopped")
        return {"cluster": self.cluster, "members": targets, "stopped": running}

    async def destroy(self, request: wire.TargetsRequest, emit: Emit) -> dict[str, Any]:
        """Delete members, and the cluster with its last."""
        if self._store.record is None:
            return {"cluster": self.cluster, "members": []}
        targets = self._targets(request)
        members = self._members
        if members is not None:
            await all_of({n: members.destroy(n, Steps(emit, n)) for n in targets}, "destroyed")
        else:
            for name in targets:
                with Steps(emit, name).step("destroy"):
                    await self._erase(self._store.current.members[name])
            await self._store.commit()
        await self._abandon_if_empty()
        return {"cluster": self.cluster, "members": targets}

    # --- life

    async def take_over(self) -> None:
        """See `fleetbox.holder.takeover`."""

        async def connect() -> Members:
            record = self._store.current
            backend = await self._ensure_backend(record, wire.UpRequest(), record.spec)
            return await self._ensure_network(backend, log_event)

        await take_over(self._store, self.cluster, self._images, connect)

    async def close(self) -> None:
        """Stop every machine gently and give the network back: the holder is told to end."""
        self.closing = True
        async with self._mutation:
            if self._members is not None:
                running = list(self._members.machines)
                await asyncio.gather(
                    *(self._members.stop(name, Steps(lambda event: None, name), 0.0) for name in running),
                    return_exceptions=True,
                )
            await self._close_network()

    async def drain(self) -> bool:
        """Begin no more operations and finish those under way; whether machines then run, for the next holder."""
        self.closing = True
        async with self._mutation:
            if self._members is not None and self._members.machines:
                return True
            await self._close_network()
            return False

    async def remove_files(self) -> None:
        """Delete the cluster's record, keys and folders: it has no members any more."""
        await self._store.remove()
        paths.known_hosts(self.cluster).unlink(missing_ok=True)

    def _settle_soon(self) -> None:
        task = asyncio.create_task(self._settle_when_free())
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def _settle_when_free(self) -> None:
        if self._pending == 0:
            async with self._mutation:
                await self._settle()

    async def _settle(self) -> None:
        """With the lock held: end when nothing runs."""
        if self.closing or (self._members is not None and self._members.machines):
            return
        self.closing = True
        try:
            await self._close_network()
        except FleetboxError as e:
            log.error("%s", e)  # noqa: TRY400 - the error explains itself
        self._on_idle()

    async def _close_network(self) -> None:
        members, self._members = self._members, None
        await arrive("cluster.disconnect")
        if members is not None:
            await members.network.close()
        elif self._backend is not None:
            for removed in await self._backend.reconcile():
                log.info("removed %s", removed)

    # --- steps

    async def _ensure_backend(
        self, existing: ClusterRecord | None, request: wire.UpRequest, spec: MemberSpec
    ) -> Backend:
        choice = registry.choose(request.backend, existing.backend if existing else "")
        if request.network == "private":
            raise HostError("private networks are not built yet", hint="leave --network out (root is needed for now)")
        if self._backend is None:
            surroundings = BackendEnvironment(self._host, dict(os.environ), lambda event: self._emit(event))
            backend = registry.create(choice.name, surroundings)
            await backend.check()
            self._backend = backend
        if existing is None:
            self._store.create(
                ClusterRecord(
                    id=naming.new_id(),
                    name=self.cluster,
                    backend=choice.name,
                    backend_reason=choice.reason,
                    accelerator=self._backend.accelerator,
                    network="host",
                    created_at=time.time(),
                    spec=spec,
                )
            )
            await arrive("cluster.created")
        elif existing.accelerator != self._backend.accelerator:
            self._store.change(accelerator=self._backend.accelerator)
        return self._backend

    async def _ensure_network(self, backend: Backend, emit: Emit) -> Members:
        if self._members is not None:
            return self._members
        record = self._store.current
        leases = {m.name: m.ip for m in record.members.values() if m.ip}
        await arrive("cluster.network")
        with Steps(emit).step("network"):
            network = await backend.create_network(NetworkSpec(self.cluster, "host", record.subnet, leases))
        if record.subnet and network.subnet != record.subnet:
            emit(
                wire.Notice(
                    f"the subnet {record.subnet} has been taken meanwhile: the members come back on {network.subnet}"
                )
            )
        await arrive("cluster.connected")
        self._store.change(subnet=network.subnet, bridge=network.bridge)
        self._members = Members(self._store, backend, network, self._settle_soon)
        return self._members

    async def _image_for(self, backend: Backend, spec: MemberSpec, emit: Emit) -> Image | None:
        if not backend.capabilities().needs_images:
            return None
        with Steps(emit).step("image", spec.image):
            return await self._images.ensure(spec.image, emit)

    def _image_of(self, backend: Backend, member: MemberRecord) -> Image | None:
        if not backend.capabilities().needs_images:
            return None
        return self._images.inspect(member.image_digest)

    async def _bring_up(
        self,
        missing: list[str],
        stopped: list[str],
        spec: MemberSpec,
        image: Image | None,
        request: wire.UpRequest | wire.AddRequest | wire.TargetsRequest,
        emit: Emit,
        source: TemplateSource | None = None,
    ) -> list[str]:
        """Create the missing and start the stopped members, side by side. Raises PartialError, or the only error."""
        assert self._members is not None
        assert self._backend is not None
        members, backend = self._members, self._backend
        now, digest = time.time(), image.digest if image else ""  # from here on the image is in use
        for name in missing:
            mac = generate_mac(f"{self.cluster}/{name}")
            member = new_member(self._store.current, name, naming.new_id(), spec, mac, now, digest)
            if not isinstance(request, wire.TargetsRequest):
                member = msgspec.structs.replace(member, control_line=request.control_line)
            self._store.put_member(member)

        async def start(name: str) -> None:
            kept = self._image_of(backend, self._store.current.members[name])
            await members.start(name, kept, Steps(emit, name), request.timeout_s)

        async def create(name: str) -> None:
            placeholder = self._store.current.members[name]
            await members.create(placeholder, image, Steps(emit, name), request.timeout_s, source)

        try:
            await arrive("cluster.placeholders")
            await self._store.commit()
            for name in missing:  # in order: node-1 gets the lowest free address
                await members.network.reserve(name)
            await arrive("cluster.reserved")
            await all_of({n: start(n) for n in stopped} | {n: create(n) for n in missing}, "brought up")
        finally:
            # One that was cancelled before its first step had nothing to undo, but its placeholder stands.
            for name in missing:
                left = self._store.current.members.get(name)
                if left is not None and left.state is MemberState.CREATING:
                    await members.network.release(name)
                    self._store.drop_member(name)
        return missing

    async def _erase(self, member: MemberRecord) -> None:
        await erase(self.cluster, member)
        self._store.drop_member(member.name)

    async def _abandon_if_empty(self) -> None:
        """A cluster without members is none: close its network and delete its record."""
        record = self._store.record
        if record is not None and not record.members:
            await arrive("cluster.abandon")
            await self._close_network()
            await self.remove_files()

    def _targets(self, request: wire.TargetsRequest) -> list[str]:
        members = self._store.current.members
        for name in request.members:
            if name not in members:
                raise NotFoundError(
                    f"the cluster {self.cluster!r} has no member {name!r}",
                    why=f"its members are {', '.join(members) or 'none'}",
                )
        return list(request.members) or list(members)

    def _runs(self, name: str) -> bool:
        return self._members is not None and name in self._members.machines
