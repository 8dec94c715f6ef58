"""`up --backend firecracker` from end to end: guests that really answer, by the simulator or the real program."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import fleetbox
from fleetbox import snapshots, templates
from fleetbox.records import MemberState
from tests.simulators import stand_in
from tests.vm.conftest import Lab

MEMORY_BYTES = 512 << 20

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(lab: Lab) -> Iterator[fleetbox.Cluster]:
    with pytest.MonkeyPatch.context() as environment:
        for name, value in stand_in("firecracker").items():
            environment.setenv(name, value)
        yield fleetbox.up("fc", members=2, memory_bytes=MEMORY_BYTES, backend="firecracker")
        for one in fleetbox.clusters():
            one.destroy()
        snapshots.remove([s.id for s in snapshots.list_snapshots()])


def ssh(member: fleetbox.Member, command: str) -> str:
    return member.ssh(command, check=True).stdout.strip()


def test_members_are_clones_and_themselves(cluster: fleetbox.Cluster) -> None:
    assert cluster.record.backend == "firecracker"
    one, two = cluster.members
    assert one.record.warm
    assert two.record.warm
    assert len(templates.list_templates()) == 1
    for member, other in ((one, two), (two, one)):
        assert ssh(member, "hostname") == member.name
        assert ssh(member, "cat /sys/class/net/eth0/address") == member.record.mac
        assert "pci" not in ssh(member, "readlink -f /sys/block/vda")
        ssh(member, f"ping -c 1 -W 10 {other.name}")
    assert ssh(one, "cat /etc/machine-id") != ssh(two, "cat /etc/machine-id")


def test_a_cluster_is_taken_back_and_stops_by_the_keyboard(cluster: fleetbox.Cluster) -> None:
    one = cluster.members[0]
    ssh(one, "echo before | sudo tee /root/when >/dev/null; echo kept >/dev/shm/kept; sync")
    snapshot = snapshots.save("fc", name="then")
    ssh(one, "echo after | sudo tee /root/when >/dev/null; rm /dev/shm/kept; sync")
    snapshots.restore("fc", snapshot.id)
    assert ssh(one, "sudo cat /root/when; cat /dev/shm/kept") == "before\nkept"
    one.stop()
    assert one.state is MemberState.STOPPED
    assert one.record.error == ""
    assert "reboot: Restarting system" in one.serial_log.read_text(errors="replace")
