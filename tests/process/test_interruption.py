"""Ctrl-C, kill -9, two at once: nothing lost, nothing left."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fleetbox
from fleetbox import paths, records
from fleetbox.errors import DiskError
from fleetbox.identity import is_alive
from fleetbox.records import MemberState

Until = Callable[[Callable[[], object]], None]

UP = """
from fleetbox.errors import FleetboxError
try:
    fleetbox.up("web", members=3)
except FleetboxError as e:
    print(e.code)
    sys.exit(e.exit_code)
"""


def booting(name: str) -> bool:
    """Whether the member's machine has been launched."""
    try:
        return records.read_cluster("web").members[name].handle is not None
    except Exception:
        return False


def kill_holder() -> None:
    holder = records.live_holder("web")
    assert holder is not None
    os.kill(holder.process.pid, signal.SIGKILL)
    while is_alive(holder.process):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_up_undoes_what_was_not_finished(
    home: Path, faults: Callable[[str], None], script: Callable[[str], Any], until: Until, number: int
) -> None:
    faults("address:node-3=hang")
    running = script(UP)
    until(lambda: booting("node-3") and fleetbox.Cluster("web").member("node-2").state is MemberState.RUNNING)
    running.process.send_signal(number)
    code, stdout, _ = running.end()
    assert (code, stdout.strip()) == (130, "interrupted")
    assert sorted(m.name for m in fleetbox.Cluster("web").members) == ["node-1", "node-2"]
    assert not paths.member_dir("web", "node-3").exists()


def test_an_interrupted_first_up_leaves_nothing(
    home: Path, faults: Callable[[str], None], script: Callable[[str], Any], until: Until
) -> None:
    faults("address:node-?=hang")
    running = script(UP)
    until(lambda: booting("node-1"))
    running.process.send_signal(signal.SIGINT)
    assert running.end()[0] == 130
    assert fleetbox.clusters() == []
    until(lambda: not paths.cluster_state_dir("web").exists())


def test_a_client_killed_in_the_middle_is_undone_as_well(
    home: Path, faults: Callable[[str], None], script: Callable[[str], Any], until: Until
) -> None:
    faults("address:node-?=hang")
    running = script(UP)
    until(lambda: booting("node-1"))
    running.process.kill()
    running.end()
    until(lambda: not paths.cluster_state_dir("web").exists())
    assert not paths.cluster_data_dir("web").exists()


def test_two_at_once_make_one_cluster(home: Path, script: Callable[[str], Any]) -> None:
    both = [script(UP), script(UP), script(UP)]
    assert [one.end()[0] for one in both] == [0, 0, 0]
    cluster = fleetbox.Cluster("web")
    assert [m.state for m in cluster.members] == [MemberState.RUNNING] * 3
    assert len({m.record.handle.process.pid for m in cluster.members if m.record.handle}) == 3


def test_a_second_up_joins_when_the_first_is_interrupted(
    home: Path, faults: Callable[[str], None], script: Callable[[str], Any], until: Until
) -> None:
    faults("address:node-?=hang")
    first = script(UP)
    until(lambda: booting("node-1"))
    second = script(UP)
    faults("")
    first.process.send_signal(signal.SIGINT)
    assert first.end()[0] == 130
    assert second.end()[0] == 0
    assert [m.state for m in fleetbox.Cluster("web").members] == [MemberState.RUNNING] * 3


def test_machines_outlive_their_holder_and_the_next_one_adopts_them(home: Path) -> None:
    cluster = fleetbox.up("web", members=3)
    before = {m.name: m.record.handle for m in cluster.members}
    kill_holder()
    assert not cluster.status().holder_running
    assert {m.state for m in cluster.members} == {MemberState.RUNNING}, "they run, and `ls` says so without a holder"
    fleetbox.up("web")
    assert {m.name: m.record.handle for m in cluster.members} == before, "no second machine was started"
    cluster.stop(["node-2"])
    assert cluster.member("node-2").state is MemberState.STOPPED


def test_what_died_while_no_holder_was_there_is_noticed(home: Path) -> None:
    cluster = fleetbox.up("web", members=2)
    kill_holder()
    handle = cluster.member("node-1").record.handle
    assert handle is not None
    os.kill(handle.process.pid, signal.SIGKILL)
    while is_alive(handle.process):
        pass
    assert cluster.member("node-1").state is MemberState.STOPPED
    cluster.stop(["node-1"])
    assert cluster.member("node-1").record.error
    assert cluster.member("node-2").state is MemberState.RUNNING
    fleetbox.up("web")
    assert {m.state for m in cluster.members} == {MemberState.RUNNING}


def test_a_holder_killed_in_the_middle_of_up_is_repaired_by_the_next_command(
    home: Path, faults: Callable[[str], None], script: Callable[[str], Any], until: Until
) -> None:
    faults("address:node-2=hang")
    running = script(UP)
    until(lambda: booting("node-2") and fleetbox.Cluster("web").member("node-1").state is MemberState.RUNNING)
    half_made = fleetbox.Cluster("web").member("node-2").record.handle
    kill_holder()
    code, stdout, _ = running.end()
    assert (code, stdout.strip()) == (5, "holder-unreachable")
    faults("")
    cluster = fleetbox.up("web", members=3)
    assert {m.state for m in cluster.members} == {MemberState.RUNNING}
    assert half_made is not None
    assert not is_alive(half_made.process), "the half made machine was rolled back"


def test_no_second_machine_on_a_disk_in_use(home: Path) -> None:
    """Even when the record has lost the machine: the disk's lock is the machine's own."""
    cluster = fleetbox.up("web", names=["node-1", "node-2"])
    handle = cluster.member("node-1").record.handle
    assert handle is not None
    kill_holder()
    record = paths.cluster_record("web")
    record.write_text(record.read_text().replace(f'"pid": {handle.process.pid}', '"pid": 1'))
    # It holds the lock of the disk, so the next holder finds the machine that no record names, and ends it.
    cluster.start()
    assert not is_alive(handle.process)
    from fleetbox.backends.host.disklock import lock_disk

    with pytest.raises(DiskError, match="in use"):
        lock_disk(Path(cluster.member("node-1").record.folder, "disk.raw"))


def test_sigterm_stops_the_machines_gently(home: Path, until: Until) -> None:
    cluster = fleetbox.up("web", members=2)
    holder = records.live_holder("web")
    assert holder is not None
    os.kill(holder.process.pid, signal.SIGTERM)
    until(lambda: not is_alive(holder.process))
    assert {m.record.state for m in cluster.members} == {MemberState.STOPPED}
    assert not any(m.record.error for m in cluster.members)
    assert list(home.rglob("*.sock")) == []
    fleetbox.up("web")
    assert {m.state for m in cluster.members} == {MemberState.RUNNING}
