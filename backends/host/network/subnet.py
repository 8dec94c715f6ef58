"""Which /24 a cluster gets."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network

from fleetbox.errors import NetworkError

POOLS = (IPv4Network("192.168.0.0/16"), IPv4Network("10.64.0.0/10"))
_PREFIX_LENGTH = 24


def parse_subnet(text: str) -> IPv4Network | None:
    """A recorded subnet, None when there is none that could hold a member."""
    try:
        network = IPv4Network(text)
    except ValueError:
        return None
    return network if network.prefixlen <= 29 else None


def candidates(cluster: str) -> Iterator[IPv4Network]:
    """Every subnet of the pools, 192.168.0.0/16 first, beginning at one that the cluster's name decides."""
    start = int.from_bytes(hashlib.sha256(cluster.encode()).digest()[:4], "big")
    for pool in POOLS:
        count = 1 << (_PREFIX_LENGTH - pool.prefixlen)
        base = int(pool.network_address)
        for step in range(count):
            yield IPv4Network((base + ((start + step) % count << (32 - _PREFIX_LENGTH)), _PREFIX_LENGTH))


def choose_subnet(cluster: str, occupied: Iterable[IPv4Network], recorded: str = "") -> IPv4Network:
    """The recorded subnet when nothing occupies it, else the first free candidate. Raises NetworkError without one."""
    taken = tuple(set(occupied))
    wanted = parse_subnet(recorded)
    for subnet in itertools.chain([wanted] if wanted else [], candidates(cluster)):
        if not any(subnet.overlaps(other) for other in taken):
            return subnet
    raise NetworkError(
        "there is no free subnet for the cluster",
        why=f"routes and addresses of this host cover {' and '.join(map(str, POOLS))}",
        hint="see `ip route show table all`; a narrower route (such as a VPN's) makes room",
    )
