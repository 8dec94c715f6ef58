"""The firewall of one network: a table of its own, and accepts in the chains of others (nftables, libnftables-json(5)).

Verdicts of several base chains add up: an accept in our table ends our chain only, and a drop anywhere is final. Where
another table drops by policy (Docker, ufw, firewalld), tagged accepts therefore go into that table: into `DOCKER-USER`
where Docker made it for this purpose, else at the head of the dropping chain.

Our own table lets members out, answers in, and nobody else in: neither other clusters nor the host's neighbours, who
could otherwise route to members once forwarding is on. The host itself reaches members (its packets are not forwarded).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from ipaddress import IPv4Interface
from typing import Any

from fleetbox.backends.host import capabilities
from fleetbox.backends.host.network.journal import ForeignRule
from fleetbox.backends.host.process import ProgramFailed, run_blocking
from fleetbox.errors import HostError, NetworkError

_Json = dict[str, Any]
_FAMILY = "inet"
_DROPPING_FAMILIES = ("ip", "inet")
_DOCKER_USER = ("ip", "filter", "DOCKER-USER")


def _match(left: _Json, right: object, op: str = "==") -> _Json:
    return {"match": {"op": op, "left": left, "right": right}}


def _meta(key: str, value: str, op: str = "==") -> _Json:
    return _match({"meta": {"key": key}}, value, op)


_ACCEPT: _Json = {"accept": None}
_DROP: _Json = {"drop": None}
_ANSWERS = _match({"ct": {"key": "state"}}, ["established", "related"], "in")


def _nft(*arguments: str, commands: list[_Json] | None = None) -> list[_Json]:
    """Run nft and return its answer's objects; the commands are one transaction."""
    script = None if commands is None else json.dumps({"nftables": commands}).encode()
    argv = ["nft", "-j", *arguments, *(["-f", "-"] if script is not None else [])]
    output = run_blocking(argv, stdin=script, passing_on=(capabilities.NET_ADMIN,))
    return list(json.loads(output)["nftables"]) if output.strip() else []


def _refused(e: ProgramFailed) -> NetworkError | HostError:
    if "Operation not permitted" in e.stderr:
        return HostError("this user may not change the host's firewall", why=e.why, hint="run fleetbox as root")
    if "Operation not supported" in e.stderr:
        return HostError("this kernel lacks a part of nftables", why=e.why, hint="modprobe nf_tables nft_masq nft_ct")
    return NetworkError(
        "the host's firewall refused a change", why=e.why, hint="see `nft list ruleset`", details=e.details
    )


def apply_table(table: str, bridge: str, gateway: IPv4Interface) -> None:
    """Make the network's table, or replace what it holds, in one transaction."""
    inside, outside = _meta("iifname", bridge), _meta("oifname", bridge)
    not_from_inside = _meta("iifname", bridge, "!=")
    other_clusters = _meta("iifname", f"{bridge[:8]}*")  # of this installation
    to_gateway = _match({"payload": {"protocol": "ip", "field": "daddr"}}, str(gateway.ip))
    subnet = {"prefix": {"addr": str(gateway.network.network_address), "len": gateway.network.prefixlen}}
    from_subnet = _match({"payload": {"protocol": "ip", "field": "saddr"}}, subnet)

    def chain(name: str, kind: str, hook: str, prio: int) -> _Json:
        return {
            "add": {
                "chain": {
                    "family": _FAMILY,
                    "table": table,
                    "name": name,
                    "type": kind,
                    "hook": hook,
                    "prio": prio,
                    "policy": "accept",
                }
            }
        }

    def rule(name: str, *expressions: _Json) -> _Json:
        return {"add": {"rule": {"family": _FAMILY, "table": table, "chain": name, "expr": list(expressions)}}}

    own = {"table": {"family": _FAMILY, "name": table}}
    commands = [
        {"add": own},
        {"delete": own},
        {"add": own},
        chain("forward", "filter", "forward", 0),
        # Members among themselves pass here where bridge-nf-call-iptables is on.
        rule("forward", inside, outside, _ACCEPT),
        rule("forward", outside, _ANSWERS, _ACCEPT),
        rule("forward", outside, _DROP),
        chain("input", "filter", "input", 0),
        rule("input", other_clusters, not_from_inside, to_gateway, _DROP),
        chain("postrouting", "nat", "postrouting", 100),
        rule("postrouting", from_subnet, _meta("oifname", bridge, "!="), {"masquerade": None}),
    ]
    try:
        _nft(commands=commands)
    except ProgramFailed as e:
        raise _refused(e) from e


