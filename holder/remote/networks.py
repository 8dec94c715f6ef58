"""The clusters' networks that the helper keeps, across its own restarts and its clients'."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import msgspec

from fleetbox.backends.base import Backend, Network, NetworkSpec
from fleetbox.backends.remote.wire import MemberRequest, NetworkAnswer, NetworkRequest
from fleetbox.errors import ConflictError, NetworkError
from fleetbox.holder.store import write_atomically
from fleetbox.names import check_label


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
            await self._record(request.owner, dataclasses.replace(spec, subnet=network.subnet, leases=leases))
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
            del self._live[request.cluster]
            del self._records[request.cluster]
            self._path(request.cluster).unlink(missing_ok=True)

    async def _note(self, cluster: str, leases: dict[str, str]) -> None:
        record = self._records[cluster]
        if leases != record.spec.leases:
            await self._record(record.owner, dataclasses.replace(record.spec, leases=leases))

    async def _record(self, owner: str, spec: NetworkSpec) -> None:
        self._records[spec.cluster] = NetworkRequest(owner, spec)
        async with self._writing:
            newest = self._records.get(spec.cluster)
            if newest is not None:  # else it was closed meanwhile
                await asyncio.to_thread(write_atomically, self._path(spec.cluster), msgspec.json.encode(newest))

    def _path(self, cluster: str) -> Path:
        return self._folder / f"{hashlib.sha256(cluster.encode()).hexdigest()[:16]}.json"
