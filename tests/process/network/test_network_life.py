"""The host network's whole life, in a namespace of the test's own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from fleetbox import paths
from fleetbox.backends.host import namespaces, programs
from fleetbox.backends.host.network import construction, firewall, forwarding, links, naming, resolver
from fleetbox.backends.host.network.network import open_network
from fleetbox.backends.host.network.reconcile import reconcile
from fleetbox.backends.host.thread import HostThread
from fleetbox.errors import HostError, NetworkError
from fleetbox.identity import identify
from tests.netns import INTERNET_ADDRESS, TestNet
from tests.process.network.host_state import UFW, guest, host_state, nft, run, spec

pytestmark = pytest.mark.netns


def shown(net: TestNet, interface: str) -> dict[str, Any]:
    [link] = json.loads(net.host.run("ip", "-j", "-d", "link", "show", interface).stdout)
    return dict(link)


def test_the_life_of_a_network_leaves_nothing(net: TestNet, host: HostThread) -> None:
    before = host_state()

    async def life() -> None:
        network = await open_network(host, spec())
        assert network.bridge in host_state()["links"]
        leases = [await network.reserve(f"node-{n}") for n in (1, 2, 3)]
        taps = [await network.attach(lease.name) for lease in leases]
        assert [int(lease.ip.rpartition(".")[2]) for lease in leases] == [2, 3, 4]
        assert {lease.gateway for lease in leases} == {leases[0].gateway}
        assert await network.attach("node-1") == taps[0]
        assert await network.reserve("node-1", "192.168.1.77") == leases[0]
        for name in taps:
            tap = shown(net, name)
            assert tap["master"] == network.bridge
            assert "UP" in tap["flags"]
            assert Path(f"/proc/sys/net/ipv6/conf/{name}/accept_dad").read_text() == "0\n"
        bridge = shown(net, network.bridge)["linkinfo"]["info_data"]
        assert (bridge["stp_state"], bridge["forward_delay"], bridge["mcast_snooping"]) == (0, 0, 0)
        assert Path(f"/proc/sys/net/ipv6/conf/{network.bridge}/accept_ra").read_text() == "0\n"
        await network.release("node-2")
        assert taps[1] not in host_state()["links"]
        assert (await network.reserve("node-4")).ip == leases[1].ip
        assert forwarding.forwards("up0")
        await network.close()
        await network.close()
        with pytest.raises(NetworkError, match="closed"):
            await network.attach("node-1")

    run(life())
    assert host_state() == before
    assert before["forwarding"]["up0"] == "0\n"


def test_a_routed_subnet_is_avoided_and_a_free_recorded_one_kept(net: TestNet, host: HostThread) -> None:
    async def life() -> None:
        network = await open_network(host, spec())
        first = network.subnet
        await network.close()
        again = await open_network(host, spec(subnet=first, leases={"node-7": first.replace(".0/24", ".77")}))
        assert again.subnet == first
        assert (await again.reserve("node-7")).ip == first.replace(".0/24", ".77")
        await again.close()
        net.host.run("ip", "route", "add", first, "via", INTERNET_ADDRESS, "table", "77")
        net.host.run("ip", "route", "add", "0.0.0.0/1", "via", INTERNET_ADDRESS)  # a VPN's default route
        moved = await open_network(host, spec(subnet=first, leases={"node-7": first.replace(".0/24", ".77")}))
        assert moved.subnet not in ("", first)
        assert (await moved.reserve("node-7")).ip.endswith(".2")
        await moved.close()

    run(life())


def test_a_full_subnet_says_so(net: TestNet, host: HostThread) -> None:
    async def life() -> None:
        network = await open_network(host, spec(subnet="192.168.99.0/29"))
        for n in range(5):
            await network.reserve(f"node-{n}")
        with pytest.raises(NetworkError, match="is full"):
            await network.reserve("node-5")
        assert (await network.reserve("node-0", "192.168.99.6")).ip == "192.168.99.2"
        await network.close()

    run(life())


def test_two_installations_side_by_side(
    net: TestNet, host: HostThread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = host_state()

    async def life() -> None:
        mine = await open_network(host, spec())
        monkeypatch.setenv("FLEETBOX_HOME", str(tmp_path / "other"))
        theirs = await open_network(host, spec())
        assert mine.bridge != theirs.bridge
        assert mine.subnet != theirs.subnet
        assert await reconcile(host) == []
        await theirs.close()
        monkeypatch.setenv("FLEETBOX_HOME", str(tmp_path))
        one = guest(net, mine, await mine.reserve("node-1"))
        assert one.fetch(net.internet.serve_http("hello")) == "hello"
        await mine.close()

    run(life())
    net.remove_guests()
    assert host_state() == before


def test_forwarding_that_was_on_stays_on(net: TestNet, host: HostThread) -> None:
    Path("/proc/sys/net/ipv4/conf/up0/forwarding").write_text("1")

    async def life() -> None:
        await (await open_network(host, spec())).close()

    run(life())
    assert forwarding.forwards("up0")


def test_forwarding_that_somebody_switched_on_for_all_stays_on(net: TestNet, host: HostThread) -> None:
    async def life() -> None:
        network = await open_network(host, spec())
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        await network.close()

    run(life())
    assert forwarding.forwards("up0")


def test_reconcile_follows_the_host_to_a_new_uplink(net: TestNet, host: HostThread) -> None:
    async def life() -> None:
        network = await open_network(host, spec())
        net.host.run("ip", "link", "add", "up9", "type", "veth", "peer", "name", "up10")
        net.host.run("ip", "link", "set", "up9", "up")
        net.host.run("ip", "route", "add", "default", "dev", "up9", "metric", "5")
        assert not forwarding.forwards("up9")
        await reconcile(host)
        assert forwarding.forwards("up9")
        await network.close()
        assert not forwarding.forwards("up9")
        assert not forwarding.forwards("up0")

    run(life())


def test_an_unreadable_forwarding_record_is_kept_aside(net: TestNet, host: HostThread) -> None:
    record = paths.host_dir() / f"forwarding-{namespaces.network_inode()}.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_bytes(b"{half")

    async def life() -> None:
        await (await open_network(host, spec())).close()

    run(life())
    assert record.with_suffix(".unreadable").read_bytes() == b"{half"
    assert not record.exists()


@pytest.mark.parametrize(
    ("module", "step"),
    [
        (links, "ensure_bridge"),
        (forwarding, "claim"),
        (firewall, "apply_table"),
        (firewall, "ensure_rules"),
        (resolver, "start"),
        (resolver, "keep_only"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_failing_step_undoes_the_others(
    net: TestNet, host: HostThread, monkeypatch: pytest.MonkeyPatch, module: Any, step: str
) -> None:
    nft(UFW)
    before = host_state()
    real = getattr(module, step)

    def fails(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        raise NetworkError("made to fail")

    monkeypatch.setattr(module, step, fails)
    with pytest.raises(NetworkError, match="made to fail"):
        run(open_network(host, spec()))
    assert host_state() == before


def test_a_cancelled_open_or_attach_undoes_itself(net: TestNet, host: HostThread) -> None:
    before = host_state()

    async def cancelled(coroutine: Coroutine[Any, Any, object], blocker: str) -> None:
        """Cancel once the host thread is inside `construction.<blocker>`."""
        loop = asyncio.get_running_loop()
        inside = asyncio.Event()
        real = getattr(construction, blocker)

        def tell(*args: Any, **keywords: Any) -> Any:
            loop.call_soon_threadsafe(inside.set)
            return real(*args, **keywords)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(construction, blocker, tell)
            task = asyncio.ensure_future(coroutine)
            await inside.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    async def life() -> None:
        await cancelled(open_network(host, spec()), "build")
        assert host_state() == before
        network = await open_network(host, spec())
        opened = host_state()
        await cancelled(network.attach("node-1"), "attach")
        assert host_state() == opened
        await network.close()

    run(life())
    assert host_state() == before


def test_the_same_network_is_not_opened_twice(net: TestNet, host: HostThread) -> None:
    sleeper = subprocess.Popen(["sleep", "600"])
    try:

        async def life() -> None:
            network = await open_network(host, spec())
            network._built.journal.write(owner=identify(sleeper.pid))
            with pytest.raises(NetworkError, match="belongs to a running process"):
                await open_network(host, spec())
            assert await reconcile(host) == []
            assert network.bridge in host_state()["links"]
            await network.close()

        run(life())
    finally:
        sleeper.kill()
        sleeper.wait()


def test_without_the_capability_the_error_says_how(net: TestNet, home: Path) -> None:
    code = (
        "import asyncio\n"
        "from fleetbox.backends.base import NetworkSpec\n"
        "from fleetbox.backends.host.thread import HostThread\n"
        "from fleetbox.backends.host.network.network import open_network\n"
        "from fleetbox.errors import HostError\n"
        "try: asyncio.run(open_network(HostThread(), NetworkSpec('alpha','host')))\n"
        "except HostError as e: print(e, '|', e.hint)\n"
    )
    argv = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", sys.executable, "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert "CAP_NET_ADMIN" in done.stdout, done.stderr
    assert "root" in done.stdout
    assert not paths.networks_dir().exists()


def test_a_missing_tun_device_or_nft_is_named(net: TestNet, host: HostThread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(construction, "_TUN", Path("/dev/net/absent"))
    with pytest.raises(HostError, match="/dev/net/absent"):
        run(open_network(host, spec()))
    monkeypatch.undo()
    monkeypatch.setattr(programs, "find", lambda _name: None)
    with pytest.raises(HostError, match="nft is not installed"):
        run(open_network(host, spec()))


def test_a_hundred_members(net: TestNet, host: HostThread) -> None:
    before = host_state()

    async def life() -> None:
        network = await open_network(host, spec())
        names = [f"node-{n}" for n in range(100)]
        leases = await asyncio.gather(*(network.reserve(name) for name in names))
        taps = await asyncio.gather(*(network.attach(name) for name in names))
        assert len({lease.ip for lease in leases}) == len(set(taps)) == 100
        assert naming.tap_name("alpha", "node-99") in taps
        await network.close()

    run(life())
    assert host_state() == before


def test_interfaces_belong_to_this_user(net: TestNet, host: HostThread) -> None:
    async def life() -> None:
        network = await open_network(host, spec())
        tap = await network.attach("node-1")
        shown = net.host.run("ip", "-d", "tuntap", "show", "dev", tap).stdout
        assert f"user {os.geteuid()}" in shown
        assert "persist" in shown
        await network.close()

    run(life())
