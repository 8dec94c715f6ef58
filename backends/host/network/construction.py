"""Making, taking over and removing a network's host resources, in the order that the journal needs.

Blocking; for the host thread. Every step brings its resource to what it should be, whether it was there or not, so that
making a network and completing the one that a dead holder left are the same.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path

from fleetbox.backends.base import NetworkSpec
from fleetbox.backends.host import capabilities, namespaces, programs
from fleetbox.backends.host.network import (
    firewall,
    forwarding,
    links,
    naming,
    resolver,
)
from fleetbox.backends.host.network.journal import (
    Journal,
    NetworkRecord,
    member_and_slot,
    read_network,
    read_networks,
    tap_key,
    union,
)
from fleetbox.backends.host.network.lock import network_lock
from fleetbox.backends.host.network.subnet import choose_subnet, parse_subnet
from fleetbox.backends.host.process import Process, adopt
from fleetbox.errors import FleetboxError, HostError, NetworkError, RecordError
from fleetbox.faultpoint import reach
from fleetbox.identity import ProcessIdentity, boot_id, identify, is_alive
from fleetbox.records import read_clusters

log = logging.getLogger(__name__)

_TUN = Path("/dev/net/tun")


def check_host() -> None:
    """Raise HostError, with a hint, when this process cannot make networks on this host."""
    if not capabilities.has(capabilities.NET_ADMIN):
        raise links.not_permitted("it lacks the capability CAP_NET_ADMIN")
    programs.require("nft")
    if not _TUN.exists():
        raise HostError(
            f"there is no {_TUN}",
            why="members' interfaces are made through it",
            hint="modprobe tun; in a container: --device /dev/net/tun",
        )
    if not os.access(_TUN, os.R_OK | os.W_OK):
        raise HostError(f"{_TUN} cannot be opened", hint="check its mode, or run fleetbox as root")


def _self() -> ProcessIdentity:
    identity = identify(os.getpid())
    assert identity is not None
    return identity


@dataclass
class Built:
    """A network that stands. `previous_owner` is the dead holder that it was taken over from, if any."""

    journal: Journal
    gateway: IPv4Interface
    resolver: Process | None
    previous_owner: ProcessIdentity | None

    @property
    def network(self) -> IPv4Network:
        return self.gateway.network


@dataclass(frozen=True)
class Surroundings:
    """What lies around a private network: subnets that guests may want to reach outside, and who answers for its
    resolvers (empty where nothing leads outside).
    """

    occupied: tuple[IPv4Network, ...]
    dns: str = ""


def build(spec: NetworkSpec, surroundings: Surroundings | None = None) -> Built:
    """Make the cluster's network, or take over the one that its last holder left; undoes itself when it fails.

    With `surroundings` it is a private one, and the calling thread in its namespace.

    Raises HostError when this host cannot have one, NetworkError when it is in other hands or there is no free subnet,
    RecordError when its record cannot be understood.
    """
    check_host()
    bridge = naming.bridge_name(spec.cluster)
    namespace = namespaces.network_inode()
    with network_lock(namespace), links.netlink() as ip:
        found = _left_behind(bridge, spec.cluster, namespace)
        stands = links.index_of(ip, bridge) is not None
        chosen = parse_subnet(found.subnet) if found and stands else None
        if chosen is None:
            chosen = _choose(spec, links.occupied(ip, bridge), surroundings)
        gateway = IPv4Interface((int(chosen.network_address) + 1, chosen.prefixlen))
        wanted = firewall.wanted_rules(bridge, firewall.chains())
        journal = Journal(
            NetworkRecord(
                cluster=spec.cluster,
                bridge=bridge,
                table=naming.table_name(bridge),
                owner=_self(),
                boot_id=boot_id(),
                namespace=namespace,
                private=surroundings is not None,
                subnet=str(chosen),
                taps=found.taps if found else {},
                rules=union(found.rules if found else (), wanted),
                resolver=found.resolver if found else None,
            )
        )
        built = Built(journal, gateway, None, found.owner if found else None)
        journal.write()
        try:
            reach("network.journal")
            links.ensure_bridge(ip, bridge, gateway)
            reach("network.bridge")
            forwarding.claim(namespace, bridge, links.uplinks(ip))
            reach("network.forwarding")
            firewall.apply_table(journal.record.table, bridge, gateway)
            reach("network.table")
            firewall.ensure_rules(wanted)
            reach("network.rules")
            built.resolver = _ensure_resolver(
                journal,
                gateway,
                _resolvers(found) if found else [],
                may_adopt=stands,
                # Alone it would keep a private network from ending with its last machine.
                bound=spec.bound or surroundings is not None,
                upstream=surroundings.dns if surroundings else None,
            )
            resolver.keep_only(bridge, spec.leases)
            # A member that was rolled back, or destroyed when its holder died, has left its taps.
            detach(journal, *(key for key in journal.record.taps if member_and_slot(key)[0] not in spec.leases))
            reach("network.built")
        except BaseException:
            _unmake(built)
            raise
    return built


def undo(built: Built) -> None:
    """Take a network back that nobody is going to use: removed when it is new, else left as it was found."""
    with network_lock(built.journal.record.namespace):
        _unmake(built)


def _unmake(built: Built) -> None:
    try:
        if built.previous_owner is None:
            demolish(built.journal, built.resolver)
        else:  # machines may run on it
            built.journal.write(owner=built.previous_owner)
            if built.resolver is not None:
                built.resolver.close()
    except FleetboxError as e:
        log.warning("undoing the network of %s: %s; `fleetbox prune` tries again", built.journal.record.cluster, e)


def _left_behind(bridge: str, cluster: str, namespace: int) -> NetworkRecord | None:
    """The record of the network as its last holder left it; NetworkError when it is not ours to take."""
    found = read_network(bridge)
    if found is None:
        return None
    if found.cluster != cluster:
        raise NetworkError(
            f"the names {cluster!r} and {found.cluster!r} lead to the same bridge {bridge}",
            hint="give the new cluster another name",
        )
    if is_alive(found.owner) and found.owner != _self():
        raise NetworkError(
            f"the network of {cluster!r} belongs to a running process",
            why=f"pid {found.owner.pid} ({found.owner.program}) keeps it",
            hint="use that holder, or end it",
        )
    if found.boot_id != boot_id():
        return None  # nothing of it is left but the record, which is about to be replaced
    if found.namespace != namespace:
        if not found.private and namespaces.exists(found.namespace):
            raise NetworkError(
                f"the network of {cluster!r} is in another network namespace",
                why=f"its record names net:[{found.namespace}], this is net:[{namespace}]",
                hint="run fleetbox there (nsenter, ip netns exec)",
            )
        return None
    return found


def _choose(spec: NetworkSpec, occupied: Sequence[IPv4Network], surroundings: Surroundings | None) -> IPv4Network:
    if surroundings is None:
        occupied = [*occupied, *_recorded_subnets(spec.cluster), *_nameservers()]
        return choose_subnet(spec.cluster, occupied, spec.subnet)
    recorded = parse_subnet(spec.subnet)
    if recorded and not any(recorded.overlaps(other) for other in occupied):
        return recorded  # nobody else hears of it, whatever the host has meanwhile
    return choose_subnet(spec.cluster, [*occupied, *surroundings.occupied])


def occupied_outside() -> tuple[IPv4Network, ...]:
    """Subnets that the calling thread's network leads to."""
    with links.netlink() as ip:
        return (*links.occupied(ip, ""), *_nameservers())


