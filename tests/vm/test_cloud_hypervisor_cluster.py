"""A warm cluster on the cloud-hypervisor backend: the simulator, or what FLEETBOX_CLOUD_HYPERVISOR names."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import fleetbox
from fleetbox import snapshots, templates
from fleetbox.records import MemberState
from tests.simulators import stand_in
from tests.vm.conftest import Lab

BACKEND = "cloud-hypervisor"
MEMORY_BYTES = 512 << 20


@pytest.fixture(scope="module")
def cluster(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[fleetbox.Cluster]:
    folder = tmp_path_factory.mktemp("fixture")
    (folder / "greeting").write_text("hello from the host\n")
    with pytest.MonkeyPatch.context() as environment:
        for name, value in stand_in(BACKEND).items():
            environment.setenv(name, value)
        yield fleetbox.up(
            "clouds",
            members=2,
            backend=BACKEND,
            memory_bytes=MEMORY_BYTES,
            fixtures=[fleetbox.Fixture(str(folder), "/srv/fixture")],
        )
        for one in fleetbox.clusters():
            one.destroy()
        snapshots.remove([s.id for s in snapshots.list_snapshots()])


def ssh(member: fleetbox.Member, command: str) -> str:
    return member.ssh(command, check=True).stdout.strip()


def test_clones_are_themselves_and_reach_each_other(cluster: fleetbox.Cluster) -> None:
    one, two = cluster.members
    [template] = templates.list_templates()
    assert (template.backend, template.control_line) == (BACKEND, True)
    for member, other in ((one, two), (two, one)):
        assert member.record.warm
        assert Path(member.record.folder, "disk.raw").exists()
        began = time.time()
        who = ssh(member, "hostname; cat /sys/class/net/eth0/address /srv/fixture/greeting; date +%s").splitlines()
        assert who[:3] == [member.name, member.record.mac, "hello from the host"]
        assert began - 2 < int(who[3]) < time.time() + 2, "its clock is the host's"
        ssh(member, f"ping -c 1 -W 10 {other.name}")


def test_the_cluster_goes_back_in_time_and_a_member_stops(cluster: fleetbox.Cluster) -> None:
    one, two = cluster.members
    ssh(one, "echo kept >/tmp/file; echo kept | sudo tee /root/file >/dev/null; sync")
    saved = snapshots.save("clouds", name="before")
    ssh(one, "echo lost >/tmp/file; echo lost | sudo tee /root/file >/dev/null; sync")
    boot = ssh(one, "cat /proc/sys/kernel/random/boot_id")
    snapshots.restore("clouds", saved.id)
    assert ssh(one, "cat /tmp/file; sudo cat /root/file") == "kept\nkept"
    assert ssh(one, "cat /proc/sys/kernel/random/boot_id") == boot, "it did not boot"
    assert ssh(two, "hostname") == two.name
    two.stop(timeout_s=120)
    assert two.state is MemberState.STOPPED
    assert not two.record.error
