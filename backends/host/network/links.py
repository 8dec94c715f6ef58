"""Bridges and taps, routes and addresses, through netlink (rtnetlink(7)).

Everything here acts in the calling thread's network namespace: call it in the host thread. A socket costs half a
millisecond, so one is opened for each batch of work.
"""

from __future__ import annotations

import contextlib
import errno
import os
import zlib
from collections.abc import Iterator
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from fleetbox.backends.base import Traffic, generate_mac
from fleetbox.errors import HostError, NetworkError

_TABLE_LOCAL = 255
# Shorter prefixes are default routes in all but name: a VPN's 0.0.0.0/1 and 128.0.0.0/1 occupy no subnet.
_LONGEST_DEFAULT = 7


def not_permitted(why: str) -> HostError:
    """The error for a process that may not change the host's network."""
    return HostError(
        "this user may not make networks on the host",
        why=why,
        hint="use --network private, which needs no root, or run fleetbox as root",
    )


@contextlib.contextmanager
def netlink() -> Iterator[IPRoute]:
    """A netlink socket for a batch of work; the kernel's refusals leave it as NetworkError or HostError."""
    try:
        with IPRoute() as ip:
            yield ip
    except (NetlinkError, OSError) as e:
        code = e.code if isinstance(e, NetlinkError) else e.errno
        why = os.strerror(code) if code else str(e)
        if code in (errno.EPERM, errno.EACCES):
            raise not_permitted(f"{why}: CAP_NET_ADMIN is missing") from e
        if code == errno.EOPNOTSUPP:
            raise HostError(
                "this kernel cannot make the network", why=why, hint="load its modules: modprobe bridge tun"
            ) from e
        raise NetworkError("the kernel refused a change of the network", why=why, hint="see `fleetbox doctor`") from e


def index_of(ip: IPRoute, name: str) -> int | None:
    """An interface's index, None when there is no such interface."""
    try:
        return int(ip.link("get", ifname=name)[0]["index"])
    except NetlinkError as e:
        if e.code == errno.ENODEV:
            return None
        raise


def interfaces(ip: IPRoute) -> dict[int, str]:
    """Every interface: index to name."""
    return {link["index"]: link.get_attr("IFLA_IFNAME") for link in ip.get_links()}


def _group_of(bridge: str) -> int:
    """The link group of a network's interfaces: a bulk removal takes 40 ms for 100 of them, one by one 1.7 s."""
    return 0x40000000 | zlib.crc32(bridge.encode()) & 0x3FFFFFFF


def ensure_bridge(ip: IPRoute, name: str, gateway: IPv4Interface) -> None:
    """Make the bridge, or bring the existing one to what it should be: up, with exactly this IPv4 address."""
    index = index_of(ip, name)
    if index is None:
        # The address is fixed: a bridge without one takes its lowest port's and would change it under its guests.
        ip.link(
            "add",
            ifname=name,
            kind="bridge",
            address=generate_mac(name),
            br_stp_state=0,
            br_forward_delay=0,
            br_mcast_snooping=0,
        )
        index = index_of(ip, name)
    ipv6_setting(name, "accept_ra", 0)
    ipv6_setting(name, "accept_dad", 0)
    present = False
    for address in ip.get_addr(index=index, family=2):
        found = IPv4Interface((address.get_attr("IFA_LOCAL"), address["prefixlen"]))
        if found == gateway:
            present = True
        else:
            ip.addr("del", index=index, address=str(found.ip), prefixlen=found.network.prefixlen)
    if not present:
        ip.addr(
            "add",
            index=index,
            address=str(gateway.ip),
            prefixlen=gateway.network.prefixlen,
            broadcast=str(gateway.network.broadcast_address),
        )
    ip.link("set", index=index, state="up", group=_group_of(name))


def ensure_tap(ip: IPRoute, name: str, bridge: str, uid: int, *, join: bool = True) -> None:
    """Make the persistent tap that `uid` may open, up, and on the bridge or off it; an existing one is kept."""
    master = _bridge_index(ip, bridge)
    index = index_of(ip, name)
    if index is None:
        ip.link("add", ifname=name, kind="tuntap", mode="tap", uid=uid)
        index = index_of(ip, name)
    # Guests wake on this link with an address already: nobody waits for its duplicates.
    ipv6_setting(name, "accept_dad", 0)
    ip.link("set", index=index, state="up", master=master if join else 0, group=_group_of(bridge))