def _recorded_subnets(cluster: str) -> list[IPv4Network]:
    """Subnets that other clusters of this installation come back to, running or not."""
    recorded = [c.subnet for c in read_clusters() if not isinstance(c, RecordError) and c.name != cluster]
    recorded += [r.subnet for r in read_networks() if not isinstance(r, RecordError) and r.cluster != cluster]
    return [subnet for subnet in map(parse_subnet, recorded) if subnet]


def _nameservers() -> list[IPv4Network]:
    """The host's resolvers often have addresses of these ranges without a route of their own."""
    return [IPv4Network(address) for address in resolver.host_nameservers()]


def _ensure_resolver(
    journal: Journal,
    gateway: IPv4Interface,
    left: list[Process],
    *,
    may_adopt: bool,
    bound: bool,
    upstream: str | None,
) -> Process | None:
    """Take over one of the resolvers that were `left` behind, or start one."""
    record = journal.record
    kept: Process | None = None
    for process in left:
        if kept is None and may_adopt and resolver.answers(process, str(gateway.ip)):
            kept = process
        else:
            resolver.stop(process)
    if kept is not None:
        journal.write(resolver=kept.identity)
        return kept
    started = resolver.start(record.bridge, str(gateway.ip), record.cluster, bound=bound, upstream=upstream)
    try:
        reach("network.resolver")
        journal.write(resolver=started.identity if started else None)
    except BaseException:
        if started is not None:
            resolver.stop(started)
        raise
    return started


