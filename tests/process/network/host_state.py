"""What a network leaves on its host, for comparing before and after, and how the tests act on it."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from pyroute2 import IPRoute

from fleetbox import paths
from fleetbox.backends.base import Lease, NetworkSpec
from fleetbox.backends.host.network.network import HostNetwork
from tests.netns import Namespace, TestNet

T = TypeVar("T")

UFW = """
table ip filter {
  chain FORWARD { type filter hook forward priority filter; policy drop; }
  chain INPUT { type filter hook input priority filter; policy drop; iif lo accept; ct state established accept; }
}
"""


def _nft_ruleset() -> str:
    return subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True, text=True).stdout


def _forwarding() -> dict[str, str]:
    return {p.parent.name: p.read_text() for p in Path("/proc/sys/net/ipv4/conf").glob("*/forwarding")}


def _resolvers() -> list[str]:
    needle = str(paths.host_dir()).encode()
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            argv = file.read_bytes()
        except OSError:
            continue
        if needle in argv and paths.installation_digest().encode() in argv:
            found.append(argv.decode())
    return found


def host_state() -> dict[str, Any]:
    """Links, addresses, firewall, forwarding, resolvers and records of this namespace and installation."""
    with ThreadPoolExecutor(1) as elsewhere:  # netlink cannot be used where an event loop runs
        return elsewhere.submit(_host_state).result()


def _host_state() -> dict[str, Any]:
    with IPRoute() as ip:
        links = sorted(link.get_attr("IFLA_IFNAME") for link in ip.get_links())
        addresses = sorted(a.get_attr("IFA_ADDRESS") for a in ip.get_addr(family=2))
        routes = sorted(str((r.get_attr("RTA_DST"), r["dst_len"], r.get_attr("RTA_OIF"))) for r in ip.get_routes(2))
    namespace = Path("/proc/thread-self/ns/net").stat().st_ino
    digest = paths.installation_digest()
    return {
        "links": links,
        "addresses": addresses,
        "routes": routes,
        "nft": _nft_ruleset(),
        "forwarding": _forwarding(),
        "resolvers": _resolvers(),
        "journals": sorted(p.name for p in paths.networks_dir().glob("fb*")),
        "shared": sorted(str(p) for p in paths.host_dir().glob(f"forwarding-{namespace}.*"))
        + sorted(str(p) for p in paths.host_dir().glob(f"names/fb{digest}*")),
    }


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


def nft(script: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=script.replace("; ", ";\n").replace("{ ", "{\n"), text=True, check=True)


def spec(cluster: str = "alpha", **changes: Any) -> NetworkSpec:
    return NetworkSpec(cluster, "host", **changes)


def guest(net: TestNet, network: HostNetwork, lease: Lease) -> Namespace:
    return net.guest(network.bridge, lease.ip, lease.prefix_length, lease.gateway)
