"""The host's own rules that concern members' packets: a cluster's network makes its own way beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from fleetbox.backends.host import process, programs
from fleetbox.backends.host.network import links
from fleetbox.errors import FleetboxError
from fleetbox.holder.doctor.network import LOAD_MODULES, may_use_the_hosts
from fleetbox.host import Check

_SYS = Path("/proc/sys")


def check_forward() -> Check:
    """Other people's rules that drop forwarded packets (Docker's, ufw's, firewalld's)."""
    if programs.find("nft") is None or not may_use_the_hosts():
        return Check("firewall", "ok", "not looked at: it takes nft and CAP_NET_ADMIN")
    try:
        ruleset = process.run_blocking(["nft", "-j", "list", "ruleset"])
    except process.ProgramFailed as e:
        return Check("firewall", "warn", f"nft cannot list the rules: {e.why}", LOAD_MODULES, fixable=True)
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


def check_bridge(settings: Path = _SYS) -> Check:
    """Whether bridged packets pass iptables (`bridge-nf-call-iptables`), as Docker and Kubernetes switch on."""
    try:
        on = (settings / "net/bridge/bridge-nf-call-iptables").read_text().strip() == "1"
    except OSError:
        return Check("bridge netfilter", "ok", "not loaded")
    return Check("bridge netfilter", "ok", "on; clusters add accepts for traffic between members" if on else "off")


def check_rp(settings: Path = _SYS) -> Check:
    """Source validation (`rp_filter`, the kernel's ip-sysctl): strict suits bridges, which are their own way back."""
    values = {}
    for scope in ("all", "default"):
        try:
            values[scope] = (settings / f"net/ipv4/conf/{scope}/rp_filter").read_text().strip()
        except OSError:
            return Check("rp_filter", "ok", "this kernel has none")
    words = {"0": "off", "1": "strict", "2": "loose"}
    found = ", ".join(f"{scope} {words.get(value, value)}" for scope, value in values.items())
    if "1" in values.values() and _policy_routes():
        hint = "if members cannot reach the outside, run: sudo sysctl net.ipv4.conf.all.rp_filter=2"
        return Check("rp_filter", "warn", f"{found}, with routing by rules (a VPN's, most often)", hint)
    return Check("rp_filter", "ok", found)


def _policy_routes() -> bool:
    """Whether rules other than the kernel's own three choose routing tables."""
    with links.netlink() as ip:
        return any(rule.get_attr("FRA_TABLE", rule["table"]) not in (253, 254, 255) for rule in ip.get_rules())
