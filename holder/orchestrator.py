"""The cluster's operations: up, add, start, stop, destroy; and taking over from a dead holder.

Mutations are serialised by one lock; reads never wait. A cluster whose last machine has ended gives its network back,
and its holder ends: its records are all that a stopped cluster needs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec

from fleetbox import names as naming
from fleetbox import paths, wire
from fleetbox.backends.base import VM, generate_mac
from fleetbox.backends.host.thread import HostThread
from fleetbox.errors import FleetboxError, NotFoundError
from fleetbox.faultpoint import arrive
from fleetbox.holder import admission, bound
from fleetbox.holder.ground import Ground
from fleetbox.holder.members import Members, erase
from fleetbox.holder.operations import Emit, Steps, Work, all_of, log_event
from fleetbox.holder.provision import new_member
from fleetbox.holder.server import decode
from fleetbox.holder.snapshots import operations as snapshots
from fleetbox.holder.store import ClusterStore
from fleetbox.holder.takeover import take_over
from fleetbox.holder.warm.making import TemplateSource, source_for
from fleetbox.image import Image
from fleetbox.records import MemberRecord, MemberState
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
        self._mutation = asyncio.Lock()
        self._emit: Emit = log_event  # of the operation that has the lock
        self._pending = 0
        self._started = time.monotonic()
        self._settling: set[asyncio.Task[None]] = set()
        self._owner = bound.OwnerWatch(self._abandon)
        self._ground = Ground(cluster, store, host, self._owner, lambda event: self._emit(event), self._settle_soon)
        self._snapshots = snapshots.SnapshotOperations(
            store,
            self._ground,
            host,
            self._abandon_if_empty,
        )

    @property
    def busy(self) -> bool:
        """Whether a machine runs, an operation is under way, or the process that the cluster is bound to is watched."""
        members = self._ground.members
        return self._pending > 0 or self._is_bound or (members is not None and bool(members.machines))

    @property
    def abandoned(self) -> bool:
        """Whether the process that the cluster is bound to has ended: what is under way is for nobody any more."""
        return self._owner.ended

    @property
    def _is_bound(self) -> bool:
        return self._store.record is not None and self._store.record.bound

    # --- what the server serves

    def status(self) -> wire.ClusterStatus:
        notes = self._ground.backend.notes if self._ground.backend else ()
        return wire.ClusterStatus(self._store.current, True, time.monotonic() - self._started, notes)

    @property
    def machines(self) -> dict[str, VM]:
        """The running machines by their members' names."""
        members = self._ground.members
        return {name: machine.vm for name, machine in members.machines.items()} if members else {}

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
        bound.check_owner(existing, request.owner)
        base = existing.spec if existing else MemberSpec()
        spec = admission.check_spec(request.spec.apply(base))
        wanted = admission.names_for_up(existing, request, emit)
        backend = await self._ground.ensure_backend(existing, request, spec)
        missing = [name for name in wanted if name not in self._store.current.members]
        stopped = [name for name in wanted if name in self._store.current.members and not self._runs(name)]
        if existing and missing == [] and request.spec != wire.SpecChange() and spec != existing.spec:
            emit(wire.Notice("existing members keep their image and resources; only new ones take the given ones"))
        try:
            admission.check_room(len(missing))
            admission.check_memory([spec] * len(missing) + [self._store.current.members[n].spec for n in stopped], emit)
            image = await self._ground.image_for(backend, spec, emit) if missing else None
            members = await self._ground.ensure_network(backend, emit)
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
        admission.check_room(len(wanted))
        admission.check_memory([spec] * len(wanted), emit)
        backend = await self._ground.ensure_backend(record, wire.UpRequest(), spec)
        image = await self._ground.image_for(backend, spec, emit)
        members = await self._ground.ensure_network(backend, emit)
        source = await source_for(self._store, members, self._host, spec, image, request, emit)
        made = await self._bring_up(wanted, [], spec, image, request, emit, source)
        return {"cluster": self.cluster, "members": made}

    async def start(self, request: wire.TargetsRequest, emit: Emit) -> dict[str, Any]:
        """Start stopped members."""
        targets = self._targets(request)
        stopped = [name for name in targets if not self._runs(name)]
        if stopped:
            admission.check_room(0)
            admission.check_memory([self._store.current.members[n].spec for n in stopped], emit)
            backend = await self._ground.ensure_backend(self._store.current, wire.UpRequest(), self._store.current.spec)
            await self._ground.ensure_network(backend, emit)
            await self._bring_up([], stopped, self._store.current.spec, None, request, emit)
        return {"cluster": self.cluster, "members": targets, "started": stopped}

    async def stop(self, request: wire.TargetsRequest, emit: Emit) -> dict[str, Any]:
        """Shut members down."""
        targets = self._targets(request)
        running = [name for name in targets if self._runs(name)]
        members = self._ground.members
        if members is not None:
            await all_of({n: members.stop(n, Steps(emit, n), request.timeout_s) for n in running}, "stopped")
        return {"cluster": self.cluster, "members": targets, "stopped": running}

    async def destroy(self, request: wire.TargetsRequest, emit: Emit) -> dict[str, Any]:
        """Delete members, and the cluster with its last."""
        if self._store.record is None:
            return {"cluster": self.cluster, "members": []}
        targets = self._targets(request)
        members = self._ground.members
        try:
            if members is not None:
                await all_of({n: members.destroy(n, Steps(emit, n)) for n in targets}, "destroyed")
            else:
                await self._store.doom(*targets)
                for name in targets:
                    with Steps(emit, name).step("destroy"):
                        await self._erase(self._store.current.members[name])
                await self._store.commit()
        finally:
            await asyncio.shield(self._abandon_if_empty())
        return {"cluster": self.cluster, "members": targets}

    # --- life

    async def take_over(self) -> None:
        """See `fleetbox.holder.takeover`."""

        async def connect() -> Members:
            record = self._store.current
            backend = await self._ground.ensure_backend(record, wire.UpRequest(), record.spec)
            return await self._ground.ensure_network(backend, log_event)

        if await bound.take_over(self._store, self._owner):
            await take_over(self._store, self.cluster, self._ground.images, connect)

    async def close(self) -> None:
        """Stop every machine gently and give the network back: the holder is told to end.

        A cluster whose owner has ended is destroyed instead.
        """
        self.closing = True
        async with self._mutation:
            if self._ground.members is not None and not self.abandoned:
                running = list(self._ground.members.machines)
                await asyncio.gather(
                    *(self._ground.members.stop(name, Steps(lambda event: None, name), 0.0) for name in running),
                    return_exceptions=True,
                )
            if self.abandoned:
                try:
                    await self.destroy(wire.TargetsRequest(), lambda event: None)
                except FleetboxError as e:
                    log.error("%s", e)  # noqa: TRY400 - the error explains itself
            await self._ground.close_network()
            self._owner.close()

    def _abandon(self) -> None:
        """The process that the cluster is bound to has ended: its machines die now, whatever is under way with them."""
        log.info("the process that %s is bound to has ended: it is destroyed", self.cluster)
        self.closing = True
        for machine in self._ground.members.machines.values() if self._ground.members is not None else ():
            machine.wanted_end = True
            self._in_background(machine.vm.kill())
        self._on_idle()

    async def drain(self) -> bool:
        """Begin no more operations and finish those under way; whether machines then run, for the next holder."""
        self.closing = True
        async with self._mutation:
            if self._ground.members is not None and self._ground.members.machines:
                return True
            await self._ground.close_network()
            return False

    async def remove_files(self) -> None:
        """Delete the cluster's record, keys and folders: it has no members any more."""
        if self._store.record is not None:
            await bound.remove_snapshots(self._store.record)
        await self._store.remove()
        self._owner.close()
        paths.known_hosts(self.cluster).unlink(missing_ok=True)

    def _settle_soon(self) -> None:
        self._in_background(self._settle_when_free())

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def _settle_when_free(self) -> None:
        if self._pending == 0:
            async with self._mutation:
                await self._settle()

    async def _settle(self) -> None:
        """With the lock held: end when nothing runs; a bound cluster's holder stays to watch its owner."""
        if self.closing or (self._ground.members is not None and self._ground.members.machines):
            return
        self.closing = not self._is_bound
        try:
            await self._ground.close_network()
        except FleetboxError as e:
            log.error("%s", e)  # noqa: TRY400 - the error explains itself
        record = self._store.record
        if self.closing and record is not None and not record.members:  # what was to remove it has failed
            await self.remove_files()
        if self.closing:
            self._on_idle()

    # --- steps

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
        assert self._ground.members is not None
        assert self._ground.backend is not None
        members, backend = self._ground.members, self._ground.backend
        now, digest = time.time(), image.digest if image else ""  # from here on the image is in use
        for name in missing:
            mac = generate_mac(f"{self.cluster}/{name}")
            member = new_member(self._store.current, name, naming.new_id(), spec, mac, now, digest)
            if not isinstance(request, wire.TargetsRequest):
                member = msgspec.structs.replace(member, control_line=request.control_line)
            self._store.put_member(member)

        async def start(name: str) -> None:
            kept = self._ground.image_of(backend, self._store.current.members[name])
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
            placeholders = [m.name for m in self._store.current.members.values() if m.state is MemberState.CREATING]
            for name in placeholders:
                await members.network.release(name)
            if placeholders:
                await members.drop(*placeholders)
        return missing

    async def _erase(self, member: MemberRecord) -> None:
        await erase(self.cluster, member)
        self._store.drop_member(member.name)

    async def _abandon_if_empty(self) -> None:
        """A cluster without members is none: close its network and delete its record."""
        record = self._store.record
        if record is not None and not record.members:
            await arrive("cluster.abandon")
            await self._ground.close_network()
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
        return self._ground.members is not None and name in self._ground.members.machines
