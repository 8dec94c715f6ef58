"""A cluster's network on the host, as the backend contract sees it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from ipaddress import IPv4Address

from fleetbox.backends.base import Lease, NetworkSpec, Traffic, generate_mac
from fleetbox.backends.host.network import construction, links, resolver
from fleetbox.backends.host.network.construction import Built, Surroundings
from fleetbox.backends.host.network.egress import Egress, log_file
from fleetbox.backends.host.network.journal import tap_key
from fleetbox.backends.host.network.lock import drop_lock
from fleetbox.backends.host.network.reconcile import reconcile
from fleetbox.backends.host.thread import HostThread
from fleetbox.errors import HostError, NetworkError


async def open_network(host: HostThread, spec: NetworkSpec) -> HostNetwork:
    """Make a cluster's network on the host, or take over the one that its last holder left.

    Networks that nobody will take over any more are removed first. The recorded subnet is kept when it is free; see
    `HostNetwork.subnet` for the one it is. Undoes itself when it fails or is cancelled.

    Raises HostError (no CAP_NET_ADMIN, no /dev/net/tun, no nft), NetworkError (in other hands, no free subnet,
    refused), RecordError (its record cannot be understood).
    """
    if spec.mode == "private":
        return await _open_private(host, spec)
    await host.run(construction.check_host)
    await reconcile(host, keep=spec.cluster)
    return HostNetwork(host, spec, await host.run(construction.build, spec, undo=construction.undo))


async def _open_private(host: HostThread, spec: NetworkSpec) -> HostNetwork:
    """The same, in a namespace of the cluster's own that the host thread enters, with a way out of it."""
    if host.isolation is None:
        raise HostError("this holder keeps no network to itself", why="it was started for the host's network")
    await host.run(host.isolation.enter)
    await host.run(links.loopback_up)
    await host.run(construction.check_host)
    await reconcile(host, keep=spec.cluster)
    outside = await asyncio.to_thread(construction.occupied_outside)
    async with contextlib.AsyncExitStack() as undo:
        egress, note = Egress(host, log_file(spec.cluster)), ""
        undo.push_async_callback(egress.close)
        try:
            await egress.start()
        except HostError as e:
            note = f"{e.message}: {e.why}"
        surroundings = Surroundings(outside, egress.helper.dns if egress.helper else "")
        built = await host.run(construction.build, spec, surroundings, undo=construction.undo)
        undo.pop_all()
    return HostNetwork(host, spec, built, egress, note)


