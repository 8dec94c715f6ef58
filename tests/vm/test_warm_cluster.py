"""Real clones of a real template: who they are, what they remember, and a whole cluster taken back in time."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import fleetbox
from fleetbox import paths, snapshots, templates
from fleetbox.errors import ConflictError, FleetboxError
from fleetbox.records import MemberState
from tests.vm.conftest import Lab

MEMORY_BYTES = 512 << 20
FLEETBOX = [sys.executable, "-m", "fleetbox_cli"]

WHO = """
hostname; cat /sys/class/net/eth0/address; ip -4 -o addr show eth0 | awk '{print $4}'; cat /etc/machine-id
cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub; cloud-init query instance_id; cat /etc/hostname
cat /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | od -An -tx1 | tr -d ' '; date +%s.%N
"""
FIELDS = ("hostname", "mac", "address", "machine_id", "host_key", "instance", "etc_hostname", "uuid", "random", "clock")

# Two programs that count together: each number that one sends has to be the next one of the other.
SERVER = """
import socket
listening = socket.create_server(("", 7000))
talk, _ = listening.accept()
mine = 0
for line in talk.makefile():
    mine += 1
    open("/tmp/count", "w").write(str(mine if mine == int(line) else "broken"))
    talk.sendall(b"%d\\n" % mine)
"""
CLIENT = """
import socket, sys, time
talk = socket.create_connection((sys.argv[1], 7000))
lines = talk.makefile()
mine = 0
while True:
    mine += 1
    talk.sendall(b"%d\\n" % mine)
    got = int(lines.readline())
    open("/tmp/count", "w").write(str(mine if mine == got else "broken"))
    time.sleep(0.05)
