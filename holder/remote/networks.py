"""The clusters' networks that the helper keeps, across its own restarts and its clients'."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from fleetbox.backends.base import Backend, Network
from fleetbox.backends.remote.wire import MemberRequest, NetworkAnswer, NetworkRequest
from fleetbox.errors import ConflictError, NetworkError
from fleetbox.holder.bound import OwnerWatch
from fleetbox.holder.store import write_atomically
from fleetbox.identity import ProcessIdentity
from fleetbox.names import check_label

log = logging.getLogger(__name__)


class Bound:
    """Whom bound clusters belong to; `end` is called when one of those processes has ended."""

    def __init__(self) -> None:
        self.end: Callable[[str], Awaitable[None]] | None = None
        self._watches: dict[str, OwnerWatch] = {}
        self._ending: set[asyncio.Future[None]] = set()

    def watch(self, cluster: str, holder: ProcessIdentity | None) -> None:
        """Watch this process, and no other, for the cluster."""
        before = self._watches.pop(cluster, None)
        if before is not None:
            before.close()
        if holder is None:
            return
        self._watches[cluster] = OwnerWatch(lambda: self._ended(cluster))
        try:
            self._watches[cluster].watch(holder)
        except ConflictError:
            self._ended(cluster)

    def _ended(self, cluster: str) -> None:
        if self.end is not None:
            ending = asyncio.ensure_future(self.end(cluster))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)


class Networks:
    """Live networks by cluster, each with its record `networks/<digest>.json`."""

    def __init__(self, backend: Backend, folder: Path) -> None:
        self._backend = backend
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._live: dict[str, Network] = {}
        self._records: dict[str, NetworkRequest] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        self._writing = asyncio.Lock()
        self._bound = Bound()

    def live(self, cluster: str) -> Network:
        """The network of a cluster. Raises NetworkError when there is none."""
        if cluster not in self._live:
            raise NetworkError(f"the helper has no network of the cluster {cluster!r}", hint="make it first")
        return self._live[cluster]

    async def take_over(self) -> None:
        """Take over what an earlier helper left. Raises NetworkError."""
        for path in sorted(self._folder.glob("*.json")):
            record = msgspec.json.decode(path.read_bytes(), type=NetworkRequest)
            self._records[record.spec.cluster] = record
            self._live[record.spec.cluster] = await self._backend.create_network(record.spec)

    def bind(self, end_machines: Callable[[str], Awaitable[None]]) -> None:
        """End the machines and the network of each bound cluster, now taken over or made later, with its holder."""

        async def end(cluster: str) -> None:
            log.warning("the holder that %s is bound to has ended", cluster)
            await end_machines(cluster)
            await self._close(MemberRequest(self._records[cluster].owner, cluster))

        self._bound.end = end
        for cluster, record in self._records.items():
            self._bound.watch(cluster, record.holder)

    async def make(self, request: NetworkRequest, in_use: set[str]) -> NetworkAnswer:
        """Make the cluster's network, or take the one over that is there: then members that are neither asked for nor
        `in_use` lose their addresses. Raises ConflictError for another installation's, NetworkError.
        """
        spec = request.spec
        check_label(spec.cluster, "cluster name")
        async with self._turns.setdefault(spec.cluster, asyncio.Lock()):
            known = self._records.get(spec.cluster)
            if known is not None and known.owner != request.owner:
                raise ConflictError(
                    f"the helper keeps another cluster {spec.cluster!r}",
                    why=f"of the fleetbox whose state is in {known.owner}",
                    hint="give one of them another name, or start a helper for each",
                )
            network = self._live.get(spec.cluster)
            if network is None:
                network = await self._backend.create_network(spec)
                self._live[spec.cluster] = network
            else:
                for name in set(known.spec.leases if known else ()) - set(spec.leases) - in_use:
                    await network.release(name)
            leases = {name: (await network.reserve(name, ip)).ip for name, ip in spec.leases.items()}
            leases |= {n: ip for n, ip in (known.spec.leases if known else {}).items() if n in in_use}
            kept = dataclasses.replace(spec, subnet=network.subnet, leases=leases)
            await self._record(msgspec.structs.replace(request, spec=kept))
            self._bound.watch(spec.cluster, request.holder)
            return NetworkAnswer(network.subnet, network.bridge, network.notes)

    async def act(self, operation: str, request: MemberRequest) -> Any:
        """Do one of the contract's network calls."""
        cluster, name = request.cluster, request.member
        if operation == "close":
            return await self._close(request)
        network = self._owned(request)
        check_label(name, "member name")
        match operation:
            case "reserve":
                lease = await network.reserve(name, request.ip_hint)
                await self._note(cluster, {**self._records[cluster].spec.leases, name: lease.ip})
                return lease
            case "release":
                await network.release(name)
                await self._note(cluster, {n: ip for n, ip in self._records[cluster].spec.leases.items() if n != name})
            case "attach":
                return await network.attach(name, slot=request.slot, join=request.join)
            case "join":
                await network.join(name, request.slot)
            case "leave":
                await network.leave(name, request.slot)
            case "traffic":
                return await network.traffic(name, request.slot)
            case "detach":
                await network.detach(name, request.slot)
        return None

    def _owned(self, request: MemberRequest) -> Network:
        network, record = self.live(request.cluster), self._records[request.cluster]
        if record.owner != request.owner:
            raise NetworkError(f"the network of {request.cluster!r} is another fleetbox's")
        return network

    async def _close(self, request: MemberRequest) -> None:
        async with self._turns.setdefault(request.cluster, asyncio.Lock()):
            if request.cluster not in self._live:
                return
            await self._owned(request).close()
            self._bound.watch(request.cluster, None)
            del self._live[request.cluster]
            del self._records[request.cluster]
            self._path(request.cluster).unlink(missing_ok=True)

    async def _note(self, cluster: str, leases: dict[str, str]) -> None:
        record = self._records[cluster]
        if leases != record.spec.leases:
            await self._record(msgspec.structs.replace(record, spec=dataclasses.replace(record.spec, leases=leases)))

    async def _record(self, record: NetworkRequest) -> None:
        cluster = record.spec.cluster
        self._records[cluster] = record
        async with self._writing:
            newest = self._records.get(cluster)
            if newest is not None:  # else it was closed meanwhile
                await asyncio.to_thread(write_atomically, self._path(cluster), msgspec.json.encode(newest))

    def _path(self, cluster: str) -> Path:
        return self._folder / f"{hashlib.sha256(cluster.encode()).hexdigest()[:16]}.json"
