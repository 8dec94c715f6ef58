"""What needs no guest: these tests run on the fake backend in a moment, and on real machines as well."""

from __future__ import annotations

import re

import inventory
import pytest

import fleetbox
from fleetbox import wait
from fleetbox.errors import MachineError, TimedOut
from fleetbox.pytest_plugin import Fleet, FleetCluster

shared = pytest.mark.fleetbox(members=3, memory="512M", scope="module")


def test_one_machine(member: fleetbox.Member) -> None:
    assert inventory.lines(fleetbox.Cluster(member.cluster)) == [f"node-1 {member.ip}"]


@shared
def test_all_machines(cluster: FleetCluster) -> None:
    found = inventory.lines(cluster)
    assert [line.split()[0] for line in found] == ["node-1", "node-2", "node-3"]
    assert all(re.fullmatch(r"node-\d \d+\.\d+\.\d+\.\d+", line) for line in found)


@shared
def test_stopped_machines_are_left_out(cluster: FleetCluster) -> None:
    cluster.member("node-2").stop()
    assert [line.split()[0] for line in inventory.lines(cluster)] == ["node-1", "node-3"]


@shared
@pytest.mark.fleetbox(reset=True)
def test_reset_brings_them_back(cluster: FleetCluster) -> None:
    assert len(inventory.lines(cluster)) == 3


@pytest.mark.fleetbox(names=("db", "web"), memory="512M")
def test_machines_by_name(cluster: FleetCluster) -> None:
    assert [line.split()[0] for line in inventory.lines(cluster)] == ["db", "web"]


def test_clusters_do_not_mix(fleet: Fleet) -> None:
    one, two = fleet.up(members=2), fleet.up()
    assert len(inventory.lines(one)) == 2
    assert len(inventory.lines(two)) == 1
    with one.add(["late"])[0] as late:
        assert f"late {late.ip}" in inventory.lines(one)
    assert len(inventory.lines(one)) == 2


@pytest.mark.fleetbox(cold=True)
def test_console(member: fleetbox.Member) -> None:
    member.wait_for(wait.log(r"Linux version"), timeout_s=30)
    with pytest.raises(TimedOut) as raised:
        member.wait_for(wait.log("no such line"), timeout_s=0.1)
    assert "no such line" in raised.value.message
    member.stop()
    with pytest.raises(MachineError, match="is not running"):
        member.wait_for(wait.log("login:") | wait.port(22), timeout_s=30)
