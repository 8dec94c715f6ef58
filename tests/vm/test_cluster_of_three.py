"""Three real machines: booted once, then everything that a user does with them, in the order of a working day."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

import pytest

import fleetbox
from fleetbox import paths, records
from fleetbox.errors import DiskError, MachineError
from fleetbox.identity import is_alive
from fleetbox.records import MachineHandle, MemberState
from fleetbox.wire import Event, Notice
from tests.vm.conftest import Lab

NAMES = ["node-1", "node-2", "node-3"]
FLEETBOX = [sys.executable, "-m", "fleetbox_cli"]


@dataclass(frozen=True)
class Scene:
    """The cluster, the folder behind its fixture, and the lab's network."""

    cluster: fleetbox.Cluster
    fixture: Path
    lab: Lab

    def ssh(self, member: str, command: str) -> str:
        """What a command that has to succeed prints on a member."""
        return self.cluster.member(member).ssh(command, check=True).stdout.strip()

    def handle(self, member: str) -> MachineHandle:
        handle = self.cluster.member(member).record.handle
        assert handle is not None
        return handle


@pytest.fixture(scope="module")
def scene(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    fixture = tmp_path_factory.mktemp("fixture")
    (fixture / "greeting").write_text("hello from the host\n")
    cluster = fleetbox.up(
        "web",
        members=3,
        cpus=2,
        memory_bytes=512 << 20,
        disk_bytes=6 << 30,
        fixtures=[fleetbox.Fixture(str(fixture), "/srv/fixture")],
        cold=True,
    )
    yield Scene(cluster, fixture, lab)
    cluster.destroy()


def until(condition: Callable[[], object], limit_s: float, scale: float) -> None:
    deadline = time.monotonic() + limit_s * scale
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.5)


def test_the_machines_are_what_was_asked_for(scene: Scene) -> None:
    assert [m.state for m in scene.cluster.members] == [MemberState.RUNNING] * 3
    for name in NAMES:
        assert scene.ssh(name, "hostname") == name
        assert scene.ssh(name, "nproc") == "2"
        assert scene.cluster.member(name).ip in scene.ssh(name, "ip -4 -br addr show eth0")
        assert int(scene.ssh(name, "df --output=size -B1 / | tail -1")) > 5 << 30, "the file system has grown"


def test_cloud_init_and_systemd_are_content(scene: Scene) -> None:
    for name in NAMES:
        member = scene.cluster.member(name)
        assert member.ssh("cloud-init status --wait").stdout.strip().splitlines()[-1] == "status: done"
        state = member.ssh("systemctl is-system-running --wait; systemctl --failed --no-legend").stdout
        assert state.strip() == "running", state


def test_members_reach_each_other_by_address_and_name(scene: Scene) -> None:
    for name in NAMES:
        others = [m for m in scene.cluster.members if m.name != name]
        targets = [t for m in others for t in (m.ip, m.name, f"{m.name}.web")]
        script = "; ".join(f"ping -c 1 -W 10 {target} >/dev/null || echo {target}" for target in targets)
        assert scene.ssh(name, script) == ""
    resolved = scene.ssh("node-1", "getent ahostsv4 node-2 | cut -d' ' -f1 | sort -u")
    assert resolved == scene.cluster.member("node-2").ip


def test_members_reach_the_outside_by_address_and_name(scene: Scene) -> None:
    url = scene.lab.net.internet.serve_http("hello from the internet")
    assert scene.ssh("node-1", f"curl -sS --max-time 20 {url}") == "hello from the internet"
    scene.lab.net.internet.serve_dns("www.example.test", scene.lab.net.internet.address)
    assert scene.ssh("node-3", "curl -sS --max-time 20 http://www.example.test/") == "hello from the internet"


def test_files_go_both_ways(scene: Scene, tmp_path: Path) -> None:
    member = scene.cluster.member("node-2")
    tree = tmp_path / "tree"
    (tree / "below").mkdir(parents=True)
    (tree / "run.sh").write_text("#!/bin/sh\necho it runs\n")
    (tree / "run.sh").chmod(0o755)
    (tree / "below" / "data").write_bytes(os.urandom(300_000))
    member.copy_to(tree, "/tmp/tree")
    assert member.ssh("/tmp/tree/run.sh", check=True).stdout == "it runs\n"
    member.copy_from("/tmp/tree", tmp_path / "back")
    assert (tmp_path / "back" / "below" / "data").read_bytes() == (tree / "below" / "data").read_bytes()
    assert (tmp_path / "back" / "run.sh").stat().st_mode & 0o777 == 0o755
    with pytest.raises(MachineError, match="refused"):
        member.copy_to(tree / "run.sh", "/etc/run.sh")


def test_fixtures_show_and_cannot_be_written(scene: Scene) -> None:
    for name in NAMES:
        assert scene.ssh(name, "cat /srv/fixture/greeting") == "hello from the host"
    assert scene.cluster.member("node-1").ssh("sudo touch /srv/fixture/new").exit_code != 0


def test_ssh_is_strict_about_host_keys(scene: Scene) -> None:
    known = paths.known_hosts("web")
    right = known.read_text()
    keys = scene.ssh("node-1", "ls /etc/ssh/ssh_host_*_key").split()
    assert keys == ["/etc/ssh/ssh_host_ed25519_key"]
    lines = right.splitlines()
    swapped = [f"{a.split(' ', 1)[0]} {b.split(' ', 1)[1]}" for a, b in zip(lines, lines[1:] + lines[:1], strict=True)]
    known.write_text("\n".join(swapped) + "\n")
    try:
        with pytest.raises(MachineError, match="SSH"):
            scene.cluster.member("node-1").ssh("true")
    finally:
        known.write_text(right)