def _resolvers(record: NetworkRecord) -> list[Process]:
    recorded = (
        adopt(record.resolver) if record.resolver and resolver.serves(record.resolver.pid, record.bridge) else None
    )
    return [recorded] if recorded else resolver.find(record.bridge)


def demolish(journal: Journal, process: Process | None = None) -> None:
    """Remove all that the journal names, check, and drop the journal; the caller holds the namespace's lock.

    `process` is the resolver when it is our child. Raises NetworkError, and keeps the journal, when something stayed.
    """
    record = journal.reload()
    reach("network.demolish")

    def remove_links() -> None:
        with links.netlink() as ip:
            links.remove_network(ip, record.bridge, *record.taps.values())
            forwarding.settle(record.namespace, set(links.interfaces(ip).values()))

    def stop_resolver() -> None:
        for found in [process] if process else _resolvers(record):
            resolver.stop(found)

    steps: list[Callable[[], None]] = [
        stop_resolver,
        lambda: firewall.remove_rules(record.rules),
        lambda: firewall.remove_table(record.table),
        remove_links,
        lambda: resolver.remove_folder(record.bridge),
    ]
    failures: list[FleetboxError] = []
    for step in steps:
        try:
            step()
        except FleetboxError as e:
            failures.append(e)
    if failures:
        raise NetworkError(
            f"a part of the network of {record.cluster!r} cannot be removed",
            why=str(failures[0]),
            hint=failures[0].hint or "`fleetbox prune` tries again",
            details=[str(e) for e in failures[1:]],
        )
    reach("network.demolished")
    journal.remove()


def close(built: Built) -> None:
    """Remove the network. Raises NetworkError when something stayed."""
    with network_lock(built.journal.record.namespace):
        demolish(built.journal, built.resolver)
    built.resolver = None


def attach(built: Built, member: str, slot: int, uid: int, *, join: bool) -> str:
    """Make the member's tap, up and on the bridge (or, without `join`, off it). Returns its name; NetworkError."""
    record = built.journal.record
    key, tap = tap_key(member, slot), naming.tap_name(record.cluster, member, slot)
    for other, name in record.taps.items():
        if name == tap and other != key:
            raise NetworkError(
                f"the members {member!r} and {member_and_slot(other)[0]!r} lead to the same interface {tap}",
                hint="give the new member another name",
            )
    if record.taps.get(key) != tap:
        built.journal.write(taps={**record.taps, key: tap})
        reach("network.tap")
    with links.netlink() as ip:
        links.ensure_tap(ip, tap, record.bridge, uid, join=join)
    reach("network.tap.made")
    return tap


def join(built: Built, member: str, slot: int) -> None:
    """Put the member's tap on the bridge. Raises NetworkError."""
    record = built.journal.record
    with links.netlink() as ip:
        links.join(ip, naming.tap_name(record.cluster, member, slot), record.bridge)


def leave(built: Built, member: str, slot: int) -> None:
    """Take the member's tap, if it has one, off the bridge. Raises NetworkError."""
    with links.netlink() as ip:
        links.leave(ip, naming.tap_name(built.journal.record.cluster, member, slot))


def detach(journal: Journal, *keys: str) -> None:
    """Remove the taps filed under these keys (`tap_key`), as far as there are any. NetworkError when one stays."""
    taps = [tap for key in keys if (tap := journal.record.taps.get(key))]
    if not taps:
        return
    reach("network.detach")
    with links.netlink() as ip:
        links.remove(ip, *taps)
    journal.write(taps={key: tap for key, tap in journal.record.taps.items() if key not in keys})