class HostNetwork:
    """The live network of one cluster; made by `open_network`. Implements `fleetbox.backends.base.Network`."""

    def __init__(
        self, host: HostThread, spec: NetworkSpec, built: Built, egress: Egress | None = None, note: str = ""
    ) -> None:
        self._host = host
        self._built = built
        self._egress = egress
        self._note = note
        self._open = True
        self._leases: dict[str, IPv4Address] = {}
        for name, text in spec.leases.items():
            address = self._usable(text)
            if address is not None and address not in self._leases.values():
                self._leases[name] = address

    @property
    def subnet(self) -> str:
        return str(self._built.network)

    @property
    def bridge(self) -> str:
        return self._built.journal.record.bridge

    @property
    def notes(self) -> tuple[str, ...]:
        """See `base.Network.notes`."""
        return (self._note,) if self._note else ()

    @property
    def resolves_names(self) -> bool:
        """Whether members know each other's names: dnsmasq is installed and serves."""
        return self._built.resolver is not None

    def _usable(self, text: str) -> IPv4Address | None:
        """`text` when it is an address that a member of this subnet can have."""
        network = self._built.network
        try:
            address = IPv4Address(text)
        except ValueError:
            return None
        reserved = (network.network_address, network.broadcast_address, self._built.gateway.ip)
        return address if address in network and address not in reserved else None

    def _free_address(self, ip_hint: str) -> IPv4Address:
        taken = set(self._leases.values())
        hint = self._usable(ip_hint)
        if hint is not None and hint not in taken:
            return hint
        for address in self._built.network.hosts():
            if address != self._built.gateway.ip and address not in taken:
                return address
        raise NetworkError(
            f"the subnet {self.subnet} is full",
            why=f"{len(taken)} members hold an address",
            hint="destroy members, or start another cluster",
        )

    async def reserve(self, name: str, ip_hint: str = "") -> Lease:
        """See `base.Network.reserve`."""
        self._require_open()
        fresh = name not in self._leases
        address = self._leases.setdefault(name, self._free_address(ip_hint) if fresh else self._leases[name])
        if self._built.resolver is not None:
            try:
                await self._host.run(resolver.publish, self.bridge, self._cluster, name, str(address))
            except BaseException:
                if fresh:
                    self._leases.pop(name, None)
                    resolver.withdraw(self.bridge, name)
                raise
        gateway = str(self._built.gateway.ip)
        return Lease(
            name=name,
            ip=str(address),
            mac=generate_mac(f"{self._cluster}/{name}"),
            prefix_length=self._built.network.prefixlen,
            gateway=gateway,
            dns=(gateway,) if self._built.resolver is not None else self._nameservers(),
        )

    def _nameservers(self) -> tuple[str, ...]:
        """Whom members ask where no resolver of ours serves."""
        if self._egress is None:
            return resolver.host_nameservers()
        return (self._egress.helper.dns,) if self._egress.helper else ()

    async def release(self, name: str) -> None:
        """See `base.Network.release`."""
        if not self._open:
            return
        await self._host.run(construction.detach, self._built.journal, tap_key(name, 0), tap_key(name, 1))
        await self._host.run(resolver.withdraw, self.bridge, name)
        self._leases.pop(name, None)

    async def attach(self, name: str, *, slot: int = 0, join: bool = True) -> str:
        """Make the member's interface of that slot, which this user may open; repeatable. Returns its name.

        It is on the bridge, or without `join` up but off it, where nobody but the host hears the machine. Cancelled, a
        new one is removed again. Raises NetworkError.
        """
        self._require_open()
        key = tap_key(name, slot)
        known = key in self._built.journal.record.taps

        def undo(_tap: str) -> None:
            if not known:
                construction.detach(self._built.journal, key)

        def attach() -> str:
            self._require_open()  # closed while this was waiting for the thread
            try:
                return construction.attach(self._built, name, slot, os.geteuid(), join=join)
            except BaseException:
                with contextlib.suppress(NetworkError):
                    undo("")
                raise

        return await self._host.run(attach, undo=undo)

    async def join(self, name: str, slot: int = 0) -> None:
        """Put the member's interface of that slot on the bridge; repeatable. Raises NetworkError without one."""
        self._require_open()
        await self._host.run(construction.join, self._built, name, slot)

    async def leave(self, name: str, slot: int = 0) -> None:
        """Take the member's interface off the bridge: nothing passes any more. Nothing when it has none."""
        self._require_open()
        await self._host.run(construction.leave, self._built, name, slot)

    async def detach(self, name: str, slot: int = 0) -> None:
        """Remove the member's interface of that slot; nothing when it has none. Raises NetworkError when it stays."""
        if self._open:
            await self._host.run(construction.detach, self._built.journal, tap_key(name, slot))

    async def traffic(self, name: str, slot: int = 0) -> Traffic:
        """See `base.Network.traffic`."""
        tap = self._built.journal.record.taps.get(tap_key(name, slot))
        return Traffic() if tap is None else await self._host.run(links.traffic, tap)

    async def close(self) -> None:
        """See `base.Network.close`."""

        def close() -> None:
            if self._open:
                construction.close(self._built)
                if self._egress is not None:
                    drop_lock(self._built.journal.record.namespace)
                self._open = False

        await self._host.run(close)
        if self._egress is not None:
            await self._egress.close()

    @property
    def _cluster(self) -> str:
        return self._built.journal.record.cluster

    def _require_open(self) -> None:
        if not self._open:
            raise NetworkError(f"the network of {self._cluster!r} is closed")
