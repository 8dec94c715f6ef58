"""A holder is replaced, or its host restarted: machines, addresses and identities stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import fleetbox
from fleetbox import paths, records
from fleetbox.errors import ConflictError, NotFoundError, ProtocolError
from fleetbox.identity import is_alive
from fleetbox.records import ClusterRecord, HolderRecord, MemberState, read_cluster

Until = Callable[[Callable[[], object]], None]


def holder() -> HolderRecord:
    found = records.live_holder("web")
    assert found is not None
    return found


def test_a_restarted_holder_takes_the_machines_over(home: Path) -> None:
    cluster = fleetbox.up("web", members=3)
    before, machines = holder(), {m.name: m.record.handle for m in cluster.members}
    after = fleetbox.holders.restart("web")
    assert not is_alive(before.process)
    assert (after.pid, after.machines) == (holder().process.pid, 3)
    assert {m.name: m.record.handle for m in cluster.members} == machines
    assert {m.state for m in cluster.members} == {MemberState.RUNNING}
    assert [h.cluster for h in fleetbox.holders.list_holders()] == ["web"]
    cluster.add(["db"])
    cluster.stop(["node-1"])
    states = {m.name: m.state.value for m in cluster.members}
    assert states == {"node-1": "stopped", "node-2": "running", "node-3": "running", "db": "running"}
    assert [e.state for e in cluster.events() if e.event == "holder"] == ["started", "restarting", "ended", "started"]


def test_a_restart_waits_for_the_operation_under_way(
    home: Path, faults: Callable[[str], None], script: Callable[[str], Any], until: Until
) -> None:
    fleetbox.up("web")
    faults("address:node-2=hang")
    adding = script('fleetbox.Cluster("web").add(["node-2"], cold=True)')
    until(lambda: "node-2" in fleetbox.Cluster("web").record.members)
    until(lambda: fleetbox.Cluster("web").member("node-2").record.handle is not None)
    old = holder()
    restarting = script('fleetbox.holders.restart("web")')
    until(lambda: any(e.state == "restarting" for e in fleetbox.Cluster("web").events()))
    assert is_alive(old.process)
    adding.process.send_signal(signal.SIGINT)
    assert adding.end()[0] != 0
    code, _, stderr = restarting.end()
    assert code == 0, stderr
    assert [m.name for m in fleetbox.Cluster("web").members] == ["node-1"]
    assert holder() != old


def test_a_holder_of_another_version_is_replaced_as_the_error_says(home: Path) -> None:
    cluster = fleetbox.up("web")
    lock = paths.holder_lock("web")
    lock.write_bytes(msgspec.json.encode(msgspec.structs.replace(holder(), protocol=0, version="0.0.1")))
    with pytest.raises(ProtocolError) as refused:
        cluster.stop()
    assert "fleetbox holder restart web" in refused.value.hint
    done = subprocess.run(
        [sys.executable, "-m", "fleetbox_cli", "holder", "restart", "web"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    cluster.stop()
    assert cluster.member("node-1").state is MemberState.STOPPED


def test_a_cluster_without_machines_gets_no_holder(home: Path) -> None:
    cluster = fleetbox.up("web")
    cluster.stop()
    assert fleetbox.holders.restart("web") == fleetbox.holders.Holder("web", 0, "", 0, 0, bound=False)
    assert records.live_holder("web") is None
    with pytest.raises(NotFoundError):
        fleetbox.holders.restart("nowhere")
    assert not paths.cluster_state_dir("nowhere").exists()


def test_the_holder_of_a_bound_cluster_stays(home: Path) -> None:
    fleetbox.up("web", bound=True)
    before = holder()
    with pytest.raises(ConflictError, match="bound"):
        fleetbox.holders.restart("web")
    assert holder() == before


def test_machines_without_a_holder_get_one(home: Path, until: Until) -> None:
    fleetbox.up("web")
    os.kill(holder().process.pid, signal.SIGKILL)
    until(lambda: records.live_holder("web") is None)
    assert fleetbox.holders.list_holders()[0].pid == 0
    assert fleetbox.holders.restart("web").pid == holder().process.pid


def test_after_a_restart_of_the_host_members_come_back_with_disk_address_and_identity(home: Path, until: Until) -> None:
    cluster = fleetbox.up("web", members=2)
    before = {m.name: m.record for m in cluster.members}
    disk = Path(before["node-1"].folder, "disk.raw")
    disk.write_bytes(b"precious")
    dead = [holder().process, *(r.handle.process for r in before.values() if r.handle)]
    for process in dead:  # what ends all of them without a word, as a power failure does
        os.kill(process.pid, signal.SIGKILL)
    until(lambda: not any(is_alive(process) for process in dead))
    _forge_boot(os.getpid(), "another-boot")
    assert {m.state for m in cluster.members} == {MemberState.STOPPED}, "whatever now has their pids"
    assert not cluster.status().holder_running
    fleetbox.up("web", members=2)
    after = {m.name: m.record for m in cluster.members}
    assert {m.state for m in cluster.members} == {MemberState.RUNNING}
    for name, record in before.items():
        assert (after[name].ip, after[name].mac, after[name].id) == (record.ip, record.mac, record.id)
        assert after[name].instance == record.instance
    assert disk.read_bytes()[:8] == b"precious"
    stopped = [e.message for e in cluster.events() if e.event == "member" and e.state == "stopped"]
    assert stopped == ["the host was restarted"] * 2


def _forge_boot(pid: int, boot: str) -> None:
    """Make the records those of another boot, in which a process that lives now had the machines' pid and start."""
    from fleetbox.identity import identify

    living = identify(pid)
    assert living is not None
    other = msgspec.structs.replace(living, boot_id=boot)
    record: ClusterRecord = read_cluster("web")
    members = {
        name: msgspec.structs.replace(m, handle=msgspec.structs.replace(m.handle, process=other))
        for name, m in record.members.items()
        if m.handle is not None
    }
    paths.cluster_record("web").write_bytes(msgspec.json.encode(msgspec.structs.replace(record, members=members)))
    lock = paths.holder_lock("web")
    served = msgspec.json.decode(lock.read_bytes(), type=HolderRecord)
    lock.write_bytes(msgspec.json.encode(msgspec.structs.replace(served, process=other)))


def test_looking_works_while_an_up_runs(
    home: Path, faults: Callable[[str], None], script: Callable[[str], Any], until: Until
) -> None:
    cluster = fleetbox.up("web")
    faults("address:node-2=hang")
    adding = script('fleetbox.up("web", members=2, cold=True)')
    until(lambda: "node-2" in cluster.record.members)
    command = [sys.executable, "-m", "fleetbox_cli"]
    for words in (["ls"], ["status", "web"], ["inspect", "web"], ["logs", "web/node-1"], ["events", "web"]):
        assert subprocess.run([*command, *words], capture_output=True, check=False, timeout=60).returncode == 0, words
    assert cluster.member("node-1").ssh_argv(["true"])[0] == "ssh"
    assert cluster.status().holder_running
    adding.process.send_signal(signal.SIGINT)
    assert adding.end()[0] != 0