def test_the_command_line_reaches_them(scene: Scene) -> None:
    def cli(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*FLEETBOX, *words], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300, check=False
        )

    assert cli("ssh", "web/node-2", "hostname").stdout == "node-2\n"
    assert cli("ssh", "web/node-2", "exit 7").returncode == 7
    done = cli("exec", "web", "uname", "-s")
    assert done.returncode == 0
    assert sorted(line.split()[-1] for line in done.stdout.splitlines() if "Linux" in line) == ["Linux"] * 3
    assert "Linux version" in cli("logs", "web/node-1").stdout
    status = cli("status", "web").stdout
    assert "tcg" in status or "kvm" in status
    assert cli("ls").stdout.count("running") == 3


def test_a_guest_that_reboots_itself_stays_a_running_member(scene: Scene, timeout_scale: float) -> None:
    before = scene.handle("node-3")
    boot_id = scene.ssh("node-3", "cat /proc/sys/kernel/random/boot_id")
    scene.cluster.member("node-3").ssh("sudo systemctl reboot")

    def rebooted() -> bool:
        assert scene.cluster.member("node-3").state is MemberState.RUNNING
        try:
            return scene.ssh("node-3", "cat /proc/sys/kernel/random/boot_id") != boot_id
        except MachineError:
            return False

    until(rebooted, 300, timeout_scale)
    assert scene.handle("node-3") == before
    assert scene.ssh("node-3", "hostname") == "node-3"


def test_a_guest_that_powers_off_becomes_a_stopped_member(scene: Scene, timeout_scale: float) -> None:
    scene.ssh("node-3", "echo precious | sudo tee /root/file; sync")
    scene.cluster.member("node-3").ssh("sudo systemctl poweroff")
    until(lambda: scene.cluster.member("node-3").record.state is MemberState.STOPPED, 120, timeout_scale)
    assert scene.cluster.status().holder_running
    assert "guest" in scene.cluster.member("node-3").record.error


def test_after_the_holder_is_killed_no_second_machine_starts(scene: Scene) -> None:
    holder = records.live_holder("web")
    assert holder is not None
    handles = {name: scene.handle(name) for name in ("node-1", "node-2")}
    os.kill(holder.process.pid, signal.SIGKILL)
    while is_alive(holder.process):
        time.sleep(0.01)
    assert scene.ssh("node-1", "hostname") == "node-1", "the machines run without a holder"
    from fleetbox.backends.host.disklock import lock_disk

    with pytest.raises(DiskError, match="in use"):
        lock_disk(Path(scene.cluster.member("node-1").record.folder, "disk.qcow2"))
    scene.cluster.start(["node-1"])
    assert {name: scene.handle(name) for name in handles} == handles, "they were adopted"
    assert scene.ssh("node-2", "ping -c 1 -W 10 node-1 >/dev/null && hostname") == "node-2"


def test_stop_and_start_keep_disk_address_and_identity(scene: Scene) -> None:
    """`node-3` was powered off with a file on its disk; its fixture has changed meanwhile."""
    (scene.fixture / "greeting").write_text("hello again\n")
    before = {m.name: (m.ip, m.record.mac) for m in scene.cluster.members}
    machine_id = scene.ssh("node-1", "cat /etc/machine-id; cloud-init query instance_id")
    scene.cluster.stop(timeout_s=120)
    assert {m.state for m in scene.cluster.members} == {MemberState.STOPPED}
    assert not any(m.record.error for m in scene.cluster.members if m.name != "node-3"), "they went down gently"
    assert records.live_holder("web") is None
    fleetbox.up("web", names=["node-1", "node-3"])
    assert {m.name: (m.ip, m.record.mac) for m in scene.cluster.members} == before
    assert scene.ssh("node-3", "sudo cat /root/file") == "precious"
    assert scene.ssh("node-1", "cat /etc/machine-id; cloud-init query instance_id") == machine_id
    assert scene.ssh("node-1", "cat /srv/fixture/greeting") == "hello again"


def test_a_subnet_that_was_taken_meanwhile_is_replaced_and_said(scene: Scene) -> None:
    scene.cluster.stop()
    taken = scene.cluster.record.subnet
    scene.lab.net.host.run("ip", "route", "add", "unreachable", taken)
    said: list[Event] = []
    try:
        scene.cluster.start(["node-2"], on_event=said.append)
        assert scene.cluster.record.subnet != taken
        assert any(isinstance(e, Notice) and taken in e.message for e in said)
        member = scene.cluster.member("node-2")
        assert member.ip in scene.ssh("node-2", "ip -4 -br addr show eth0")
        assert ip_network(scene.cluster.record.subnet)[1].exploded in scene.ssh("node-2", "ip route show default")
    finally:
        scene.lab.net.host.run("ip", "route", "del", "unreachable", taken)


def test_destroy_leaves_nothing(scene: Scene) -> None:
    handles = [m.record.handle for m in scene.cluster.members if m.record.handle]
    bridge = scene.cluster.record.bridge
    scene.cluster.destroy()
    assert not any(is_alive(handle.process) for handle in handles)
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    assert bridge not in links
    assert paths.installation_digest() not in links
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    assert "fleetbox" not in tables
    kept = {"keys", "blobs", "images", "cache"}  # the installation's, not the cluster's
    left = [p for p in scene.lab.home.rglob("*") if p.is_file() and not kept & set(p.parts) and p.name != ".lock"]
    assert not left
