"""Removing what belongs to holders that are gone, and putting back what others swept away.

A network goes when its owner is dead and no machine of its cluster runs; a cluster whose record cannot be read keeps
its network. Networks of a live owner, of another installation or of a namespace that is not ours are left alone.
Deciding and removing happen under the namespace's lock, so no holder takes a network over in between.
"""

from __future__ import annotations

import logging
from ipaddress import IPv4Interface

from fleetbox import paths
from fleetbox.backends.host import namespaces
from fleetbox.backends.host.network import (
    construction,
    firewall,
    forwarding,
    links,
    resolver,
)
from fleetbox.backends.host.network.journal import (
    Journal,
    NetworkRecord,
    add_rules,
    member_and_slot,
    path_of,
    read_network,
    read_networks,
)
from fleetbox.backends.host.network.lock import drop_lock, network_lock
from fleetbox.backends.host.network.subnet import parse_subnet
from fleetbox.backends.host.thread import HostThread
from fleetbox.errors import FleetboxError, NotFoundError, RecordError
from fleetbox.identity import boot_id, is_alive
from fleetbox.records import ClusterRecord, read_cluster

log = logging.getLogger(__name__)


async def reconcile(host: HostThread, dry_run: bool = False, *, keep: str = "") -> list[str]:
    """Remove networks and taps that nobody will adopt; returns what was (or with `dry_run` would be) removed, in words.

    `keep` names a cluster whose network is about to be taken over. What cannot be read or removed is logged and stays.
    """
    removed: list[str] = []
    for record in await host.run(lambda: list(read_networks())):
        if isinstance(record, RecordError):
            log.warning("%s; its network is left as it is", record)
        elif record.cluster != keep:
            try:
                removed += await host.run(_reconcile_one, record.bridge, dry_run)
            except FleetboxError as e:
                log.warning("the network %s of %s: %s", record.bridge, record.cluster, e)
    return removed + await host.run(_remove_stray_resolvers, dry_run)


def _remove_stray_resolvers(dry_run: bool) -> list[str]:
    """Resolvers of this installation whose network has no record: it is written first and removed last."""
    removed = []
    with network_lock(namespaces.network_inode()):
        for folder in sorted(paths.host_dir().glob(f"names/fb{paths.installation_digest()}*")):
            if path_of(folder.name).exists():
                continue
            if not dry_run:
                for process in resolver.find(folder.name):
                    resolver.stop(process)
                resolver.remove_folder(folder.name)
            removed.append(f"resolver of {folder.name}: no record names its network")
    return removed


def _reconcile_one(bridge: str, dry_run: bool) -> list[str]:
    namespace = namespaces.network_inode()
    with network_lock(namespace):
        record = read_network(bridge)  # again, now that nobody changes it
        if record is None:
            return []
        if is_alive(record.owner):
            if record.namespace == namespace and not dry_run:
                _restore(record)
            return []
        if record.boot_id != boot_id() or record.namespace != namespace:
            return _forget_elsewhere(record, dry_run)
        cluster = _cluster_of(record)
        if isinstance(cluster, RecordError):
            log.warning("%s; its network %s is kept", cluster, bridge)
            return []
        if cluster is not None and any(m.handle and is_alive(m.handle.process) for m in cluster.members.values()):
            if not dry_run:
                _restore(record)
            return _remove_strays(record, cluster, dry_run)
        if not dry_run:
            construction.demolish(Journal(record))
        return [f"network {bridge} of {record.cluster}: its holder is gone and no machine runs"]


def _cluster_of(record: NetworkRecord) -> ClusterRecord | RecordError | None:
    try:
        return read_cluster(record.cluster)
    except NotFoundError:
        return None
    except RecordError as e:
        return e


def _forget_elsewhere(record: NetworkRecord, dry_run: bool) -> list[str]:
    """Drop a record of another boot or of a namespace that has ended; its resources ended with that."""
    if record.boot_id == boot_id():
        if namespaces.exists(record.namespace):
            return []
    else:
        with links.netlink() as ip:
            if links.index_of(ip, record.bridge) is not None:
                return []
    if not dry_run:
        with Journal(record).forgetting() as same:
            if not same:
                return []
            for process in resolver.find(record.bridge):
                resolver.stop(process)
            resolver.remove_folder(record.bridge)
            if record.private:
                drop_lock(record.namespace)
    return [f"record of the network {record.bridge} of {record.cluster}: it ended with its boot or namespace"]


def _remove_strays(record: NetworkRecord, cluster: ClusterRecord, dry_run: bool) -> list[str]:
    """From a network that waits to be adopted, remove taps whose member is gone or has its machine in the other
    slot.
    """
    strays = {}
    for key in record.taps:
        name, slot = member_and_slot(key)
        if name not in cluster.members:
            strays[key] = "its member is gone"
        elif cluster.members[name].slot != slot:
            strays[key] = "its member has its machine on another"
    if not dry_run:
        construction.detach(Journal(record), *strays)
    return [f"interface {record.taps[key]} of {record.cluster}/{key}: {why}" for key, why in strays.items()]


def _restore(record: NetworkRecord) -> None:
    """Put back what a reloaded firewall or a restarted Docker has swept away, and follow the host to a new uplink."""
    with links.netlink() as ip:
        if links.index_of(ip, record.bridge) is None:
            return  # being made or removed, or its holder is about to find out
        forwarding.claim(record.namespace, record.bridge, links.uplinks(ip))
    subnet = parse_subnet(record.subnet)
    present = firewall.chains()
    if subnet is not None and not firewall.has_table(record.table, present):
        gateway = IPv4Interface((int(subnet.network_address) + 1, subnet.prefixlen))
        firewall.apply_table(record.table, record.bridge, gateway)
        log.warning("the table %s had gone and was made again", record.table)
    wanted = firewall.wanted_rules(record.bridge, present)
    add_rules(record.bridge, wanted)
    for rule in firewall.ensure_rules(wanted):
        log.warning("the rule %s was put into %s %s", rule.tag, rule.table, rule.chain)
