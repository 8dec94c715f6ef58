"""A cluster's network on the helper's side."""

from __future__ import annotations

from typing import Any

from fleetbox.backends.base import Lease, Traffic
from fleetbox.backends.remote.link import Link
from fleetbox.backends.remote.wire import MemberRequest, NetworkAnswer


class RemoteNetwork:
    """See `fleetbox.backends.base.Network`. It outlives this process as its machines do, and is taken over again."""

    def __init__(self, link: Link, owner: str, cluster: str, answer: NetworkAnswer) -> None:
        self.cluster = cluster
        self._link = link
        self._owner = owner
        self._answer = answer
        self._leases: dict[str, Lease] = {}

    @property
    def subnet(self) -> str:
        return self._answer.subnet

    @property
    def bridge(self) -> str:
        return self._answer.bridge

    @property
    def notes(self) -> tuple[str, ...]:
        return self._answer.notes

    def holds(self, name: str) -> bool:
        """Whether the member has an address."""
        return name in self._leases

    async def reserve(self, name: str, ip_hint: str = "") -> Lease:
        lease: Lease = await self._link.call("reserve", self._about(name, ip_hint=ip_hint), Lease)
        self._leases[name] = lease
        return lease

    async def release(self, name: str) -> None:
        await self._link.order("release", self._about(name))
        self._leases.pop(name, None)

    async def attach(self, name: str, *, slot: int = 0, join: bool = True) -> str:
        interface: str = await self._link.call("attach", self._about(name, slot=slot, join=join), str)
        return interface

    async def join(self, name: str, slot: int = 0) -> None:
        await self._link.order("join", self._about(name, slot=slot))

    async def leave(self, name: str, slot: int = 0) -> None:
        await self._link.order("leave", self._about(name, slot=slot))

    async def detach(self, name: str, slot: int = 0) -> None:
        await self._link.order("detach", self._about(name, slot=slot))

    async def traffic(self, name: str, slot: int = 0) -> Traffic:
        traffic: Traffic = await self._link.call("traffic", self._about(name, slot=slot), Traffic)
        return traffic

    async def close(self) -> None:
        await self._link.order("close", self._about(""))
        self._leases.clear()

    def _about(self, name: str, **fields: Any) -> MemberRequest:
        return MemberRequest(self._owner, self.cluster, name, **fields)
