"""Prune takes what nobody owns, says why, and touches nothing else."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fleetbox
from fleetbox import paths, records
from fleetbox.backends.host.disklock import processes_on
from fleetbox.holder.images.store import ImageRecord, ImageStore
from fleetbox.host import PruneItem, prune
from fleetbox.identity import is_alive
from fleetbox.records import MemberState

Until = Callable[[Callable[[], object]], None]


def kill_holder(cluster: str = "web") -> None:
    holder = records.live_holder(cluster)
    assert holder is not None
    os.kill(holder.process.pid, signal.SIGKILL)
    while is_alive(holder.process):
        pass


def kill_machine(cluster: str, name: str) -> None:
    handle = records.read_cluster(cluster).members[name].handle
    assert handle is not None
    os.kill(handle.process.pid, signal.SIGKILL)
    while is_alive(handle.process):
        pass


def files(home: Path) -> dict[str, bytes]:
    """Every file with its content; logs and locks, which looking may write, are left out."""
    return {
        str(path): path.read_bytes()
        for path in sorted(home.rglob("*"))
        if path.is_file() and not path.is_symlink() and not path.name.endswith((".log", ".lock", ".jsonl"))
    }


def kinds(items: tuple[PruneItem, ...]) -> list[str]:
    return sorted(item.kind for item in items)


def test_there_is_nothing_to_prune_of_what_somebody_owns(home: Path) -> None:
    running, stopped = fleetbox.up("web", members=2), fleetbox.up("old", cold=True)
    stopped.stop()
    fleetbox.snapshots.save("web", name="kept")
    before = files(home)
    assert prune().items == ()
    assert files(home) == before
    assert {m.state for m in running.members} == {MemberState.RUNNING}
    stopped.start()


def test_machines_that_wait_for_a_holder_are_adopted_afterwards(home: Path) -> None:
    cluster = fleetbox.up("web", members=2)
    handles = [m.record.handle for m in cluster.members]
    kill_holder()
    found = prune().items
    assert {"holder.sock", "holder.pid"} <= {Path(i.name).name for i in found}
    assert {i.kind for i in found} == {"file"}, "what led to the holder alone"
    assert prune().items == ()
    cluster.add()
    assert [m.record.handle for m in cluster.members][:2] == handles


def test_dead_clusters_lose_their_sockets_and_nothing_else(home: Path) -> None:
    cluster = fleetbox.up("web", members=2)
    disk = Path(cluster.member("node-1").record.folder, "disk.qcow2")
    disk = disk if disk.exists() else disk.with_suffix(".raw")
    content = disk.read_bytes()
    kill_holder()
    for member in cluster.members:
        kill_machine("web", member.name)
    would = prune(dry_run=True).items
    assert [(i.kind, i.removed) for i in would] == [("runtime folder", False)]
    assert paths.cluster_runtime_dir("web").exists()
    did = prune().items
    assert [(i.kind, i.name, i.reason) for i in did] == [(i.kind, i.name, i.reason) for i in would]
    assert did[0].removed
    assert not paths.cluster_runtime_dir("web").exists()
    assert disk.read_bytes() == content
    cluster.start()


def test_half_made_members_and_their_machines_go(
    home: Path, faults: Callable[[str], None], script: Callable[[str], Any], until: Until
) -> None:
    cluster = fleetbox.up("web")
    faults("address:node-2=hang")
    adding = script('fleetbox.Cluster("web").add(["node-2"], cold=True)')
    until(lambda: "node-2" in cluster.record.members and cluster.member("node-2").record.handle)
    half = cluster.member("node-2").record.handle
    assert half is not None
    kill_holder()
    adding.end()
    assert [i.name for i in prune(dry_run=True).items if i.kind == "member"] == ["web/node-2"]
    assert is_alive(half.process)
    assert [i.name for i in prune().items if i.kind == "member"] == ["web/node-2"]
    assert not is_alive(half.process)
    assert not paths.member_dir("web", "node-2").exists()
    assert [m.name for m in cluster.members] == ["node-1"]
    assert cluster.member("node-1").state is MemberState.RUNNING
    assert [e.state for e in cluster.events() if e.member == "node-2" and e.event == "member"][-1] == "removed"


def test_a_machine_of_a_cluster_whose_files_are_gone_is_ended_and_its_disk_kept(home: Path) -> None:
    cluster = fleetbox.up("web", members=2)
    handles = [m.record.handle for m in cluster.members]
    kill_holder()
    paths.cluster_record("web").unlink()  # somebody gave the cluster up
    folder = paths.member_dir("web", "node-2")
    for path in folder.iterdir():
        path.unlink()  # the lock of its disk as well: it is known by what it has open
    found = prune()
    assert not any(is_alive(handle.process) for handle in handles if handle)
    assert kinds(found.items).count("process") == 2
    kept = [i for i in found.items if i.kept]
    assert [i.name for i in kept] == [str(paths.member_dir("web", "node-1"))]
    assert "disk" in kept[0].reason
    assert list(paths.member_dir("web", "node-1").glob("disk.*"))
    assert not folder.exists()
    assert kinds(prune().items) == ["folder"], "it is named until somebody takes care of it"


def test_a_record_that_cannot_be_read_protects_everything(home: Path) -> None:
    cluster = fleetbox.up("web", members=1)
    handle = cluster.member("node-1").record.handle
    assert handle is not None
    kill_holder()
    whole = paths.cluster_record("web").read_bytes()
    paths.cluster_record("web").write_bytes(whole[:-20])
    blob = paths.blobs_dir() / f"{'ab' * 32}.raw"
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(b"may be its base")
    before = files(home)
    report = prune(images=True, templates=False)
    assert [(i.kind, i.kept) for i in report.items] == [("cluster", True)]
    assert "cluster.json" in report.items[0].reason
    after = files(home)
    assert {k: v for k, v in after.items() if "unreadable" not in k} == before
    assert is_alive(handle.process)
    paths.cluster_record("web").write_bytes(whole)
    blob.unlink()
    assert cluster.member("node-1").state is MemberState.RUNNING


def test_a_cluster_that_cannot_be_locked_is_named_and_hides_no_other(home: Path) -> None:
    fleetbox.up("dead", cold=True)
    kill_holder("dead")
    kill_machine("dead", "node-1")
    paths.holder_lock("odd").mkdir(parents=True)  # where the lock should be there is a folder
    report = prune()
    failed = [i for i in report.items if not i.removed]
    assert [(i.kind, i.name) for i in failed] == [("cluster", "odd")]
    assert "lock" in failed[0].reason
    assert [i.kind for i in report.items if i.removed] == ["runtime folder"]
    paths.holder_lock("odd").rmdir()
    assert [i.kind for i in prune().items] == ["folder"]
    assert not paths.cluster_state_dir("odd").exists()


def test_what_interrupted_writers_left_goes(home: Path) -> None:
    cluster = fleetbox.up("web", cold=True)
    cluster.stop()
    temporary = paths.cluster_state_dir("web") / ".cluster.json.x1y2z3"
    temporary.write_bytes(b"{")
    stray = paths.member_dir("web", "node-9")
    stray.mkdir()
    (stray / "seed.iso").write_bytes(b"x")
    unknown = paths.runtime_dir() / "0123456789ab"
    unknown.mkdir()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(unknown / "holder.sock"))
    old, fresh = paths.downloads_dir() / "aa.part", paths.downloads_dir() / "bb.part"
    for part in (old, fresh):
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert kinds(prune().items) == ["download", "file", "folder", "runtime folder"]
    assert [p.exists() for p in (temporary, stray, unknown, old, fresh)] == [False, False, False, False, True]
    cluster.start()


def stored_image(name: str) -> str:
    """Put an image there, as an import would."""
    store = ImageStore()
    with store.staging() as folder:
        disk = folder / "disk.raw"
        disk.write_bytes(name.encode() * 512)
        digest = hashlib.sha256(disk.read_bytes()).hexdigest()
        store.publish(folder, disk, ImageRecord(digest, name, "x86_64", 1, time.time(), "firmware", names=(name,)))
    return digest


def test_images_and_templates_go_only_when_asked_and_when_nothing_stands_on_them(home: Path) -> None:
    cluster = fleetbox.up("web")
    unused, used = stored_image("unused"), stored_image("used")
    template = fleetbox.templates.list_templates()
    assert len(template) == 1
    assert prune().items == ()
    cluster.stop()
    record = paths.cluster_record("web")
    record.write_text(record.read_text().replace('"image_digest": ""', f'"image_digest": "{used}"'))
    assert [(i.kind, i.name) for i in prune(images=True, dry_run=True).items] == [("image", "unused")]
    assert [(i.kind, i.name) for i in prune(images=True).items] == [("image", "unused")]
    assert not (paths.blobs_dir() / f"{unused}.raw").exists()
    assert (paths.blobs_dir() / f"{used}.raw").exists()
    assert [i.kind for i in prune(templates=True).items] == ["template"]
    assert fleetbox.templates.list_templates() == []


def test_two_at_once_do_not_disturb_each_other_or_anybody(home: Path) -> None:
    fleetbox.up("web")
    fleetbox.up("dead", members=2)
    kill_holder("dead")
    for member in fleetbox.Cluster("dead").members:
        kill_machine("dead", member.name)
    command = [sys.executable, "-m", "fleetbox_cli", "prune", "--json"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    fleetbox.up("dead")  # meanwhile
    assert [(one.communicate()[0] is not None, one.returncode) for one in both] == [(True, 0)] * 3
    assert {m.state for m in fleetbox.Cluster("dead").members} == {MemberState.RUNNING}
    assert {m.state for m in fleetbox.Cluster("web").members} == {MemberState.RUNNING}


def test_another_installation_is_not_seen(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = fleetbox.up("web")
    kill_holder()
    handle = cluster.member("node-1").record.handle
    assert handle is not None
    with monkeypatch.context() as patch:
        patch.setenv("FLEETBOX_HOME", str(tmp_path / "other"))
        assert prune(images=True, templates=True).items == ()
        assert not (tmp_path / "other").exists() or not any((tmp_path / "other").rglob("cluster.json"))
    assert is_alive(handle.process)
    assert [pid for pid, _ in processes_on(paths.data_dir() / "clusters")] == [handle.process.pid]
    assert list(processes_on(tmp_path)) == []
