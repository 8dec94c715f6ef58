"""What passes over a network and what does not: traffic, names, other firewalls."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fleetbox.backends.base import timeout_scale
from fleetbox.backends.host import programs
from fleetbox.backends.host.network import forwarding, resolver
from fleetbox.backends.host.network.network import HostNetwork, open_network
from fleetbox.backends.host.network.reconcile import reconcile
from fleetbox.backends.host.thread import HostThread
from tests.netns import INTERNET_ADDRESS, Namespace, TestNet
from tests.process.network.host_state import UFW, guest, host_state, nft, run, spec

pytestmark = pytest.mark.netns

DOCKER = """
table ip filter {
  chain DOCKER-USER { return; }
  chain FORWARD { type filter hook forward priority filter; policy drop; jump DOCKER-USER; }
}
"""


def lookup(namespace: Namespace, name: str, server: str, kind: int = 1) -> str:
    code = (
        "import socket,struct,sys\n"
        "q=b'\\x12\\x34\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0'\n"
        "q+=b''.join(bytes([len(p)])+p.encode() for p in sys.argv[1].split('.'))\n"
        "q+=b'\\0\\0'+bytes([int(sys.argv[3])])+b'\\0\\1'\n"
        "s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);s.settimeout(2);s.connect((sys.argv[2],53));s.send(q)\n"
        "r=s.recv(999);print('.'.join(map(str,r[-4:])) if r[7] else 'rcode %d'%(r[3]&15))\n"
    )
    return namespace.run(sys.executable, "-c", code, name, server, str(kind), check=False).stdout.strip()


def test_members_reach_the_internet_and_each_other_and_nobody_else_reaches_them(net: TestNet, host: HostThread) -> None:
    async def life() -> None:
        alpha, beta = await open_network(host, spec("alpha")), await open_network(host, spec("beta"))
        one, two = [guest(net, alpha, await alpha.reserve(f"node-{n}")) for n in (1, 2)]
        other = guest(net, beta, await beta.reserve("node-1"))
        url = net.internet.serve_http("hello from far away")
        assert one.fetch(url) == "hello from far away"
        assert other.fetch(url) == "hello from far away"
        inside = one.serve_http("hello from node-1")
        assert two.fetch(inside) == "hello from node-1"
        assert net.host.fetch(inside) == "hello from node-1"
        assert other.fetch(inside, 1) == ""
        assert lookup(two, "node-1", gateway_of(alpha)) == one.address
        assert lookup(other, "node-1", gateway_of(alpha)) == ""
        # Somebody beyond the uplink who adds a route does not get in either.
        net.internet.run("ip", "route", "add", alpha.subnet, "via", net.host.address)
        assert net.internet.fetch(inside, 1) == ""
        await alpha.close()
        assert forwarding.forwards("up0"), "beta still needs it"
        assert other.fetch(url) == "hello from far away"
        await beta.close()
        assert not forwarding.forwards("up0")

    run(life())


def gateway_of(network: HostNetwork) -> str:
    return network.subnet.replace(".0/24", ".1")


@pytest.mark.parametrize("rules", [DOCKER, UFW], ids=["docker", "ufw"])
def test_egress_and_names_pass_beside_a_dropping_firewall(net: TestNet, host: HostThread, rules: str) -> None:
    nft(rules)
    bridged = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    if bridged.exists():
        bridged.write_text("1")
    before = host_state()

    async def life() -> None:
        network = await open_network(host, spec())
        leases = [await network.reserve(f"node-{n}") for n in (1, 2)]
        one, two = [guest(net, network, lease) for lease in leases]
        url = net.internet.serve_http("hello")
        assert one.fetch(url) == "hello"
        assert two.fetch(one.serve_http("hello from node-1")) == "hello from node-1"
        assert lookup(one, "node-2", leases[0].gateway) == two.address
        for _ in range(2):  # Docker made its chains anew, and once more with nothing to do
            subprocess.run(["nft", "flush", "chain", "ip", "filter", "FORWARD"], check=True)
            if rules is DOCKER:
                subprocess.run(["nft", "flush", "chain", "ip", "filter", "DOCKER-USER"], check=True)
                nft("add rule ip filter FORWARD jump DOCKER-USER")
            assert await reconcile(host) == []
            assert one.fetch(url) == "hello"
        tags = [line for line in host_state()["nft"].splitlines() if "fleetbox:" in line]
        assert len(tags) == (2 if rules is DOCKER else 4)
        await network.close()

    run(life())
    net.remove_guests()
    after = host_state()
    assert "fleetbox" not in after["nft"]
    assert after | {"nft": ""} == before | {"nft": ""}


def test_a_firewall_that_comes_later_or_sweeps_ours_away_is_dealt_with(net: TestNet, host: HostThread) -> None:
    async def life() -> None:
        network = await open_network(host, spec())
        one = guest(net, network, await network.reserve("node-1"))
        url = net.internet.serve_http("hello")
        subprocess.run(["nft", "flush", "ruleset"], check=True)
        nft(DOCKER)
        assert one.fetch(url, 1) == ""
        assert await reconcile(host, dry_run=True) == []
        assert one.fetch(url, 1) == ""
        assert await reconcile(host) == []
        assert one.fetch(url) == "hello"
        await network.attach("node-1")  # the owner's next write keeps what reconcile recorded
        await network.close()
        assert "fleetbox" not in host_state()["nft"]

    run(life())


def test_names_resolve_and_follow_the_members(net: TestNet, host: HostThread) -> None:
    async def life() -> None:
        network = await open_network(host, spec())
        assert network.resolves_names
        lease = await network.reserve("node-1")
        assert lease.dns == (lease.gateway,)
        one = guest(net, network, lease)

        async def becomes(name: str, expected: str) -> bool:
            async with asyncio.timeout(20 * timeout_scale()):  # dnsmasq is told by inotify
                while lookup(one, name, lease.gateway) != expected:
                    await asyncio.sleep(0.05)
            return True

        assert await becomes("node-1", lease.ip)
        second = await network.reserve("node-2")
        assert await becomes("node-2", second.ip)
        assert await becomes("node-2.alpha", second.ip)
        # What a member has not is not asked for outside, where nobody answers yet: every lookup would wait for it.
        aaaa = 28
        assert (
            lookup(one, "node-1.alpha", lease.gateway, aaaa) == lookup(one, "node-1", lease.gateway, aaaa) == "rcode 0"
        )
        assert lookup(one, "nobody.alpha", lease.gateway) == lookup(one, "nobody", lease.gateway) == "rcode 3"
        await network.release("node-2")
        assert await becomes("node-2", "rcode 3")
        if resolver.host_nameservers():
            net.internet.serve_dns("example.test", INTERNET_ADDRESS)
            assert await becomes("example.test", INTERNET_ADDRESS)
        await network.close()

    run(life())


def test_without_dnsmasq_members_ask_the_hosts_nameservers(
    net: TestNet, host: HostThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = programs.find
    monkeypatch.setattr(programs, "find", lambda name: None if name == "dnsmasq" else found(name))

    async def life() -> None:
        network = await open_network(host, spec())
        assert not network.resolves_names
        assert (await network.reserve("node-1")).dns == resolver.host_nameservers()
        await network.close()

    run(life())


def test_a_taken_port_53_costs_only_the_names(net: TestNet, host: HostThread) -> None:
    async def life() -> None:
        network = await open_network(host, spec())
        assert not network.resolves_names
        assert (await network.reserve("node-1")).dns == resolver.host_nameservers()
        await network.attach("node-1")
        await network.close()

    before = host_state()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("0.0.0.0", 53))
        run(life())
    assert host_state() == before
