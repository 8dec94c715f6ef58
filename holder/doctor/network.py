"""Whether a cluster's network can be made here: tried for real, in a network namespace that ends with its thread."""

from __future__ import annotations

import ctypes
import os
import re
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

import msgspec

from fleetbox.backends.host import process, programs
from fleetbox.backends.host.network import links
from fleetbox.errors import FleetboxError, HostError
from fleetbox.host import Check

_CAP_NET_ADMIN = 12  # capabilities(7), linux/capability.h
_CLONE_NEWNET = 0x40000000  # linux/sched.h
_AS_ROOT = "run fleetbox as root"

_BRIDGE, _TAP = "scratch-bridge", "scratch-tap"
_TABLE = """
table inet scratch {
  chain out { type nat hook postrouting priority srcnat; ip saddr 192.0.2.0/24 masquerade; }
  chain through { type filter hook forward priority filter; ct state established,related accept; }
}
"""


def check() -> Check:
    """Make a bridge, a tap and a firewall table in an empty namespace. Call it in a thread that ends afterwards."""
    if not has_net_admin(Path("/proc/self/status").read_text()):
        return Check("network", "fail", "this user may not make bridges: CAP_NET_ADMIN is missing", _AS_ROOT)
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    except OSError as e:
        hint = "load the module: modprobe tun" if isinstance(e, FileNotFoundError) else _AS_ROOT
        return Check("network", "fail", f"taps cannot be made: /dev/net/tun: {e.strerror}", hint)
    os.close(descriptor)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        why = os.strerror(ctypes.get_errno())
        return Check("network", "warn", f"not tried, as no scratch namespace can be made: {why}", _AS_ROOT)
    try:
        _make_everything()
    except FleetboxError as e:
        return Check("network", "fail", str(e), e.hint)
    return Check("network", "ok", "host mode: bridge, tap, forwarding and firewall work (tried in a scratch namespace)")


def has_net_admin(status: str) -> bool:
    """Whether CAP_NET_ADMIN is among the effective capabilities of a `/proc/PID/status`."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> _CAP_NET_ADMIN & 1)


def _make_everything() -> None:
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
        process.run_blocking(["nft", "-f", "-"], stdin=_TABLE.encode())
    except process.ProgramFailed as e:
        raise HostError(
            "the firewall cannot be set", why=e.why, hint="load its modules: modprobe nf_tables nft_masq nft_ct"
        ) from e


def check_firewall() -> Check:
    """Other people's rules that drop forwarded packets. Information: a cluster's network adds an accept of its own."""
    if programs.find("nft") is None or not has_net_admin(Path("/proc/self/status").read_text()):
        return Check("firewall", "ok", "not looked at: it takes nft and CAP_NET_ADMIN")
    try:
        ruleset = process.run_blocking(["nft", "-j", "list", "ruleset"])
    except process.ProgramFailed as e:
        return Check("firewall", "warn", f"nft cannot list the rules: {e.why}", "load its modules: modprobe nf_tables")
    droppers = dropping_chains(msgspec.json.decode(ruleset))
    if _legacy_drops():
        droppers.append("iptables-legacy FORWARD")
    if droppers:
        return Check(
            "firewall",
            "ok",
            f"{', '.join(droppers)} drops forwarded packets; clusters add an accept of their own beside it",
        )
    return Check("firewall", "ok", "nothing drops forwarded packets")


def dropping_chains(ruleset: dict[str, Any]) -> list[str]:
    """`family table chain` of every base chain on the forward hook whose policy is drop (libnftables-json(5))."""
    chains = [entry["chain"] for entry in ruleset.get("nftables", ()) if "chain" in entry]
    return [
        f"{c['family']} {c['table']} {c['name']}"
        for c in chains
        if c.get("hook") == "forward" and c.get("policy") == "drop"
    ]


def _legacy_drops() -> bool:
    try:
        if "filter" not in Path("/proc/net/ip_tables_names").read_text().split():
            return False
        return b"-P FORWARD DROP" in process.run_blocking(["iptables-legacy", "-S", "FORWARD"])
    except (OSError, FleetboxError):
        return False  # no such rules, or no program that shows them
