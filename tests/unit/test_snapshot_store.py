"""The store of snapshots: landing, lookup, removal, what they pin, and what crashes and damage leave."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fleetbox import paths
from fleetbox.errors import (
    AmbiguousError,
    ConflictError,
    DiskError,
    HostError,
    NotFoundError,
    PartialError,
    RecordError,
    UsageError,
)
from fleetbox.holder.snapshots.store import SnapshotStore, blobs_under, check_identity
from fleetbox.records import MemberRecord, MemberState
from fleetbox.snapshot import Snapshot
from fleetbox.specs import MemberSpec

BASE = b"base disk" * 1000
DIGEST = hashlib.sha256(BASE).hexdigest()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SnapshotStore:
    monkeypatch.setenv("FLEETBOX_HOME", str(tmp_path / "home"))
    return SnapshotStore()


def snapshot(number: int, name: str = "", digest: str = DIGEST, **changes: Any) -> Snapshot:
    member = MemberRecord("a" * 16, "node-1", MemberState.RUNNING, MemberSpec(), digest, "", "", "", 0.0)
    return Snapshot(
        id=f"{number:016x}",
        name=name,
        description="",
        kind="member",
        created_at=time.time() + number,
        cluster="lab",
        subnet="",
        backend="fake",
        accelerator="none",
        identity={"backend": "fake"},
        members={"node-1": member},
        blobs=blobs_under([member]),
        **changes,
    )


def put(store: SnapshotStore, number: int, name: str = "", **changes: Any) -> Snapshot:
    with store.staging() as folder:
        (folder / "node-1").mkdir()
        (folder / "node-1" / "state").write_bytes(b"state")
        return store.publish(folder, snapshot(number, name, **changes))


def names() -> list[str]:
    return sorted(p.name for p in paths.snapshots_dir().iterdir())


def test_a_snapshot_lands_whole(store: SnapshotStore) -> None:
    made = put(store, 1, "first")
    assert store.readable() == ([made], [])
    assert [(f.path, f.size_bytes) for f in made.files] == [("node-1/state", 5)]
    assert (store.folder(made) / "node-1" / "state").read_bytes() == b"state"
    assert names() == [".lock", made.id]


def test_what_is_not_published_leaves_nothing(store: SnapshotStore) -> None:
    with store.staging() as folder:
        (folder / "node-1").mkdir()
    assert names() == [".lock"]


def test_a_name_is_given_once(store: SnapshotStore) -> None:
    put(store, 1, "first")
    with pytest.raises(ConflictError, match="already"):
        put(store, 2, "first")
    with pytest.raises(ConflictError):
        put(store, 1)
    assert names() == [".lock", f"{1:016x}"]
    for bad in ("../x", "A", "-x", "x" * 64, "0123456789abcdef", ".new-x"):
        with pytest.raises(UsageError):
            store.check_free(bad)


def test_found_by_id_name_or_prefix(store: SnapshotStore) -> None:
    one, two = put(store, 0x1111 << 48, "one"), put(store, 0x1112 << 48)
    assert store.find(one.id) == store.find("one") == store.find("1111") == one
    assert store.find("11120") == two
    put(store, 0x1111 << 48 | 1)
    with pytest.raises(AmbiguousError, match="1111"):
        store.find("1111")
    for missing in ("two", "111", "ffff", "one/../one", ""):
        with pytest.raises(NotFoundError):
            store.find(missing)


def test_removed_ones_are_gone_and_the_others_stay(store: SnapshotStore) -> None:
    one, two = put(store, 1, "one"), put(store, 2, "two")
    with pytest.raises(NotFoundError):
        store.remove(["three"])
    with pytest.raises(PartialError) as failed:
        store.remove(["three", "one"])
    assert list(failed.value.failures) == ["three"]
    assert store.readable()[0] == [two]
    assert not store.folder(one).exists()


@pytest.mark.parametrize("damage", [b"", b"{", b'{"schema": 99}', b'{"schema": 1, "id": 3}'])
def test_an_unreadable_one_is_named_kept_and_protects_everything(store: SnapshotStore, damage: bytes) -> None:
    good, bad = put(store, 1, "good"), put(store, 2, "bad")
    record = store.folder(bad) / "snapshot.json"
    record.write_bytes(damage)
    found, [error] = store.readable()
    assert found == [good]
    assert bad.id in str(error)
    with pytest.raises(RecordError, match=bad.id):
        store.find(bad.id)
    with pytest.raises(RecordError):
        store.remove([bad.id])
    with pytest.raises(ConflictError, match=bad.id):
        store.pins()
    store.sweep()
    assert record.read_bytes() == damage
    record.unlink()
    with pytest.raises(ConflictError, match=bad.id):
        store.pins()


def test_a_record_under_another_id_is_not_believed(store: SnapshotStore) -> None:
    made = put(store, 1)
    store.folder(made).rename(paths.snapshots_dir() / ("f" * 16))
    assert store.readable()[0] == []
    with pytest.raises(RecordError):
        store.find("f" * 16)


def test_pins_name_the_snapshots_also_those_being_made(store: SnapshotStore) -> None:
    put(store, 1, "one")
    other = "ef" * 32
    with store.staging() as folder:
        store.announce(folder, snapshot(2, "two", digest=other))
        assert store.pins() == {DIGEST: ["the snapshot one"], other: ["the snapshot two"]}
    assert list(store.pins()) == [DIGEST]


def test_a_template_s_disk_stands_on_the_image_s() -> None:
    record = snapshot(1).members["node-1"]
    cloned = msgspec.structs.replace(record, base="cd" * 32)
    assert [(b.digest, b.format, b.image, b.backing) for b in blobs_under([cloned, record])] == [
        (DIGEST, "raw", True, ""),
        ("cd" * 32, "qcow2", False, DIGEST),
    ]


def test_base_disks_are_verified_and_again_once_they_change(store: SnapshotStore) -> None:
    made = put(store, 1)
    with pytest.raises(DiskError, match="lost a base disk"):
        store.verify(made)
    blob = paths.blobs_dir() / f"{DIGEST}.raw"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(BASE)
    store.verify(made)
    store.verify(made)
    with blob.open("r+b") as file:
        file.write(b"B")
    os.utime(blob, (0, 0))
    with pytest.raises(DiskError, match="damaged"):
        store.verify(made)


def test_what_a_crashed_maker_left_is_swept_and_a_live_one_s_is_not(store: SnapshotStore) -> None:
    with store.staging() as live:
        crashed = paths.snapshots_dir() / ".new-crashed"
        crashed.mkdir()
        assert store.sweep(dry_run=True) == [".new-crashed"]
        assert crashed.exists()
        assert store.sweep() == [".new-crashed"]
        assert live.exists()
        assert not crashed.exists()
        fd = os.open(live, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(fd)


def test_another_kind_of_host_is_told_apart() -> None:
    there = msgspec.structs.replace(snapshot(1), identity={"backend": "qemu", "cpu": "max", "accelerator": "tcg"})
    check_identity(there, {"backend": "qemu", "cpu": "max", "accelerator": "tcg"})
    with pytest.raises(HostError) as refused:
        check_identity(there, {"backend": "qemu", "cpu": "host", "accelerator": "kvm"})
    assert refused.value.why == "it was taken with accelerator tcg, here kvm; cpu max, here host"
    with pytest.raises(HostError):
        check_identity(there, {"backend": "qemu", "cpu": "max", "accelerator": "tcg", "version": "9"})
