"""A member's two interfaces: on the bridge and off it, one swapped for the other."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import pytest

from fleetbox import paths
from fleetbox.backends.host.network import naming
from fleetbox.backends.host.network.journal import read_network
from fleetbox.backends.host.network.network import HostNetwork, open_network
from fleetbox.backends.host.network.reconcile import reconcile
from fleetbox.backends.host.thread import HostThread
from fleetbox.errors import NetworkError
from tests.netns import TestNet
from tests.process.network.host_state import host_state, run, spec
from tests.process.network.test_network_crash import running_member, write_cluster

pytestmark = pytest.mark.netns


def master(net: TestNet, interface: str) -> str:
    [link] = json.loads(net.host.run("ip", "-j", "link", "show", interface).stdout)
    assert "UP" in link["flags"]
    return str(link.get("master", ""))


def test_an_interface_is_put_on_the_bridge_and_taken_off(net: TestNet, host: HostThread) -> None:
    before = host_state()

    async def life() -> None:
        network = await open_network(host, spec())
        await network.reserve("node-1")
        old = await network.attach("node-1")
        new = await network.attach("node-1", slot=1, join=False)
        assert (old, new) == (naming.tap_name("alpha", "node-1"), naming.tap_name("alpha", "node-1", 1))
        assert (master(net, old), master(net, new)) == (network.bridge, "")
        assert Path(f"/proc/sys/net/ipv6/conf/{new}/accept_dad").read_text() == "0\n"
        for _ in range(2):  # all of it repeats
            await network.leave("node-1")
            await network.join("node-1", 1)
            assert (master(net, old), master(net, new)) == ("", network.bridge)
        await network.detach("node-1")
        await network.detach("node-1")
        assert old not in host_state()["links"]
        assert master(net, new) == network.bridge
        assert await network.attach("node-1", slot=1, join=False) == new
        assert master(net, new) == ""
        await network.leave("node-2")
        with pytest.raises(NetworkError, match="gone"):
            await network.join("node-1", 0)
        await network.attach("node-1")
        await network.release("node-1")
        assert not {old, new} & set(host_state()["links"])
        record = read_network(network.bridge)
        assert record is not None
        assert record.taps == {}
        await network.attach("node-1", slot=1)
        await network.close()

    run(life())
    assert host_state() == before


def test_the_interface_of_the_other_slot_goes_when_its_holder_is_dead(net: TestNet, host: HostThread) -> None:
    async def open_and_crash() -> HostNetwork:
        network = await open_network(host, spec())
        await network.reserve("node-1")
        await network.attach("node-1")
        await network.attach("node-1", slot=1)
        return network

    network = run(open_and_crash())
    journal = paths.networks_dir() / f"{network.bridge}.json"
    record = read_network(network.bridge)
    assert record is not None
    dead = msgspec.structs.replace(record.owner, start_ticks=record.owner.start_ticks + 1)
    journal.write_bytes(msgspec.json.encode(msgspec.structs.replace(record, owner=dead)))
    write_cluster(msgspec.structs.replace(running_member("node-1", os.getpid()), slot=1))
    old, new = naming.tap_name("alpha", "node-1"), naming.tap_name("alpha", "node-1", 1)
    assert old in " ".join(run(reconcile(host, dry_run=True)))
    assert {old, new} <= set(host_state()["links"])
    [said] = run(reconcile(host))
    assert old in said
    assert new in host_state()["links"]
    assert old not in host_state()["links"]
    paths.cluster_record("alpha").unlink()
    run(reconcile(host))
    assert new not in host_state()["links"]