def remove_table(table: str) -> None:
    """Remove the network's table; raises NetworkError when it stays."""
    own = {"table": {"family": _FAMILY, "name": table}}
    try:
        _nft(commands=[{"add": own}, {"delete": own}])  # add first: a table that is gone already is no error
    except ProgramFailed as e:
        raise _refused(e) from e


def chains() -> list[_Json]:
    """Every chain of the host's ruleset, without its rules."""
    try:
        return [o["chain"] for o in _nft("list", "chains") if "chain" in o]
    except ProgramFailed as e:
        raise _refused(e) from e


def has_table(table: str, chains: list[_Json]) -> bool:
    """Whether the network's table is among the host's chains: reloading /etc/nftables.conf sweeps it away."""
    return any(c["family"] == _FAMILY and c["table"] == table for c in chains)


def wanted_rules(bridge: str, chains: list[_Json]) -> tuple[ForeignRule, ...]:
    """The accepts that other tables' chains need: for forwarding in both directions, and for members' DNS."""
    known = {(c["family"], c["table"], c["name"]) for c in chains}
    dropping: dict[str, list[tuple[str, str, str]]] = {"forward": [], "input": []}
    for c in chains:
        if c.get("policy") == "drop" and c.get("hook") in dropping and c["family"] in _DROPPING_FAMILIES:
            dropping[c["hook"]].append((c["family"], c["table"], c["name"]))
    forward = dropping["forward"]
    if _DOCKER_USER in known:
        forward = [_DOCKER_USER, *(c for c in forward if c[:2] != _DOCKER_USER[:2])]
    return tuple(
        ForeignRule(*place, tag=f"fleetbox:{bridge}:{purpose}")
        for places, purposes in ((forward, ("out", "in")), (dropping["input"], ("dns-udp", "dns-tcp")))
        for place in places
        for purpose in purposes
    )


def _expressions(rule: ForeignRule) -> list[_Json]:
    _, bridge, purpose = rule.tag.split(":")
    if purpose == "in":
        return [_meta("oifname", bridge), _ACCEPT]
    if purpose == "out":
        return [_meta("iifname", bridge), _ACCEPT]
    port = _match({"payload": {"protocol": purpose.removeprefix("dns-"), "field": "dport"}}, 53)
    return [_meta("iifname", bridge), port, _ACCEPT]


def _place(rule: ForeignRule) -> _Json:
    return {"family": rule.family, "table": rule.table, "chain": rule.chain}


def _handles(rules: Iterable[ForeignRule]) -> dict[ForeignRule, list[int]]:
    """The handles under which each rule stands in its chain; none where the rule or its chain is gone."""
    rules = list(rules)
    found: dict[ForeignRule, list[int]] = {rule: [] for rule in rules}
    for family, table, chain in dict.fromkeys((r.family, r.table, r.chain) for r in rules):
        try:
            listed = _nft("-a", "list", "chain", family, table, chain)
        except ProgramFailed as e:
            if "No such file or directory" in e.stderr:
                continue
            raise _refused(e) from e
        for present in (o["rule"] for o in listed if "rule" in o):
            key = ForeignRule(family, table, chain, str(present.get("comment", "")))
            if key in found:
                found[key].append(present["handle"])
    return found


def ensure_rules(rules: Iterable[ForeignRule]) -> list[ForeignRule]:
    """Put in the rules that are missing, at the head of their chains; returns those."""
    absent = [rule for rule, handles in _handles(rules).items() if not handles]
    commands = [
        {"insert": {"rule": {**_place(rule), "comment": rule.tag, "expr": _expressions(rule)}}} for rule in absent
    ]
    try:
        if commands:
            _nft(commands=commands)
    except ProgramFailed as e:
        raise _refused(e) from e
    return absent


def remove_rules(rules: Iterable[ForeignRule]) -> None:
    """Remove our rules from other people's chains, by handle. Raises NetworkError when one stays."""
    rules = list(rules)
    commands = [
        {"delete": {"rule": {**_place(rule), "handle": handle}}}
        for rule, handles in _handles(rules).items()
        for handle in handles
    ]
    if not commands:
        return
    try:
        _nft(commands=commands)
    except ProgramFailed as e:
        raise _refused(e) from e
    stayed = [rule for rule, handles in _handles(rules).items() if handles]
    if stayed:
        raise NetworkError(f"the rule {stayed[0].tag} in {stayed[0].table} {stayed[0].chain} cannot be removed")
