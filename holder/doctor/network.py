"""Whether a cluster's network can be made here: tried for real, in a network namespace that ends with its thread."""

from __future__ import annotations

import os
import sys
from ipaddress import IPv4Interface
from pathlib import Path

from fleetbox.backends.host import capabilities, namespaces, process, programs
from fleetbox.backends.host.network import links, subnet
from fleetbox.errors import FleetboxError, HostError
from fleetbox.host import Check

_AS_ROOT = "run fleetbox as root"

MODULES = ("tun", "nf_tables", "nft_masq", "nft_ct")
LOAD_MODULES = f"run: sudo modprobe -a {' '.join(MODULES)}"

_PRIVATE = "private networks"
_PROBE_LIMIT_S = 25.0

_BRIDGE, _TAP = "scratch-bridge", "scratch-tap"
_TABLE = """
table inet scratch {
  chain out { type nat hook postrouting priority srcnat; ip saddr 192.0.2.0/24 masquerade; }
  chain through { type filter hook forward priority filter; ct state established,related accept; }
}
"""


def check() -> Check:
    """Make a bridge, a tap and a firewall table in an empty namespace. Call it in a thread that ends afterwards."""
    if not may_use_the_hosts():
        return Check("network", "ok", "not tried: the host's own takes root (CAP_NET_ADMIN); clusters get private ones")
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    except OSError as e:
        absent = isinstance(e, FileNotFoundError)
        hint = "run: sudo modprobe tun" if absent else _AS_ROOT
        return Check("network", "fail", f"taps cannot be made: /dev/net/tun: {e.strerror}", hint, fixable=absent)
    os.close(descriptor)
    try:
        namespaces.new_network()
    except OSError as e:
        return Check("network", "warn", f"not tried, as no scratch namespace can be made: {e.strerror}", _AS_ROOT)
    try:
        make_everything()
    except FleetboxError as e:
        return Check("network", "fail", str(e), e.hint, fixable=e.hint == LOAD_MODULES)
    return Check("network", "ok", "host mode: bridge, tap, forwarding and firewall work (tried in a scratch namespace)")


def may_use_the_hosts() -> bool:
    """Whether this process may change the host's network."""
    return capabilities.has(capabilities.NET_ADMIN)


def make_everything() -> None:
    """Make what a cluster's network has, in the calling thread's namespace. Raises FleetboxError."""
    with links.netlink() as ip:
        links.ensure_bridge(ip, _BRIDGE, IPv4Interface("192.0.2.1/24"))
        links.ensure_tap(ip, _TAP, _BRIDGE, os.geteuid())
    try:
        Path(f"/proc/sys/net/ipv4/conf/{_BRIDGE}/forwarding").write_text("1")
    except OSError as e:
        raise HostError(
            "forwarding cannot be switched on",
            why=f"/proc/sys: {e.strerror}",
            hint="in a container, let it write /proc/sys (docker run --privileged)",
        ) from e
    try:
        process.run_blocking(["nft", "-f", "-"], stdin=_TABLE.encode(), passing_on=(capabilities.NET_ADMIN,))
    except process.ProgramFailed as e:
        raise HostError("the firewall cannot be set", why=e.why, hint=LOAD_MODULES) from e


def check_subnets() -> Check:
    """Whether the next cluster finds a subnet, and which routes take the room."""
    with links.netlink() as ip:
        occupied = links.occupied(ip, "")
    taken = sorted({network for network in occupied if any(network.overlaps(pool) for pool in subnet.POOLS)})
    free = subnet.choose_subnet("doctor", occupied)  # NetworkError, with what to do, when there is none
    message = f"{free} is free"
    if taken:
        message += f"; taken by this host: {', '.join(map(str, taken[:5]))}{', …' if len(taken) > 5 else ''}"
    wide = [str(network) for network in taken if any(network.supernet_of(pool) for pool in subnet.POOLS)]
    if wide:
        hint = "nothing now; when the other pool fills up, give that route (a VPN's, most often) a narrower target"
        return Check("subnets", "warn", f"{message}; {', '.join(wide)} covers a whole pool", hint)
    return Check("subnets", "ok", message)


def check_private() -> Check:
    """Make a private network in a child process, as a holder does, and look for what leads out of it."""
    needed = not may_use_the_hosts()
    argv = [sys.executable, "-P", "-m", "fleetbox.holder.doctor.private"]
    try:
        process.run_blocking(argv, timeout_s=_PROBE_LIMIT_S)
    except process.ProgramFailed as e:
        why, _, hint = e.stderr.strip().rpartition("\n")
        return Check(_PRIVATE, "fail" if needed else "warn", why or e.why, hint or "see `fleetbox doctor --debug`")
    helpers = [name for name in ("pasta", "slirp4netns") if programs.find(name)]
    if not helpers:
        hint = programs.missing("pasta").hint
        return Check(_PRIVATE, "warn", "they work, and lead nowhere: no pasta, no slirp4netns", hint, fixable=True)
    return Check(_PRIVATE, "ok", f"they work (tried in a child), with {' and '.join(helpers)}")
