"""What talks to its guests: skipped on the fake backend, minutes under emulation."""

from __future__ import annotations

from pathlib import Path

import inventory
import pytest

import fleetbox
from fleetbox import wait
from fleetbox.pytest_plugin import FleetCluster

pytestmark = [pytest.mark.machines, pytest.mark.fleetbox(members=2, memory="512M", scope="module", real=True)]


def test_machines_are_ready(cluster: FleetCluster) -> None:
    cluster.wait_for(wait.cloud_init(), wait.unit("ssh") & wait.port(22), wait.command("ping -c 1 -W 1 node-2"))
    assert {m.ssh("hostname", check=True).stdout.strip() for m in cluster.members} == {"node-1", "node-2"}


def test_inventory_is_distributed(cluster: FleetCluster, tmp_path: Path) -> None:
    inventory.distribute(cluster)
    for member in cluster.members:
        member.copy_from("/etc/inventory", tmp_path / member.name)
        assert (tmp_path / member.name).read_text().splitlines() == inventory.lines(cluster)


def test_a_service_comes_up(member: fleetbox.Member) -> None:
    serve = "sudo systemd-run --unit=files python3 -m http.server 8080 --directory /etc"
    member.ssh(f"(sleep 1; {serve}) >/dev/null 2>&1 &", check=True)
    member.wait_for(wait.unit("files"), wait.port(8080), timeout_s=120)
    with member.connect(8080) as connection:
        connection.sendall(b"GET /inventory HTTP/1.0\r\n\r\n")
        answer = b""
        while block := connection.recv(1 << 16):
            answer += block
    assert f"node-1 {member.ip}".encode() in answer
    member.wait_for(wait.log("GET /inventory", unit="files"), timeout_s=120)


def test_reset_forgets_it_all(cluster: FleetCluster) -> None:
    cluster.reset()
    for member in cluster.members:
        assert member.ssh("test -e /etc/inventory").exit_code == 1
    assert cluster.members[0].ssh("systemctl is-active files").stdout.strip() == "inactive"


def test_that_fails(cluster: FleetCluster) -> None:
    cluster.members[0].ssh("logger --tag consumer about to fail; sudo systemctl start --no-block nonsense", check=False)
    cluster.members[0].ssh("sudo systemd-run --unit=broken --wait false", check=False)
    pytest.fail("this one is meant to fail: its bundle is looked at")
