"""The life of a cluster through the public API: real holder processes, fake machines."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import fleetbox
from fleetbox import paths, records
from fleetbox.errors import (
    ConflictError,
    FleetboxError,
    HostError,
    MachineError,
    NotFoundError,
    PartialError,
    RecordError,
    UsageError,
)
from fleetbox.identity import is_alive
from fleetbox.records import MemberState
from fleetbox.wire import Event, Notice, Progress


def states(cluster: fleetbox.Cluster) -> dict[str, str]:
    return {member.name: member.state.value for member in cluster.members}


def test_up_gives_running_members_with_addresses_of_one_subnet(home: Path) -> None:
    cluster = fleetbox.up("web", members=3)
    assert states(cluster) == {"node-1": "running", "node-2": "running", "node-3": "running"}
    assert len({member.ip for member in cluster.members}) == 3
    assert all(Path(m.record.folder, "seed.iso").exists() for m in cluster.members)
    status = cluster.status()
    assert status.holder_running
    assert status.record.backend == "fake"


def test_up_is_idempotent_and_adds_what_is_missing(home: Path) -> None:
    first = {m.name: m.record.id for m in fleetbox.up("web", members=2).members}
    assert {m.name: m.record.id for m in fleetbox.up("web").members} == first
    more = fleetbox.up("web", members=3, names=["db"])
    assert list(states(more)) == ["node-1", "node-2", "db"]
    assert {m.name: m.record.id for m in more.members if m.name in first} == first


def test_up_with_fewer_members_removes_none_and_says_so(home: Path) -> None:
    fleetbox.up("web", members=3)
    events: list[Event] = []
    fleetbox.up("web", members=1, on_event=events.append)
    assert len(fleetbox.Cluster("web").members) == 3
    assert any(isinstance(e, Notice) and "removes none" in e.message for e in events)


def test_steps_are_reported_in_order(home: Path) -> None:
    events: list[Event] = []
    fleetbox.up("web", cold=True, on_event=events.append)
    done = [e.step for e in events if isinstance(e, Progress) and e.member == "node-1" and e.state == "done"]
    assert done == ["disk", "boot", "address"]


def test_stop_and_start_keep_disk_address_and_identity(home: Path) -> None:
    cluster = fleetbox.up("web", members=2)
    before = {m.name: m.record for m in cluster.members}
    disk = Path(before["node-1"].folder, "disk.raw")
    disk.write_bytes(b"precious")
    cluster.stop()
    assert set(states(cluster).values()) == {"stopped"}
    assert records.live_holder("web") is None, "a stopped cluster needs no holder"
    cluster.start(["node-1"])
    assert states(cluster) == {"node-1": "running", "node-2": "stopped"}
    fleetbox.up("web")
    after = {m.name: m.record for m in cluster.members}
    for name, record in before.items():
        assert (after[name].ip, after[name].mac, after[name].id) == (record.ip, record.mac, record.id)
        assert after[name].instance == record.instance
    assert disk.read_bytes()[:8] == b"precious"


def test_start_and_stop_of_what_is_so_already_change_nothing(home: Path) -> None:
    cluster = fleetbox.up("web")
    pid = cluster.members[0].record.handle.process.pid  # type: ignore[union-attr]
    cluster.start()
    assert cluster.members[0].record.handle.process.pid == pid  # type: ignore[union-attr]
    cluster.stop()
    cluster.stop()
    assert states(cluster) == {"node-1": "stopped"}


def test_add_takes_the_next_free_names(home: Path) -> None:
    cluster = fleetbox.up("web", members=2)
    assert [m.name for m in cluster.add(count=2)] == ["node-3", "node-4"]
    assert [m.name for m in cluster.add(["db"], cpus=1)] == ["db"]
    assert cluster.member("db").record.spec.cpus == 1
    with pytest.raises(ConflictError, match="db"):
        cluster.add(["db"])


def test_destroy_of_one_member_leaves_the_others(home: Path) -> None:
    cluster = fleetbox.up("web", members=2)
    folder = Path(cluster.member("node-1").record.folder)
    cluster.destroy(["node-1"])
    assert states(cluster) == {"node-2": "running"}
    assert not folder.exists()
    assert "node-1" not in paths.known_hosts("web").read_text()


def test_destroy_leaves_nothing_and_repeats(home: Path) -> None:
    before = {p for p in home.rglob("*") if "keys" not in p.parts}
    cluster = fleetbox.up("web", members=3, cold=True)
    handles = [m.record.handle for m in cluster.members]
    cluster.destroy()
    assert not any(is_alive(handle.process) for handle in handles if handle)
    left = {p for p in home.rglob("*") if p.is_file() and "keys" not in p.parts} - before
    assert not left
    cluster.destroy()
    with pytest.raises(NotFoundError):
        _ = cluster.record


def test_destroy_of_a_stopped_cluster(home: Path) -> None:
    cluster = fleetbox.up("web", members=2)
    cluster.stop()
    cluster.destroy()
    assert fleetbox.clusters() == []
    assert not paths.cluster_data_dir("web").exists()


def test_a_member_that_fails_is_undone_and_its_siblings_stay(home: Path, faults: Callable[[str], None]) -> None:
    faults("start:node-2=fail")
    with pytest.raises(PartialError) as failed:
        fleetbox.up("web", members=3)
    assert list(failed.value.failures) == ["node-2"]
    cluster = fleetbox.Cluster("web")
    assert states(cluster) == {"node-1": "running", "node-3": "running"}
    assert not paths.member_dir("web", "node-2").exists()
    faults("")
    fleetbox.up("web", members=3)
    assert set(states(cluster).values()) == {"running"}


@pytest.mark.parametrize(
    "fault", ["network=fail", "create=fail", "start=fail", "start=die", "boot=fail", "address=die"]
)
def test_a_new_cluster_whose_only_member_fails_leaves_nothing(
    home: Path, faults: Callable[[str], None], fault: str, until: Callable[[Callable[[], object]], None]
) -> None:
    faults(fault)
    with pytest.raises(FleetboxError):
        fleetbox.up("web", cold=True)
    assert fleetbox.clusters() == []
    assert not paths.cluster_data_dir("web").exists()
    until(lambda: not paths.cluster_state_dir("web").exists())


def test_a_guest_that_never_answers_ends_with_its_serial_log(home: Path, faults: Callable[[str], None]) -> None:
    faults("address=hang")
    with pytest.raises(MachineError) as failed:
        fleetbox.up("web", timeout_s=0.5)
    assert failed.value.details, "the end of the serial log belongs to the error"
    assert fleetbox.clusters() == []


def test_a_start_that_fails_keeps_the_disk(home: Path, faults: Callable[[str], None]) -> None:
    cluster = fleetbox.up("web")
    disk = Path(cluster.member("node-1").record.folder, "disk.raw")
    disk.write_bytes(b"precious")
    cluster.stop()
    faults("boot=die")
    with pytest.raises(MachineError):
        cluster.start()
    assert disk.read_bytes()[:8] == b"precious"
    assert cluster.member("node-1").state is MemberState.STOPPED
    faults("")
    cluster.start()
    assert cluster.member("node-1").state is MemberState.RUNNING


def test_a_machine_that_ends_by_itself_becomes_stopped(
    home: Path, faults: Callable[[str], None], until: Callable[[Callable[[], object]], None]
) -> None:
    faults("boot:node-1=die-after:0.2")
    cluster = fleetbox.up("web", members=2, cold=True)
    until(lambda: cluster.member("node-1").record.state is MemberState.STOPPED)
    assert cluster.member("node-1").record.error
    assert cluster.member("node-2").state is MemberState.RUNNING
    with pytest.raises(MachineError, match="not running"):
        cluster.member("node-1").ssh("true")


def test_the_holder_ends_with_its_last_machine(
    home: Path, faults: Callable[[str], None], until: Callable[[Callable[[], object]], None]
) -> None:
    faults("boot=die-after:0.2")
    cluster = fleetbox.up("web", cold=True)
    until(lambda: records.live_holder("web") is None)
    assert cluster.member("node-1").record.state is MemberState.STOPPED


def test_some_of_several_failing_does_the_rest(home: Path, faults: Callable[[str], None]) -> None:
    cluster = fleetbox.up("web", members=3)
    cluster.stop()
    faults("start:node-3=fail")
    with pytest.raises(PartialError) as failed:
        cluster.start()
    assert set(failed.value.failures) == {"node-3"}
    assert states(cluster) == {"node-1": "running", "node-2": "running", "node-3": "stopped"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"members": 0},
        {"members": -1},
        {"members": 100000},
        {"names": ["a", "a"]},
        {"names": ["No_Good"]},
        {"cpus": 0},
        {"cpus": -2},
        {"cpus": 4096},
        {"memory_bytes": 1},
        {"memory_bytes": 1 << 60},
        {"disk_bytes": 1},
        {"boot": "nonsense"},
        {"cpus": 1 << 70},
        {"kernel": "/nowhere/vmlinuz"},
        {"fixtures": [fleetbox.Fixture("/nowhere", "/srv")]},
        {"backend": "unheard-of"},
    ],
    ids=str,
)
def test_what_can_never_work_is_refused_and_leaves_nothing(
    home: Path, wrong: dict[str, object], until: Callable[[Callable[[], object]], None]
) -> None:
    with pytest.raises(UsageError):
        fleetbox.up("web", **wrong)  # type: ignore[arg-type]
    assert fleetbox.clusters() == []
    until(lambda: not paths.cluster_state_dir("web").exists())


def test_more_memory_than_the_host_has_is_refused(home: Path) -> None:
    with pytest.raises(HostError, match="memory"):
        fleetbox.up("web", memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 2)


def test_another_backend_than_the_recorded_one_is_refused(home: Path) -> None:
    fleetbox.up("web")
    with pytest.raises(ConflictError, match="fake"):
        fleetbox.up("web", backend="qemu")


def test_unknown_clusters_and_members_start_no_holder(home: Path) -> None:
    with pytest.raises(NotFoundError):
        fleetbox.Cluster("web").stop()
    fleetbox.up("web")
    with pytest.raises(NotFoundError, match="node-9"):
        fleetbox.Cluster("web").stop(["node-9"])
    assert not paths.cluster_state_dir("nowhere").exists()


def test_a_record_that_cannot_be_read_is_named_kept_and_hides_no_other(home: Path) -> None:
    fleetbox.up("good")
    fleetbox.up("bad").stop()
    record = paths.cluster_record("bad")
    whole = record.read_bytes()
    record.write_bytes(whole[: len(whole) // 2])
    for attempt in (lambda: fleetbox.up("bad"), fleetbox.Cluster("bad").destroy, fleetbox.Cluster("bad").start):
        with pytest.raises(RecordError, match=r"cluster\.json"):
            attempt()
    assert record.read_bytes() == whole[: len(whole) // 2], "it is neither overwritten nor dropped"
    assert paths.member_dir("bad", "node-1").exists()
    assert [c.name for c in fleetbox.clusters()] == ["good"]
    fleetbox.up("good", members=2)
    record.write_bytes(whole)


def test_a_folder_with_something_in_it_is_never_overwritten(home: Path) -> None:
    folder = paths.member_dir("web", "node-1")
    folder.mkdir(parents=True)
    (folder / "disk.raw").write_bytes(b"somebody's")
    with pytest.raises(FleetboxError, match="exists already"):
        fleetbox.up("web")
    assert (folder / "disk.raw").read_bytes() == b"somebody's"


def test_refs(home: Path) -> None:
    one = fleetbox.up("one", members=2)
    fleetbox.up("solo")
    assert fleetbox.resolve("node-2") == one.member("node-2")
    assert fleetbox.resolve("one") == one
    assert fleetbox.resolve_member("solo").ref == "solo/node-1"
    assert fleetbox.resolve("node-1", cluster="solo").name == "node-1"
    member_id = one.member("node-2").record.id
    assert fleetbox.resolve(member_id[:8]) == one.member("node-2")
    with pytest.raises(FleetboxError, match="ambiguous"):
        fleetbox.resolve("node-1")
    with pytest.raises(NotFoundError):
        fleetbox.resolve("one/node-9")


def test_exec_names_what_cannot_be_done(home: Path) -> None:
    cluster = fleetbox.up("web", members=2)
    cluster.stop()
    with pytest.raises(MachineError, match="no member of 'web' is running"):
        cluster.exec("true")


def test_exec_runs_on_all_members_and_collects_failures(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ssh(member: fleetbox.Member, command: str, *, timeout_s: float | None, check: bool) -> fleetbox.SSHResult:
        if check and member.name == "node-2":
            raise MachineError("failed there")
        return fleetbox.SSHResult(f"{command} on {member.name} in {timeout_s}", "", 0)

    monkeypatch.setattr(fleetbox.Member, "ssh", ssh)
    cluster = fleetbox.up("web", members=3)
    cluster.stop(["node-3"])
    said = {name: result.stdout for name, result in cluster.exec("uptime", timeout_s=5).items()}
    assert said == {"node-1": "uptime on node-1 in 5", "node-2": "uptime on node-2 in 5"}
    with pytest.raises(PartialError) as raised:
        cluster.exec("uptime", check=True)
    assert set(raised.value.failures) == {"node-2"}


def test_a_member_in_a_with_block_is_destroyed_and_its_logs_are_lines(home: Path) -> None:
    cluster = fleetbox.up("web", cold=True)
    with cluster.add(["late"], cold=True)[0] as late:
        assert "late login:" in list(late.logs())
        late.stop()
        assert list(late.logs(follow=True))[-1].startswith("reboot: Power down")
    assert states(cluster) == {"node-1": "running"}
    late = fleetbox.Member("web", "late")
    with pytest.raises(NotFoundError):
        late.logs()