def join(ip: IPRoute, tap: str, bridge: str) -> None:
    """Put a tap on the bridge; one that is there already stays. Raises NetworkError when either is gone."""
    master, index = _bridge_index(ip, bridge), index_of(ip, tap)
    if index is None:
        raise NetworkError(f"the interface {tap} is gone", hint="stop the member and start it again")
    ip.link("set", index=index, master=master)


def leave(ip: IPRoute, tap: str) -> None:
    """Take a tap off its bridge: nothing passes any more. One that is off it, or gone, is fine."""
    index = index_of(ip, tap)
    if index is not None:
        ip.link("set", index=index, master=0)


def traffic(tap: str) -> Traffic:
    """What has passed a tap: what the host's end receives is what the guest has sent. Nothing of one that is gone."""
    with netlink() as ip:
        index = index_of(ip, tap)
        counted = ip.get_links(index)[0].get_attr("IFLA_STATS64") if index is not None else None
    return Traffic(counted["tx_bytes"], counted["rx_bytes"]) if counted else Traffic()


def _bridge_index(ip: IPRoute, bridge: str) -> int:
    index = index_of(ip, bridge)
    if index is None:
        raise NetworkError(f"the bridge {bridge} is gone", hint="stop the cluster and start it again")
    return index


def remove_network(ip: IPRoute, bridge: str, *taps: str) -> None:
    """Remove a bridge and its taps; those that are gone already are fine. Raises NetworkError when one stays."""
    group = _group_of(bridge)
    grouped = {link.get_attr("IFLA_IFNAME") for link in ip.get_links() if link.get_attr("IFLA_GROUP") == group}
    if grouped and grouped <= {bridge, *taps}:
        ip.link("del", group=group)
    remove(ip, *taps, bridge)


def remove(ip: IPRoute, *names: str) -> None:
    """Remove interfaces; those that are gone already are fine. Raises NetworkError when one stays."""
    for name in names:
        index = index_of(ip, name)
        if index is not None:
            ip.link("del", index=index)
    stayed = [name for name in names if index_of(ip, name) is not None]
    if stayed:
        raise NetworkError(f"the interface {', '.join(stayed)} cannot be removed", hint=f"ip link del {stayed[0]}")


def ipv6_setting(interface: str, key: str, value: int) -> None:
    """Set `net.ipv6.conf.<interface>.<key>`, where the kernel has IPv6."""
    with contextlib.suppress(FileNotFoundError):
        Path(f"/proc/sys/net/ipv6/conf/{interface}/{key}").write_text(str(value))


def _routes(ip: IPRoute) -> Iterator[tuple[IPv4Network, list[int]]]:
    """Destination and outgoing interfaces of every IPv4 route but the local table's."""
    for route in ip.get_routes(family=2):
        if route.get_attr("RTA_TABLE", route["table"]) == _TABLE_LOCAL:
            continue
        hops: list[Any] = route.get_attr("RTA_MULTIPATH") or []
        out = [hop["oif"] for hop in hops] or [route.get_attr("RTA_OIF")]
        yield IPv4Network((route.get_attr("RTA_DST") or "0.0.0.0", route["dst_len"])), [i for i in out if i]  # noqa: S104


def occupied(ip: IPRoute, own_bridge: str) -> list[IPv4Network]:
    """Subnets that routes and addresses of this host use, without those of `own_bridge`."""
    own = index_of(ip, own_bridge)
    routed = [net for net, out in _routes(ip) if net.prefixlen > _LONGEST_DEFAULT and (not out or out != [own])]
    addressed = [
        IPv4Interface((address.get_attr("IFA_ADDRESS"), address["prefixlen"])).network
        for address in ip.get_addr(family=2)
        if address["index"] != own
    ]
    return routed + addressed


def loopback_up() -> None:
    """A new namespace's loopback interface is down."""
    with netlink() as ip:
        ip.link("set", index=1, state="up")


def uplinks(ip: IPRoute) -> tuple[str, ...]:
    """Interfaces of the default routes, sorted."""
    names = interfaces(ip)
    found = {i for net, out in _routes(ip) if net.prefixlen <= _LONGEST_DEFAULT for i in out}
    return tuple(sorted(names[i] for i in found if i in names))