"""


@pytest.fixture(scope="module")
def fixture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fixture")
    (folder / "greeting").write_text("hello from the host\n")
    return folder


@pytest.fixture(scope="module")
def cluster(lab: Lab, fixture_folder: Path) -> Iterator[fleetbox.Cluster]:
    fixtures = [fleetbox.Fixture(str(fixture_folder), "/srv/fixture")]
    yield fleetbox.up("warm", members=2, memory_bytes=MEMORY_BYTES, fixtures=fixtures)
    for one in fleetbox.clusters():
        one.destroy()
    snapshots.remove([s.id for s in snapshots.list_snapshots()])


def ssh(member: fleetbox.Member, command: str) -> str:
    return member.ssh(command, check=True).stdout.strip()


def who(member: fleetbox.Member) -> dict[str, str]:
    return dict(zip(FIELDS, ssh(member, WHO).splitlines(), strict=True))


def test_clones_are_themselves(cluster: fleetbox.Cluster) -> None:
    one, two = cluster.members
    assert one.record.warm
    assert two.record.warm
    seen = []
    for member in (one, two):
        began = time.time()
        found = who(member)
        assert began - 1 < float(found["clock"]) < time.time() + 1, "its clock is the host's"
        assert found["hostname"] == found["etc_hostname"] == member.name
        assert found["mac"] == member.record.mac
        assert found["address"].startswith(f"{member.ip}/")
        assert found["instance"] == member.record.instance
        seen.append(found)
    for field in FIELDS:
        assert seen[0][field] != seen[1][field], f"they share their {field}"
    assert len(templates.list_templates()) == 1
    for member, other in ((one, two), (two, one)):
        assert (
            ssh(member, f"ping -c 1 -W 10 {other.name} >/dev/null && cat /srv/fixture/greeting")
            == "hello from the host"
        )


def test_a_further_clone_joins(cluster: fleetbox.Cluster) -> None:
    [third] = cluster.add(["third"])
    assert who(third)["hostname"] == "third"
    assert ssh(third, "systemctl is-system-running") == "running"
    third.destroy()
    assert len(templates.list_templates()) == 1, "the template is made once"


def count(member: fleetbox.Member) -> int:
    return int(ssh(member, "cat /tmp/count"))


def test_a_cluster_goes_back_in_time_with_its_open_connections(cluster: fleetbox.Cluster) -> None:
    one, two = cluster.members
    for member, program in ((one, SERVER), (two, CLIENT)):
        member.ssh(f"cat > /tmp/program.py <<'END'\n{program}\nEND", check=True)
    one.ssh("setsid -f python3 /tmp/program.py </dev/null >/tmp/out 2>&1", check=True)
    one.ssh("for i in $(seq 100); do ss -ltn | grep -q :7000 && break; sleep 0.2; done", check=True)
    two.ssh(f"setsid -f python3 /tmp/program.py {one.ip} </dev/null >/tmp/out 2>&1", check=True)
    two.ssh("for i in $(seq 100); do [ -s /tmp/count ] && break; sleep 0.2; done; echo kept > /tmp/file", check=True)
    saved = snapshots.save("warm", name="before")
    at_least = count(two)
    while count(two) < at_least + 40:
        time.sleep(0.5)
    two.ssh("echo lost > /tmp/file", check=True)
    far = count(two)
    records = {m.name: (m.ip, m.record.mac, m.record.id) for m in cluster.members}
    snapshots.restore("warm", saved.id)
    assert {m.name: (m.ip, m.record.mac, m.record.id) for m in cluster.members} == records
    again = count(two)
    assert again < far, "its counter has gone back"
    assert ssh(two, "cat /tmp/file") == "kept"
    while count(two) < again + 20:
        time.sleep(0.5)
    assert count(one) >= again, "both count on together, over the connection that they had"
    for member in (one, two):
        began = time.time()
        assert began - 2 < float(ssh(member, "date +%s.%N")) < time.time() + 2, "but the clock has not gone back"


def test_what_a_snapshot_rests_on_stays(cluster: fleetbox.Cluster) -> None:
    with pytest.raises(ConflictError):
        fleetbox.images.remove([cluster.members[0].record.image_digest])
    with pytest.raises(FleetboxError, match="cpus"):
        snapshots.clone("before", "other", cpus=1)
    assert [c.name for c in fleetbox.clusters()] == ["warm"]


def test_a_snapshot_goes_through_a_pipe_and_becomes_a_new_cluster(cluster: fleetbox.Cluster) -> None:
    """What stands for another host is the same one without the snapshot."""
    pipe = " | ".join(
        " ".join([*FLEETBOX, "snapshot", *words])
        for words in (["export", "before", "-"], ["import", "-", "--name", "again"])
    )
    subprocess.run(["bash", "-c", f"set -o pipefail; {pipe}"], check=True, capture_output=True, timeout=300)
    snapshots.remove(["before"])
    other = snapshots.clone("again", "other")
    assert isinstance(other, fleetbox.Cluster)
    for member in other.members:
        found = who(member)
        assert found["hostname"] == member.name
        assert found["mac"] == member.record.mac != cluster.member(member.name).record.mac
        assert found["machine_id"] != who(cluster.member(member.name))["machine_id"]
    assert ssh(other.member("node-2"), "cat /tmp/file") == "kept"
    other.destroy()


def test_identity_and_files_survive_stop_and_a_cold_start(cluster: fleetbox.Cluster) -> None:
    member = cluster.member("node-1")
    member.ssh("echo mine | sudo tee -a /etc/motd; sync", check=True)
    before = who(member)
    member.stop(timeout_s=120)
    assert member.state is MemberState.STOPPED
    assert not member.record.error
    member.start()
    after = who(member)
    stable = ("hostname", "mac", "address", "machine_id", "host_key", "instance", "etc_hostname")
    assert {f: after[f] for f in stable} == {f: before[f] for f in stable}
    assert ssh(member, "tail -1 /etc/motd; cat /srv/fixture/greeting") == "mine\nhello from the host"
    assert ssh(member, "cloud-init status --wait").splitlines()[-1] == "status: done"


def test_without_the_control_line_ssh_does_it(cluster: fleetbox.Cluster) -> None:
    bare = fleetbox.up("bare", members=1, memory_bytes=MEMORY_BYTES, control_line=False)
    member = bare.member("node-1")
    assert member.record.warm
    found = who(member)
    assert found["hostname"] == "node-1"
    assert found["mac"] == member.record.mac
    assert member.ssh("systemctl cat fleetbox-control").exit_code != 0
    bare.destroy()


def test_a_template_that_fails_is_made_anew(cluster: fleetbox.Cluster) -> None:
    [template] = [t for t in templates.list_templates() if t.control_line]
    (paths.cache_dir() / "templates" / template.key / "state").write_bytes(b"not a machine's state")
    [member] = cluster.add(["fourth"])
    assert who(member)["hostname"] == "fourth"
