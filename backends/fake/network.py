"""The fake network: which member has which address, and nothing on the host."""

from __future__ import annotations

import hashlib
from ipaddress import IPv4Address, IPv4Network

from fleetbox.backends.base import Lease, NetworkSpec, Traffic, generate_mac
from fleetbox.errors import NetworkError


class FakeNetwork:
    """Bookkeeping of one cluster's addresses and interfaces; nobody answers on them, nothing is on the host.

    The gateway is the subnet's first address.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        """Take the recorded subnet, or the /24 of 192.168.0.0/16 that the cluster's name falls on.

        Raises NetworkError when the recorded subnet is none.
        """
        third = hashlib.sha256(spec.cluster.encode()).digest()[0]
        try:
            self._subnet = IPv4Network(spec.subnet or f"192.168.{third}.0/24")
        except ValueError as e:
            raise NetworkError(f"{spec.subnet!r} is not a subnet", why=str(e)) from e
        self._cluster = spec.cluster
        self._gateway = self._subnet.network_address + 1
        self._leases: dict[str, IPv4Address] = {}
        self._interfaces: dict[tuple[str, int], bool] = {}
        self._closed = False
        for name, ip in spec.leases.items():
            if self._is_free(ip):
                self._leases[name] = IPv4Address(ip)

    @property
    def subnet(self) -> str:
        return str(self._subnet)

    @property
    def bridge(self) -> str:
        return ""

    @property
    def members_on_bridge(self) -> frozenset[tuple[str, int]]:
        """Members whose interface is on the bridge, with the slot that it is for."""
        return frozenset(key for key, joined in self._interfaces.items() if joined)

    def holds(self, name: str) -> bool:
        """Whether the member has an address."""
        return name in self._leases

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    async def reserve(self, name: str, ip_hint: str = "") -> Lease:
        if self._closed:
            raise NetworkError(f"the network of {self._cluster} is closed")
        if name not in self._leases:
            self._leases[name] = IPv4Address(ip_hint) if self._is_free(ip_hint) else self._lowest_free()
        return Lease(
            name=name,
            ip=str(self._leases[name]),
            mac=generate_mac(f"{self._cluster}/{name}"),
            prefix_length=self._subnet.prefixlen,
            gateway=str(self._gateway),
        )

    async def release(self, name: str) -> None:
        for slot in (0, 1):
            await self.detach(name, slot)
        self._leases.pop(name, None)

    async def attach(self, name: str, *, slot: int = 0, join: bool = True) -> str:
        if self._closed:
            raise NetworkError(f"the network of {self._cluster} is closed")
        self._interfaces[name, slot] = join
        return ""

    async def join(self, name: str, slot: int = 0) -> None:
        if (name, slot) not in self._interfaces:
            raise NetworkError(f"{name} cannot join the network of {self._cluster}", why="it has no interface")
        self._interfaces[name, slot] = True

    async def leave(self, name: str, slot: int = 0) -> None:
        if (name, slot) in self._interfaces:
            self._interfaces[name, slot] = False

    async def detach(self, name: str, slot: int = 0) -> None:
        self._interfaces.pop((name, slot), None)

    async def traffic(self, name: str, slot: int = 0) -> Traffic:
        return Traffic()  # nothing passes here

    async def close(self) -> None:
        self._leases.clear()
        self._interfaces.clear()
        self._closed = True

    def _is_free(self, ip: str) -> bool:
        try:
            address = IPv4Address(ip)
        except ValueError:
            return False
        taken = {self._subnet.network_address, self._subnet.broadcast_address, self._gateway, *self._leases.values()}
        return address in self._subnet and address not in taken

    def _lowest_free(self) -> IPv4Address:
        taken = {self._gateway, *self._leases.values()}
        for address in self._subnet.hosts():
            if address not in taken:
                return address
        raise NetworkError(
            f"the network of {self._cluster} is full",
            why=f"{self._subnet} has {len(self._leases)} members",
            hint="destroy members that are not needed, or make another cluster",
        )
